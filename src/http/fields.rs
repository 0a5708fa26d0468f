//! Header fields of what is asked for most, put together without a copy.

use bytes::Bytes;
use http::header::ETAG;
use http::{HeaderMap, HeaderValue};

use super::CONTENT_DIGEST;
use crate::oci::media_type;

/// Fields of an answer with content: room is made for them once.
pub(super) const FIELDS: usize = 12;

/// Says which content this is, given its digest in quotes: as its entity tag, and without them.
pub(super) fn insert_digest(headers: &mut HeaderMap, quoted: &Bytes) {
    let bare = quoted.slice(1..quoted.len() - 1);
    for (name, value) in [(CONTENT_DIGEST, bare), (ETAG, quoted.clone())] {
        if let Ok(value) = HeaderValue::from_maybe_shared(value) {
            headers.insert(name, value);
        }
    }
}

/// The field of a manifest's type; `None` for what cannot stand there.
pub(super) fn content_type(media_type: &str) -> Option<HeaderValue> {
    let known = media_type::MANIFESTS.into_iter().find(|known| *known == media_type);
    known.map(HeaderValue::from_static).or_else(|| HeaderValue::try_from(media_type).ok())
}

//! Header fields that several handlers set, built without a copy where they are frequent.

use bytes::Bytes;
use http::header::ETAG;
use http::{HeaderMap, HeaderName, HeaderValue};

use super::CONTENT_DIGEST;
use crate::oci::media_type;

/// Header fields of a response with content. Their memory is allocated once.
pub(super) const FIELDS: usize = 12;

/// Largest value in bytes of a header that may repeat text of a client.
const MAX_VALUE_BYTES: usize = 4 << 10;

/// Whether a line of `If-None-Match` names an entity tag, by weak comparison (RFC 9110, section 13.1.2). A line with
/// other characters than visible ASCII names none.
pub(super) fn names_tag(line: &[u8], etag: &[u8]) -> bool {
    // The usual case.
    if line == etag {
        return true;
    }
    let is_text = |line: &&str| line.bytes().all(|byte| byte == b'\t' || matches!(byte, b' '..=b'~'));
    let mut tags =
        str::from_utf8(line).ok().filter(is_text).into_iter().flat_map(|line| line.split(',')).map(str::trim);
    tags.any(|tag| tag == "*" || tag.strip_prefix("W/").unwrap_or(tag).as_bytes() == etag)
}

/// Sets the digest of the content and its entity tag. `quoted` is the digest in double quotes.
pub(super) fn insert_digest(headers: &mut HeaderMap, quoted: &Bytes) {
    let bare = quoted.slice(1..quoted.len() - 1);
    for (name, value) in [(CONTENT_DIGEST, bare), (ETAG, quoted.clone())] {
        if let Ok(value) = HeaderValue::from_maybe_shared(value) {
            headers.insert(name, value);
        }
    }
}

/// The media type of a manifest as a header; `None` if it contains characters that a header cannot have.
pub(super) fn content_type(media_type: &str) -> Option<HeaderValue> {
    /// The usual types. Making a value checks each byte, so each is made once.
    static KNOWN: [HeaderValue; media_type::MANIFESTS.len()] = [
        HeaderValue::from_static(media_type::MANIFESTS[0]),
        HeaderValue::from_static(media_type::MANIFESTS[1]),
        HeaderValue::from_static(media_type::MANIFESTS[2]),
        HeaderValue::from_static(media_type::MANIFESTS[3]),
    ];
    let known = KNOWN.iter().find(|known| known.as_bytes() == media_type.as_bytes());
    known.cloned().or_else(|| HeaderValue::try_from(media_type).ok())
}

/// The `Range` header of an upload: what has been received (distribution-spec, "Pushing a blob in chunks"). Docker
/// expects `0-0` for nothing as well.
pub(super) fn received_range(length: u64) -> String {
    format!("0-{}", length.saturating_sub(1))
}

/// Sets a header. The header is omitted if its value contains characters that a header cannot have, or is longer than
/// [`MAX_VALUE_BYTES`] because it repeats text of a client.
pub(super) fn insert(headers: &mut HeaderMap, name: HeaderName, value: String) {
    if value.len() <= MAX_VALUE_BYTES
        && let Ok(value) = HeaderValue::try_from(value)
    {
        headers.insert(name, value);
    }
}

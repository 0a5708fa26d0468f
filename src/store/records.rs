//! The records of the store's contract: what a name means, what belongs to a repository, and why content is kept.

use std::sync::{Arc, OnceLock};
use std::time::SystemTime;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::clock::{LastNoted, Time};
use crate::oci::{Digest, Manifest, RepoId};

/// Why content is kept. Cached content may be evicted and fetched again. Pushed content stays until it is deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Class {
    Cached,
    Pushed,
}

/// The manifest that a tag points to, and when that was last confirmed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TagRecord {
    pub digest: Digest,
    /// Shared, because each hit copies the record.
    pub media_type: Arc<str>,
    /// When the upstream last confirmed the tag; for a local tag, when it was pushed. Whole seconds.
    pub confirmed: SystemTime,
}

/// A manifest that belongs to a repository, as it is served there.
#[derive(Debug)]
pub struct StoredManifest {
    pub digest: Digest,
    /// The digest in double quotes: the manifest's entity tag (RFC 9110, section 8.8.3), built once.
    pub quoted_digest: Bytes,
    pub media_type: String,
    pub bytes: Bytes,
    /// The content that the manifest needs. Layers that are fetched from elsewhere are left out.
    children: Box<[Digest]>,
    /// See [`StoredManifest::prepared`].
    prepared: OnceLock<Bytes>,
    last_noted: LastNoted,
}

/// A digest that a repository refers to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member {
    /// Length of the content in bytes, if a descriptor or the upstream told it.
    pub size: Option<u64>,
    /// Whether the repository has the right to read the content: it was pushed to it, or its upstream sent or confirmed
    /// it. False: only a manifest of the repository refers to it. The author of a manifest can write any digest, so
    /// this does not make content of another repository readable.
    pub proven: bool,
}

/// When cached content was last used, as the index keeps it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LastUse {
    pub digest: Digest,
    pub at: Time,
    /// Whether the content was in the protected segment (see `cache::eviction_order`).
    pub protected: bool,
}

/// Something that the collector found unreferenced and may remove.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(in crate::store) enum Unreferenced {
    /// Content that no local repository links to.
    Content(Digest),
    /// A blob link of a local repository in which no manifest refers to the blob.
    Member(RepoId, Digest),
    /// A manifest of a local repository that no tag reaches.
    Manifest(RepoId, Digest),
}

/// One page of a list, in ASCII order.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Page {
    pub items: Vec<String>,
    /// Whether another page follows.
    pub more: bool,
}

// === impl Class ===

impl Class {
    /// The value of the metric label `class` and of the JSON field of the same name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Cached => "cached",
            Self::Pushed => "pushed",
        }
    }
}

// === impl StoredManifest ===

impl StoredManifest {
    /// Maximum length in bytes of what [`StoredManifest::prepared`] keeps.
    pub const MAX_PREPARED_BYTES: usize = 640;

    /// `bytes` is the manifest as it was received; `manifest` is the same, parsed.
    pub fn new(digest: Digest, media_type: String, bytes: Bytes, manifest: &Manifest) -> Self {
        let needed = manifest.children.iter().filter(|child| !child.optional);
        let children = needed.map(|child| child.digest.clone()).collect();
        let quoted_digest = digest.quoted();
        let (prepared, last_noted) = (OnceLock::new(), LastNoted::default());
        Self { digest, quoted_digest, media_type, bytes, children, prepared, last_noted }
    }

    /// Returns the bytes that `prepare` makes of the manifest, for a protocol that sends the same bytes with each
    /// response. They are made by the first call and kept in memory with the manifest. `None` if they are longer than
    /// [`StoredManifest::MAX_PREPARED_BYTES`], which bounds the memory.
    pub fn prepared(&self, prepare: impl Fn(&Self) -> Bytes) -> Option<&Bytes> {
        if let Some(prepared) = self.prepared.get() {
            return Some(prepared);
        }
        let prepared = prepare(self);
        if prepared.len() > Self::MAX_PREPARED_BYTES {
            return None;
        }
        Some(self.prepared.get_or_init(|| prepared))
    }

    pub(in crate::store) fn children(&self) -> &[Digest] {
        &self.children
    }

    /// Whether a use of the manifest is to be noted now: at most once in a while, so that hits stay cheap.
    pub(in crate::store) fn is_use_due(&self) -> bool {
        self.last_noted.is_due()
    }

    /// Approximate bytes of memory. The prepared bytes count from the start, because a cache asks for the weight once.
    pub(in crate::store) fn weight(&self) -> usize {
        self.bytes.len() + self.children.len() * size_of::<Digest>() + Self::MAX_PREPARED_BYTES
    }
}

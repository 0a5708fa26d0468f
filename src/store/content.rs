//! The contract for content: immutable bytes by digest.

use std::fmt::Debug;

use async_trait::async_trait;
use bytes::Bytes;

use super::error::StoreError;
use super::file_range::FileRange;
use super::spool::Spool;
use crate::oci::{Algorithm, Digest, RepoId};

/// Content by digest, under these guarantees:
///
/// - **Atomicity.** Content appears under its digest complete, or not at all. It never changes there. Concurrent commits of one
///   digest all succeed; the content is stored and counted once.
/// - **Integrity.** Content whose stored bytes turn out not to have its digest counts as missing and is moved aside.
/// - **Readers.** An open range stays readable, whatever is removed afterwards. Content with a reader is not evicted.
/// - **Class.** Cached content never replaces pushed content. Pushed content is removed by the collector alone, after no
///   local repository has linked it for the grace period.
/// - **Mounts.** [`Content::adopt`] succeeds only if the content is stored, and from then on it is pushed content: no eviction
///   and no collection that runs at the same time can remove it.
/// - **Room.** [`Content::begin`] reserves room within the bounds of the cache, and evicts for it, the least recently used
///   content first and no more than needed. A manifest is evicted together with its names. Where it is known that not enough
///   can be evicted, nothing is. A spool that is dropped releases its room.
/// - **Events.** As for [`Names`](super::Names).
///
/// Who may read content is not asked here: see [`Names::member`](super::Names::member). Content is handed out as a range of an
/// open file; an implementation that keeps content elsewhere brings it to a local file first.
#[async_trait]
pub trait Content: Debug + Send + Sync {
    /// All of the content, if it can be opened without waiting. `None` means that [`Content::open`] must be asked.
    fn try_open(&self, digest: &Digest) -> Option<FileRange>;

    /// All of the content; `None` if it is not stored.
    async fn open(&self, digest: &Digest) -> Result<Option<FileRange>, StoreError>;

    /// As [`Content::open`], for content of a repository whose length is in doubt. The length is compared with the
    /// names of the repository, and the content is hashed if they differ.
    async fn open_doubtful(&self, repo: &RepoId, digest: &Digest) -> Result<Option<FileRange>, StoreError>;

    /// The content of a manifest, verified, whichever repository it is stored for; `None` if it is not stored.
    async fn read_manifest(&self, digest: &Digest) -> Result<Option<Bytes>, StoreError>;

    /// Begins to receive cached content that will be hashed with `algorithm`. `expected` is its length in bytes, if known.
    ///
    /// # Errors
    /// [`StoreError::NoRoom`] when not enough room can be made.
    async fn begin(&self, algorithm: Algorithm, expected: Option<u64>) -> Result<Spool, StoreError>;

    /// Makes stored content part of a local repository, durably. False, without effect, if it is not stored.
    async fn adopt(&self, repo: &RepoId, digest: &Digest) -> Result<bool, StoreError>;
}

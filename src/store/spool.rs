//! The contract for receiving cached content.

use std::fmt::Debug;

use async_trait::async_trait;
use bytes::Bytes;

use super::error::StoreError;
use super::file_range::FileRange;
use crate::oci::{Digest, RepoId};

/// Cached content that is being received.
pub type Spool = Box<dyn SpoolFile>;

/// A local file that is readable while it grows. Dropped without a commit, it is removed, and nothing was ever visible under
/// its digest.
#[async_trait]
pub trait SpoolFile: Debug + Send + Sync {
    /// The first `length` bytes, which must have been appended. They stay readable after a commit and after the spool is
    /// dropped.
    fn range_to(&self, length: u64) -> FileRange;

    /// Appends `chunks`: all of them, or nothing. The new length in bytes, once they can be read.
    async fn append(&self, chunks: Vec<Bytes>) -> Result<u64, StoreError>;

    /// Bytes received.
    fn length(&self) -> u64;

    /// The digest of what was received.
    async fn digest(&self) -> Result<Digest, StoreError>;

    /// Stores what was received under `digest`, as cached content, and makes it readable in `repo`. It need not be durable when
    /// this returns. Goes on to its end even if the caller stops waiting.
    ///
    /// # Errors
    /// [`StoreError::DigestMismatch`] if something else was received; nothing is stored then.
    async fn commit(self: Box<Self>, digest: &Digest, repo: &RepoId) -> Result<(), StoreError>;
}

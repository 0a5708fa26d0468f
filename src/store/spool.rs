//! The contract for receiving cached content.

use std::fmt::Debug;

use async_trait::async_trait;
use bytes::Bytes;

use super::error::StoreError;
use super::file_range::FileRange;
use crate::oci::{Digest, RepoId};

/// Cached content that is being received.
pub type Spool = Box<dyn SpoolFile>;

/// A local file that is readable while it is received. Its bytes may arrive in any order, each of them once. Dropped
/// without a commit, it is removed, and nothing was ever visible under its digest.
#[async_trait]
pub trait SpoolFile: Debug + Send + Sync {
    /// The first `length` bytes. Only those that were written may be read from it. They stay readable after a commit
    /// and after the spool is dropped.
    fn range_to(&self, length: u64) -> FileRange;

    /// Writes `chunks` at `position`, in bytes: all of them, or nothing. Returns the position after them, once they
    /// can be read.
    ///
    /// # Errors
    /// Those of the disk; an error also if some of these bytes were written before.
    async fn write_at(&self, position: u64, chunks: Vec<Bytes>) -> Result<u64, StoreError>;

    /// Whether bytes may be written beyond missing ones, as far as that is known: the length was expected, and the
    /// file system can reserve blocks.
    fn may_have_gaps(&self) -> bool;

    /// Makes sure that bytes can be written beyond missing ones: reserves the blocks of all of the expected length.
    /// False if that is not possible.
    async fn allow_gaps(&self) -> bool;

    /// The number of bytes before the first missing one.
    fn length(&self) -> u64;

    /// The digest of the bytes before the first missing one.
    async fn digest(&self) -> Result<Digest, StoreError>;

    /// Stores what was received under `digest`, as cached content, and makes it readable in `repo`. It need not be
    /// durable when this returns. Goes on to its end even if the caller stops waiting.
    ///
    /// # Errors
    /// [`StoreError::DigestMismatch`] if something else was received; nothing is stored then.
    async fn commit(self: Box<Self>, digest: &Digest, repo: &RepoId) -> Result<(), StoreError>;
}

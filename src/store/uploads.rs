//! The contract for push sessions (distribution-spec, "Pushing a blob in chunks").

use std::fmt::Debug;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use uuid::Uuid;

use super::error::StoreError;
use crate::oci::{Algorithm, Digest, RepoId};

/// A push session in the hands of one request.
pub type Upload = Box<dyn UploadSession>;

/// Why a session cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum UploadError {
    #[error("no such upload in this repository")]
    Unknown,
    #[error("another request is writing to this upload")]
    Busy,
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Push sessions, under these guarantees:
///
/// - **Resumable.** A session that was kept survives the end of the process, and what it received is not lost. After a power
///   cut it may be lost or corrupt; [`UploadSession::finish`] notices that.
/// - **Exclusive.** One request at a time holds a session; others get [`UploadError::Busy`]. A write that was begun goes on
///   when its request is gone, and the session stays busy until the write has ended.
/// - **Bounded.** A session that no request writes to expires. One that a request holds does not. The sessions that no
///   request holds are bounded in number and bytes; if they exceed their bounds, those that have been idle the longest
///   end.
/// - **Invisible.** Nothing is readable under its digest before [`UploadSession::finish`] has succeeded.
#[async_trait]
pub trait Uploads: Debug + Send + Sync {
    /// Opens a session for a blob of `repo` that is hashed with `algorithm` as it arrives. The session ends when it is
    /// dropped, unless it is kept.
    async fn create(&self, repo: &RepoId, algorithm: Algorithm) -> Result<Upload, StoreError>;

    /// Takes hold of an open session, also of one that an earlier process opened. It is known in the repository of its
    /// [`Uploads::create`] alone.
    async fn find(&self, repo: &RepoId, id: &str) -> Result<Upload, UploadError>;

    /// Makes sure that there is room for `bytes` more. Ends idle sessions and evicts cached content if necessary, and
    /// reserves nothing.
    ///
    /// # Errors
    /// [`StoreError::NoRoom`] when not enough room can be made, [`StoreError::TooManyUploads`] when the idle sessions
    /// stay beyond their bounds.
    async fn require_room(&self, bytes: u64) -> Result<(), StoreError>;

    /// Removes sessions that no request has written to for `age`. How many.
    async fn expire(&self, age: Duration) -> Result<usize, StoreError>;
}

/// One session. Dropping it lets other requests have it, once the writes that it began have ended.
#[async_trait]
pub trait UploadSession: Debug + Send + Sync {
    fn id(&self) -> Uuid;

    /// Leaves the session open for later requests.
    fn keep(&mut self);

    /// Bytes received so far.
    fn length(&self) -> u64;

    /// Appends `chunks`: all of them, or nothing. The new length in bytes.
    async fn append(&self, chunks: Vec<Bytes>) -> Result<u64, StoreError>;

    /// To be called before the last bytes are appended. If [`UploadSession::finish`] does not follow, the session
    /// returns to its present length, also if the process ends.
    async fn begin_last_chunk(&self) -> Result<(), StoreError>;

    /// Ends the session: what it received becomes a blob of its repository, durably.
    ///
    /// # Errors
    /// [`StoreError::DigestMismatch`] if the content does not have `digest`. Nothing is stored then, and the session has ended
    /// as well. The algorithm of `digest` may be another one than that of the session.
    async fn finish(self: Box<Self>, repo: &RepoId, digest: &Digest) -> Result<(), StoreError>;

    /// Ends the session and removes what it received.
    async fn cancel(self: Box<Self>) -> Result<(), StoreError>;
}

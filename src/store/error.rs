//! The errors of the store, and the few kinds that a caller acts on.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::io::Errno;

/// A failure of the store. It is cloned for each task that waited for the same operation.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    #[error("cannot {action} {}: {source}", path.display())]
    Io { action: &'static str, path: PathBuf, source: Arc<io::Error> },
    /// The received content has this digest and length in bytes, which are not the expected ones.
    #[error("the content has {length} bytes and digest {digest}, which is not the expected digest")]
    DigestMismatch { digest: crate::oci::Digest, length: u64 },
    #[error("no room for {bytes} bytes within cache.max_size and cache.min_free")]
    NoRoom { bytes: u64 },
    #[error(
        "too many unfinished uploads; finish or cancel some, or raise push.max_unfinished or push.max_unfinished_size"
    )]
    TooManyUploads,
    #[error("the data folder is read-only (storage.read_only)")]
    ReadOnly,
    #[error("a task of the store panicked or was cancelled")]
    Task,
}

impl StoreError {
    /// Whether nothing can be stored because the disk or a quota is full, or because the folder is read-only. Neither the
    /// request nor the file is at fault.
    pub fn is_full(&self) -> bool {
        match self {
            Self::Io { source, .. } => is_full(source),
            Self::NoRoom { .. } | Self::ReadOnly => true,
            Self::DigestMismatch { .. } | Self::TooManyUploads | Self::Task => false,
        }
    }

    /// Whether the process or the machine has as many files open as its limit allows. This passes.
    pub fn lacks_descriptors(&self) -> bool {
        matches!(self, Self::Io { source, .. } if lacks_descriptors(source))
    }

    /// Whether a mount or permissions forbid writing.
    pub(in crate::store) fn is_not_writable(&self) -> bool {
        use io::ErrorKind::{PermissionDenied, ReadOnlyFilesystem};
        matches!(self, Self::Io { source, .. } if matches!(source.kind(), PermissionDenied | ReadOnlyFilesystem))
    }
}

/// Whether the disk or a quota is full.
pub(in crate::store) fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge)
}

/// Whether the limit of open files is reached.
pub(in crate::store) fn lacks_descriptors(error: &io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::MFILE | Errno::NFILE))
}

/// Names the action and the path of an I/O error.
pub(in crate::store) trait At<T> {
    fn at(self, action: &'static str, path: &Path) -> Result<T, StoreError>;
}

impl<T> At<T> for io::Result<T> {
    fn at(self, action: &'static str, path: &Path) -> Result<T, StoreError> {
        self.map_err(|source| StoreError::Io { action, path: path.to_owned(), source: Arc::new(source) })
    }
}

/// Turns "not found" into `None`. Something that is no file, or no text where text is read, counts as not found.
pub(in crate::store) fn optional<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if is_not_found(error.kind()) => Ok(None),
        Err(error) => Err(error),
    }
}

fn is_not_found(kind: io::ErrorKind) -> bool {
    use io::ErrorKind::{InvalidData, IsADirectory, NotADirectory, NotFound};
    matches!(kind, NotFound | NotADirectory | IsADirectory | InvalidData)
}

//! What can go wrong in the store, and the few kinds a caller acts on.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::io::Errno;

/// A failure of the store. Cloned to everybody who waited for the same thing.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    #[error("cannot {action} {}: {source}", path.display())]
    Io { action: &'static str, path: PathBuf, source: Arc<io::Error> },
    #[error("the content is {found} bytes with digest {digest}, not what was announced")]
    DigestMismatch { digest: crate::oci::Digest, found: u64 },
    #[error("no room for {bytes} bytes within cache.max_size and cache.min_free")]
    NoRoom { bytes: u64 },
    #[error("the data folder is only read (storage.read_only)")]
    ReadOnly,
    #[error("a task of the store panicked or was cancelled")]
    Task,
}

impl StoreError {
    /// Whether nothing can be kept, for the disk or a quota is full or the folder is only read: nothing is wrong with the
    /// request or the file.
    pub fn is_full(&self) -> bool {
        match self {
            Self::Io { source, .. } => is_full(source),
            Self::NoRoom { .. } | Self::ReadOnly => true,
            Self::DigestMismatch { .. } | Self::Task => false,
        }
    }

    /// Whether the process, or the machine, has as many files open as it may: that passes.
    pub fn lacks_descriptors(&self) -> bool {
        matches!(self, Self::Io { source, .. } if lacks_descriptors(source))
    }

    /// Whether writing is forbidden, by a mount or by permissions.
    pub(super) fn is_not_writable(&self) -> bool {
        use io::ErrorKind::{PermissionDenied, ReadOnlyFilesystem};
        matches!(self, Self::Io { source, .. } if matches!(source.kind(), PermissionDenied | ReadOnlyFilesystem))
    }
}

/// Whether the disk or a quota has no room for it.
pub(super) fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge)
}

/// Whether as many files are open as may be.
pub(super) fn lacks_descriptors(error: &io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::MFILE | Errno::NFILE))
}

/// Names the action and the path of an I/O error.
pub(super) trait At<T> {
    fn at(self, action: &'static str, path: &Path) -> Result<T, StoreError>;
}

impl<T> At<T> for io::Result<T> {
    fn at(self, action: &'static str, path: &Path) -> Result<T, StoreError> {
        self.map_err(|source| StoreError::Io { action, path: path.to_owned(), source: Arc::new(source) })
    }
}

/// Turns "not there" into `None`; what is there but no file, or no text where text is read, counts as not there.
pub(super) fn optional<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if is_nothing(error.kind()) => Ok(None),
        Err(error) => Err(error),
    }
}

fn is_nothing(kind: io::ErrorKind) -> bool {
    use io::ErrorKind::{InvalidData, IsADirectory, NotADirectory, NotFound};
    matches!(kind, NotFound | NotADirectory | IsADirectory | InvalidData)
}

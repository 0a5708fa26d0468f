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
    #[error("no room for {bytes} bytes: {lack}")]
    NoRoom { bytes: u64, lack: Lack },
    #[error(
        "too many unfinished uploads; finish or cancel some, or raise push.max_unfinished or push.max_unfinished_size"
    )]
    TooManyUploads,
    #[error("the data folder is read-only (storage.read_only)")]
    ReadOnly,
    #[error("a task of the store panicked or was cancelled")]
    Task,
}

/// What is lacking if there is no room, although all content that may be evicted is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Lack {
    #[error("cache.max_size would be exceeded")]
    CacheBytes,
    #[error("less than cache.min_free would stay free on the disk")]
    FreeBytes,
    #[error("too few inodes would stay free on the disk")]
    Inodes,
}

/// Why nothing can be stored at the moment. Neither the request nor the content is at fault. The text names thing,
/// cause and remedy, and no path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Obstacle {
    #[error("the registry is read-only (storage.read_only)")]
    ReadOnlySetting,
    #[error("the cache is full: cache.max_size would be exceeded; raise cache.max_size")]
    MaxSize,
    #[error(
        "the registry's disk is full: less than cache.min_free would stay free; free disk space or lower cache.min_free"
    )]
    MinFree,
    #[error("the registry's disk has too few free inodes; remove files or use a file system with more inodes")]
    Inodes,
    #[error("the registry's disk is full: no bytes or no inodes are left; free disk space")]
    DiskFull,
    #[error("the disk quota of the registry is used up; free disk space or raise the quota")]
    Quota,
    #[error("the registry cannot write a file of this size; raise its limit (ulimit -f) or use another file system")]
    FileTooLarge,
    #[error("the registry's disk is read-only; look for disk errors in the kernel log and mount it with write access")]
    ReadOnlyDisk,
    #[error("the registry may not write to its data folder; give the folder to the user of the server")]
    NotPermitted,
    #[error("the registry's storage failed; look for disk errors in the log of the server and of the kernel")]
    Failed,
}

impl StoreError {
    /// Why the content cannot be stored. It can be served without being stored. `None`: the error does not concern the
    /// disk.
    pub fn obstacle(&self) -> Option<Obstacle> {
        Some(match self {
            Self::NoRoom { lack: Lack::CacheBytes, .. } => Obstacle::MaxSize,
            Self::NoRoom { lack: Lack::FreeBytes, .. } => Obstacle::MinFree,
            Self::NoRoom { lack: Lack::Inodes, .. } => Obstacle::Inodes,
            Self::ReadOnly => Obstacle::ReadOnlySetting,
            Self::Io { source, .. } if lacks_descriptors(source) => return None,
            Self::Io { source, .. } => match source.kind() {
                io::ErrorKind::StorageFull => Obstacle::DiskFull,
                io::ErrorKind::QuotaExceeded => Obstacle::Quota,
                io::ErrorKind::FileTooLarge => Obstacle::FileTooLarge,
                io::ErrorKind::ReadOnlyFilesystem => Obstacle::ReadOnlyDisk,
                io::ErrorKind::PermissionDenied => Obstacle::NotPermitted,
                _ => Obstacle::Failed,
            },
            Self::DigestMismatch { .. } | Self::TooManyUploads | Self::Task => return None,
        })
    }

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

    /// The kind of the error of the operating system, if there was one.
    pub(in crate::store) fn io_kind(&self) -> Option<io::ErrorKind> {
        match self {
            Self::Io { source, .. } => Some(source.kind()),
            _ => None,
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_obstacle_is_distinguished_from_the_descriptor_limit() {
        let io =
            |errno: Errno| Err::<(), _>(io::Error::from(errno)).at("write", Path::new("/data/spool/x")).unwrap_err();
        let cases = [
            (Errno::NOSPC, Some(Obstacle::DiskFull)),
            (Errno::DQUOT, Some(Obstacle::Quota)),
            (Errno::FBIG, Some(Obstacle::FileTooLarge)),
            (Errno::ROFS, Some(Obstacle::ReadOnlyDisk)),
            (Errno::ACCESS, Some(Obstacle::NotPermitted)),
            (Errno::PERM, Some(Obstacle::NotPermitted)),
            (Errno::IO, Some(Obstacle::Failed)),
            (Errno::STALE, Some(Obstacle::Failed)),
            (Errno::NOTDIR, Some(Obstacle::Failed)),
            (Errno::MFILE, None),
            (Errno::NFILE, None),
        ];
        for (errno, expected) in cases {
            let error = io(errno);
            assert_eq!(error.obstacle(), expected, "{error}");
            assert!(expected.is_none_or(|obstacle| !obstacle.to_string().contains("/data")), "{error}");
        }
        assert_eq!(StoreError::Task.obstacle(), None);
    }
}

//! What is fixed about a data folder while it is open: its identity, what its file system can do, and the lock on it.

use std::io::{self, Read};
use std::path::Path;

use rustix::fs::FlockOperation;
use rustix::io::Errno;
use uuid::Uuid;

use crate::store::error::{At, StoreError, is_full, optional};
use crate::store::fs::{self, File};

/// Why a data folder cannot be locked.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    #[error("the data folder is in use by process {0}")]
    Held(String),
    #[error("the data folder is in use by a process that only reads it")]
    Read,
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Facts about an open data folder.
#[derive(Debug)]
pub(super) struct FolderFacts {
    instance: Uuid,
    /// The file system keeps permissions, so that a missing write bit marks pushed content.
    keeps_modes: bool,
    read_only: bool,
    /// Absent for a read-only folder without a lock file.
    _lock: Option<FolderLock>,
}

/// The lock on a data folder, held while the process uses it. The kernel releases it however the process ends.
#[derive(Debug)]
pub(super) struct FolderLock(File);

/// Closing the file is not enough: between fork and exec, a child process has a copy of it that keeps the lock (flock(2)).
impl Drop for FolderLock {
    fn drop(&mut self) {
        // Nothing is lost if this fails: the lock ends with the last copy.
        let _ = rustix::fs::flock(&self.0, FlockOperation::Unlock);
    }
}

impl FolderFacts {
    pub(super) fn writable(instance: Uuid, keeps_modes: bool, lock: FolderLock) -> Self {
        Self { instance, keeps_modes, read_only: false, _lock: Some(lock) }
    }

    /// Whether the file system keeps permissions could only be found out by writing, so it is taken not to. The links of
    /// local repositories mark pushed content as well.
    pub(super) fn read_only(instance: Uuid, lock: Option<FolderLock>) -> Self {
        Self { instance, keeps_modes: false, read_only: true, _lock: lock }
    }

    pub(super) fn instance(&self) -> Uuid {
        self.instance
    }

    pub(super) fn keeps_modes(&self) -> bool {
        self.keeps_modes
    }

    pub(super) fn is_read_only(&self) -> bool {
        self.read_only
    }
}

impl FolderLock {
    /// Locks the folder for writing.
    pub(super) fn exclusive(path: &Path) -> Result<Self, LockError> {
        let mut file = fs::open_lock_file(path).at("open", path)?;
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => {
                // A process that only reads does not write its id into the file.
                if rustix::fs::flock(&file, FlockOperation::NonBlockingLockShared).is_ok() {
                    return Err(LockError::Read);
                }
                return Err(held_by(&mut file, path)?);
            }
            Err(error) => Err(io::Error::from(error)).at("lock", path)?,
        }
        let lock = Self(file);
        match write_holder(&lock.0) {
            // The lock is as good without the id of its holder.
            Err(error) if is_full(&error) => {}
            written => written.at("write", path)?,
        }
        Ok(lock)
    }

    /// Locks the folder for reading, together with other readers. Writes nothing: a folder without a lock file has no
    /// writer, and is not locked.
    pub(super) fn shared(path: &Path) -> Result<Option<Self>, LockError> {
        let Some(mut file) = optional(fs::open(path)).at("open", path)? else { return Ok(None) };
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockShared) {
            Ok(()) => Ok(Some(Self(file))),
            Err(Errno::WOULDBLOCK) => Err(held_by(&mut file, path)?),
            Err(error) => Err(io::Error::from(error)).at("lock", path)?,
        }
    }
}

/// Overwrites the id of the last holder. It is not truncated first: on a full disk that would be all the room there is.
fn write_holder(file: &File) -> io::Result<()> {
    let holder = format!("{}\n", std::process::id());
    fs::write_all_at(file, holder.as_bytes(), 0)?;
    fs::set_len(file, holder.len() as u64)
}

fn held_by(file: &mut File, path: &Path) -> Result<LockError, StoreError> {
    let mut holder = String::new();
    file.read_to_string(&mut holder).at("read", path)?;
    Ok(LockError::Held(holder.trim().to_owned()))
}

//! The lock on the data folder, and the locks inside the process.

use std::fs::{File, OpenOptions};
use std::hash::{BuildHasher, Hash, RandomState};
use std::io::{Read, Seek, Write};
use std::path::Path;

use parking_lot::{Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard};
use rustix::fs::FlockOperation;

use super::error::{At, StoreError, is_full, optional};
use crate::oci::{Digest, RepoId};

/// Held for as long as the process writes to the folder; the kernel drops it with the process, however it ends.
#[derive(Debug)]
pub(super) struct FolderLock(#[expect(dead_code, reason = "holds the flock")] File);

#[derive(Debug, thiserror::Error)]
pub enum LockError {
    #[error("the data folder is in use by process {0}")]
    Held(String),
    #[error("the data folder is in use by a process that only reads it")]
    Read,
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl FolderLock {
    pub(super) fn take(path: &Path) -> Result<Self, LockError> {
        let mut file =
            OpenOptions::new().create(true).truncate(false).read(true).write(true).open(path).at("open", path)?;
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                // Who only reads leaves no trace in the file.
                if rustix::fs::flock(&file, FlockOperation::NonBlockingLockShared).is_ok() {
                    return Err(LockError::Read);
                }
                return Err(held(&mut file, path)?);
            }
            Err(error) => Err(std::io::Error::from(error)).at("lock", path)?,
        }
        match write_holder(&mut file) {
            // Without a name of the holder it is as good a lock.
            Err(error) if is_full(&error) => {}
            written => written.at("write", path)?,
        }
        Ok(Self(file))
    }

    /// Beside others who only read. Nothing is written: where there is no file to lock there is no lock, and no writer.
    pub(super) fn take_shared(path: &Path) -> Result<Option<Self>, LockError> {
        let Some(mut file) = optional(File::open(path)).at("open", path)? else { return Ok(None) };
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockShared) {
            Ok(()) => Ok(Some(Self(file))),
            Err(rustix::io::Errno::WOULDBLOCK) => Err(held(&mut file, path)?),
            Err(error) => Err(std::io::Error::from(error)).at("lock", path)?,
        }
    }
}

/// In the place of the one before, which on a full disk is all the room there is.
fn write_holder(file: &mut File) -> std::io::Result<()> {
    let holder = format!("{}\n", std::process::id());
    file.rewind()?;
    file.write_all(holder.as_bytes())?;
    file.set_len(holder.len() as u64)
}

/// Who holds it, as the file says.
fn held(file: &mut File, path: &Path) -> Result<LockError, StoreError> {
    let mut holder = String::new();
    file.read_to_string(&mut holder).at("read", path)?;
    Ok(LockError::Held(holder.trim().to_owned()))
}

const SHARDS: usize = 64;

/// One lock a digest: {evict, collect, quarantine} against {commit, mount, adopt}. Taken on the blocking pool only.
#[derive(Debug, Default)]
pub(super) struct DigestLocks {
    shards: Shards<Mutex<()>>,
}

/// One lock a repository: a writer covers file, index and front of its names; a reader fills the front.
/// Taken on the blocking pool only, and before a digest lock where both are needed.
#[derive(Debug, Default)]
pub(super) struct RepoLocks {
    shards: Shards<RwLock<()>>,
}

#[derive(Debug)]
struct Shards<L> {
    locks: [L; SHARDS],
    hasher: RandomState,
}

impl<L: Default> Default for Shards<L> {
    fn default() -> Self {
        Self { locks: std::array::from_fn(|_| L::default()), hasher: RandomState::new() }
    }
}

impl<L> Shards<L> {
    fn of(&self, key: impl Hash) -> &L {
        &self.locks[self.hasher.hash_one(key) as usize % SHARDS]
    }
}

impl DigestLocks {
    pub(super) fn lock(&self, digest: &Digest) -> MutexGuard<'_, ()> {
        self.shards.of(digest).lock()
    }
}

impl RepoLocks {
    pub(super) fn read(&self, repo: &RepoId) -> RwLockReadGuard<'_, ()> {
        self.shards.of(repo).read()
    }

    pub(super) fn write(&self, repo: &RepoId) -> RwLockWriteGuard<'_, ()> {
        self.shards.of(repo).write()
    }
}

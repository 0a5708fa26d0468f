//! The locks inside the process. `local` says in which order they are taken.

use std::hash::{BuildHasher, Hash, RandomState};

use parking_lot::{Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard};

use crate::oci::{Digest, RepoId};

/// Digests or repositories whose hashes share a shard share a lock.
///
/// A push of a manifest with thousands of references holds its lock for long, so few other repositories should share
/// it.
const LOCK_SHARDS: usize = 4096;

/// One lock for each digest: {evict, collect, quarantine} against {commit, mount, adopt}. Taken on the blocking pool
/// only.
#[derive(Debug, Default)]
pub(super) struct DigestLocks {
    shards: Shards<Mutex<()>>,
}

/// One lock for each repository. A writer covers the files, index records and memory caches of its names; a reader
/// fills the memory caches. Taken on the blocking pool only, and before a digest lock where both are needed.
#[derive(Debug, Default)]
pub(super) struct RepoLocks {
    shards: Shards<RwLock<()>>,
}

#[derive(Debug)]
struct Shards<L> {
    locks: Box<[L]>,
    hasher: RandomState,
}

impl<L: Default> Default for Shards<L> {
    fn default() -> Self {
        Self { locks: (0..LOCK_SHARDS).map(|_| L::default()).collect(), hasher: RandomState::new() }
    }
}

impl<L> Shards<L> {
    fn of(&self, key: impl Hash) -> &L {
        &self.locks[self.hasher.hash_one(key) as usize % LOCK_SHARDS]
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

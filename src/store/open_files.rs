//! The files that somebody reads: readers of one digest share one open file, and eviction asks here before it takes one.

use std::collections::HashMap;
use std::fs::File;
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::path::Path;
use std::sync::{Arc, Weak};

use parking_lot::{Mutex, MutexGuard};

use super::settled::is_still_at;
use crate::oci::Digest;

const SHARDS: usize = 64;
/// Entries of a shard that are looked through for those that nobody reads any more.
const SWEEP_AT: usize = 32;

type Shard = HashMap<Digest, Weak<File>>;

#[derive(Debug)]
pub(super) struct OpenFiles {
    shards: [Mutex<Shard>; SHARDS],
    hasher: RandomState,
}

impl Default for OpenFiles {
    fn default() -> Self {
        Self { shards: std::array::from_fn(|_| Mutex::default()), hasher: RandomState::new() }
    }
}

impl OpenFiles {
    /// The file of a digest, if somebody has it open.
    pub(super) fn get(&self, digest: &Digest) -> Option<Arc<File>> {
        self.shard(digest).get(digest)?.upgrade()
    }

    /// Makes an open file known as the one of its digest; false if it is not the one that stands at `path` any more.
    pub(super) fn share(&self, digest: &Digest, file: &Arc<File>, path: &Path) -> io::Result<bool> {
        let mut shard = self.shard(digest);
        let stands = is_still_at(path, file)?;
        if stands {
            if shard.len() >= SWEEP_AT && shard.len() == shard.capacity() {
                shard.retain(|_, file| file.strong_count() > 0);
            }
            shard.insert(digest.clone(), Arc::downgrade(file));
        }
        Ok(stands)
    }

    /// Takes a file away while nobody can begin to read it; `None`, and `take` is not called, if somebody reads it.
    pub(super) fn unless_open<T>(&self, digest: &Digest, take: impl FnOnce() -> T) -> Option<T> {
        let mut shard = self.shard(digest);
        if shard.get(digest).is_some_and(|file| file.strong_count() > 0) {
            return None;
        }
        shard.remove(digest);
        Some(take())
    }

    /// What is read of it goes on being read; who comes from now on opens what stands there then.
    pub(super) fn forget(&self, digest: &Digest) {
        self.shard(digest).remove(digest);
    }

    fn shard(&self, digest: &Digest) -> MutexGuard<'_, Shard> {
        self.shards[self.hasher.hash_one(digest) as usize % SHARDS].lock()
    }
}

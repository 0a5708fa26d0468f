//! The files that are read: readers of one digest share one open file, the ones used last stay open for the next reader,
//! and eviction asks here before it takes one.

use std::collections::HashMap;
use std::fs::File;
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Mutex, MutexGuard};

use super::settled::is_still_at;
use crate::oci::Digest;

const SHARDS: usize = 64;
/// Files of a shard that stay open though nobody reads them.
const KEPT: usize = 4;
/// For how long: what was deleted by hand keeps its room on the disk until its file is closed.
const IDLE: Duration = Duration::from_secs(60);

type Shard = HashMap<Digest, Opened>;

#[derive(Debug)]
struct Opened {
    file: Arc<File>,
    /// As it was when it was looked at.
    length: u64,
    used: Instant,
}

#[derive(Debug)]
pub(super) struct OpenFiles {
    shards: [Mutex<Shard>; SHARDS],
    hasher: RandomState,
}

// === impl Opened ===

impl Opened {
    fn is_read(&self) -> bool {
        Arc::strong_count(&self.file) > 1
    }

    /// Whether it has a name and the length that it had: no look at the disk.
    fn is_as_it_was(&self) -> bool {
        self.file.metadata().is_ok_and(|metadata| metadata.nlink() > 0 && metadata.len() == self.length)
    }
}

// === impl OpenFiles ===

impl Default for OpenFiles {
    fn default() -> Self {
        Self { shards: std::array::from_fn(|_| Mutex::default()), hasher: RandomState::new() }
    }
}

impl OpenFiles {
    /// The file of a digest and its length, if it is open and nothing has happened to it.
    pub(super) fn get(&self, digest: &Digest) -> Option<(Arc<File>, u64)> {
        let mut shard = self.shard(digest);
        let opened = shard.get_mut(digest)?;
        if !opened.is_as_it_was() {
            shard.remove(digest);
            return None;
        }
        opened.used = Instant::now();
        Some((opened.file.clone(), opened.length))
    }

    /// Makes an open file known as the one of its digest; false if it is not the one that stands at `path` any more.
    pub(super) fn share(&self, digest: &Digest, file: &Arc<File>, length: u64, path: &Path) -> io::Result<bool> {
        let mut shard = self.shard(digest);
        let stands = is_still_at(path, file)?;
        if stands {
            shard.insert(digest.clone(), Opened { file: file.clone(), length, used: Instant::now() });
            let idle = shard.iter().filter(|(_, opened)| !opened.is_read());
            if idle.clone().count() > KEPT
                && let Some(oldest) = idle.min_by_key(|(_, opened)| opened.used).map(|(digest, _)| digest.clone())
            {
                shard.remove(&oldest);
            }
        }
        Ok(stands)
    }

    /// Whether somebody reads it.
    pub(super) fn is_read(&self, digest: &Digest) -> bool {
        self.shard(digest).get(digest).is_some_and(Opened::is_read)
    }

    /// Takes a file away while nobody can begin to read it; `None`, and `take` is not called, if somebody reads it.
    pub(super) fn unless_read<T>(&self, digest: &Digest, take: impl FnOnce() -> T) -> Option<T> {
        let mut shard = self.shard(digest);
        if shard.get(digest).is_some_and(Opened::is_read) {
            return None;
        }
        shard.remove(digest);
        Some(take())
    }

    /// What is read of it goes on being read; who comes from now on opens what stands there then.
    pub(super) fn forget(&self, digest: &Digest) {
        self.shard(digest).remove(digest);
    }

    /// Closes what nobody has read for a while.
    pub(super) fn close_idle(&self) {
        for shard in &self.shards {
            shard.lock().retain(|_, opened| opened.is_read() || opened.used.elapsed() < IDLE);
        }
    }

    fn shard(&self, digest: &Digest) -> MutexGuard<'_, Shard> {
        self.shards[self.hasher.hash_one(digest) as usize % SHARDS].lock()
    }
}

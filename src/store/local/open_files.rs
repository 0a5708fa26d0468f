//! Open content files: readers of one digest share one open file, recently read files stay open for the next reader, and
//! the evictor asks here whether a file is being read.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustix::process::{Resource, getrlimit};

use crate::oci::Digest;
use crate::store::error::lacks_descriptors;
use crate::store::fs::{File, is_still_at};

const SHARDS: usize = 16;
/// Files of a shard that stay open without a reader, where enough descriptors are available.
const MAX_IDLE_FILES_OF_SHARD: u64 = 16;
/// Idle files may take one of this many descriptors. Connections need the others.
const DESCRIPTORS_PER_IDLE_FILE: u64 = 16;
/// How long a file stays open without a reader. A file that was deleted takes room on the disk until it is closed.
const MAX_IDLE_TIME: Duration = Duration::from_secs(60);

type Shard = HashMap<Digest, Opened>;

#[derive(Debug)]
struct Opened {
    file: Arc<File>,
    /// Length in bytes when the file was opened.
    length: u64,
    /// When the file was last handed to a reader.
    used: Instant,
}

#[derive(Debug)]
pub(super) struct OpenFiles {
    shards: [Mutex<Shard>; SHARDS],
    hasher: RandomState,
    /// Files of a shard that stay open without a reader.
    max_idle: usize,
}

// === impl Opened ===

impl Opened {
    fn is_read(&self) -> bool {
        Arc::strong_count(&self.file) > 1
    }

    /// Whether the file still has a name and its length. Does not access the disk.
    fn is_unchanged(&self) -> bool {
        self.file.metadata().is_ok_and(|metadata| metadata.nlink() > 0 && metadata.len() == self.length)
    }
}

// === impl OpenFiles ===

impl Default for OpenFiles {
    fn default() -> Self {
        let descriptors = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
        let of_shard = descriptors / DESCRIPTORS_PER_IDLE_FILE / SHARDS as u64;
        let max_idle = of_shard.min(MAX_IDLE_FILES_OF_SHARD) as usize;
        Self { shards: std::array::from_fn(|_| Mutex::default()), hasher: RandomState::new(), max_idle }
    }
}

impl OpenFiles {
    /// The file of a digest and its length in bytes, if the file is open and unchanged.
    pub(super) fn get(&self, digest: &Digest) -> Option<(Arc<File>, u64)> {
        Self::take(&mut self.shard(digest).lock(), digest)
    }

    /// As [`OpenFiles::get`] without waiting: also `None` while another thread holds the shard.
    pub(super) fn try_get(&self, digest: &Digest) -> Option<(Arc<File>, u64)> {
        Self::take(&mut *self.shard(digest).try_lock()?, digest)
    }

    fn take(shard: &mut Shard, digest: &Digest) -> Option<(Arc<File>, u64)> {
        let opened = shard.get_mut(digest)?;
        if !opened.is_unchanged() {
            shard.remove(digest);
            return None;
        }
        opened.used = Instant::now();
        Some((opened.file.clone(), opened.length))
    }

    /// Shares an open file with later readers of its digest. False if `path` names another file by now.
    pub(super) fn share(&self, digest: &Digest, file: &Arc<File>, length: u64, path: &Path) -> io::Result<bool> {
        let mut shard = self.shard(digest).lock();
        let is_current = is_still_at(path, file)?;
        if is_current {
            shard.insert(digest.clone(), Opened { file: file.clone(), length, used: Instant::now() });
            close_excess(&mut shard, self.max_idle);
        }
        Ok(is_current)
    }

    /// Whether the content has a reader.
    pub(super) fn is_read(&self, digest: &Digest) -> bool {
        self.shard(digest).lock().get(digest).is_some_and(Opened::is_read)
    }

    /// Runs `take`, which moves the file away, while no reader can start. `None` without a call if the file has a reader.
    pub(super) fn unless_read<T>(&self, digest: &Digest, take: impl FnOnce() -> T) -> Option<T> {
        let mut shard = self.shard(digest).lock();
        if shard.get(digest).is_some_and(Opened::is_read) {
            return None;
        }
        shard.remove(digest);
        Some(take())
    }

    /// Stops sharing a file. Present readers go on; later ones open the file that has the name then.
    pub(super) fn forget(&self, digest: &Digest) {
        self.shard(digest).lock().remove(digest);
    }

    /// Closes files without a reader: those idle for too long, and the least recently read of too many.
    pub(super) fn close_idle(&self) {
        self.close_idle_for(MAX_IDLE_TIME);
        self.shards.iter().for_each(|shard| close_excess(&mut shard.lock(), self.max_idle));
    }

    /// Calls `open`. If no descriptor is left, closes all files without a reader and calls it again.
    pub(super) fn with_descriptor<T>(&self, open: impl Fn() -> io::Result<T>) -> io::Result<T> {
        match open() {
            Err(error) if lacks_descriptors(&error) => {
                self.close_idle_for(Duration::ZERO);
                open()
            }
            opened => opened,
        }
    }

    fn close_idle_for(&self, time: Duration) {
        for shard in &self.shards {
            shard.lock().retain(|_, opened| opened.is_read() || opened.used.elapsed() < time);
        }
    }

    fn shard(&self, digest: &Digest) -> &Mutex<Shard> {
        &self.shards[self.hasher.hash_one(digest) as usize % SHARDS]
    }
}

/// Closes the least recently read files without a reader, so that `max_idle` of them stay.
fn close_excess(shard: &mut Shard, max_idle: usize) {
    let mut idle: Vec<_> = shard.iter().filter(|(_, opened)| !opened.is_read()).collect();
    if idle.len() > max_idle {
        idle.sort_unstable_by_key(|(_, opened)| Reverse(opened.used));
        let oldest: Vec<Digest> = idle.split_off(max_idle).into_iter().map(|(digest, _)| digest.clone()).collect();
        oldest.iter().for_each(|digest| drop(shard.remove(digest)));
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::fs;

    use rustix::io::Errno;
    use tempfile::TempDir;

    use super::*;
    use crate::oci::Algorithm;

    /// Opens and shares `count` files, each with a digest of its own.
    fn shared(files: &OpenFiles, folder: &TempDir, count: usize) -> Vec<(Digest, Arc<File>)> {
        let open = |n: usize| {
            let path = folder.path().join(n.to_string());
            fs::write(&path, b"content").unwrap();
            let (digest, file) =
                (Digest::of(Algorithm::Sha256, &n.to_be_bytes()), Arc::new(File::open(&path).unwrap()));
            assert!(files.share(&digest, &file, 7, &path).unwrap());
            (digest, file)
        };
        (0..count).map(open).collect()
    }

    fn open_count(files: &OpenFiles) -> usize {
        files.shards.iter().map(|shard| shard.lock().len()).sum()
    }

    #[test]
    fn idle_files_are_few_and_closed_when_descriptors_run_out() {
        let (files, folder) = (OpenFiles { max_idle: 2, ..OpenFiles::default() }, tempfile::tempdir().unwrap());
        let read = shared(&files, &folder, 500);
        assert_eq!(open_count(&files), 500, "files with readers stay shared");
        let (first, _) = read[0].clone();
        drop(read);
        files.close_idle();
        assert!((2..=2 * SHARDS).contains(&open_count(&files)), "{} are open", open_count(&files));
        shared(&files, &folder, 500).into_iter().for_each(drop);
        let reading = shared(&files, &folder, 1);
        let failed = Cell::new(false);
        let opened = files.with_descriptor(|| if failed.replace(true) { Ok(7) } else { Err(Errno::MFILE.into()) });
        assert_eq!((opened.unwrap(), open_count(&files)), (7, 1), "the file with a reader stays");
        assert!(files.is_read(&first) && files.get(&first).is_some());
        drop(reading);
    }

    #[test]
    fn a_changed_or_deleted_file_is_not_shared() {
        let (files, folder) = (OpenFiles::default(), tempfile::tempdir().unwrap());
        let opened = shared(&files, &folder, 2);
        assert!(opened.iter().all(|(digest, _)| files.try_get(digest).is_some()));
        fs::write(folder.path().join("0"), b"longer content").unwrap();
        fs::remove_file(folder.path().join("1")).unwrap();
        assert!(opened.iter().all(|(digest, _)| files.try_get(digest).is_none()));
    }
}

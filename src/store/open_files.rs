//! The files that are read: readers of one digest share one open file, the ones used last stay open for the next reader,
//! and eviction asks here before it takes one.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::fs::File;
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustix::process::{Resource, getrlimit};

use super::error::lacks_descriptors;
use super::settled::is_still_at;
use crate::oci::Digest;

const SHARDS: usize = 16;
/// Files of a shard that stay open though nobody reads them, where descriptors are plenty.
const MOST_KEPT: u64 = 16;
/// One of so many descriptors is for such files: connections come first.
const OF_DESCRIPTORS: u64 = 16;
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
    /// Files of a shard that stay open though nobody reads them.
    kept: usize,
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
        let descriptors = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
        let kept = (descriptors / OF_DESCRIPTORS / SHARDS as u64).min(MOST_KEPT) as usize;
        Self { shards: std::array::from_fn(|_| Mutex::default()), hasher: RandomState::new(), kept }
    }
}

impl OpenFiles {
    /// The file of a digest and its length, if it is open and nothing has happened to it.
    pub(super) fn get(&self, digest: &Digest) -> Option<(Arc<File>, u64)> {
        Self::take(&mut self.shard(digest).lock(), digest)
    }

    /// The same for who must not wait: also `None` while somebody else looks at the shard, who may be at the disk.
    pub(super) fn get_at_once(&self, digest: &Digest) -> Option<(Arc<File>, u64)> {
        Self::take(&mut *self.shard(digest).try_lock()?, digest)
    }

    fn take(shard: &mut Shard, digest: &Digest) -> Option<(Arc<File>, u64)> {
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
        let mut shard = self.shard(digest).lock();
        let stands = is_still_at(path, file)?;
        if stands {
            shard.insert(digest.clone(), Opened { file: file.clone(), length, used: Instant::now() });
            keep_the_last(&mut shard, self.kept);
        }
        Ok(stands)
    }

    /// Whether somebody reads it.
    pub(super) fn is_read(&self, digest: &Digest) -> bool {
        self.shard(digest).lock().get(digest).is_some_and(Opened::is_read)
    }

    /// Takes a file away while nobody can begin to read it; `None`, and `take` is not called, if somebody reads it.
    pub(super) fn unless_read<T>(&self, digest: &Digest, take: impl FnOnce() -> T) -> Option<T> {
        let mut shard = self.shard(digest).lock();
        if shard.get(digest).is_some_and(Opened::is_read) {
            return None;
        }
        shard.remove(digest);
        Some(take())
    }

    /// What is read of it goes on being read; who comes from now on opens what stands there then.
    pub(super) fn forget(&self, digest: &Digest) {
        self.shard(digest).lock().remove(digest);
    }

    /// Closes what nobody has read for a while, and of the rest what is too much: readers leave without a word.
    pub(super) fn close_idle(&self) {
        self.close_unread_for(IDLE);
        self.shards.iter().for_each(|shard| keep_the_last(&mut shard.lock(), self.kept));
    }

    /// Calls what opens a file. When there are no more descriptors, those of files that nobody reads are given up for it.
    pub(super) fn with_room<T>(&self, open: impl Fn() -> io::Result<T>) -> io::Result<T> {
        match open() {
            Err(error) if lacks_descriptors(&error) => {
                self.close_unread_for(Duration::ZERO);
                open()
            }
            opened => opened,
        }
    }

    fn close_unread_for(&self, patience: Duration) {
        for shard in &self.shards {
            shard.lock().retain(|_, opened| opened.is_read() || opened.used.elapsed() < patience);
        }
    }

    fn shard(&self, digest: &Digest) -> &Mutex<Shard> {
        &self.shards[self.hasher.hash_one(digest) as usize % SHARDS]
    }
}

/// Closes all but so many of the files that nobody reads.
fn keep_the_last(shard: &mut Shard, kept: usize) {
    let mut idle: Vec<_> = shard.iter().filter(|(_, opened)| !opened.is_read()).collect();
    if idle.len() > kept {
        idle.sort_unstable_by_key(|(_, opened)| Reverse(opened.used));
        let oldest: Vec<Digest> = idle.split_off(kept).into_iter().map(|(digest, _)| digest.clone()).collect();
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

    /// A file of its own for each of so many digests, opened and shared.
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

    fn kept(files: &OpenFiles) -> usize {
        files.shards.iter().map(|shard| shard.lock().len()).sum()
    }

    #[test]
    fn few_files_stay_open_without_a_reader_and_none_when_descriptors_run_out() {
        let (files, folder) = (OpenFiles { kept: 2, ..OpenFiles::default() }, tempfile::tempdir().unwrap());
        let read = shared(&files, &folder, 500);
        assert_eq!(kept(&files), 500, "what is read is known");
        let (first, _) = read[0].clone();
        drop(read);
        files.close_idle();
        assert!((2..=2 * SHARDS).contains(&kept(&files)), "{} are open", kept(&files));
        shared(&files, &folder, 500).into_iter().for_each(drop);
        let reading = shared(&files, &folder, 1);
        let failed = Cell::new(false);
        let opened = files.with_room(|| if failed.replace(true) { Ok(7) } else { Err(Errno::MFILE.into()) });
        assert_eq!((opened.unwrap(), kept(&files)), (7, 1), "the one that is read stays");
        assert!(files.is_read(&first) && files.get(&first).is_some());
        drop(reading);
    }

    #[test]
    fn a_file_that_was_changed_or_deleted_is_not_the_one_any_more() {
        let (files, folder) = (OpenFiles::default(), tempfile::tempdir().unwrap());
        let opened = shared(&files, &folder, 2);
        assert!(opened.iter().all(|(digest, _)| files.get_at_once(digest).is_some()));
        fs::write(folder.path().join("0"), b"longer content").unwrap();
        fs::remove_file(folder.path().join("1")).unwrap();
        assert!(opened.iter().all(|(digest, _)| files.get_at_once(digest).is_none()));
    }
}

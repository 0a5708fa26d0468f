//! A spool: cached content that is being received, readable while it grows.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use rustix::io::Errno;
use rustix::process::{Resource, getrlimit};

use super::Local;
use super::growing_file::{self, GrowingFile};
use crate::oci::{Algorithm, Digest, RepoId};
use crate::store::blocking;
use crate::store::cache::Reservation;
use crate::store::error::{At, StoreError, is_full};
use crate::store::file_range::FileRange;
use crate::store::fs;
use crate::store::records::Class;
use crate::store::spool::SpoolFile;

/// Bytes after which received content is written back. Otherwise the fsync of a push could wait for gigabytes of it.
const WRITE_BACK_BYTES: u64 = 16 << 20;

/// One temporary file.
#[derive(Debug)]
pub(super) struct LocalSpool {
    local: Arc<Local>,
    file: Arc<GrowingFile>,
    /// The same file, to be read.
    open: Arc<fs::File>,
    path: PathBuf,
    algorithm: Algorithm,
    /// The expected length in bytes while blocks are still to be reserved for it; otherwise 0.
    to_reserve: AtomicU64,
    /// Bytes whose write-back has been started.
    written_back: AtomicU64,
    /// A write-back is running.
    syncing: Arc<AtomicBool>,
    /// A sync failed: bytes may be lost, and no later sync reports that again.
    sync_failed: Arc<AtomicBool>,
    /// The room that is reserved for it. Released when the file is removed or counts as cached content.
    room: Arc<Mutex<Reservation>>,
    committed: bool,
}

impl LocalSpool {
    /// An empty spool with room for `expected` bytes, if that is known. Failing now is better than in the middle of a client's
    /// transfer.
    ///
    /// Blocks are reserved on the disk as well. That can take tens of milliseconds, so the first bytes do not wait for it where
    /// the disk has ample room.
    pub(super) fn create(local: &Arc<Local>, algorithm: Algorithm, expected: Option<u64>) -> Result<Self, StoreError> {
        local.require_writable()?;
        let path = local.layout.temporary();
        if expected.is_some_and(exceeds_file_size_limit) {
            return Err(io::Error::from(Errno::FBIG)).at("reserve", &path);
        }
        let step = local.cache.space().unknown_length_step();
        let mut room = local.cache.reserve(expected.unwrap_or(step), 1, &**local)?;
        let file = local.layout.with_folder(&path, |path| GrowingFile::create(path, algorithm)).at("create", &path)?;
        let open = file.file().at("open", &path)?;
        let expected = expected.unwrap_or(0);
        let to_reserve = if room.is_ample() { expected } else { 0 };
        if to_reserve == 0 {
            if let Err(error) = reserve_blocks(&open, expected) {
                let _ = fs::remove_file(&path);
                return Err(error).at("reserve", &path);
            }
            room.allocated();
        }
        Ok(Self {
            local: local.clone(),
            open,
            file: Arc::new(file),
            path,
            algorithm,
            to_reserve: AtomicU64::new(to_reserve),
            written_back: AtomicU64::new(0),
            syncing: Arc::default(),
            sync_failed: Arc::default(),
            room: Arc::new(Mutex::new(room)),
            committed: false,
        })
    }

    /// Starts to sync what was received, if it is much.
    fn write_back(&self, length: u64) {
        let unsynced = length - self.written_back.load(Ordering::Relaxed);
        if unsynced < WRITE_BACK_BYTES || self.syncing.swap(true, Ordering::AcqRel) {
            return;
        }
        self.written_back.store(length, Ordering::Relaxed);
        let (file, syncing, failed) = (self.file.clone(), self.syncing.clone(), self.sync_failed.clone());
        tokio::task::spawn_blocking(move || {
            if file.file().and_then(|file| fs::sync_data(&file)).is_err() {
                failed.store(true, Ordering::Release);
            }
            syncing.store(false, Ordering::Release);
        });
    }

    /// Reserves the blocks of the bytes after the first `length`, once.
    fn reserve_rest(&self, length: u64) {
        let expected = self.to_reserve.swap(0, Ordering::Relaxed);
        if expected == 0 {
            return;
        }
        if expected <= length {
            self.room.lock().allocated();
            return;
        }
        let (file, room) = (self.file.clone(), self.room.clone());
        self.local.operations.spawn_blocking(move || {
            // If there are no blocks left, the write that needs them fails.
            if file.file().is_ok_and(|file| reserve_blocks(&file, expected).is_ok()) {
                room.lock().allocated();
            }
        });
    }

    /// As [`SpoolFile::commit`]. Blocks.
    fn commit_blocking(mut self, digest: &Digest, repo: &RepoId) -> Result<(), StoreError> {
        let (length, found) = self.file.digest(digest.algorithm()).at("read", &self.path)?;
        if found != *digest {
            return Err(StoreError::DigestMismatch { digest: found, length });
        }
        if self.sync_failed.load(Ordering::Acquire) {
            return Err(io::Error::from(Errno::IO)).at("sync", &self.path);
        }
        self.local.commit_file(&self.path, digest, length, Class::Cached)?;
        self.committed = true;
        // The content counts as cached from here on.
        self.room.lock().release();
        self.share_file(digest, length)?;
        self.local.link_cached_blob(repo, digest, length)
    }

    /// Followers of the fill go on reading this file under its digest, so the evictor must know of them.
    fn share_file(&self, digest: &Digest, length: u64) -> Result<(), StoreError> {
        let path = self.local.layout.blob(digest);
        let file = self.file.file().at("open", &path)?;
        self.local.content.open_files().share(digest, &file, length, &path).at("stat", &path).map(drop)
    }
}

#[async_trait]
impl SpoolFile for LocalSpool {
    fn range_to(&self, length: u64) -> FileRange {
        FileRange::new(self.open.clone(), 0..length)
    }

    async fn append(&self, chunks: Vec<Bytes>) -> Result<u64, StoreError> {
        let (file, local, room) = (self.file.clone(), self.local.clone(), self.room.clone());
        let arriving = chunks.iter().map(|chunk| chunk.len() as u64).sum::<u64>();
        let prepare = move || local.grow_reservation(&room, file.len() + arriving);
        let appended = growing_file::append(self.file.clone(), chunks, prepare).await;
        let length = appended.inspect_err(|error| self.local.note_failure(error))?;
        self.reserve_rest(length);
        self.write_back(length);
        Ok(length)
    }

    fn length(&self) -> u64 {
        self.file.len()
    }

    async fn digest(&self) -> Result<Digest, StoreError> {
        let (file, algorithm) = (self.file.clone(), self.algorithm);
        let (_, digest) = blocking(move || file.digest(algorithm)).await?.at("read", &self.path)?;
        Ok(digest)
    }

    async fn commit(self: Box<Self>, digest: &Digest, repo: &RepoId) -> Result<(), StoreError> {
        let (digest, repo) = (digest.clone(), repo.clone());
        let local = self.local.clone();
        local.run(move |_| self.commit_blocking(&digest, &repo)).await
    }
}

impl Local {
    /// Makes sure that the room of a spool covers `length` bytes.
    fn grow_reservation(&self, room: &Mutex<Reservation>, length: u64) -> Result<(), StoreError> {
        let mut room = room.lock();
        if length > room.bytes() {
            let step = self.cache.space().unknown_length_step();
            let more = self.cache.reserve(step.max(length - room.bytes()), 0, self)?;
            room.add(more);
        }
        Ok(())
    }
}

/// Whether the process may not write a file of this many bytes (`ulimit -f`).
fn exceeds_file_size_limit(bytes: u64) -> bool {
    getrlimit(Resource::Fsize).current.is_some_and(|limit| bytes > limit)
}

/// Reserves blocks without changing the length. Without effect where the file system does not support that.
fn reserve_blocks(file: &fs::File, bytes: u64) -> io::Result<()> {
    if bytes == 0 {
        return Ok(());
    }
    match fs::fallocate(file, bytes) {
        Err(error) if is_full(&error) => Err(error),
        _ => Ok(()),
    }
}

impl Drop for LocalSpool {
    fn drop(&mut self) {
        if self.committed {
            return;
        }
        let path = std::mem::take(&mut self.path);
        let room = self.room.clone();
        let remove = move || {
            let _released_after_removal = room;
            if let Err(error) = fs::remove_file(&path)
                && error.kind() != io::ErrorKind::NotFound
            {
                tracing::warn!(path = %path.display(), %error, "cannot remove a spool file; the next start will");
            }
        };
        // Removing a large file takes a while. Outside of a runtime there is no worker to block.
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn_blocking(remove)),
            Err(_) => remove(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;
    use std::time::Duration;

    use tokio::time::{sleep, timeout};

    use super::*;
    use crate::store::cache::AMPLE_FREE_BYTES;
    use crate::store::{Bounds, Store, StoreSettings};

    fn begin(store: &Store, expected: Option<u64>) -> LocalSpool {
        LocalSpool::create(store.local(), Algorithm::Sha256, expected).unwrap()
    }

    const LENGTH: u64 = 8 << 20;

    fn reserved(spool: &LocalSpool) -> u64 {
        spool.file.file().unwrap().metadata().unwrap().blocks() * 512
    }

    #[tokio::test]
    async fn first_bytes_do_not_wait_for_reserved_blocks() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        let spool = begin(&store, Some(LENGTH));
        assert_eq!(reserved(&spool) == 0, spool.room.lock().is_ample(), "blocks come first where there is little room");
        assert_eq!(spool.append(vec![Bytes::from_static(b"first")]).await.unwrap(), 5);
        let all = async {
            while reserved(&spool) < LENGTH {
                sleep(Duration::from_millis(2)).await;
            }
        };
        timeout(Duration::from_secs(20), all).await.unwrap();
        assert_eq!(spool.length(), 5);
    }

    #[tokio::test]
    async fn later_room_counts_as_unallocated() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        let spool = begin(&store, None);
        let step = store.local().cache.space().unknown_length_step();
        spool.append(vec![Bytes::from(vec![0; step as usize + 1])]).await.unwrap();
        spool.append(vec![Bytes::from_static(b"more")]).await.unwrap();
        assert_eq!(spool.room.lock().unallocated(), step);
    }

    #[tokio::test]
    async fn blocks_are_reserved_at_once_where_others_need_the_room() {
        let folder = tempfile::tempdir().unwrap();
        let bounds = Bounds { max_size: u64::MAX, min_free: 0 };
        let store = Store::open_with(folder.path(), StoreSettings { bounds, ..StoreSettings::default() }).unwrap();
        let space = store.local().cache.space();
        let _others = space.reserve(space.free().unwrap().saturating_sub(AMPLE_FREE_BYTES / 2), 1).unwrap();
        let spool = begin(&store, Some(LENGTH));
        assert!(reserved(&spool) >= LENGTH);
    }
}

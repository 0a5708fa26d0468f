//! A spool: cached content that is being received, readable meanwhile.

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
use super::growing_file::hash;
use super::sparse_file::{self, SparseFile};
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
    file: Arc<SparseFile>,
    /// The same file, to be read. It is a descriptor of its own, because the evictor counts each holder of it as a reader.
    open: Arc<fs::File>,
    path: PathBuf,
    /// The expected length in bytes.
    expected: Option<u64>,
    /// The blocks of the expected length. Locked while they are reserved.
    blocks: Arc<Mutex<Blocks>>,
    /// No bytes were written yet, and blocks are still to be reserved.
    to_reserve: AtomicBool,
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

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Blocks {
    /// They are reserved after the first write.
    Later,
    Reserved,
    /// The file system cannot reserve them, or there are not enough.
    Missing,
}

impl LocalSpool {
    /// An empty spool with room for `expected` bytes, if that is known. Failing now is better than in the middle of a
    /// client's transfer.
    ///
    /// Blocks are reserved on the disk as well. That can take tens of milliseconds, so the first bytes do not wait
    /// for it where the disk has ample room.
    pub(super) fn create(local: &Arc<Local>, algorithm: Algorithm, expected: Option<u64>) -> Result<Self, StoreError> {
        local.require_writable()?;
        let path = local.layout.temporary();
        if expected.is_some_and(exceeds_file_size_limit) {
            return Err(io::Error::from(Errno::FBIG)).at("reserve", &path);
        }
        let step = local.cache.space().unknown_length_step();
        let mut room = local.cache.reserve(expected.unwrap_or(step), 1, &**local)?;
        let file = local.layout.with_folder(&path, |path| SparseFile::create(path, algorithm)).at("create", &path)?;
        let blocks = match expected {
            Some(expected) if expected > 0 && room.is_ample() => Blocks::Later,
            _ => match local.reserve_blocks(file.file(), expected.unwrap_or(0)) {
                Ok(blocks) => {
                    room.allocated();
                    blocks
                }
                Err(error) => {
                    let _ = fs::remove_file(&path);
                    return Err(error).at("reserve", &path);
                }
            },
        };
        let open = match file.file().try_clone() {
            Ok(open) => Arc::new(open),
            Err(error) => {
                let _ = fs::remove_file(&path);
                return Err(error).at("open", &path);
            }
        };
        Ok(Self {
            local: local.clone(),
            file: Arc::new(file),
            open,
            path,
            expected,
            blocks: Arc::new(Mutex::new(blocks)),
            to_reserve: AtomicBool::new(blocks == Blocks::Later),
            written_back: AtomicU64::new(0),
            syncing: Arc::default(),
            sync_failed: Arc::default(),
            room: Arc::new(Mutex::new(room)),
            committed: false,
        })
    }

    /// Starts to sync what was received, if it is much.
    fn write_back(&self) {
        let written = self.file.written();
        let unsynced = written.saturating_sub(self.written_back.load(Ordering::Relaxed));
        if unsynced < WRITE_BACK_BYTES || self.syncing.swap(true, Ordering::AcqRel) {
            return;
        }
        self.written_back.store(written, Ordering::Relaxed);
        let (file, syncing, failed) = (self.file.clone(), self.syncing.clone(), self.sync_failed.clone());
        tokio::task::spawn_blocking(move || {
            if fs::sync_data(file.file()).is_err() {
                failed.store(true, Ordering::Release);
            }
            syncing.store(false, Ordering::Release);
        });
    }

    /// A task that reserves the blocks of the expected length, if that was left for later. The task returns whether
    /// they are reserved. It blocks its thread.
    fn reservation(&self) -> impl FnOnce() -> bool + Send + 'static {
        let (local, file, expected) = (self.local.clone(), self.file.clone(), self.expected.unwrap_or(0));
        let (blocks, room) = (self.blocks.clone(), self.room.clone());
        move || {
            let mut blocks = blocks.lock();
            if *blocks == Blocks::Later {
                // If there are no blocks left, the write that needs them fails.
                let reserved = local.reserve_blocks(file.file(), expected);
                if reserved.is_ok() {
                    room.lock().allocated();
                }
                *blocks = reserved.unwrap_or(Blocks::Missing);
            }
            *blocks == Blocks::Reserved
        }
    }

    /// As [`SpoolFile::commit`]. Blocks.
    fn commit_blocking(mut self, digest: &Digest, repo: &RepoId) -> Result<(), StoreError> {
        let (has_gaps, prefix) = (self.file.has_gaps(), self.file.prefix());
        // A write that failed may have left bytes after the end.
        if !has_gaps && self.file.file().metadata().at("stat", &self.path)?.len() != prefix {
            fs::set_len(self.file.file(), prefix).at("truncate", &self.path)?;
        }
        let (length, found) = self.digest_by(digest.algorithm())?;
        if found != *digest || has_gaps {
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

    /// The length in bytes and the digest of the bytes before the first missing one. A digest by another algorithm
    /// than the spool's own costs a read of the file.
    fn digest_by(&self, algorithm: Algorithm) -> Result<(u64, Digest), StoreError> {
        let (length, running) = self.file.digest().at("read", &self.path)?;
        if running.algorithm() == algorithm {
            return Ok((length, running));
        }
        let (hasher, length) = hash(self.file.file(), algorithm).at("read", &self.path)?;
        Ok((length, hasher.finish()))
    }

    /// Followers of the fill go on reading this file under its digest, so the evictor must know of them.
    fn share_file(&self, digest: &Digest, length: u64) -> Result<(), StoreError> {
        let path = self.local.layout.blob(digest);
        self.local.content.open_files().share(digest, &self.open, length, &path).at("stat", &path).map(drop)
    }
}

#[async_trait]
impl SpoolFile for LocalSpool {
    fn range_to(&self, length: u64) -> FileRange {
        FileRange::new(self.open.clone(), 0..length)
    }

    async fn write_at(&self, position: u64, chunks: Vec<Bytes>) -> Result<u64, StoreError> {
        let (local, room) = (self.local.clone(), self.room.clone());
        let end = position + chunks.iter().map(|chunk| chunk.len() as u64).sum::<u64>();
        let prepare = move || local.grow_reservation(&room, end);
        let written = sparse_file::write_at(self.file.clone(), position, chunks, prepare).await;
        let end = written.inspect_err(|error| self.local.note_failure(error))?;
        if self.to_reserve.swap(false, Ordering::Relaxed) {
            if self.expected.is_some_and(|expected| self.file.written() >= expected) {
                self.room.lock().allocated();
            } else {
                self.local.operations.spawn_blocking(self.reservation());
            }
        }
        self.write_back();
        Ok(end)
    }

    fn may_have_gaps(&self) -> bool {
        self.expected.is_some() && self.local.can_reserve_blocks.load(Ordering::Relaxed)
    }

    async fn allow_gaps(&self) -> bool {
        self.expected.is_some() && blocking(self.reservation()).await.unwrap_or(false)
    }

    fn length(&self) -> u64 {
        self.file.prefix()
    }

    async fn digest(&self) -> Result<Digest, StoreError> {
        let file = self.file.clone();
        let (_, digest) = blocking(move || file.digest()).await?.at("read", &self.path)?;
        Ok(digest)
    }

    async fn commit(self: Box<Self>, digest: &Digest, repo: &RepoId) -> Result<(), StoreError> {
        let (digest, repo) = (digest.clone(), repo.clone());
        let local = self.local.clone();
        local.run(move |_| self.commit_blocking(&digest, &repo)).await
    }
}

impl Local {
    /// Reserves blocks without changing the length.
    ///
    /// # Errors
    /// If there are not enough. A file system that cannot reserve blocks is no error.
    fn reserve_blocks(&self, file: &fs::File, bytes: u64) -> io::Result<Blocks> {
        if bytes == 0 {
            return Ok(Blocks::Reserved);
        }
        match fs::fallocate(file, bytes) {
            Ok(()) => Ok(Blocks::Reserved),
            Err(error) if is_full(&error) => Err(error),
            Err(_) => {
                self.can_reserve_blocks.store(false, Ordering::Relaxed);
                Ok(Blocks::Missing)
            }
        }
    }

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
        spool.file.file().metadata().unwrap().blocks() * 512
    }

    #[tokio::test]
    async fn first_bytes_do_not_wait_for_reserved_blocks() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        let spool = begin(&store, Some(LENGTH));
        assert_eq!(reserved(&spool) == 0, spool.room.lock().is_ample(), "blocks come first where there is little room");
        assert_eq!(spool.write_at(0, vec![Bytes::from_static(b"first")]).await.unwrap(), 5);
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
        spool.write_at(0, vec![Bytes::from(vec![0; step as usize + 1])]).await.unwrap();
        spool.write_at(step + 1, vec![Bytes::from_static(b"more")]).await.unwrap();
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

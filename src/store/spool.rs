//! A spool: content on its way into the store, readable while it grows.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use bytes::Bytes;
use parking_lot::Mutex;
use rustix::io::Errno;

use super::error::{At, StoreError, is_full};
use super::fs;
use super::growing::{self, GrowingFile};
use super::reader::BlobReader;
use super::records::Class;
use super::space::Reservation;
use super::{Inner, Store, blocking};
use crate::oci::{Algorithm, Digest, RepoId};

/// Cached content is written back as it comes, so that a push's fsync does not wait for gigabytes of it.
const WRITE_BACK: u64 = 16 << 20;

/// Room is set aside in steps of this where it is not known how much will come.
const UNKNOWN_STEP: u64 = 64 << 20;

/// One temporary file. Dropped without [`Spool::commit`], it is gone, and nothing was ever visible under its digest.
#[derive(Debug)]
pub struct Spool {
    store: Arc<Inner>,
    file: Arc<GrowingFile>,
    reader: BlobReader,
    path: PathBuf,
    algorithm: Algorithm,
    /// How long it will be, until its blocks are reserved: that can take tens of milliseconds, so the first bytes go ahead
    /// of it where the disk has room to spare.
    to_reserve: AtomicU64,
    written_back: AtomicU64,
    syncing: Arc<AtomicBool>,
    /// A sync failed: some of it may be lost, and no later sync says so again.
    spoilt: Arc<AtomicBool>,
    /// The room that is kept for it, given back when it is gone or counted as cached.
    room: Arc<Mutex<Reservation>>,
    committed: bool,
}

impl Store {
    /// A new, empty spool whose content will be hashed with `algorithm`, with room for what is `expected` if that is known:
    /// better no room now than in the middle of a client's answer.
    pub async fn begin(&self, algorithm: Algorithm, expected: Option<u64>) -> Result<Spool, StoreError> {
        self.run(move |inner| {
            inner.check_writes()?;
            let mut room = inner.reserve(expected.unwrap_or(UNKNOWN_STEP))?;
            let path = inner.layout.temporary();
            let file = inner.layout.within(&path, |path| GrowingFile::create(path, algorithm)).at("create", &path)?;
            let open = file.file().at("open", &path)?;
            let expected = expected.unwrap_or(0);
            let to_reserve = if room.is_ample() { expected } else { 0 };
            if to_reserve == 0 {
                if let Err(error) = reserve(&open, expected) {
                    let _ = fs::remove_file(&path);
                    return Err(error).at("reserve", &path);
                }
                room.allocated();
            }
            let reader = BlobReader::new(open);
            Ok(Spool {
                store: inner.clone(),
                reader,
                file: Arc::new(file),
                path,
                algorithm,
                to_reserve: AtomicU64::new(to_reserve),
                written_back: AtomicU64::new(0),
                syncing: Arc::default(),
                spoilt: Arc::default(),
                room: Arc::new(Mutex::new(room)),
                committed: false,
            })
        })
        .await
    }
}

impl Spool {
    /// Reads what has been appended; goes on working after a commit and after the spool is dropped.
    pub fn reader(&self) -> BlobReader {
        self.reader.clone()
    }

    /// Writes `chunks` on the blocking pool, and hashes them behind; the length once they can be read.
    pub async fn append(&self, chunks: Vec<Bytes>) -> Result<u64, StoreError> {
        let (file, store, room) = (self.file.clone(), self.store.clone(), self.room.clone());
        let coming = chunks.iter().map(|chunk| chunk.len() as u64).sum::<u64>();
        let prepare = move || store.grow(&room, file.len() + coming);
        let length = growing::append(self.file.clone(), chunks, prepare).await?;
        self.reserve_rest(length);
        let unsynced = length - self.written_back.load(Ordering::Relaxed);
        if unsynced >= WRITE_BACK && !self.syncing.swap(true, Ordering::AcqRel) {
            self.written_back.store(length, Ordering::Relaxed);
            let (file, syncing, spoilt) = (self.file.clone(), self.syncing.clone(), self.spoilt.clone());
            tokio::task::spawn_blocking(move || {
                if file.file().and_then(|file| fs::sync_data(&file)).is_err() {
                    spoilt.store(true, Ordering::Release);
                }
                syncing.store(false, Ordering::Release);
            });
        }
        Ok(length)
    }

    /// Reserves the blocks of what is still to come behind the first `length` bytes, once.
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
        self.store.operations.spawn_blocking(move || {
            // If they are not there, whoever writes them finds out.
            if file.file().is_ok_and(|file| reserve(&file, expected).is_ok()) {
                room.lock().allocated();
            }
        });
    }

    /// Bytes that have been appended.
    pub fn length(&self) -> u64 {
        self.file.len()
    }

    /// The digest of what has been appended.
    pub async fn digest(&self) -> Result<Digest, StoreError> {
        let file = self.file.clone();
        let algorithm = self.algorithm;
        let (_, digest) = blocking(move || file.digest(algorithm)).await?.at("read", &self.path)?;
        Ok(digest)
    }

    /// Moves the content to its digest, as cached content, and lets `repo` read it: checked, but not waited for to be on
    /// the disk. Once begun it goes on to its end, also when nobody waits for it any more; a stop of the store does.
    ///
    /// # Errors
    /// [`StoreError::DigestMismatch`] if it is not what `digest` names; nothing is kept then.
    pub async fn commit(mut self, digest: &Digest, repo: &RepoId) -> Result<(), StoreError> {
        let (digest, repo) = (digest.clone(), repo.clone());
        let operations = self.store.operations.clone();
        let committed = operations.spawn_blocking(move || {
            let (length, found) = self.file.digest(digest.algorithm()).at("read", &self.path)?;
            if found != digest {
                return Err(StoreError::DigestMismatch { digest: found, found: length });
            }
            if self.spoilt.load(Ordering::Acquire) {
                return Err(io::Error::from(Errno::IO)).at("sync", &self.path);
            }
            self.store.commit_file(&self.path, &digest, length, Class::Cached)?;
            self.committed = true;
            // From here on it counts as cached.
            self.room.lock().release();
            self.share(&digest, length)?;
            self.store.link_blob(&repo, &digest, Some(length))
        });
        committed.await.map_err(|_| StoreError::Task)?
    }
}

impl Spool {
    /// Those who follow the fill read this file on under its digest: it is not to be evicted from under them.
    fn share(&self, digest: &Digest, length: u64) -> Result<(), StoreError> {
        let path = self.store.layout.blob(digest);
        let file = self.file.file().at("open", &path)?;
        self.store.open_files.share(digest, &file, length, &path).at("stat", &path).map(drop)
    }
}

impl Inner {
    /// Sees to it that a spool may be `length` bytes long.
    fn grow(&self, room: &Mutex<Reservation>, length: u64) -> Result<(), StoreError> {
        let mut room = room.lock();
        if length > room.bytes() {
            let more = self.reserve(UNKNOWN_STEP.max(length - room.bytes()))?;
            room.add(more);
        }
        Ok(())
    }
}

/// Reserves blocks without changing the length; where the file system cannot, nothing is reserved.
fn reserve(file: &fs::File, bytes: u64) -> io::Result<()> {
    if bytes == 0 {
        return Ok(());
    }
    match fs::fallocate(file, bytes) {
        Err(error) if is_full(&error) => Err(error),
        _ => Ok(()),
    }
}

impl Drop for Spool {
    fn drop(&mut self) {
        if self.committed {
            return;
        }
        let path = std::mem::take(&mut self.path);
        let room = self.room.clone();
        let remove = move || {
            let _kept_until_it_is_gone = room;
            if let Err(error) = fs::remove_file(&path)
                && error.kind() != std::io::ErrorKind::NotFound
            {
                tracing::warn!(path = %path.display(), %error, "cannot remove a spool file; the next start will");
            }
        };
        // Unlinking a large file takes a while; outside a runtime there is nobody to keep waiting.
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

    use super::super::Bounds;
    use super::super::space::AMPLE;
    use super::*;

    const LENGTH: u64 = 8 << 20;

    fn reserved(spool: &Spool) -> u64 {
        spool.file.file().unwrap().metadata().unwrap().blocks() * 512
    }

    #[tokio::test]
    async fn the_first_bytes_go_ahead_of_the_blocks_of_the_rest() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        let spool = store.begin(Algorithm::Sha256, Some(LENGTH)).await.unwrap();
        assert_eq!(reserved(&spool) == 0, spool.room.lock().is_ample(), "where there is little room, they come first");
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
    async fn room_that_came_later_counts_until_the_disk_knows_of_it() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        let spool = store.begin(Algorithm::Sha256, None).await.unwrap();
        spool.append(vec![Bytes::from(vec![0; UNKNOWN_STEP as usize + 1])]).await.unwrap();
        spool.append(vec![Bytes::from_static(b"more")]).await.unwrap();
        assert_eq!(spool.room.lock().unallocated(), UNKNOWN_STEP);
    }

    #[tokio::test]
    async fn what_does_not_fit_beside_what_others_have_reserved_has_its_blocks_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open_within(folder.path(), Bounds { max_size: u64::MAX, min_free: 0 }, None).unwrap();
        let space = &store.inner.space;
        let _others = space.reserve(space.free().unwrap().saturating_sub(AMPLE / 2)).unwrap();
        let spool = store.begin(Algorithm::Sha256, Some(LENGTH)).await.unwrap();
        assert!(reserved(&spool) >= LENGTH);
    }
}

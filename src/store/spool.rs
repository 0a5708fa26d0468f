//! A spool: content on its way into the store, readable while it grows.

use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use bytes::Bytes;
use rustix::fs::FallocateFlags;
use rustix::io::Errno;

use super::error::{At, StoreError};
use super::growing::GrowingFile;
use super::reader::BlobReader;
use super::records::Class;
use super::{Inner, Store, blocking};
use crate::oci::{Algorithm, Digest, RepoId};

/// Cached content is written back as it comes, so that a push's fsync does not wait for gigabytes of it.
const WRITE_BACK: u64 = 16 << 20;

/// One temporary file. Dropped without [`Spool::commit`], it is gone, and nothing was ever visible under its digest.
#[derive(Debug)]
pub struct Spool {
    store: Arc<Inner>,
    file: Arc<GrowingFile>,
    reader: BlobReader,
    path: PathBuf,
    algorithm: Algorithm,
    written_back: AtomicU64,
    syncing: Arc<AtomicBool>,
    committed: bool,
}

impl Store {
    /// A new, empty spool whose content will be hashed with `algorithm`, with room for what is `expected` if that is known:
    /// better no room now than in the middle of a client's answer.
    pub async fn begin(&self, algorithm: Algorithm, expected: Option<u64>) -> Result<Spool, StoreError> {
        self.run(move |inner| {
            let path = inner.layout.temporary();
            let file = GrowingFile::create(&path, algorithm).at("create", &path)?;
            let open = file.file().at("open", &path)?;
            if let Err(error) = reserve(&open, expected.unwrap_or(0)) {
                let _ = fs::remove_file(&path);
                return Err(error).at("reserve", &path);
            }
            let reader = BlobReader::new(open);
            Ok(Spool {
                store: inner.clone(),
                reader,
                file: Arc::new(file),
                path,
                algorithm,
                written_back: AtomicU64::new(0),
                syncing: Arc::default(),
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

    /// Writes and hashes `chunks` on the blocking pool; the length once they can be read.
    pub async fn append(&self, chunks: Vec<Bytes>) -> Result<u64, StoreError> {
        let file = self.file.clone();
        let length = blocking(move || file.append(&chunks)).await?.at("write", &self.path)?;
        let unsynced = length - self.written_back.load(Ordering::Relaxed);
        if unsynced >= WRITE_BACK && !self.syncing.swap(true, Ordering::AcqRel) {
            self.written_back.store(length, Ordering::Relaxed);
            let (file, syncing) = (self.file.clone(), self.syncing.clone());
            tokio::task::spawn_blocking(move || {
                // A failure shows again at the sync that matters.
                let _ = file.file().and_then(|file| file.sync_data());
                syncing.store(false, Ordering::Release);
            });
        }
        Ok(length)
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
            self.store.commit_file(&self.path, &digest, length, Class::Cached)?;
            self.committed = true;
            self.store.link_blob(&repo, &digest, Some(length))
        });
        committed.await.map_err(|_| StoreError::Task)?
    }
}

/// Reserves blocks without changing the length; where the file system cannot, nothing is reserved.
fn reserve(file: &fs::File, bytes: u64) -> io::Result<()> {
    if bytes == 0 {
        return Ok(());
    }
    match rustix::fs::fallocate(file, FallocateFlags::KEEP_SIZE, 0, bytes) {
        Err(error @ (Errno::NOSPC | Errno::DQUOT | Errno::FBIG)) => Err(error.into()),
        _ => Ok(()),
    }
}

impl Drop for Spool {
    fn drop(&mut self) {
        if self.committed {
            return;
        }
        let path = std::mem::take(&mut self.path);
        let remove = move || {
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

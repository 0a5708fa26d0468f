//! A file that grows, and the running hash of its content: the body of an upload.

use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::oneshot;

use super::file_mode::unmark_pushed;
use crate::oci::{Algorithm, Digest, Hasher};
use crate::store::error::{At, StoreError};
use crate::store::fs::{self, File};

/// An append with more chunks than this joins them into one write.
const MAX_CHUNKS_OF_WRITE: usize = 16;
/// Bytes of one read when a file is hashed again.
pub(super) const REHASH_READ_BYTES: usize = 1 << 20;

/// All methods block: they belong on the blocking pool. A write takes effect completely or not at all, so length and
/// hash stay consistent even if the caller stops waiting.
#[derive(Debug)]
pub(super) struct GrowingFile {
    path: PathBuf,
    /// `None`: opened for each operation. A session may be idle for a day, and would hold a descriptor all that time.
    open: Option<Arc<File>>,
    /// Bytes that were written and count. Locked before the hasher where both are.
    length: Mutex<u64>,
    /// The hash of those bytes. The thread that wrote the last ones holds it until they are hashed.
    hasher: Mutex<Hasher>,
}

/// Bytes that are written and not hashed yet. The next bytes may be written in the meantime.
#[must_use = "the hash must include these bytes"]
struct Written<'a> {
    chunks: &'a [Bytes],
    hasher: MutexGuard<'a, Hasher>,
    length: u64,
}

/// A state that a file can return to.
#[derive(Debug)]
pub(super) struct Checkpoint {
    length: u64,
    hasher: Hasher,
}

impl Checkpoint {
    pub(super) fn length(&self) -> u64 {
        self.length
    }
}

/// Appends `chunks` on the blocking pool, after `prepare` has succeeded. Returns the new length once the chunks can
/// be read; they are hashed after that, in the order of the appends. The value of `prepare` is held until they are
/// written.
pub(super) async fn append<T>(
    file: Arc<GrowingFile>,
    chunks: Vec<Bytes>,
    prepare: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<u64, StoreError> {
    let (sender, length) = oneshot::channel();
    tokio::task::spawn_blocking(move || {
        let written = prepare().and_then(|_held| file.write(&chunks).at("write", &file.path));
        let (length, written) = match written {
            Ok(written) => (Ok(written.length), Some(written)),
            Err(error) => (Err(error), None),
        };
        // An error means that the caller has stopped waiting.
        let _ = sender.send(length);
        if let Some(written) = written {
            written.hash();
        }
    });
    length.await.map_err(|_| StoreError::Task)?
}

impl Written<'_> {
    fn hash(mut self) {
        for chunk in self.chunks {
            self.hasher.update(chunk);
        }
    }
}

impl GrowingFile {
    /// A new file; an existing one of that name is an error.
    pub(super) fn create(path: &Path, algorithm: Algorithm) -> io::Result<Self> {
        let file = fs::create_new(path)?;
        Ok(Self::new(path, file, 0, algorithm.hasher()))
    }

    /// Continues a file of an earlier process. Truncates it to at most `length` bytes, and hashes the rest.
    pub(super) fn resume(path: &Path, algorithm: Algorithm, length: Option<u64>) -> io::Result<Self> {
        let file = open_again(path)?;
        if let Some(length) = length
            && length < file.metadata()?.len()
        {
            fs::set_len(&file, length)?;
        }
        let (hasher, length) = hash(&file, algorithm)?;
        Ok(Self::new(path, file, length, hasher))
    }

    fn new(path: &Path, file: File, length: u64, hasher: Hasher) -> Self {
        let open = Some(Arc::new(file));
        Self { path: path.to_owned(), open, length: Mutex::new(length), hasher: Mutex::new(hasher) }
    }

    /// As `self`, without an open file between operations.
    pub(super) fn closed(self) -> Self {
        Self { open: None, ..self }
    }

    pub(super) fn file(&self) -> io::Result<Arc<File>> {
        match &self.open {
            Some(file) => Ok(file.clone()),
            None => Ok(Arc::new(fs::open_to_write(&self.path)?)),
        }
    }

    /// Bytes appended so far.
    pub(super) fn len(&self) -> u64 {
        *self.length.lock()
    }

    /// Writes all of `chunks` at the end, or nothing that counts. A failed write may be repeated.
    fn write<'a>(&'a self, chunks: &'a [Bytes]) -> io::Result<Written<'a>> {
        let mut length = self.length.lock();
        let file = self.file()?;
        let end = write_chunks(&file, chunks, *length).inspect_err(|_| {
            // The part that was written does not count.
            let _ = fs::set_len(&file, *length);
        })?;
        // Taken before another thread may write, so that bytes are hashed in their order.
        let hasher = self.hasher.lock();
        *length = end;
        Ok(Written { chunks, hasher, length: end })
    }

    /// The present state.
    pub(super) fn checkpoint(&self) -> Checkpoint {
        let length = self.length.lock();
        Checkpoint { length: *length, hasher: self.hasher.lock().clone() }
    }

    /// Returns to an earlier state. Bytes that cannot be removed from the file are ignored.
    pub(super) fn restore(&self, earlier: Checkpoint) {
        let mut length = self.length.lock();
        *self.hasher.lock() = earlier.hasher;
        *length = earlier.length;
        let _ = self.file().and_then(|file| fs::set_len(&file, *length));
    }

    /// Truncates the file to the bytes that count.
    pub(super) fn truncate_to_length(&self) -> io::Result<()> {
        let length = self.length.lock();
        fs::set_len(&*self.file()?, *length)
    }

    /// Length in bytes and digest of the content. A digest by another algorithm than the running one costs a read of
    /// the file.
    pub(super) fn digest(&self, algorithm: Algorithm) -> io::Result<(u64, Digest)> {
        let length = self.length.lock();
        let running = self.hasher.lock().clone().finish();
        if running.algorithm() == algorithm {
            return Ok((*length, running));
        }
        let (hasher, length) = hash(&*self.file()?, algorithm)?;
        Ok((length, hasher.finish()))
    }
}

/// Writes all of `chunks` at `position`. Returns the position after them. A failed write may leave a part of them.
pub(super) fn write_chunks(file: &File, chunks: &[Bytes], position: u64) -> io::Result<u64> {
    let mut end = position;
    // A sender of single bytes does not cost a system call for each of them.
    let joined = (chunks.len() > MAX_CHUNKS_OF_WRITE).then(|| [Bytes::from(chunks.concat())]);
    for chunk in joined.as_ref().map_or(chunks, |joined| joined.as_slice()) {
        fs::write_all_at(file, chunk, end)?;
        end += chunk.len() as u64;
    }
    Ok(end)
}

/// A commit that a crash interrupted may have marked the file as pushed content, which removes the write permission.
fn open_again(path: &Path) -> io::Result<File> {
    unmark_pushed(&fs::open(path)?)?;
    fs::open_to_write(path)
}

/// Hashes all of a file. Returns the hasher and the length in bytes.
pub(super) fn hash(file: &File, algorithm: Algorithm) -> io::Result<(Hasher, u64)> {
    let mut hasher = algorithm.hasher();
    let mut buffer = vec![0; REHASH_READ_BYTES];
    let mut length = 0;
    loop {
        match file.read_at(&mut buffer, length) {
            Ok(0) => return Ok((hasher, length)),
            Ok(n) => {
                hasher.update(&buffer[..n]);
                length += n as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::thread;
    use std::time::{Duration, Instant};

    use super::*;

    #[test]
    fn bytes_are_written_while_earlier_ones_are_hashed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        let file = GrowingFile::create(&path, Algorithm::Sha256).unwrap();
        let [one, two] = [[Bytes::from_static(b"one")], [Bytes::from_static(b" and two")]];
        let first = file.write(&one).unwrap();
        assert_eq!((first.length, file.len()), (3, 3), "the bytes can be read before they are hashed");
        thread::scope(|scope| {
            let second = scope.spawn(|| file.write(&two).unwrap().hash());
            let deadline = Instant::now() + Duration::from_secs(20);
            while path.metadata().unwrap().len() < 11 {
                assert!(Instant::now() < deadline);
                thread::yield_now();
            }
            assert!(!second.is_finished());
            first.hash();
        });
        let expected = (11, Digest::of(Algorithm::Sha256, b"one and two"));
        assert_eq!((file.len(), file.digest(Algorithm::Sha256).unwrap()), (11, expected));
    }
}

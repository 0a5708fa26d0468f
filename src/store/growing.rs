//! A file that grows and the running hash of what is in it: the body of a fill's spool and of an upload.

use std::io;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::oneshot;

use super::error::{At, StoreError};
use super::fs::{self, File, Permissions};
use crate::oci::{Algorithm, Digest, Hasher};

/// Chunks of one append beyond which they are joined.
const MANY: usize = 16;
/// Bytes read at once when a file is hashed again.
const REHASH_CHUNK: usize = 1 << 20;

/// All methods block: they belong on the blocking pool. A write runs whole or not at all from the outside, so whoever
/// stops waiting for one leaves length and hash in step.
#[derive(Debug)]
pub(super) struct GrowingFile {
    path: PathBuf,
    /// `None`: opened for each operation. A session may lie about for a day, and a descriptor with it.
    open: Option<Arc<File>>,
    /// Bytes that are in the file and count. Before the hasher, where both are locked.
    length: Mutex<u64>,
    /// Of those bytes, as soon as whoever wrote them gives it back.
    hasher: Mutex<Hasher>,
}

/// Bytes that are in the file, and still to be hashed: meanwhile the next ones may be written.
#[must_use = "the hash would not be that of the file"]
struct Written<'a> {
    chunks: &'a [Bytes],
    hasher: MutexGuard<'a, Hasher>,
    length: u64,
}

/// Appends `chunks` on the blocking pool if `prepare` says that it may; the new length when they can be read. They are
/// hashed behind that, in the order of the appends. What `prepare` gives is held until they are written.
pub(super) async fn append<T>(
    file: Arc<GrowingFile>,
    chunks: Vec<Bytes>,
    prepare: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<u64, StoreError> {
    let (told, length) = oneshot::channel();
    tokio::task::spawn_blocking(move || {
        let written = prepare().and_then(|_held| file.write(&chunks).at("write", &file.path));
        let (length, written) = match written {
            Ok(written) => (Ok(written.length), Some(written)),
            Err(error) => (Err(error), None),
        };
        // Whoever does not wait any more need not know.
        let _ = told.send(length);
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

    /// Goes on with a file of an earlier process, hashing what is there.
    pub(super) fn resume(path: &Path, algorithm: Algorithm) -> io::Result<Self> {
        let file = open_again(path)?;
        let (hasher, length) = hash(&file, algorithm)?;
        Ok(Self::new(path, file, length, hasher))
    }

    fn new(path: &Path, file: File, length: u64, hasher: Hasher) -> Self {
        let open = Some(Arc::new(file));
        Self { path: path.to_owned(), open, length: Mutex::new(length), hasher: Mutex::new(hasher) }
    }

    /// The same without an open file between operations.
    pub(super) fn closed(self) -> Self {
        Self { open: None, ..self }
    }

    pub(super) fn file(&self) -> io::Result<Arc<File>> {
        match &self.open {
            Some(file) => Ok(file.clone()),
            None => Ok(Arc::new(fs::open_to_write(&self.path)?)),
        }
    }

    pub(super) fn len(&self) -> u64 {
        *self.length.lock()
    }

    /// Writes all of `chunks` behind what is there, or nothing that counts: it may be tried again at the same place.
    fn write<'a>(&'a self, chunks: &'a [Bytes]) -> io::Result<Written<'a>> {
        let mut length = self.length.lock();
        let file = self.file()?;
        let mut end = *length;
        // Many small ones are one write: a client that sends byte by byte costs no system call for each.
        let joined = (chunks.len() > MANY).then(|| [Bytes::from(chunks.concat())]);
        for chunk in joined.as_ref().map_or(chunks, |joined| joined.as_slice()) {
            if let Err(error) = fs::write_all_at(&file, chunk, end) {
                // What was written of it is no part of the content.
                let _ = fs::set_len(&file, *length);
                return Err(error);
            }
            end += chunk.len() as u64;
        }
        // Taken before others may write: the hash is over the bytes in their order.
        let hasher = self.hasher.lock();
        *length = end;
        Ok(Written { chunks, hasher, length: end })
    }

    /// Ends the file where its content ends.
    pub(super) fn cut_to_length(&self) -> io::Result<()> {
        let length = self.length.lock();
        fs::set_len(&*self.file()?, *length)
    }

    /// Length and digest of what is there, under the running algorithm or, with a second read, under another.
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

/// A file whose end was begun may be marked as pushed content already, and so not be writable any more.
fn open_again(path: &Path) -> io::Result<File> {
    let file = fs::open(path)?;
    let mode = file.metadata()?.permissions().mode();
    if mode & 0o200 == 0 {
        fs::set_permissions(&file, Permissions::from_mode(mode | 0o200))?;
    }
    fs::open_to_write(path)
}

/// Hashes a file from its beginning to its end.
pub(super) fn hash(file: &File, algorithm: Algorithm) -> io::Result<(Hasher, u64)> {
    let mut hasher = algorithm.hasher();
    let mut buffer = vec![0; REHASH_CHUNK];
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
    fn the_next_bytes_are_written_while_earlier_ones_are_hashed_and_hashed_after_them() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        let file = GrowingFile::create(&path, Algorithm::Sha256).unwrap();
        let [one, two] = [[Bytes::from_static(b"one")], [Bytes::from_static(b" and two")]];
        let first = file.write(&one).unwrap();
        assert_eq!((first.length, file.len()), (3, 3), "it can be read, and is not hashed yet");
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

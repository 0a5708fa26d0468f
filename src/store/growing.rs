//! A file that grows and the running hash of what is in it: the body of a fill's spool and of an upload.

use std::io;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;

use super::fs::{self, File, Permissions};
use crate::oci::{Algorithm, Digest, Hasher};

/// Chunks of one append beyond which they are joined.
const MANY: usize = 16;
/// Bytes read at once when a file is hashed again.
const REHASH_CHUNK: usize = 1 << 20;

/// All methods block: they belong on the blocking pool. An append runs whole or not at all from the outside, so whoever
/// stops waiting for one leaves length and hash in step.
#[derive(Debug)]
pub(super) struct GrowingFile {
    path: PathBuf,
    /// `None`: opened for each operation. A session may lie about for a day, and a descriptor with it.
    open: Option<Arc<File>>,
    progress: Mutex<Progress>,
}

#[derive(Debug)]
struct Progress {
    hasher: Hasher,
    length: u64,
}

impl GrowingFile {
    /// A new file; an existing one of that name is an error.
    pub(super) fn create(path: &Path, algorithm: Algorithm) -> io::Result<Self> {
        let file = fs::create_new(path)?;
        let progress = Mutex::new(Progress { hasher: algorithm.hasher(), length: 0 });
        Ok(Self { path: path.to_owned(), open: Some(Arc::new(file)), progress })
    }

    /// Goes on with a file of an earlier process, hashing what is there.
    pub(super) fn resume(path: &Path, algorithm: Algorithm) -> io::Result<Self> {
        let file = open_again(path)?;
        let (hasher, length) = hash(&file, algorithm)?;
        let progress = Mutex::new(Progress { hasher, length });
        Ok(Self { path: path.to_owned(), open: Some(Arc::new(file)), progress })
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
        self.progress.lock().length
    }

    /// Writes and hashes; the new length once all of it is in the file.
    pub(super) fn append(&self, chunks: &[Bytes]) -> io::Result<u64> {
        let mut progress = self.progress.lock();
        let file = self.file()?;
        let mut length = progress.length;
        // Many small ones are one write: a client that sends byte by byte costs no system call for each.
        let joined = (chunks.len() > MANY).then(|| [Bytes::from(chunks.concat())]);
        let chunks = joined.as_ref().map_or(chunks, |joined| joined.as_slice());
        for chunk in chunks {
            if let Err(error) = fs::write_all_at(&file, chunk, length) {
                // What was written of it is no part of the content.
                let _ = fs::set_len(&file, progress.length);
                return Err(error);
            }
            length += chunk.len() as u64;
        }
        // Only what was written whole counts; a failed append may be tried again at the same place.
        for chunk in chunks {
            progress.hasher.update(chunk);
        }
        progress.length = length;
        Ok(length)
    }

    /// Ends the file where its content ends.
    pub(super) fn cut_to_length(&self) -> io::Result<()> {
        let progress = self.progress.lock();
        fs::set_len(&*self.file()?, progress.length)
    }

    /// Length and digest of what is there, under the running algorithm or, with a second read, under another.
    pub(super) fn digest(&self, algorithm: Algorithm) -> io::Result<(u64, Digest)> {
        let progress = self.progress.lock();
        let running = progress.hasher.clone().finish();
        if running.algorithm() == algorithm {
            return Ok((progress.length, running));
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

//! A file that grows and the running hash of what is in it: the body of a fill's spool and of an upload.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;

use crate::oci::{Algorithm, Digest, Hasher};

/// Bytes read at once when a file is hashed again.
const REHASH_CHUNK: usize = 1 << 20;

/// All methods block: they belong on the blocking pool. An append runs whole or not at all from the outside, so whoever
/// stops waiting for one leaves length and hash in step.
#[derive(Debug)]
pub(super) struct GrowingFile {
    file: Arc<File>,
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
        let file = OpenOptions::new().create_new(true).read(true).write(true).open(path)?;
        Ok(Self { file: Arc::new(file), progress: Mutex::new(Progress { hasher: algorithm.hasher(), length: 0 }) })
    }

    /// Goes on with a file of an earlier process, hashing what is there.
    pub(super) fn resume(path: &Path, algorithm: Algorithm) -> io::Result<Self> {
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        let (hasher, length) = hash(&file, algorithm)?;
        Ok(Self { file: Arc::new(file), progress: Mutex::new(Progress { hasher, length }) })
    }

    pub(super) fn file(&self) -> &Arc<File> {
        &self.file
    }

    pub(super) fn len(&self) -> u64 {
        self.progress.lock().length
    }

    /// Writes and hashes; the new length once all of it is in the file.
    pub(super) fn append(&self, chunks: &[Bytes]) -> io::Result<u64> {
        let mut progress = self.progress.lock();
        let mut length = progress.length;
        for chunk in chunks {
            self.file.write_all_at(chunk, length)?;
            length += chunk.len() as u64;
        }
        // Only what was written whole counts; a failed append may be tried again at the same place.
        for chunk in chunks {
            progress.hasher.update(chunk);
        }
        progress.length = length;
        Ok(length)
    }

    /// Length and digest of what is there, under the running algorithm or, with a second read, under another.
    pub(super) fn digest(&self, algorithm: Algorithm) -> io::Result<(u64, Digest)> {
        let progress = self.progress.lock();
        let running = progress.hasher.clone().finish();
        if running.algorithm() == algorithm {
            return Ok((progress.length, running));
        }
        let (hasher, length) = hash(&self.file, algorithm)?;
        Ok((length, hasher.finish()))
    }
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

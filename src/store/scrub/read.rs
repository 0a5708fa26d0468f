//! Reading a blob from the disk, not from memory.
//!
//! A scrub that reads through the page cache believes what memory holds and pushes out what clients use. So files are read
//! with `O_DIRECT`: past the cache in both senses. A file system that cannot do that is read through the cache, with the
//! advice that the pages will not be used again.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::{Advice, OFlags};
use rustix::io::Errno;

use crate::oci::{Algorithm, Digest};

/// Bytes of one read.
const CHUNK: usize = 1 << 20;
/// What every block device is content with.
const ALIGNMENT: usize = 4096;

/// Memory that a direct read may go to.
pub(super) struct Buffer {
    bytes: Vec<u8>,
    start: usize,
}

/// What a file holds.
pub(super) struct Read {
    pub(super) file: File,
    pub(super) length: u64,
    /// `None` when it was stopped on the way.
    pub(super) digest: Option<Digest>,
}

impl Buffer {
    pub(super) fn new() -> Self {
        let bytes = vec![0; CHUNK + ALIGNMENT];
        let start = bytes.as_ptr().align_offset(ALIGNMENT).min(ALIGNMENT);
        Self { bytes, start }
    }

    fn chunk(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..self.start + CHUNK]
    }
}

/// Hashes the file at `path`; `may_read` is asked before each read.
pub(super) fn digest_of(
    path: &Path,
    algorithm: Algorithm,
    buffer: &mut Buffer,
    may_read: &mut dyn FnMut(u64) -> bool,
) -> io::Result<Read> {
    match OpenOptions::new().read(true).custom_flags(OFlags::DIRECT.bits().cast_signed()).open(path) {
        Ok(file) => match hash(file, algorithm, buffer, may_read) {
            Err(error) if is_unsupported(&error) => {}
            read => return read,
        },
        Err(error) if is_unsupported(&error) => {}
        Err(error) => return Err(error),
    }
    let file = File::open(path)?;
    // Advice may be ignored, and then costs only cache.
    let _ = rustix::fs::fadvise(&file, 0, None, Advice::NoReuse);
    hash(file, algorithm, buffer, may_read)
}

/// Whether it is the process that lacks something, descriptors or memory, and not the file: nothing is said of that.
pub(super) fn is_ours(error: &io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::MFILE | Errno::NFILE | Errno::NOMEM))
}

fn is_unsupported(error: &io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::INVAL | Errno::OPNOTSUPP))
}

fn hash(
    file: File,
    algorithm: Algorithm,
    buffer: &mut Buffer,
    may_read: &mut dyn FnMut(u64) -> bool,
) -> io::Result<Read> {
    let length = file.metadata()?.len();
    let mut hasher = algorithm.hasher();
    let mut offset = 0;
    while offset < length {
        if !may_read((length - offset).min(CHUNK as u64)) {
            return Ok(Read { file, length, digest: None });
        }
        match file.read_at(buffer.chunk(), offset) {
            // It became shorter: its digest will say so.
            Ok(0) => break,
            Ok(read) => {
                hasher.update(&buffer.chunk()[..read]);
                offset += read as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(Read { file, length, digest: Some(hasher.finish()) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_length_is_read_whole() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        let mut buffer = Buffer::new();
        for length in [0, 1, 511, 512, 4095, 4096, 4097, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK + 777] {
            let mut bytes = vec![0; length];
            fastrand::Rng::with_seed(length as u64).fill(&mut bytes);
            std::fs::write(&path, &bytes).unwrap();
            let read = digest_of(&path, Algorithm::Sha256, &mut buffer, &mut |_| true).unwrap();
            assert_eq!((read.length, read.digest), (length as u64, Some(Digest::of(Algorithm::Sha256, &bytes))));
        }
        let stopped = digest_of(&path, Algorithm::Sha256, &mut buffer, &mut |_| false).unwrap();
        assert_eq!(stopped.digest, None);
    }
}

//! Reading a file from the disk rather than from memory.
//!
//! A scrub that reads through the page cache checks memory instead of the disk, and evicts pages that clients need. So files
//! are read with `O_DIRECT`. Where the file system does not support that, they are read through the page cache, with the
//! advice that the pages will not be used again.

use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::fs::Advice;
use rustix::io::Errno;

use crate::oci::{Algorithm, Digest};
use crate::store::fs::{self, File};

/// Bytes of one read.
const READ_BYTES: usize = 1 << 20;
/// Alignment in memory that suits every block device.
const ALIGNMENT_BYTES: usize = 4096;

/// Memory that is aligned for direct reads.
pub(super) struct DirectBuffer {
    bytes: Vec<u8>,
    start: usize,
}

/// A file that was read.
pub(super) struct HashedFile {
    pub(super) file: File,
    /// In bytes.
    pub(super) length: u64,
    /// `None` if reading was stopped.
    pub(super) digest: Option<Digest>,
}

impl DirectBuffer {
    pub(super) fn new() -> Self {
        let bytes = vec![0; READ_BYTES + ALIGNMENT_BYTES];
        let start = bytes.as_ptr().align_offset(ALIGNMENT_BYTES).min(ALIGNMENT_BYTES);
        Self { bytes, start }
    }

    fn chunk(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..self.start + READ_BYTES]
    }
}

/// Hashes the file at `path`. `may_read` is called with a number of bytes before each read; false stops reading.
pub(super) fn hash_file(
    path: &Path,
    algorithm: Algorithm,
    buffer: &mut DirectBuffer,
    may_read: &mut dyn FnMut(u64) -> bool,
) -> io::Result<HashedFile> {
    match fs::open_direct(path) {
        Ok(file) => match hash(file, algorithm, buffer, may_read) {
            Err(error) if is_unsupported(&error) => {}
            read => return read,
        },
        Err(error) if is_unsupported(&error) => {}
        Err(error) => return Err(error),
    }
    let file = fs::open(path)?;
    // The kernel may ignore the advice. That only costs page cache.
    let _ = rustix::fs::fadvise(&file, 0, None, Advice::NoReuse);
    hash(file, algorithm, buffer, may_read)
}

/// Whether the process lacks descriptors or memory, which says nothing about the file.
pub(super) fn is_lack_of_resources(error: &io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::MFILE | Errno::NFILE | Errno::NOMEM))
}

fn is_unsupported(error: &io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::INVAL | Errno::OPNOTSUPP))
}

fn hash(
    file: File,
    algorithm: Algorithm,
    buffer: &mut DirectBuffer,
    may_read: &mut dyn FnMut(u64) -> bool,
) -> io::Result<HashedFile> {
    let length = file.metadata()?.len();
    let mut hasher = algorithm.hasher();
    let mut offset = 0;
    while offset < length {
        if !may_read((length - offset).min(READ_BYTES as u64)) {
            return Ok(HashedFile { file, length, digest: None });
        }
        match file.read_at(buffer.chunk(), offset) {
            // The file became shorter, so its digest will differ.
            Ok(0) => break,
            Ok(read) => {
                hasher.update(&buffer.chunk()[..read]);
                offset += read as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(HashedFile { file, length, digest: Some(hasher.finish()) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_every_length_are_read_completely() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        let mut buffer = DirectBuffer::new();
        for length in
            [0, 1, 511, 512, 4095, 4096, 4097, READ_BYTES - 1, READ_BYTES, READ_BYTES + 1, 3 * READ_BYTES + 777]
        {
            let mut bytes = vec![0; length];
            fastrand::Rng::with_seed(length as u64).fill(&mut bytes);
            std::fs::write(&path, &bytes).unwrap();
            let read = hash_file(&path, Algorithm::Sha256, &mut buffer, &mut |_| true).unwrap();
            assert_eq!((read.length, read.digest), (length as u64, Some(Digest::of(Algorithm::Sha256, &bytes))));
        }
        let stopped = hash_file(&path, Algorithm::Sha256, &mut buffer, &mut |_| false).unwrap();
        assert_eq!(stopped.digest, None);
    }
}

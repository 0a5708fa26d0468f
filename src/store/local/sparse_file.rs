//! A file whose bytes arrive in any order, and the hash of its beginning: the body of a spool.
//!
//! The hash follows the *prefix*, the bytes before the first missing one. Bytes that extend the prefix are hashed from
//! memory if the hash is not far behind; all others are read from the file, where the page cache usually has them. One
//! thread hashes at a time, and no write waits for it.

use std::collections::BTreeMap;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::{Condvar, Mutex};
use tokio::sync::oneshot;

use super::growing_file::{REHASH_READ_BYTES, write_chunks};
use super::intervals::Intervals;
use crate::oci::{Algorithm, ByteRange, Digest, Hasher};
use crate::store::error::{At, StoreError};
use crate::store::fs::{self, File};

/// Bytes of the prefix that are kept in memory until they are hashed.
const MAX_UNHASHED_BYTES: usize = 1 << 20;

/// All methods block: they belong on the blocking pool.
#[derive(Debug)]
pub(super) struct SparseFile {
    path: PathBuf,
    file: File,
    state: Mutex<State>,
    /// The hasher was put back.
    hashed: Condvar,
}

#[derive(Debug)]
struct State {
    written: Intervals,
    /// What threads are writing. No byte is written twice: a late write could change bytes that were hashed.
    writing: Vec<ByteRange>,
    /// `None` while a thread hashes.
    hasher: Option<Hasher>,
    /// Bytes that the hash covers.
    hashed: u64,
    unhashed: Unhashed,
    /// The file could not be read to hash it.
    failure: Option<io::Error>,
}

/// Written bytes that are still in memory, by position.
#[derive(Debug, Default)]
struct Unhashed {
    chunks: BTreeMap<u64, Bytes>,
    bytes: usize,
}

/// What to hash next.
enum Next {
    Chunk(Bytes),
    Read(ByteRange),
}

impl SparseFile {
    /// A new file; an existing one of that name is an error.
    pub(super) fn create(path: &Path, algorithm: Algorithm) -> io::Result<Self> {
        let file = fs::create_new(path)?;
        let state = State {
            written: Intervals::default(),
            writing: Vec::new(),
            hasher: Some(algorithm.hasher()),
            hashed: 0,
            unhashed: Unhashed::default(),
            failure: None,
        };
        Ok(Self { path: path.to_owned(), file, state: Mutex::new(state), hashed: Condvar::new() })
    }

    pub(super) fn file(&self) -> &File {
        &self.file
    }

    /// The number of bytes before the first missing one.
    pub(super) fn prefix(&self) -> u64 {
        self.state.lock().written.prefix()
    }

    /// The number of bytes that were written.
    pub(super) fn written(&self) -> u64 {
        self.state.lock().written.bytes()
    }

    /// Writes all of `chunks` at `position`, or nothing that counts, and returns the position after them. A failed write
    /// may be repeated. The bytes can be read when this returns; call [`SparseFile::hash`] then.
    ///
    /// # Errors
    /// Those of the write; `InvalidInput` if some of the bytes were written before; `UnexpectedEof` if another program
    /// has shortened the file, because this write would leave zeros where bytes were.
    fn write(&self, position: u64, chunks: &[Bytes]) -> io::Result<u64> {
        let length = chunks.iter().map(|chunk| chunk.len() as u64).sum::<u64>();
        let range = ByteRange { start: position, end: position + length };
        {
            let mut state = self.state.lock();
            let is_written = state.writing.iter().any(|other| other.start < range.end && range.start < other.end);
            if is_written || state.written.overlaps(range) {
                return Err(io::Error::new(io::ErrorKind::InvalidInput, "these bytes were written before"));
            }
            if self.file.metadata()?.len() < state.written.end() {
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "another program has shortened the file"));
            }
            state.writing.push(range);
        }
        let outcome = write_chunks(&self.file, chunks, position);
        let mut state = self.state.lock();
        state.writing.retain(|other| *other != range);
        outcome?;
        state.written.insert(range);
        if state.written.prefix() >= range.end {
            state.unhashed.keep(position, chunks);
        }
        Ok(range.end)
    }

    /// Hashes what the hash does not cover yet, unless another thread does.
    fn hash(&self) {
        let mut buffer = Vec::new();
        let (mut hasher, mut hashed) = {
            let mut state = self.state.lock();
            let Some(hasher) = state.hasher.take() else { return };
            (hasher, state.hashed)
        };
        loop {
            let next = {
                let mut state = self.state.lock();
                state.hashed = hashed;
                match state.next_to_hash() {
                    Some(next) => next,
                    None => {
                        (state.hasher, state.failure) = (Some(hasher), None);
                        self.hashed.notify_all();
                        return;
                    }
                }
            };
            match next {
                Next::Chunk(chunk) => {
                    hasher.update(&chunk);
                    hashed += chunk.len() as u64;
                }
                Next::Read(range) => match self.read(range, &mut buffer) {
                    Ok(bytes) => {
                        hasher.update(bytes);
                        hashed += bytes.len() as u64;
                    }
                    Err(error) => {
                        let mut state = self.state.lock();
                        (state.failure, state.hasher) = (Some(error), Some(hasher));
                        self.hashed.notify_all();
                        return;
                    }
                },
            }
        }
    }

    fn read<'a>(&self, range: ByteRange, buffer: &'a mut Vec<u8>) -> io::Result<&'a [u8]> {
        let length = usize::try_from(range.end - range.start).unwrap_or(REHASH_READ_BYTES).min(REHASH_READ_BYTES);
        buffer.resize(REHASH_READ_BYTES, 0);
        let buffer = &mut buffer[..length];
        self.file.read_exact_at(buffer, range.start)?;
        Ok(buffer)
    }

    /// The length of the prefix in bytes, and its digest by the algorithm that the file was created for.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub(super) fn digest(&self) -> io::Result<(u64, Digest)> {
        loop {
            self.hash();
            let mut state = self.state.lock();
            if let Some(error) = state.failure.take() {
                return Err(error);
            }
            match &state.hasher {
                Some(hasher) if state.hashed == state.written.prefix() => {
                    return Ok((state.hashed, hasher.clone().finish()));
                }
                Some(_) => {}
                None => self.hashed.wait(&mut state),
            }
        }
    }

    /// Whether bytes are missing before some that were written.
    pub(super) fn has_gaps(&self) -> bool {
        let state = self.state.lock();
        state.written.bytes() > state.written.prefix()
    }
}

/// Writes `chunks` at `position` on the blocking pool, after `prepare` has succeeded, and hashes them after that.
/// Returns the position after them once they can be read. The value of `prepare` is held until they are written.
pub(super) async fn write_at<T>(
    file: Arc<SparseFile>,
    position: u64,
    chunks: Vec<Bytes>,
    prepare: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<u64, StoreError> {
    let (sender, outcome) = oneshot::channel();
    tokio::task::spawn_blocking(move || {
        let written = prepare().and_then(|_held| file.write(position, &chunks).at("write", &file.path));
        let is_written = written.is_ok();
        drop(chunks);
        // An error means that the caller has stopped waiting.
        let _ = sender.send(written);
        if is_written {
            file.hash();
        }
    });
    outcome.await.map_err(|_| StoreError::Task)?
}

impl State {
    /// The next bytes of the prefix to hash, from `hashed` on.
    fn next_to_hash(&mut self) -> Option<Next> {
        if let Some(chunk) = self.unhashed.take(self.hashed) {
            return Some(Next::Chunk(chunk));
        }
        let end = self.unhashed.next().map_or(self.written.prefix(), |next| next.min(self.written.prefix()));
        (self.hashed < end).then_some(Next::Read(ByteRange { start: self.hashed, end }))
    }
}

impl Unhashed {
    /// Keeps the chunks, if there is room for all of them.
    fn keep(&mut self, mut position: u64, chunks: &[Bytes]) {
        let bytes = chunks.iter().map(Bytes::len).sum::<usize>();
        if self.bytes + bytes > MAX_UNHASHED_BYTES {
            return;
        }
        self.bytes += bytes;
        for chunk in chunks.iter().filter(|chunk| !chunk.is_empty()) {
            self.chunks.insert(position, chunk.clone());
            position += chunk.len() as u64;
        }
    }

    /// Removes and returns the chunk at `position`.
    fn take(&mut self, position: u64) -> Option<Bytes> {
        let chunk = self.chunks.remove(&position)?;
        self.bytes -= chunk.len();
        Some(chunk)
    }

    /// The position of the first chunk.
    fn next(&self) -> Option<u64> {
        self.chunks.first_key_value().map(|(position, _)| *position)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LENGTH: usize = 3 << 20;

    fn content() -> Bytes {
        (0..LENGTH).map(|at| (at / 251 + at) as u8).collect::<Vec<_>>().into()
    }

    fn file(folder: &Path) -> SparseFile {
        SparseFile::create(&folder.join("file"), Algorithm::Sha256).unwrap()
    }

    #[test]
    fn digest_is_that_of_the_prefix_in_any_order_of_writes() {
        let content = content();
        let cut = [0, 1, 4096, 1 << 20, (1 << 20) + 7, 2 << 20, LENGTH];
        let parts: Vec<_> = cut.windows(2).map(|cut| (cut[0], content.slice(cut[0]..cut[1]))).collect();
        for order in [[0, 1, 2, 3, 4, 5], [5, 4, 3, 2, 1, 0], [2, 0, 5, 1, 4, 3], [0, 5, 4, 1, 2, 3]] {
            let folder = tempfile::tempdir().unwrap();
            let file = file(folder.path());
            let mut present = Vec::new();
            for part in order {
                let (position, bytes) = &parts[part];
                file.write(*position as u64, &[bytes.slice(..bytes.len() / 2), bytes.slice(bytes.len() / 2..)])
                    .unwrap();
                present.push(part);
                let prefix = (0..).find(|part| !present.contains(part)).map_or(0, |first| cut[first]);
                let expected = Digest::of(Algorithm::Sha256, &content[..prefix]);
                assert_eq!(file.digest().unwrap(), (prefix as u64, expected), "{order:?} {part}");
                assert_eq!(file.has_gaps(), present.iter().any(|part| cut[*part] > prefix));
            }
        }
    }

    #[test]
    fn no_byte_is_written_twice() {
        let folder = tempfile::tempdir().unwrap();
        let file = file(folder.path());
        file.write(10, &[Bytes::from_static(b"0123456789")]).unwrap();
        for position in [1, 10, 19] {
            let error = file.write(position, &[Bytes::from_static(b"abcdefghij")]).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{position}");
        }
        file.write(0, &[Bytes::from_static(b"abcdefghij")]).unwrap();
        let expected = Digest::of(Algorithm::Sha256, b"abcdefghij0123456789");
        assert_eq!(file.digest().unwrap(), (20, expected));
    }

    #[test]
    fn many_threads_write_one_file() {
        let content = content();
        let folder = tempfile::tempdir().unwrap();
        let file = file(folder.path());
        let parts = 64;
        let part = LENGTH / parts;
        std::thread::scope(|scope| {
            for worker in 0..4 {
                let (file, content) = (&file, &content);
                scope.spawn(move || {
                    for n in (worker..parts).step_by(4) {
                        file.write((n * part) as u64, &[content.slice(n * part..(n + 1) * part)]).unwrap();
                        file.hash();
                    }
                });
            }
        });
        assert_eq!(file.digest().unwrap(), (LENGTH as u64, Digest::of(Algorithm::Sha256, &content)));
        assert!(!file.has_gaps() && file.state.lock().unhashed.bytes == 0);
    }

    #[test]
    fn a_file_that_cannot_be_read_has_no_digest() {
        let folder = tempfile::tempdir().unwrap();
        let file = file(folder.path());
        file.write(5, &[Bytes::from_static(b"later")]).unwrap();
        file.write(0, &[Bytes::from_static(b"early")]).unwrap();
        fs::set_len(file.file(), 7).unwrap();
        assert_eq!(file.digest().unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn nothing_is_written_behind_bytes_that_are_gone() {
        let folder = tempfile::tempdir().unwrap();
        let file = file(folder.path());
        file.write(0, &[Bytes::from_static(b"0123456789")]).unwrap();
        fs::set_len(file.file(), 7).unwrap();
        let error = file.write(10, &[Bytes::from_static(b"more")]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }
}

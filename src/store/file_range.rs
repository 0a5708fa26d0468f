//! A range of an open file: the only form in which content leaves the store.

use std::io::{self, IoSliceMut};
use std::ops::Range;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use rustix::io::{Errno, ReadWriteFlags};

use super::blocking;
use super::fs::File;
use crate::oci::ByteRange;

/// Bytes that one read returns at most, and so the memory that one streaming connection takes.
pub const READ_BYTES: usize = 128 << 10;

/// Bytes that usually enter and leave the page cache together: the default readahead of Linux, and the size of our own reads.
/// Small random reads may leave gaps between two probes.
const PROBE_STEP_BYTES: usize = READ_BYTES;

/// A range of an open file. It is read by position, so any number of ranges share one file, and it stays readable when the
/// file loses its name. Reading moves the start of the range.
#[derive(Clone, Debug)]
pub struct FileRange {
    file: Arc<File>,
    start: u64,
    end: u64,
}

impl FileRange {
    /// The range must lie within the file.
    pub(in crate::store) fn new(file: Arc<File>, range: Range<u64>) -> Self {
        Self { file, start: range.start, end: range.end }
    }

    /// Bytes that are left to read.
    pub fn len(&self) -> u64 {
        self.end - self.start
    }

    pub fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// The position in the file of the first byte that is left to read.
    pub fn start(&self) -> u64 {
        self.start
    }

    /// The position in the file after the last byte.
    pub fn end(&self) -> u64 {
        self.end
    }

    /// Another range of the same file, in positions of that file. It must lie within the file.
    #[must_use]
    pub fn with_range(&self, range: ByteRange) -> Self {
        Self { file: self.file.clone(), start: range.start, end: range.end }
    }

    /// Moves the end of the range further on, where the file has grown.
    pub fn extend_to(&mut self, end: u64) {
        self.end = self.end.max(end);
    }

    /// The next bytes, at most [`READ_BYTES`]: at once if the page cache has them, otherwise from the blocking pool. `None` at
    /// the end of the range.
    ///
    /// # Errors
    /// `UnexpectedEof` if the file has become shorter than the range.
    pub async fn read(&mut self) -> io::Result<Option<Bytes>> {
        if self.is_empty() {
            return Ok(None);
        }
        let length = usize::try_from(self.len()).unwrap_or(READ_BYTES).min(READ_BYTES);
        let mut frame = Frame::new(length);
        let bytes = match self.read_cached(frame.room(), self.start).transpose()? {
            Some(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Some(read) => frame.into_bytes(read),
            None => self.read_blocking(frame).await?,
        };
        self.start += bytes.len() as u64;
        Ok(Some(bytes))
    }

    /// Whether the first `length` bytes are in the page cache, as far as probes tell.
    pub fn is_cached(&self, length: u64) -> bool {
        let end = self.start + length;
        let mut probes = (self.start..end).step_by(PROBE_STEP_BYTES).chain(end.checked_sub(1));
        // An error counts as cached: the read that follows reports it.
        probes.all(|at| self.read_cached(&mut [0], at).is_some())
    }

    /// Sends up to `max` bytes to a socket without copying them to user space. Waits for the disk if they are not in the page
    /// cache: see [`FileRange::is_cached`]. Returns the number of bytes sent.
    ///
    /// # Errors
    /// Those of sendfile(2), and `UnexpectedEof` if the file has become shorter than the range.
    pub fn send_to(&mut self, socket: impl AsFd, max: u64) -> io::Result<u64> {
        let max = usize::try_from(max.min(self.len())).unwrap_or(usize::MAX);
        let mut offset = self.start;
        let sent = rustix::fs::sendfile(socket, &*self.file, Some(&mut offset), max)? as u64;
        if sent == 0 && max > 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.start += sent;
        Ok(sent)
    }

    /// Reads from the page cache; `None` if that would have to wait, or if the file system cannot tell.
    fn read_cached(&self, into: &mut [u8], offset: u64) -> Option<io::Result<usize>> {
        match rustix::io::preadv2(&*self.file, &mut [IoSliceMut::new(into)], offset, ReadWriteFlags::NOWAIT) {
            Err(Errno::AGAIN | Errno::OPNOTSUPP | Errno::NOSYS | Errno::INTR) => None,
            read => Some(read.map_err(io::Error::from)),
        }
    }

    async fn read_blocking(&self, mut frame: Frame) -> io::Result<Bytes> {
        let (file, offset) = (self.file.clone(), self.start);
        blocking(move || {
            let read = loop {
                match file.read_at(frame.room(), offset) {
                    Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                    Ok(read) => break read,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) => return Err(error),
                }
            };
            Ok(frame.into_bytes(read))
        })
        .await
        .unwrap_or_else(|_| Err(io::Error::other("the read was cancelled")))
    }
}

/// The buffer of a read. Large buffers are used again, because a new one would have to be zeroed.
struct Frame {
    buffer: Box<[u8]>,
    /// Bytes of the buffer that are used.
    length: usize,
}

/// Large buffers that are not in use.
static SPARE_BUFFERS: Mutex<Vec<Box<[u8]>>> = Mutex::new(Vec::new());
const MAX_SPARE_BUFFERS: usize = 16;
/// Keeping a smaller buffer costs more than allocating a new one.
const MIN_SPARE_BUFFER_BYTES: usize = 16 << 10;

impl Frame {
    fn new(length: usize) -> Self {
        let spare = if length < MIN_SPARE_BUFFER_BYTES { None } else { SPARE_BUFFERS.lock().pop() };
        let size = if length < MIN_SPARE_BUFFER_BYTES { length } else { READ_BYTES };
        Self { buffer: spare.unwrap_or_else(|| vec![0; size].into()), length }
    }

    fn room(&mut self) -> &mut [u8] {
        &mut self.buffer[..self.length]
    }

    /// The `read` bytes of the buffer. The buffer is spare again when all clones of them are dropped.
    fn into_bytes(mut self, read: usize) -> Bytes {
        self.length = read;
        Bytes::from_owner(self)
    }
}

impl AsRef<[u8]> for Frame {
    fn as_ref(&self) -> &[u8] {
        &self.buffer[..self.length]
    }
}

impl Drop for Frame {
    fn drop(&mut self) {
        if self.buffer.len() == READ_BYTES {
            let mut spare = SPARE_BUFFERS.lock();
            if spare.len() < MAX_SPARE_BUFFERS {
                spare.push(std::mem::take(&mut self.buffer));
            }
        }
    }
}

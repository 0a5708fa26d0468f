//! Positioned reads of a blob or spool file.

use std::fs::File;
use std::io::{self, IoSliceMut};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use rustix::io::{Errno, ReadWriteFlags};

use super::blocking;

/// The most that one read returns, and so what one streaming connection holds.
pub const FRAME: usize = 128 << 10;

/// What lies closer together comes and goes together in the page cache, as a rule: it is what Linux reads ahead by default,
/// and what we read at once. Small reads at random may leave holes between.
const LOOK: usize = FRAME;

/// An open file, read by position: any number of readers share one, and it outlives its name.
#[derive(Clone, Debug)]
pub struct BlobReader {
    file: Arc<File>,
}

impl BlobReader {
    pub(super) fn new(file: Arc<File>) -> Self {
        Self { file }
    }

    /// Between 1 and `max` bytes (at most [`FRAME`]) from `offset`: at once if the page cache has them, else by the blocking pool.
    ///
    /// # Errors
    /// `UnexpectedEof` at the end of the file: callers know the length and never ask beyond it.
    pub async fn read_at(&self, offset: u64, max: u64) -> io::Result<Bytes> {
        let want = usize::try_from(max).unwrap_or(FRAME).min(FRAME);
        let mut frame = Frame::new(want);
        match self.read_now(frame.room(), offset).transpose()? {
            Some(0) => Err(io::ErrorKind::UnexpectedEof.into()),
            Some(read) => Ok(frame.into_bytes(read)),
            None => self.read_blocking(frame, offset).await,
        }
    }

    /// Whether all of this is in the page cache, as far as a look at each piece of it tells.
    pub fn is_at_hand(&self, offset: u64, length: u64) -> bool {
        let end = offset + length;
        let mut looked_at = (offset..end).step_by(LOOK).chain(end.checked_sub(1));
        looked_at.all(|at| {
            // Whatever else is wrong with the file, whoever reads it finds out.
            self.read_now(&mut [0], at).is_some()
        })
    }

    /// Sends up to `max` bytes from `offset` to a socket, without a copy of ours. It waits for the disk if they are not at
    /// hand: see [`BlobReader::is_at_hand`].
    ///
    /// # Errors
    /// Those of sendfile(2); 0 is the end of the file.
    pub fn send_to(&self, socket: impl AsFd, offset: u64, max: u64) -> io::Result<usize> {
        let (mut offset, max) = (offset, usize::try_from(max).unwrap_or(usize::MAX));
        Ok(rustix::fs::sendfile(socket, &*self.file, Some(&mut offset), max)?)
    }

    /// Reads what the page cache has; `None` if that would have to wait, or cannot be told.
    fn read_now(&self, into: &mut [u8], offset: u64) -> Option<io::Result<usize>> {
        match rustix::io::preadv2(&*self.file, &mut [IoSliceMut::new(into)], offset, ReadWriteFlags::NOWAIT) {
            Err(Errno::AGAIN | Errno::OPNOTSUPP | Errno::NOSYS | Errno::INTR) => None,
            read => Some(read.map_err(io::Error::from)),
        }
    }

    async fn read_blocking(&self, mut frame: Frame, offset: u64) -> io::Result<Bytes> {
        let file = self.file.clone();
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

/// What a read goes into. Large ones are used again: a new one would have to be zeroed.
struct Frame {
    buffer: Box<[u8]>,
    /// Bytes of it that are meant.
    length: usize,
}

/// Large frames that nobody uses at present.
static SPARE: Mutex<Vec<Box<[u8]>>> = Mutex::new(Vec::new());
const MOST_SPARE: usize = 16;
/// Smaller ones cost less than what goes to keep them.
const WORTH_KEEPING: usize = 16 << 10;

impl Frame {
    fn new(length: usize) -> Self {
        let spare = if length < WORTH_KEEPING { None } else { SPARE.lock().pop() };
        let size = if length < WORTH_KEEPING { length } else { FRAME };
        Self { buffer: spare.unwrap_or_else(|| vec![0; size].into()), length }
    }

    fn room(&mut self) -> &mut [u8] {
        &mut self.buffer[..self.length]
    }

    /// What was read, as long as somebody holds it.
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
        if self.buffer.len() == FRAME {
            let mut spare = SPARE.lock();
            if spare.len() < MOST_SPARE {
                spare.push(std::mem::take(&mut self.buffer));
            }
        }
    }
}

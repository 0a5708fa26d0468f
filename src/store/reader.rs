//! Positioned reads of a blob or spool file.

use std::fs::File;
use std::io::{self, IoSliceMut};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use rustix::io::{Errno, ReadWriteFlags};

use super::blocking;

/// The most that one read returns, and so what one streaming connection holds.
pub const FRAME: usize = 128 << 10;

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
        let mut buffer = BytesMut::zeroed(want);
        let read =
            rustix::io::preadv2(&*self.file, &mut [IoSliceMut::new(&mut buffer)], offset, ReadWriteFlags::NOWAIT);
        let read = match read {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(read) => read,
            Err(Errno::AGAIN | Errno::OPNOTSUPP | Errno::NOSYS | Errno::INTR) => {
                return self.read_blocking(buffer, offset).await;
            }
            Err(error) => return Err(error.into()),
        };
        buffer.truncate(read);
        Ok(buffer.freeze())
    }

    async fn read_blocking(&self, mut buffer: BytesMut, offset: u64) -> io::Result<Bytes> {
        let file = self.file.clone();
        blocking(move || {
            let read = loop {
                match file.read_at(&mut buffer, offset) {
                    Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                    Ok(read) => break read,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) => return Err(error),
                }
            };
            buffer.truncate(read);
            Ok(buffer.freeze())
        })
        .await
        .unwrap_or_else(|_| Err(io::Error::other("the read was cancelled")))
    }
}

//! Sending a body whose bytes are in a file, by sendfile: a stored file, or the file of a running fill up to its mark.

use std::io;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use rustix::io::Errno;
use tokio::net::TcpStream;
use tokio::task::coop::consume_budget;

use super::super::body::{Counter, FileSource, log};
use super::response::{SendError, ready};
use super::socket::{Socket, Transport};
use crate::pull::{ContentError, Follower};
use crate::store::FileRange;

/// Bytes of a file that are probed in the page cache at once, and then sent by sendfile. The state of a running fill
/// is checked again after at most that many bytes.
const PROBED_BYTES: u64 = 2 << 20;
/// How long bytes are taken to stay in the page cache.
const PROBE_LIFETIME: Duration = Duration::from_millis(100);

/// Sends ranges of files from the page cache to the socket. What is not in the page cache is read by the blocking
/// pool first.
pub(super) struct FileSender<'a, S> {
    socket: &'a mut Socket<S>,
    /// Headers that are sent together with the first bytes.
    unsent: &'a mut BytesMut,
    counter: Counter,
    /// The file system does not support sendfile.
    by_copy: bool,
}

impl<'a, S: Transport> FileSender<'a, S> {
    pub(super) fn new(socket: &'a mut Socket<S>, unsent: &'a mut BytesMut, counter: Counter) -> Self {
        Self { socket, unsent, counter, by_copy: false }
    }

    /// Sends a body of `length` bytes.
    pub(super) async fn send(mut self, source: FileSource, length: u64) -> Result<(), SendError> {
        match source {
            FileSource::Stored(range) if range.len() == length => self.send_range(range).await,
            FileSource::Stored(_) => Err(SendError::Length),
            FileSource::Fill(shared) => {
                let mut follower = shared.take().ok_or(SendError::Length)?;
                self.follow(&mut follower, length).await
            }
        }
    }

    /// Sends `length` bytes of a fill as they become readable. The state of the fill is checked before each range, so
    /// that bytes of two generations are never mixed.
    async fn follow(&mut self, follower: &mut Follower, length: u64) -> Result<(), SendError> {
        let mut left = length;
        while left > 0 {
            let range = follower.next_range(left.min(PROBED_BYTES));
            let range = ready(self.socket, self.unsent, range).await?.map_err(failed)?.ok_or(SendError::Length)?;
            left -= range.len();
            self.send_range(range).await?;
        }
        Ok(())
    }

    async fn send_range(&mut self, mut range: FileRange) -> Result<(), SendError> {
        // Bytes of the range that were found in the page cache, and when.
        let (mut cached, mut probed) = (0, Instant::now());
        while !range.is_empty() {
            consume_budget().await;
            if cached == 0 && !self.by_copy {
                let probe = range.len().min(PROBED_BYTES);
                cached = if range.is_cached(probe) { probe } else { 0 };
                probed = Instant::now();
            }
            let sent = if cached == 0 {
                let bytes = range.read().await.map_err(unreadable)?.unwrap_or_default();
                self.socket.write([self.unsent, &bytes, &[]]).await?;
                bytes.len() as u64
            } else {
                self.socket.write_ahead(self.unsent).await?;
                let send = |stream: &TcpStream, waited: bool| {
                    // While the client took its time, bytes may have left the page cache.
                    if waited && probed.elapsed() > PROBE_LIFETIME {
                        if !range.is_cached(cached) {
                            return Ok(None);
                        }
                        probed = Instant::now();
                    }
                    range.send_to(stream, cached).map(Some)
                };
                match self.socket.write_by(send).await {
                    Ok(Some(sent)) => {
                        cached -= sent;
                        sent
                    }
                    Ok(None) => {
                        cached = 0;
                        0
                    }
                    Err(error) if is_unsupported(&error) => {
                        self.by_copy = true;
                        cached = 0;
                        0
                    }
                    // These are errors of the file, not of the socket.
                    Err(error) if is_of_file(&error) => return Err(unreadable(error)),
                    Err(error) => return Err(error.into()),
                }
            };
            self.unsent.clear();
            self.counter.count(sent);
        }
        Ok(())
    }
}

/// Whether the file system does not support sendfile.
fn is_unsupported(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::Unsupported)
}

fn is_of_file(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::UnexpectedEof || Errno::from_io_error(error) == Some(Errno::IO)
}

fn unreadable(error: io::Error) -> SendError {
    failed(error.into())
}

fn failed(error: ContentError) -> SendError {
    log(&error);
    SendError::Content(axum::Error::new(error))
}

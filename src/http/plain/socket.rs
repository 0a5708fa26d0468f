//! A socket on which every wait has a deadline.

use std::future::pending;
use std::io::{self, IoSlice};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use rustix::net::{SendAncillaryBuffer, SendFlags};
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::deadline::MovingDeadline;
use super::request::MAX_HEADERS_BYTES;
use crate::http::places::Activity;

/// Buffer of one read. Request headers are usually shorter.
const READ_BUFFER_BYTES: usize = 4 << 10;
/// How long a connection waits for the client's end after its own, and how much it reads in that time.
const LINGER_TIMEOUT: Duration = Duration::from_secs(1);
const MAX_LINGER_BYTES: usize = 256 << 10;

pub(super) struct Socket {
    stream: TcpStream,
    /// Bytes that were read and not parsed yet.
    pub(super) read: BytesMut,
    deadline: MovingDeadline,
    /// How long a write may make no progress.
    progress: Duration,
}

impl Socket {
    /// The first read may take up to `time`. Every write must make progress within `progress`.
    pub(super) fn new(stream: TcpStream, time: Duration, progress: Duration) -> Self {
        Self { stream, read: BytesMut::new(), deadline: MovingDeadline::new(time), progress }
    }

    /// The socket, and the bytes that were read and not parsed.
    pub(super) fn into_parts(self) -> (TcpStream, Bytes) {
        (self.stream, self.read.freeze())
    }

    /// Sets the deadline of reads to `time` from now, which it returns.
    pub(super) fn set_deadline(&mut self, time: Duration) -> Instant {
        self.deadline.set(time).into_std()
    }

    /// Reads more bytes. Returns their number; 0 at the end of the stream.
    ///
    /// # Errors
    /// `TimedOut` at the deadline.
    pub(super) async fn read_more(&mut self) -> io::Result<usize> {
        self.read.reserve(READ_BUFFER_BYTES);
        tokio::select! {
            biased;
            read = self.stream.read_buf(&mut self.read) => read,
            () = &mut self.deadline => Err(io::ErrorKind::TimedOut.into()),
        }
    }

    /// Resolves when the connection has failed. Requests that the client sends in the meantime are kept, up to the
    /// length of one request's headers. A client that ends its side may still read the response, so it has not left.
    pub(super) async fn left(&mut self) {
        if self.half_closed().await {
            // A client that has left completely resets the connection when it gets bytes.
            let _ = self.stream.ready(Interest::ERROR).await;
        }
    }

    /// As [`Socket::left`], before a response. A connection whose client has ended its side gives way to a new one that
    /// finds no other place.
    pub(super) async fn left_or_gave_way(&mut self, activity: &Activity) {
        if self.half_closed().await {
            tokio::select! {
                _ = self.stream.ready(Interest::ERROR) => {}
                () = activity.half_closed() => {}
            }
        }
    }

    /// Resolves when the client has ended its side. False if the connection has failed.
    async fn half_closed(&mut self) -> bool {
        while self.read.len() < MAX_HEADERS_BYTES {
            self.read.reserve(READ_BUFFER_BYTES);
            match self.stream.read_buf(&mut self.read).await {
                Ok(0) => return true,
                Ok(_) => {}
                Err(_) => return false,
            }
        }
        pending().await
    }

    /// Writes all parts, in one system call if the socket accepts them.
    ///
    /// # Errors
    /// `TimedOut` if the client accepts nothing for the progress timeout, as in [`Socket::write_by`].
    pub(super) async fn write(&mut self, parts: [&[u8]; 3]) -> io::Result<()> {
        self.write_with(parts, SendFlags::NOSIGNAL).await
    }

    /// As [`Socket::write`]; the kernel holds the bytes back until more are written.
    pub(super) async fn write_ahead(&mut self, headers: &[u8]) -> io::Result<()> {
        self.write_with([headers, &[], &[]], SendFlags::NOSIGNAL | SendFlags::MORE).await
    }

    async fn write_with(&mut self, mut parts: [&[u8]; 3], flags: SendFlags) -> io::Result<()> {
        while parts.iter().any(|part| !part.is_empty()) {
            let slices = parts.map(IoSlice::new);
            let send = |stream: &TcpStream, _waited| {
                Ok(rustix::net::sendmsg(stream, &slices, &mut SendAncillaryBuffer::default(), flags)?)
            };
            let mut written = self.write_by(send).await?;
            for part in &mut parts {
                let of_part = written.min(part.len());
                *part = &part[of_part..];
                written -= of_part;
            }
        }
        Ok(())
    }

    /// Calls `write` whenever the socket may accept bytes, until it does not return `WouldBlock`. The second argument says
    /// whether the call had to wait.
    ///
    /// # Errors
    /// Those of `write`; `TimedOut` if the client accepts nothing for the progress timeout.
    pub(super) async fn write_by<T>(
        &mut self,
        mut write: impl FnMut(&TcpStream, bool) -> io::Result<T>,
    ) -> io::Result<T> {
        let mut waited = false;
        loop {
            match self.stream.try_io(Interest::WRITABLE, || write(&self.stream, waited)) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                written => return written,
            }
            waited = true;
            self.deadline.set(self.progress);
            tokio::select! {
                biased;
                ready = self.stream.writable() => ready?,
                () = &mut self.deadline => return Err(io::ErrorKind::TimedOut.into()),
            }
        }
    }

    /// Ends the connection and waits briefly for the client's end. If bytes of the client were left unread, the kernel would
    /// reset the connection, and the client could lose the end of the last response.
    pub(super) async fn end(&mut self) {
        let ended = async {
            let _ = self.stream.shutdown().await;
            let mut read = 0;
            while read < MAX_LINGER_BYTES {
                self.read.clear();
                self.read.reserve(READ_BUFFER_BYTES);
                match self.stream.read_buf(&mut self.read).await {
                    Ok(0) | Err(_) => return,
                    Ok(more) => read += more,
                }
            }
        };
        let _ = timeout(LINGER_TIMEOUT, ended).await;
    }
}

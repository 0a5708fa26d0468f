//! A socket on which every wait has a deadline.

use std::future::{pending, poll_fn};
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use rustix::net::{SendAncillaryBuffer, SendFlags};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, Interest};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::server::TlsStream;

use super::super::connection::TimedWrites;
use super::deadline::MovingDeadline;
use super::request::MAX_HEADERS_BYTES;
use crate::http::places::Activity;

/// Buffer of one read. Request headers are usually shorter.
const READ_BUFFER_BYTES: usize = 4 << 10;
/// How long a connection waits for the client's end after its own, and how much it reads in that time.
const LINGER_TIMEOUT: Duration = Duration::from_secs(1);
const MAX_LINGER_BYTES: usize = 256 << 10;

/// A connection to a client, with or without encryption.
pub(in crate::http) trait Transport: AsyncRead + AsyncWrite + Send + Unpin {
    /// Whether the bytes are sent as they are. Otherwise sendfile cannot be used, and the stream itself keeps the
    /// deadline of writes.
    const IS_PLAIN: bool;

    /// The socket below.
    fn tcp(&self) -> &TcpStream;
}

impl Transport for TcpStream {
    const IS_PLAIN: bool = true;

    fn tcp(&self) -> &TcpStream {
        self
    }
}

impl Transport for TlsStream<TimedWrites> {
    const IS_PLAIN: bool = false;

    fn tcp(&self) -> &TcpStream {
        self.get_ref().0.tcp()
    }
}

pub(super) struct Socket<S> {
    stream: S,
    /// Bytes that were read and not parsed yet.
    pub(super) read: BytesMut,
    deadline: MovingDeadline,
    /// How long a write may make no progress.
    progress: Duration,
}

impl<S: Transport> Socket<S> {
    /// The first read may take up to `time`. Every write must make progress within `progress`.
    pub(super) fn new(stream: S, time: Duration, progress: Duration) -> Self {
        Self { stream, read: BytesMut::new(), deadline: MovingDeadline::new(time), progress }
    }

    /// The socket, and the bytes that were read and not parsed.
    pub(super) fn into_parts(self) -> (S, Bytes) {
        (self.stream, self.read.freeze())
    }

    /// Sets the deadline of reads to `time` from now, which it returns.
    pub(super) fn set_deadline(&mut self, time: Duration) -> Instant {
        self.deadline.set(time).into_std()
    }

    /// Sets the deadline of reads.
    pub(super) fn set_deadline_to(&mut self, until: Instant) {
        self.deadline.set_to(until.into());
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
            let _ = self.stream.tcp().ready(Interest::ERROR).await;
        }
    }

    /// As [`Socket::left`], before a response. A connection whose client has ended its side gives way to a new one that
    /// finds no other place.
    pub(super) async fn left_or_gave_way(&mut self, activity: &Activity) {
        if self.half_closed().await {
            tokio::select! {
                _ = self.stream.tcp().ready(Interest::ERROR) => {}
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
                // A client with TLS may end its side without a message.
                Err(error) => return error.kind() == io::ErrorKind::UnexpectedEof,
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
            let mut written = if S::IS_PLAIN {
                let send = |stream: &TcpStream, _waited| match parts {
                    [only, [], []] => Ok(rustix::net::send(stream, only, flags)?),
                    _ => Ok(rustix::net::sendmsg(stream, &slices, &mut SendAncillaryBuffer::default(), flags)?),
                };
                self.write_by(send).await?
            } else {
                // Headers and body become one record, if they are short.
                let stream = &mut self.stream;
                poll_fn(|cx| Pin::new(&mut *stream).poll_write_vectored(cx, &slices)).await?
            };
            if written == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            for part in &mut parts {
                let of_part = written.min(part.len());
                *part = &part[of_part..];
                written -= of_part;
            }
        }
        if S::IS_PLAIN { Ok(()) } else { self.stream.flush().await }
    }

    /// Calls `write` whenever the socket may accept bytes, until it does not return `WouldBlock`. The second argument
    /// says whether the call had to wait.
    ///
    /// # Errors
    /// Those of `write`; `TimedOut` if the client accepts nothing for the progress timeout.
    pub(super) async fn write_by<T>(
        &mut self,
        mut write: impl FnMut(&TcpStream, bool) -> io::Result<T>,
    ) -> io::Result<T> {
        let mut waited = false;
        loop {
            let stream = self.stream.tcp();
            match stream.try_io(Interest::WRITABLE, || write(stream, waited)) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                written => return written,
            }
            waited = true;
            self.deadline.set(self.progress);
            tokio::select! {
                biased;
                ready = self.stream.tcp().writable() => ready?,
                () = &mut self.deadline => return Err(io::ErrorKind::TimedOut.into()),
            }
        }
    }

    /// Ends the connection and waits briefly for the client's end. If bytes of the client were left unread, the
    /// kernel would reset the connection, and the client could lose the end of the last response.
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

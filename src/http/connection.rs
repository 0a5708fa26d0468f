//! A connection that watches its own clock.
//!
//! hyper knows one deadline for a request's head and none for the rest, so the socket itself keeps them. Of HTTP/1, the
//! head of a request must be there `head` after its first byte (or after the connection was made), and a connection
//! without a request lives `idle`: [`TimedReads`], above TLS where there is TLS. A write that makes no progress for
//! `progress` ends any connection: [`TimedWrites`], below it. Reading a body is the handler's to watch.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_util::task::AtomicWaker;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep, sleep};

#[derive(Clone, Copy, Debug)]
pub(super) struct Deadlines {
    pub(super) head: Duration,
    pub(super) idle: Duration,
    pub(super) progress: Duration,
}

/// How many requests a connection has begun and ended: written by the service, read by the socket.
#[derive(Debug, Default)]
pub(super) struct Requests {
    begun: AtomicU64,
    ended: AtomicU64,
    /// Woken at each end: the clock of what comes next begins then, and hyper does not read again by itself.
    reader: AtomicWaker,
}

/// A request of a connection; dropped when its answer has been sent or given up.
pub(super) struct RequestGuard(Arc<Requests>);

/// Waits for requests of HTTP/1, one after the other, and for no longer than is allowed.
pub(super) struct TimedReads<S> {
    stream: S,
    deadlines: Deadlines,
    requests: Arc<Requests>,
    reading: Reading,
    /// Runs between requests.
    read_by: Pin<Box<Sleep>>,
}

/// A socket whose peer must take what is sent to it.
pub(super) struct TimedWrites {
    stream: TcpStream,
    /// What was read of it before.
    ahead: Bytes,
    progress: Duration,
    /// Runs while a write makes no progress.
    write_by: Option<Pin<Box<Sleep>>>,
}

/// What the read side waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reading {
    /// The first byte of a head, after this many requests.
    Idle { begun: u64 },
    /// The rest of a head whose request has not begun yet.
    Head { begun: u64 },
    /// A request is being answered: no deadline here.
    Request,
}

// === impl Requests ===

impl Requests {
    pub(super) fn begin(self: &Arc<Self>) -> RequestGuard {
        self.begun.fetch_add(1, Ordering::AcqRel);
        RequestGuard(self.clone())
    }

    /// Resolves when there was no request for a while: none at all after `first`, or none for at least `idle`, and at
    /// most twice that, since the last has ended.
    pub(super) async fn unused_for(&self, first: Duration, idle: Duration) {
        let mut patience = first;
        loop {
            let before = self.quiet();
            sleep(patience).await;
            if before.is_some() && self.quiet() == before {
                return;
            }
            patience = idle;
        }
    }

    /// How many have begun, if all of those have ended.
    fn quiet(&self) -> Option<u64> {
        let ended = self.ended.load(Ordering::Acquire);
        let begun = self.begun.load(Ordering::Acquire);
        (begun == ended).then_some(begun)
    }
}

impl Drop for RequestGuard {
    fn drop(&mut self) {
        self.0.ended.fetch_add(1, Ordering::AcqRel);
        self.0.reader.wake();
    }
}

// === impl TimedReads ===

impl<S> TimedReads<S> {
    pub(super) fn new(stream: S, deadlines: Deadlines, requests: Arc<Requests>) -> Self {
        let read_by = Box::pin(sleep(deadlines.head));
        Self { stream, deadlines, requests, reading: Reading::Head { begun: 0 }, read_by }
    }

    /// Where the read side is now, after `read` more bytes; its clock starts anew where that has changed.
    fn read_state(&mut self, read: usize) {
        let next = match (self.requests.quiet(), self.reading) {
            (None, _) => Reading::Request,
            (Some(begun), Reading::Head { begun: at }) if at == begun => return,
            (Some(begun), Reading::Idle { begun: at }) if at == begun && read == 0 => return,
            (Some(begun), _) if read > 0 => Reading::Head { begun },
            (Some(begun), _) => Reading::Idle { begun },
        };
        self.reading = next;
        let patience = match next {
            Reading::Head { .. } => self.deadlines.head,
            Reading::Idle { .. } => self.deadlines.idle,
            Reading::Request => return,
        };
        self.read_by.as_mut().reset(Instant::now() + patience);
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for TimedReads<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        let polled = Pin::new(&mut this.stream).poll_read(cx, buf);
        if polled.is_pending() {
            this.requests.reader.register(cx.waker());
        }
        this.read_state(buf.filled().len() - before);
        if polled.is_pending() && this.reading != Reading::Request && this.read_by.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        polled
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for TimedReads<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}

// === impl TimedWrites ===

impl TimedWrites {
    pub(super) fn new(stream: TcpStream, progress: Duration) -> Self {
        Self::with_ahead(stream, Bytes::new(), progress)
    }

    /// A socket of which somebody has read this much already.
    pub(super) fn with_ahead(stream: TcpStream, ahead: Bytes, progress: Duration) -> Self {
        Self { stream, ahead, progress, write_by: None }
    }

    fn watch<T>(&mut self, cx: &mut Context<'_>, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.write_by = None;
            return written;
        }
        let progress = self.progress;
        let clock = self.write_by.get_or_insert_with(|| Box::pin(sleep(progress)));
        match clock.as_mut().poll(cx) {
            Poll::Ready(()) => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
            Poll::Pending => Poll::Pending,
        }
    }
}

impl AsyncRead for TimedWrites {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.ahead.is_empty() {
            return Pin::new(&mut this.stream).poll_read(cx, buf);
        }
        buf.put_slice(&this.ahead.split_to(this.ahead.len().min(buf.remaining())));
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for TimedWrites {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.stream).poll_write(cx, buf);
        this.watch(cx, written)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.stream).poll_write_vectored(cx, bufs);
        this.watch(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}

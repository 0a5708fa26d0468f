//! The deadlines of a connection that hyper serves.
//!
//! hyper has a deadline for request headers only, so the socket enforces the deadlines ([`Deadlines`]).
//! [`TimedReads`], above TLS, is for HTTP/1: the first headers must be complete within `headers` of the connection,
//! and later headers within `headers` of their first byte. A connection without a request ends after `idle`.
//! [`TimedWrites`], below TLS, ends any connection whose write makes no progress for `progress`. The deadline of a
//! request body is kept by its handler.

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

use super::places::Activity;

#[derive(Clone, Copy, Debug)]
pub(super) struct Deadlines {
    /// For the headers of a request.
    pub(super) headers: Duration,
    /// For a connection without a request.
    pub(super) idle: Duration,
    /// For a write to be accepted by the client.
    pub(super) progress: Duration,
}

/// How many requests of a connection have started and ended. Written by the service, read by the socket.
pub(super) struct Requests {
    started: AtomicU64,
    ended: AtomicU64,
    /// The state that new connections read to find an unused one.
    activity: Arc<Activity>,
    /// Woken when a request ends: the next deadline starts then, and hyper does not read again by itself.
    reader: AtomicWaker,
}

/// A request of a connection, dropped when its response has been sent or abandoned.
pub(super) struct RequestGuard(Arc<Requests>);

/// A stream on which HTTP/1 requests must arrive within their deadlines.
pub(super) struct TimedReads<S> {
    stream: S,
    /// Bytes that were read from it before.
    ahead: Bytes,
    deadlines: Deadlines,
    requests: Arc<Requests>,
    reading: Reading,
    /// The deadline between requests.
    read_deadline: Pin<Box<Sleep>>,
}

/// A socket whose peer must accept what is sent to it.
pub(super) struct TimedWrites {
    stream: TcpStream,
    progress: Duration,
    /// The deadline of a write that makes no progress.
    write_deadline: Option<Pin<Box<Sleep>>>,
}

/// What the read side waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reading {
    /// The first byte of a request, after this many requests.
    Idle { started: u64 },
    /// The rest of the headers of a request that has not started yet.
    Head { started: u64 },
    /// A request is in progress: there is no deadline for reads.
    Request,
}

// === impl Requests ===

impl Requests {
    pub(super) fn new(activity: Arc<Activity>) -> Self {
        Self { started: AtomicU64::new(0), ended: AtomicU64::new(0), activity, reader: AtomicWaker::new() }
    }

    pub(super) fn begin(self: &Arc<Self>) -> RequestGuard {
        self.started.fetch_add(1, Ordering::AcqRel);
        // If the connection has given way, it ends without the response of this request.
        let _ = self.activity.begin();
        RequestGuard(self.clone())
    }

    /// Resolves when the connection is unused: no request has started within `first`, or none has been in progress for
    /// `idle`. It looks every `idle`, so it resolves up to `idle` late.
    pub(super) async fn unused_for(&self, first: Duration, idle: Duration) {
        let mut time = first;
        loop {
            let before = self.quiet();
            sleep(time).await;
            if before.is_some() && self.quiet() == before {
                return;
            }
            time = idle;
        }
    }

    /// The number of requests, if all of them have ended.
    fn quiet(&self) -> Option<u64> {
        let ended = self.ended.load(Ordering::Acquire);
        let started = self.started.load(Ordering::Acquire);
        (started == ended).then_some(started)
    }
}

impl Drop for RequestGuard {
    fn drop(&mut self) {
        self.0.ended.fetch_add(1, Ordering::AcqRel);
        self.0.activity.end();
        self.0.reader.wake();
    }
}

// === impl TimedReads ===

impl<S> TimedReads<S> {
    /// A stream from which `ahead` has been read already.
    pub(super) fn new(stream: S, ahead: Bytes, deadlines: Deadlines, requests: Arc<Requests>) -> Self {
        let read_deadline = Box::pin(sleep(deadlines.headers));
        Self { stream, ahead, deadlines, requests, reading: Reading::Head { started: 0 }, read_deadline }
    }

    /// Updates the state of the read side after `read` more bytes. A new state has a new deadline.
    fn update_state(&mut self, read: usize) {
        let next = match (self.requests.quiet(), self.reading) {
            (None, _) => Reading::Request,
            (Some(started), Reading::Head { started: at }) if at == started => return,
            (Some(started), Reading::Idle { started: at }) if at == started && read == 0 => return,
            (Some(started), _) if read > 0 => Reading::Head { started },
            (Some(started), _) => Reading::Idle { started },
        };
        self.reading = next;
        let time = match next {
            Reading::Head { .. } => self.deadlines.headers,
            Reading::Idle { .. } => self.deadlines.idle,
            Reading::Request => return,
        };
        self.read_deadline.as_mut().reset(Instant::now() + time);
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for TimedReads<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        let polled = if this.ahead.is_empty() {
            Pin::new(&mut this.stream).poll_read(cx, buf)
        } else {
            buf.put_slice(&this.ahead.split_to(this.ahead.len().min(buf.remaining())));
            Poll::Ready(Ok(()))
        };
        if polled.is_pending() {
            this.requests.reader.register(cx.waker());
        }
        this.update_state(buf.filled().len() - before);
        if polled.is_pending() && this.reading != Reading::Request && this.read_deadline.as_mut().poll(cx).is_ready() {
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
        Self { stream, progress, write_deadline: None }
    }

    /// The socket itself, whose writes are not watched.
    pub(super) fn tcp(&self) -> &TcpStream {
        &self.stream
    }

    fn watch<T>(&mut self, cx: &mut Context<'_>, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.write_deadline = None;
            return written;
        }
        let progress = self.progress;
        let clock = self.write_deadline.get_or_insert_with(|| Box::pin(sleep(progress)));
        match clock.as_mut().poll(cx) {
            Poll::Ready(()) => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
            Poll::Pending => Poll::Pending,
        }
    }
}

impl AsyncRead for TimedWrites {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_read(cx, buf)
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

//! The rest of a refused request body.
//!
//! Over HTTP/2, if a response ends before the request, the server resets the stream, and some clients (curl 7.88) then drop
//! the response. So the response ends only after the client has stopped sending, which most clients do as soon as they read
//! an error. The wait is bounded in time and bytes.
//!
//! Over HTTP/1, hyper ends the connection after such a response. If bytes arrive at a closed socket, the kernel resets the
//! connection, and the client loses the response that it has not read yet. So the socket stays open for reading until the
//! client closes it, for a bounded time.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use http::Request;
use http_body::{Body as HttpBody, Frame, SizeHint};
use hyper::body::Incoming;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::time::{Sleep, sleep, timeout};

/// Largest number of bytes that are read and dropped.
const MAX_DRAINED_BYTES: usize = 16 << 20;
/// Longest time that the end of a response waits for the end of the request.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a connection that ends stays open for the rest of a request body.
const LINGER_TIMEOUT: Duration = Duration::from_secs(30);
/// Bytes of it that are read at once.
const LINGER_BUFFER_BYTES: usize = 64 << 10;

/// Whether the last request body of an HTTP/1 connection was dropped before its end.
#[derive(Clone, Default)]
pub(super) struct UnreadBody(Arc<AtomicBool>);

/// A request body that notes if it is dropped before its end.
struct WatchedBody {
    body: Incoming,
    has_ended: bool,
    unread: UnreadBody,
}

/// A request body for a handler, which may stop reading before the end.
struct SharedBody(Arc<Mutex<Incoming>>);

/// The part of a request body that its handler has not read.
pub(super) struct Rest(Arc<Mutex<Incoming>>);

/// A response body that ends after the request body.
pub(super) struct Draining {
    body: Body,
    rest: Rest,
    /// The time limit. Set when all data of the response has been sent, and only the end is missing.
    waiting: Option<Pin<Box<Sleep>>>,
    left: usize,
}

/// Returns the request, and a handle to read the rest of its body. `None` if it has no body.
pub(super) fn keep(request: Request<Incoming>) -> (Request<Body>, Option<Rest>) {
    if request.body().is_end_stream() {
        return (request.map(Body::new), None);
    }
    let (parts, body) = request.into_parts();
    let shared = Arc::new(Mutex::new(body));
    (Request::from_parts(parts, Body::new(SharedBody(shared.clone()))), Some(Rest(shared)))
}

/// Reads and drops what arrives until the client closes the connection, or the time is over.
pub(super) async fn linger(stream: &mut (impl AsyncRead + Unpin)) {
    let mut buffer = vec![0; LINGER_BUFFER_BYTES];
    let to_the_end = async { while stream.read(&mut buffer).await.is_ok_and(|read| read > 0) {} };
    // An end by the time limit or by an error is as good: the client has had its time.
    let _ = timeout(LINGER_TIMEOUT, to_the_end).await;
}

// === impl UnreadBody ===

impl UnreadBody {
    /// Returns the request, whose body notes here if it is dropped before its end.
    pub(super) fn watch(&self, request: Request<Incoming>) -> Request<Body> {
        self.0.store(false, Ordering::Relaxed);
        if request.body().is_end_stream() {
            return request.map(Body::new);
        }
        request.map(|body| Body::new(WatchedBody { body, has_ended: false, unread: self.clone() }))
    }

    pub(super) fn is_left(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

// === impl WatchedBody ===

impl HttpBody for WatchedBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let this = self.get_mut();
        let frame = ready!(Pin::new(&mut this.body).poll_frame(cx));
        this.has_ended |= !matches!(frame, Some(Ok(_)));
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for WatchedBody {
    fn drop(&mut self) {
        if !self.has_ended && !self.body.is_end_stream() {
            self.unread.0.store(true, Ordering::Relaxed);
        }
    }
}

// === impl SharedBody ===

impl HttpBody for SharedBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        Pin::new(&mut *self.0.lock()).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.0.lock().is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.0.lock().size_hint()
    }
}

// === impl Draining ===

impl Draining {
    pub(super) fn new(body: Body, rest: Rest) -> Self {
        Self { body, rest, waiting: None, left: MAX_DRAINED_BYTES }
    }

    /// Ready when the request body has ended, or when the wait has reached its limits.
    fn poll_drained(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let timeout = self.waiting.get_or_insert_with(|| Box::pin(sleep(DRAIN_TIMEOUT)));
        if timeout.as_mut().poll(cx).is_ready() {
            return Poll::Ready(());
        }
        let mut rest = self.rest.0.lock();
        while self.left > 0 {
            match ready!(Pin::new(&mut *rest).poll_frame(cx)) {
                Some(Ok(frame)) => self.left = self.left.saturating_sub(frame.data_ref().map_or(0, Bytes::len)),
                Some(Err(_)) | None => break,
            }
        }
        Poll::Ready(())
    }
}

impl HttpBody for Draining {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let this = self.get_mut();
        if this.waiting.is_none()
            && let Some(frame) = ready!(Pin::new(&mut this.body).poll_frame(cx))
        {
            return Poll::Ready(Some(frame));
        }
        this.poll_drained(cx).map(|()| None)
    }

    fn is_end_stream(&self) -> bool {
        // The response ends only after the request.
        false
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

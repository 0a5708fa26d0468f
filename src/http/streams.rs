//! The streams of an HTTP/2 connection, with a progress timeout for each.
//!
//! A client that does not open the window of a stream blocks its response while the connection as a whole makes progress, and
//! neither hyper nor h2 ends such a stream. So each stream has a counter of turns: while it is the client's turn to accept
//! bytes, a timeout runs, and its end resets the stream. hyper asks a body for its next frame when the last one was passed on,
//! and gives each stream to an executor as one task. Here are both: the body that counts turns and the executor that ends the
//! stream.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use hyper::rt::Executor;
use parking_lot::Mutex;
use tokio::time::sleep;

use crate::tasks::Tasks;

/// Bytes that a stream gets at once: the default size of an HTTP/2 frame. The connection may keep them after the stream was
/// abandoned.
const MAX_FRAME_BYTES: usize = 16 << 10;

/// Counts turns: odd while it is the client's turn to accept bytes. Written by the body, read by the stream's task.
#[derive(Debug, Default)]
pub(super) struct TurnCounter(AtomicU64);

/// Runs the streams of one connection.
#[derive(Clone)]
pub(super) struct Streams {
    progress: Duration,
    tasks: Tasks,
    /// The counter of the request that the service was just called with. The next stream that hyper executes is its own.
    started: Arc<Mutex<Option<Arc<TurnCounter>>>>,
}

/// A body that is sent in small frames and counts turns.
pub(super) struct PacedBody {
    body: Body,
    /// The rest of a frame of the inner body.
    rest: Bytes,
    turns: Arc<TurnCounter>,
}

// === impl TurnCounter ===

impl TurnCounter {
    /// The client has accepted its bytes.
    fn begin_ours(&self) {
        if self.0.load(Ordering::Acquire) % 2 == 1 {
            self.0.fetch_add(1, Ordering::AcqRel);
        }
    }

    /// Bytes are given to the client.
    fn begin_clients(&self) {
        self.begin_ours();
        self.0.fetch_add(1, Ordering::AcqRel);
    }

    /// Resolves when it has been the client's turn for at least `progress`, and at most twice that.
    async fn client_timeout(&self, progress: Duration) {
        loop {
            let turn = self.0.load(Ordering::Acquire);
            sleep(progress).await;
            if turn % 2 == 1 && self.0.load(Ordering::Acquire) == turn {
                return;
            }
        }
    }
}

// === impl Streams ===

impl Streams {
    pub(super) fn new(progress: Duration, tasks: &Tasks) -> Self {
        Self { progress, tasks: tasks.clone(), started: Arc::default() }
    }

    /// Returns the counter of a stream. The service calls it when it receives the request of the stream.
    pub(super) fn begin(&self) -> Arc<TurnCounter> {
        let turns = Arc::new(TurnCounter::default());
        *self.started.lock() = Some(turns.clone());
        turns
    }
}

impl<F: Future<Output = ()> + Send + 'static> Executor<F> for Streams {
    fn execute(&self, stream: F) {
        let (turns, progress) = (self.started.lock().take().unwrap_or_default(), self.progress);
        self.tasks.spawn(async move {
            tokio::select! {
                () = stream => {}
                // Dropping the stream resets it and frees what h2 holds of it.
                () = turns.client_timeout(progress) => tracing::debug!("a client accepts nothing of a response; its stream is reset"),
            }
        });
    }
}

// === impl PacedBody ===

impl PacedBody {
    pub(super) fn new(body: Body, turns: Arc<TurnCounter>) -> Self {
        Self { body, rest: Bytes::new(), turns }
    }
}

impl HttpBody for PacedBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let this = self.get_mut();
        this.turns.begin_ours();
        if this.rest.is_empty() {
            match ready!(Pin::new(&mut this.body).poll_frame(cx)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(bytes) => this.rest = bytes,
                    Err(frame) => return Poll::Ready(Some(Ok(frame))),
                },
                end => return Poll::Ready(end),
            }
        }
        let piece = this.rest.split_to(this.rest.len().min(MAX_FRAME_BYTES));
        this.turns.begin_clients();
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let (rest, inner) = (self.rest.len() as u64, self.body.size_hint());
        let mut hint = SizeHint::new();
        // The upper bound first: the type rejects a lower bound above it.
        if let Some(upper) = inner.upper() {
            hint.set_upper(upper + rest);
        }
        hint.set_lower(inner.lower() + rest);
        hint
    }
}

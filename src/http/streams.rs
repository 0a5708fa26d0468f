//! The streams of an HTTP/2 connection, and the clock of each.
//!
//! A client that opens no window for a stream keeps its answer waiting, while the connection as a whole does well, and
//! neither hyper nor h2 ever gives up: so each stream has a clock that runs while the client has to take what it was
//! given, and whose end resets the stream. hyper asks a body for its next frame once the last one was passed on, and hands
//! each stream to an executor as one task: here are both, the body that moves the clock and the executor that ends it.

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

/// What is given to a stream at once. It may stay with the connection when the stream is given up at its end, so it is as
/// small as a frame of HTTP/2 is by default.
const PIECE: usize = 16 << 10;

/// Whose turn it is: odd while the client has to take something. Written by the body, read by the stream's task.
#[derive(Debug, Default)]
pub(super) struct Clock(AtomicU64);

/// Runs the streams of one connection.
#[derive(Clone)]
pub(super) struct Streams {
    progress: Duration,
    tasks: Tasks,
    /// Of the request that hyper has just asked the service for: the next stream to be executed is its own.
    begun: Arc<Mutex<Option<Arc<Clock>>>>,
}

/// A body that moves a clock, in pieces.
pub(super) struct Paced {
    body: Body,
    /// What is left of a frame.
    rest: Bytes,
    clock: Arc<Clock>,
}

// === impl Clock ===

impl Clock {
    /// The client took what it was given.
    fn ours(&self) {
        if self.0.load(Ordering::Acquire) % 2 == 1 {
            self.0.fetch_add(1, Ordering::AcqRel);
        }
    }

    fn the_clients(&self) {
        self.ours();
        self.0.fetch_add(1, Ordering::AcqRel);
    }

    /// Resolves when it was the client's turn for at least this long, and at most twice that.
    async fn runs_out(&self, progress: Duration) {
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
        Self { progress, tasks: tasks.clone(), begun: Arc::default() }
    }

    /// The clock of a stream whose request is being handed to the service.
    pub(super) fn begin(&self) -> Arc<Clock> {
        let clock = Arc::new(Clock::default());
        *self.begun.lock() = Some(clock.clone());
        clock
    }
}

impl<F: Future<Output = ()> + Send + 'static> Executor<F> for Streams {
    fn execute(&self, stream: F) {
        let (clock, progress) = (self.begun.lock().take().unwrap_or_default(), self.progress);
        self.tasks.spawn(async move {
            tokio::select! {
                () = stream => {}
                // Dropping the stream resets it, and what h2 still holds of it goes.
                () = clock.runs_out(progress) => tracing::debug!("a client takes nothing of an answer: it is cut"),
            }
        });
    }
}

// === impl Paced ===

impl Paced {
    pub(super) fn new(body: Body, clock: Arc<Clock>) -> Self {
        Self { body, rest: Bytes::new(), clock }
    }
}

impl HttpBody for Paced {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let this = self.get_mut();
        this.clock.ours();
        if this.rest.is_empty() {
            match ready!(Pin::new(&mut this.body).poll_frame(cx)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(bytes) => this.rest = bytes,
                    Err(frame) => return Poll::Ready(Some(Ok(frame))),
                },
                end => return Poll::Ready(end),
            }
        }
        let piece = this.rest.split_to(this.rest.len().min(PIECE));
        this.clock.the_clients();
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let (rest, inner) = (self.rest.len() as u64, self.body.size_hint());
        let mut hint = SizeHint::new();
        // The upper bound first: a lower one above it would be refused.
        if let Some(upper) = inner.upper() {
            hint.set_upper(upper + rest);
        }
        hint.set_lower(inner.lower() + rest);
        hint
    }
}

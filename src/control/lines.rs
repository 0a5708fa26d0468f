//! Responses in lines: one JSON object for each event of an operation. If the operation fails, the last line is the error.

use std::future::Future;
use std::thread::sleep;
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::stream;
use http::header::CONTENT_TYPE;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use crate::store::StoreError;
use crate::tasks::Tasks;

/// The media type of a response in lines.
pub const MEDIA_TYPE: &str = "application/x-ndjson";

/// Maximum number of lines that wait for the client to read them.
const MAX_QUEUED_LINES: usize = 64;
/// A client that reads no line for this long counts as disconnected.
const CLIENT_TIMEOUT: Duration = Duration::from_secs(60);
/// How often a full queue is tried again.
const FULL_QUEUE_POLL_INTERVAL: Duration = Duration::from_millis(20);

/// One line of an operation.
pub trait Event: Serialize {
    /// Whether the event only reports progress. Such an event may be dropped, because a later one replaces it.
    fn is_progress(&self) -> bool;
}

/// The last line of an operation that failed.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "event", rename = "failed")]
pub struct Failed {
    pub error: String,
}

/// The writer for the lines of an operation.
#[derive(Clone, Debug)]
pub struct Lines(mpsc::Sender<Bytes>);

impl Lines {
    /// Writes a line from a blocking thread. Returns false if the client has disconnected.
    pub fn write(&self, event: &impl Event) -> bool {
        let end = Instant::now() + CLIENT_TIMEOUT;
        let mut line = text(event);
        loop {
            match self.0.try_send(line) {
                Ok(()) => return true,
                Err(mpsc::error::TrySendError::Closed(_)) => return false,
                Err(mpsc::error::TrySendError::Full(_)) if event.is_progress() => return true,
                Err(mpsc::error::TrySendError::Full(unsent)) => {
                    if Instant::now() >= end {
                        return false;
                    }
                    line = unsent;
                    sleep(FULL_QUEUE_POLL_INTERVAL);
                }
            }
        }
    }

    /// Writes a line from a task.
    pub async fn send(&self, event: &impl Serialize) {
        // An error means that the client has disconnected.
        let _ = self.0.send_timeout(text(event), CLIENT_TIMEOUT).await;
    }
}

fn text(event: &impl Serialize) -> Bytes {
    let mut line = serde_json::to_vec(event).unwrap_or_default();
    line.push(b'\n');
    line.into()
}

/// Returns a response of the lines that `work` writes. [`Lines::write`] tells `work` that its client has disconnected.
pub(super) fn respond<F>(tasks: &Tasks, work: impl FnOnce(Lines) -> F) -> Response
where
    F: Future<Output = Result<(), StoreError>> + Send + 'static,
{
    let (sender, receiver) = mpsc::channel(MAX_QUEUED_LINES);
    let lines = Lines(sender);
    let work = work(lines.clone());
    tasks.spawn(async move {
        if let Err(error) = work.await {
            tracing::error!(%error, "an operation of control.sock failed");
            lines.send(&Failed { error: error.to_string() }).await;
        }
    });
    let body = stream::unfold(receiver, async |mut receiver| {
        let line = receiver.recv().await?;
        Some((Ok::<_, std::convert::Infallible>(line), receiver))
    });
    ([(CONTENT_TYPE, MEDIA_TYPE)], Body::from_stream(body)).into_response()
}

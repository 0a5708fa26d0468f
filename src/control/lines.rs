//! Long answers: one JSON object a line, each with its `event`. The last one of an operation that failed says so.

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

pub const MEDIA_TYPE: &str = "application/x-ndjson";

const QUEUE: usize = 64;
/// A client that takes no line for this long has left.
const PATIENCE: Duration = Duration::from_secs(60);
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// One line of an operation.
pub trait Event: Serialize {
    /// Says only how far it is: of no use when the next one is there.
    fn is_progress(&self) -> bool;
}

/// The last line of an operation that could not be done.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "event", rename = "failed")]
pub struct Failed {
    pub error: String,
}

/// Where an operation writes its lines.
#[derive(Clone, Debug)]
pub struct Lines(mpsc::Sender<Bytes>);

impl Lines {
    /// From a blocking thread. False when nobody reads any more.
    pub fn write(&self, event: &impl Event) -> bool {
        let end = Instant::now() + PATIENCE;
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
                    sleep(LOOK_AGAIN);
                }
            }
        }
    }

    /// The same from a task.
    pub async fn send(&self, event: &impl Serialize) {
        // Who does not read it does not want it.
        let _ = self.0.send_timeout(text(event), PATIENCE).await;
    }
}

fn text(event: &impl Serialize) -> Bytes {
    let mut line = serde_json::to_vec(event).unwrap_or_default();
    line.push(b'\n');
    line.into()
}

/// Answers with the lines that `work` writes; it is told by [`Lines::write`] when its client has left.
pub(super) fn answer<F>(tasks: &Tasks, work: impl FnOnce(Lines) -> F) -> Response
where
    F: Future<Output = Result<(), StoreError>> + Send + 'static,
{
    let (sender, receiver) = mpsc::channel(QUEUE);
    let lines = Lines(sender);
    let work = work(lines.clone());
    tasks.spawn(async move {
        if let Err(error) = work.await {
            tracing::error!(%error, "an operation of control.sock failed: {error}");
            lines.send(&Failed { error: error.to_string() }).await;
        }
    });
    let body = stream::unfold(receiver, async |mut receiver| {
        let line = receiver.recv().await?;
        Some((Ok::<_, std::convert::Infallible>(line), receiver))
    });
    ([(CONTENT_TYPE, MEDIA_TYPE)], Body::from_stream(body)).into_response()
}

//! Bodies: content as a stream of frames, and guards that live as long as a body does.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use axum::body::Body;
use bytes::Bytes;
use futures_util::stream;
use http_body::{Body as HttpBody, Frame, SizeHint};
use http_body_util::StreamBody;

use crate::pull::{ContentError, ContentStream};
use crate::telemetry::{ContentKind, Metrics};

/// Where bytes that go to a client are counted; `None` for content that is not mirrored.
pub(super) type Counter = Option<(Arc<Metrics>, Arc<str>)>;

/// Streams content. An error is logged and ends the connection: never just the body.
pub(super) fn streamed(content: ContentStream, counter: Counter) -> Body {
    let frames = stream::try_unfold((content, counter), |(mut content, counter)| async move {
        match content.next().await {
            Ok(Some(bytes)) => {
                if let Some((metrics, upstream)) = &counter {
                    metrics.pushed_bytes(ContentKind::Blob, upstream, bytes.len() as u64);
                }
                Ok(Some((Frame::data(bytes), (content, counter))))
            }
            Ok(None) => Ok(None),
            Err(error) => {
                log(&error);
                Err(error)
            }
        }
    });
    Body::new(StreamBody::new(Box::pin(frames)))
}

fn log(error: &ContentError) {
    match error {
        ContentError::Read(error) => tracing::error!(%error, "a blob cannot be read to its end: {error}"),
        // The fill or the upstream client has said why.
        error => tracing::debug!(%error, "a client's transfer ended early: {error}"),
    }
}

/// A body with something that has to last as long as it does.
pub(super) struct Guarded<G> {
    body: Body,
    guard: Option<G>,
}

impl<G: Send + Unpin + 'static> Guarded<G> {
    pub(super) fn wrap(body: Body, guard: G) -> Body {
        Body::new(Self { body, guard: Some(guard) })
    }
}

impl<G: Unpin> HttpBody for Guarded<G> {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let this = self.get_mut();
        let frame = ready!(Pin::new(&mut this.body).poll_frame(cx));
        if frame.is_none() {
            this.guard = None;
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

//! Response bodies: content as a stream of frames, and guards that live as long as a body.

use std::iter;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use axum::body::Body;
use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::{self, Stream};
use http_body::{Body as HttpBody, Frame, SizeHint};
use http_body_util::StreamBody;
use parking_lot::Mutex;
use uuid::Uuid;

use crate::oci::ByteRange;
use crate::pull::{ContentError, ContentStream, Follower};
use crate::store::FileRange;
use crate::telemetry::{ContentKind, Metrics};

/// Counts the bytes that go to a client. Local content is not counted.
#[derive(Clone)]
pub(super) struct Counter(pub(super) Option<(Arc<Metrics>, Arc<str>)>);

/// A body whose bytes are in a file. A response carries it beside the body, for a connection that can use sendfile.
#[derive(Clone)]
pub(super) struct FilePart {
    pub(super) source: FileSource,
    pub(super) counter: Counter,
}

#[derive(Clone)]
pub(super) enum FileSource {
    /// The body has a clone of this range.
    Stored(FileRange),
    /// The body shares this follower.
    Fill(SharedFollower),
}

/// A follower that the body of a response shares with its connection. The one that sends the response takes it.
#[derive(Clone)]
pub(super) struct SharedFollower(Arc<Mutex<Option<Box<Follower>>>>);

impl Counter {
    /// `bytes` of a blob were sent to a client.
    pub(super) fn count(&self, bytes: u64) {
        if let Some((metrics, upstream)) = &self.0 {
            metrics.pushed_bytes(ContentKind::Blob, upstream, bytes);
        }
    }
}

impl SharedFollower {
    fn new(follower: Box<Follower>) -> Self {
        Self(Arc::new(Mutex::new(Some(follower))))
    }

    /// Returns the follower; `None` if it has been taken.
    pub(super) fn take(&self) -> Option<Box<Follower>> {
        self.0.lock().take()
    }
}

/// Streams content. An error is logged and ends the connection, never just the body. If the bytes are in a file, that
/// is returned as well.
pub(super) fn streamed(content: ContentStream, counter: Counter) -> (Body, Option<FilePart>) {
    let beside = |source| Some(FilePart { source, counter: counter.clone() });
    match content {
        ContentStream::File(range) => {
            let file = beside(FileSource::Stored(range.clone()));
            (body_of(frames(ContentStream::File(range), counter)), file)
        }
        ContentStream::Follow(follower) => {
            let shared = SharedFollower::new(follower);
            let file = beside(FileSource::Fill(shared.clone()));
            // Taken only when the first frame is requested.
            let taken = stream::iter(iter::from_fn(move || shared.take()).map(ContentStream::Follow));
            (body_of(taken.flat_map(move |content| frames(content, counter.clone()))), file)
        }
        content => (body_of(frames(content, counter)), None),
    }
}

fn body_of(frames: impl Stream<Item = Result<Frame<Bytes>, ContentError>> + Send + 'static) -> Body {
    Body::new(StreamBody::new(Box::pin(frames)))
}

fn frames(content: ContentStream, counter: Counter) -> impl Stream<Item = Result<Frame<Bytes>, ContentError>> + Send {
    stream::try_unfold((content, counter), |(mut content, counter)| async move {
        match content.next().await {
            Ok(Some(bytes)) => {
                counter.count(bytes.len() as u64);
                Ok(Some((Frame::data(bytes), (content, counter))))
            }
            Ok(None) => Ok(None),
            Err(error) => {
                log(&error);
                // At an error, hyper drops what it has not written. This lets it write the bytes before the error.
                tokio::task::yield_now().await;
                Err(error)
            }
        }
    })
}

/// Several parts of one content as `multipart/byteranges` (RFC 9110, section 14.6).
pub(super) struct Multipart {
    boundary: String,
    parts: Vec<(Bytes, ContentStream)>,
    end: Bytes,
    length: u64,
}

impl Multipart {
    pub(super) fn new(parts: Vec<(ByteRange, ContentStream)>, total: u64) -> Self {
        let boundary = Uuid::new_v4().simple().to_string();
        let end = Bytes::from(format!("\r\n--{boundary}--\r\n"));
        let mut length = end.len() as u64;
        let mut framed = Vec::with_capacity(parts.len());
        for (part, content) in parts {
            let lead = if framed.is_empty() { "" } else { "\r\n" };
            let range = part.content_range(total);
            let head = format!(
                "{lead}--{boundary}\r\nContent-Type: application/octet-stream\r\nContent-Range: {range}\r\n\r\n"
            );
            length += head.len() as u64 + part.len();
            framed.push((Bytes::from(head), content));
        }
        Self { boundary, parts: framed, end, length }
    }

    pub(super) fn content_type(&self) -> String {
        format!("multipart/byteranges; boundary={}", self.boundary)
    }

    /// Bytes of the complete body, with boundaries and part headers.
    pub(super) fn length(&self) -> u64 {
        self.length
    }

    pub(super) fn into_body(self, counter: Counter) -> Body {
        let frame = |bytes| stream::once(async { Ok(Frame::data(bytes)) });
        let parts = stream::iter(self.parts)
            .flat_map(move |(head, content)| frame(head).chain(frames(content, counter.clone())));
        body_of(parts.chain(frame(self.end)))
    }
}

pub(super) fn log(error: &ContentError) {
    match error {
        ContentError::LocalRead(error) => tracing::error!(%error, "cannot read a stored blob"),
        // The fill or the upstream client has logged the cause.
        error => tracing::debug!(%error, "a transfer to a client ended early"),
    }
}

/// A body with a guard that is dropped when the body ends.
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

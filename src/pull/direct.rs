//! A blob that cannot be kept, for the disk is full or only read: streamed to each client by itself, past the store.
//!
//! The promise is the same as a fill's: the last 64 KiB are held back, in memory, until length and digest are right.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use http::{Method, StatusCode};
use tokio::time::{Instant, timeout_at};

use super::content::{Content, ContentBody, ContentStream};
use super::error::ContentError;
use super::fill::HELD_BACK;
use super::{Inner, PullError, Want, request};
use crate::oci::{Digest, Hasher, RepoId, Selected};
use crate::telemetry::CacheResult;
use crate::upstream::{Kind, Upstream, UpstreamBody};

/// The bytes of one blob on their way past the store.
pub struct Direct {
    inner: Arc<Inner>,
    upstream: Arc<Upstream>,
    digest: Digest,
    body: UpstreamBody,
    /// `None` once the whole has been verified.
    hasher: Option<Hasher>,
    total: Option<u64>,
    received: u64,
    held: VecDeque<Bytes>,
    held_bytes: u64,
}

impl Inner {
    /// Answers without keeping anything. A range is asked for as such, if the length is known.
    pub(super) async fn direct(
        self: &Arc<Self>,
        upstream: &Arc<Upstream>,
        repo: &RepoId,
        digest: &Digest,
        want: &Want,
        deadline: Instant,
    ) -> Result<Content, PullError> {
        let result = CacheResult::Bypass;
        if !self.store.is_read_only() {
            self.metrics.no_room();
        }
        if want.ranges.is_some()
            && let Some(total) = self.known_size(upstream, repo, digest).await
            && let Selected::Part(part) = want.select(total)?
            && let Some(bytes) = self.pass_through(upstream, repo, digest, part, total, deadline).await
        {
            return Ok(Content { total: Some(total), body: ContentBody::Part(part, bytes), result });
        }
        let get = request(Method::GET, Kind::Blob, repo, format!("blobs/{digest}"));
        let response = self.send(upstream, get, deadline).await?;
        if response.status != StatusCode::OK {
            return Err(PullError::Changed { upstream: upstream.name().to_string() });
        }
        let total = response.content_length();
        let mut direct = Direct {
            inner: self.clone(),
            upstream: upstream.clone(),
            digest: digest.clone(),
            body: response.body,
            hasher: Some(digest.algorithm().hasher()),
            total,
            received: 0,
            held: VecDeque::new(),
            held_bytes: 0,
        };
        // A small one is verified before its head goes out, so that a bad one is a clean error.
        if total.is_some_and(|total| total <= HELD_BACK) {
            timeout_at(deadline, direct.receive()).await.map_err(|_| self.too_late(upstream))??;
        }
        Ok(Content { total, body: ContentBody::Whole(ContentStream::Direct(Box::new(direct))), result })
    }
}

impl Direct {
    /// The next bytes that may be sent, or `None` at the end.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, ContentError> {
        self.receive().await?;
        let next = self.held.pop_front();
        self.held_bytes -= next.as_ref().map_or(0, |bytes| bytes.len() as u64);
        Ok(next)
    }

    /// Receives until the first chunk in hand lies before the held-back tail, or all of it has come and is right.
    async fn receive(&mut self) -> Result<(), PullError> {
        while let Some(hasher) = &mut self.hasher {
            let first = self.held.front().map_or(0, |bytes| bytes.len() as u64);
            if first > 0 && self.held_bytes - first >= HELD_BACK {
                return Ok(());
            }
            match self.body.chunk().await? {
                Some(bytes) => {
                    hasher.update(&bytes);
                    self.received += bytes.len() as u64;
                    self.held_bytes += bytes.len() as u64;
                    self.held.push_back(bytes);
                }
                None => {
                    let right = self.total.is_none_or(|total| total == self.received)
                        && self.hasher.take().map(Hasher::finish).as_ref() == Some(&self.digest);
                    return if right { Ok(()) } else { Err(self.wrong_content()) };
                }
            }
        }
        Ok(())
    }

    fn wrong_content(&self) -> PullError {
        self.inner.metrics.digest_mismatch(self.upstream.name());
        PullError::WrongContent { upstream: self.upstream.name().to_string(), digest: self.digest.clone() }
    }
}

impl std::fmt::Debug for Direct {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Direct").field("digest", &self.digest).field("received", &self.received).finish_non_exhaustive()
    }
}

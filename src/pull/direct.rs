//! A blob that cannot be kept, for the disk is full or only read: streamed to each client by itself, past the store.
//!
//! The promise is the same as a fill's: the last 64 KiB are held back, in memory, until length and digest are right.

use std::sync::Arc;

use bytes::{Buf, Bytes, BytesMut};
use http::{Method, StatusCode};
use tokio::time::{Instant, timeout_at};

use super::content::{Content, ContentBody, ContentStream};
use super::error::ContentError;
use super::fill::HELD_BACK;
use super::slots::Turn;
use super::{Inner, PullError, Want, request};
use crate::oci::{Digest, Hasher, RepoId, Selected};
use crate::store::READ_BYTES;
use crate::telemetry::{CacheResult, InFlight};
use crate::upstream::{Kind, Upstream, UpstreamBody};

/// The right to one transfer past the store, given back when it is dropped.
#[derive(Debug)]
pub struct Bypass {
    _turn: Turn,
    _counted: InFlight,
}

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
    /// Copied: a chunk may be one byte of a buffer of its own, and hold that. So it is at most what is held back and a chunk.
    held: BytesMut,
    _bypass: Bypass,
}

impl Inner {
    /// Waits for a turn to pass `size` bytes by the store, or as many as there are.
    async fn bypass(
        &self,
        upstream: &Upstream,
        repo: &RepoId,
        size: Option<u64>,
        deadline: Instant,
    ) -> Result<Bypass, PullError> {
        let mut turn = self.bypasses.ask(repo, size);
        if !turn.has_come() {
            let _waiting = self.metrics.bypass_waiting();
            let come = timeout_at(deadline, turn.come()).await;
            come.map_err(|_| PullError::Busy { upstream: upstream.name().to_string() })?;
        }
        Ok(Bypass { _turn: turn, _counted: self.metrics.bypass_started() })
    }

    /// The same if nobody has to wait for it.
    pub(super) fn bypass_now(&self, repo: &RepoId, size: u64) -> Option<Bypass> {
        let turn = self.bypasses.ask(repo, Some(size));
        turn.has_come().then(|| Bypass { _turn: turn, _counted: self.metrics.bypass_started() })
    }

    /// Answers without keeping anything. A range is asked for as such, if the length is known. `size` is that of the whole, as
    /// far as it is known.
    pub(super) async fn direct(
        self: &Arc<Self>,
        upstream: &Arc<Upstream>,
        repo: &RepoId,
        digest: &Digest,
        size: Option<u64>,
        want: &Want,
        deadline: Instant,
    ) -> Result<Content, PullError> {
        let result = CacheResult::Bypass;
        let bypass = self.bypass(upstream, repo, size, deadline).await?;
        if want.ranges.is_some()
            && let Some(total) = self.known_size(upstream, repo, digest).await
            && let Selected::Part(part) = want.select(total)?
            && let Some(body) = self.pass_through(upstream, repo, digest, part, total, deadline).await
        {
            let bytes = ContentStream::Passthrough { body, left: part.len(), _bypass: bypass };
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
            held: BytesMut::new(),
            _bypass: bypass,
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
        let kept = if self.hasher.is_some() { HELD_BACK as usize } else { 0 };
        let next = self.held.len().saturating_sub(kept).min(READ_BYTES);
        if next == 0 {
            return Ok(None);
        }
        let frame = Bytes::copy_from_slice(&self.held[..next]);
        self.held.advance(next);
        Ok(Some(frame))
    }

    /// Receives until there is something in hand before the held-back tail, or all of it has come and is right.
    async fn receive(&mut self) -> Result<(), PullError> {
        while let Some(hasher) = &mut self.hasher {
            if self.held.len() as u64 > HELD_BACK {
                return Ok(());
            }
            match self.body.chunk().await? {
                Some(bytes) => {
                    hasher.update(&bytes);
                    self.received += bytes.len() as u64;
                    self.held.extend_from_slice(&bytes);
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

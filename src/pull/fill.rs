//! A fill: the one task that brings a blob from its upstream into the store, and what it tells those who follow it.
//!
//! It asks once, writes what comes to a spool file, hashing as it writes, and publishes how far a follower may read. The
//! last 64 KiB stay unpublished until length and digest are right, so that nobody ever gets a whole wrong blob. Nobody who
//! reads has any influence on it but by leaving: see `inflight`.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Instant;

use futures_util::TryStreamExt;
use http::Method;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{Inner, PullError};
use crate::oci::{Digest, RepoId};
use crate::store::{self, BlobReader, Spool};
use crate::upstream::{CredentialId, Kind, Upstream, UpstreamBody};

/// Bytes held back until the whole is known to be right.
pub(super) const HELD_BACK: u64 = 64 << 10;

/// Whose word and rights a fill rests on.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Source {
    pub(super) repo: RepoId,
    pub(super) credential: CredentialId,
}

/// How far a fill is. A publisher that is gone without a last word has failed.
#[derive(Clone, Debug)]
pub(super) enum State {
    Asking,
    Streaming {
        total: Option<u64>,
        /// Followers may read up to here.
        mark: u64,
        /// Counts restarts from zero: a follower that has sent nothing moves on to the next one, others end.
        generation: u32,
        reader: BlobReader,
    },
    /// Verified, and on its way into the store.
    Whole {
        length: u64,
        generation: u32,
        reader: BlobReader,
    },
    Committed {
        length: u64,
        generation: u32,
        reader: BlobReader,
    },
    Failed(PullError),
}

/// A fill in flight, as those who follow it see it.
#[derive(Debug)]
pub(super) struct Fill {
    pub(super) digest: Digest,
    pub(super) source: Source,
    pub(super) state: watch::Receiver<State>,
    /// The source's repository was never stored in before.
    pub(super) new_repository: bool,
    pub(super) followers: AtomicUsize,
    pub(super) joined: AtomicUsize,
    pub(super) received: AtomicU64,
    pub(super) give_up: CancellationToken,
}

impl Fill {
    pub(super) fn has_failed(&self) -> bool {
        matches!(*self.state.borrow(), State::Failed(_))
    }
}

/// One run of a fill.
pub(super) struct Run {
    pub(super) inner: Arc<Inner>,
    pub(super) fill: Arc<Fill>,
    pub(super) upstream: Arc<Upstream>,
    pub(super) publish: watch::Sender<State>,
}

impl Run {
    /// Runs to the end, or until it is given up, and publishes the outcome.
    pub(super) async fn run(self) {
        let started = Instant::now();
        let _in_flight = self.inner.metrics.fill_started();
        let give_up = self.fill.give_up.clone();
        let outcome = give_up.run_until_cancelled(self.fill()).await.unwrap_or(Err(PullError::GivenUp));
        let fill = &self.fill;
        let image = &fill.source.repo;
        let joined = fill.joined.load(Ordering::Relaxed);
        let seconds = started.elapsed().as_secs_f64();
        match outcome {
            Ok(None) => {}
            Ok(Some(length)) => tracing::info!(
                %image, digest = %fill.digest, upstream = %self.upstream.name(), bytes = length, seconds, joined, resumes = 0,
                "fetched {image}@{}: {length} bytes in {seconds:.2} s, {joined} joined", fill.digest
            ),
            Err(error) => {
                self.inner.remember_failure(&fill.source, &fill.digest, &error);
                if !error.is_not_found() {
                    tracing::warn!(
                        %image, digest = %fill.digest, upstream = %self.upstream.name(), seconds, joined, %error,
                        "could not fetch {image}@{}: {error}", fill.digest
                    );
                }
                self.publish.send_replace(State::Failed(error));
            }
        }
    }

    /// The bytes fetched; `None` if the blob was here already.
    async fn fill(&self) -> Result<Option<u64>, PullError> {
        let (inner, digest) = (&self.inner, &self.fill.digest);
        let source = &self.fill.source.repo;
        // Another fill may have ended between the look at the store and the election.
        if let Some(blob) = inner.store.blob(digest).await?
            && inner.may_read(source, digest).await?.is_some()
        {
            let (length, reader) = (blob.length, blob.reader);
            self.publish.send_replace(State::Committed { length, generation: 0, reader });
            return Ok(None);
        }
        let deadline = inner.deadline();
        let request = super::request(Method::GET, Kind::Blob, source, format!("blobs/{digest}"));
        let response = inner.send(&self.upstream, request, deadline).await?;
        let announced = response.content_length().or(response.content_range().and_then(|(_, _, total)| total));
        let total = match announced {
            Some(total) => Some(total),
            None => inner.known_size(source, digest).await,
        };
        let spool = inner.store.begin(digest.algorithm()).await?;
        self.publish.send_replace(State::Streaming { total, mark: 0, generation: 0, reader: spool.reader() });
        let length = self.receive(response.body, &spool, total).await?;
        self.verify(&spool, total, length).await?;
        let reader = spool.reader();
        self.publish.send_replace(State::Whole { length, generation: 0, reader: reader.clone() });
        spool.commit(digest).await?;
        inner.store.link_blob(source, digest, Some(length)).await?;
        self.publish.send_replace(State::Committed { length, generation: 0, reader });
        Ok(Some(length))
    }

    /// Writes what comes and publishes how far it may be read; the length received.
    async fn receive(&self, body: UpstreamBody, spool: &Spool, total: Option<u64>) -> Result<u64, PullError> {
        let stream = body.into_stream().map_err(PullError::from);
        let progress = |length| {
            self.fill.received.store(length, Ordering::Relaxed);
            if total.is_some_and(|total| length > total) {
                return Err(self.wrong_content());
            }
            self.advance(length);
            Ok(())
        };
        store::pump(stream, |chunks| spool.append(chunks), progress).await
    }

    /// Publishes the new mark: everything received but what has to be held back.
    fn advance(&self, received: u64) {
        self.publish.send_if_modified(|state| match state {
            State::Streaming { total, mark, .. } => {
                let open = match total {
                    Some(total) => received.min(total.saturating_sub(HELD_BACK)),
                    None => received.saturating_sub(HELD_BACK),
                };
                let moved = open > *mark;
                *mark = open.max(*mark);
                moved
            }
            _ => false,
        });
    }

    async fn verify(&self, spool: &Spool, total: Option<u64>, length: u64) -> Result<(), PullError> {
        let right = total.is_none_or(|total| total == length) && spool.digest().await? == self.fill.digest;
        if right { Ok(()) } else { Err(self.wrong_content()) }
    }

    fn wrong_content(&self) -> PullError {
        self.inner.metrics.digest_mismatch(self.upstream.name());
        PullError::WrongContent { upstream: self.upstream.name().to_string(), digest: self.fill.digest.clone() }
    }
}

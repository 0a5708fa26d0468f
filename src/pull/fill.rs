//! A fill: the one task that brings a blob from its upstream into the store, and what it tells those who follow it.
//!
//! What it fetches, and how it goes on when the upstream breaks off, is `generation`. What a follower may read is published
//! on a watch channel; the last 64 KiB stay unpublished until length and digest are right, so that nobody ever gets a whole
//! wrong blob. Nobody who reads has any influence on it but by leaving: see `inflight`.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::generation::{Generation, Whole};
use super::slots::Turn;
use super::{Inner, PullError};
use crate::oci::{Digest, RepoId};
use crate::store::FileRange;
use crate::telemetry::InFlight;
use crate::upstream::{CredentialId, Upstream};

/// Bytes held back until the whole is known to be right.
pub(super) const HELD_BACK: u64 = 64 << 10;
/// Who has waited so long for a slot need not hope: something is stuck.
const LONGEST_WAIT: Duration = Duration::from_secs(30 * 60);

/// Whose word and rights a fill rests on.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Source {
    pub(super) repo: RepoId,
    pub(super) credential: CredentialId,
}

/// How far a fill is. A publisher that is gone without a last word has failed.
#[derive(Clone, Debug)]
pub(super) enum State {
    /// For a slot: too many others are running.
    Queued,
    Asking,
    Streaming {
        total: Option<u64>,
        /// Followers may read up to here.
        mark: u64,
        /// Counts restarts from zero: a follower that has sent nothing moves on to the next one, others end.
        generation: u32,
        reader: FileRange,
    },
    /// Verified, and on its way into the store.
    Whole {
        length: u64,
        generation: u32,
        reader: FileRange,
    },
    /// `found`: it was there already, and nothing was fetched.
    Committed {
        length: u64,
        generation: u32,
        reader: FileRange,
        found: bool,
    },
    Failed(PullError),
}

/// A fill in flight, as those who follow it see it.
#[derive(Debug)]
pub(super) struct Fill {
    pub(super) digest: Digest,
    pub(super) source: Source,
    /// Its length in bytes, if a manifest that was served or an earlier answer told it.
    pub(super) size: Option<u64>,
    pub(super) state: watch::Receiver<State>,
    /// The source's repository was never stored in before.
    pub(super) new_repository: bool,
    pub(super) followers: AtomicUsize,
    pub(super) joined: AtomicUsize,
    pub(super) received: AtomicU64,
    /// How often the transfer was taken up again after it broke.
    pub(super) resumes: AtomicUsize,
    /// It had to wait for a slot.
    pub(super) had_to_wait: AtomicBool,
    pub(super) give_up: CancellationToken,
}

impl Fill {
    /// Still fetching, for nobody. One that has everything only has to be put away.
    pub(super) fn is_orphan(&self) -> bool {
        let fetching = matches!(*self.state.borrow(), State::Asking | State::Streaming { .. });
        fetching && self.followers.load(Ordering::Acquire) == 0 && !self.give_up.is_cancelled()
    }

    pub(super) fn is_queued(&self) -> bool {
        matches!(*self.state.borrow(), State::Queued)
    }

    /// Given up, with a slot that is about to come free.
    pub(super) fn is_ending(&self) -> bool {
        self.give_up.is_cancelled() && !self.is_queued()
    }

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
        // Until its outcome has been published.
        let mut slot = None;
        let give_up = self.fill.give_up.clone();
        let fetched = give_up.run_until_cancelled(self.fetch(&mut slot)).await.unwrap_or(Err(PullError::GivenUp));
        // Whoever has read it all may leave now; it is put away all the same.
        let outcome = match fetched {
            Ok(Some(whole)) => whole.commit(&self).await.map(Some),
            Ok(None) => Ok(None),
            Err(error) => Err(error),
        };
        let fill = &self.fill;
        let image = &fill.source.repo;
        let joined = fill.joined.load(Ordering::Relaxed);
        let resumes = fill.resumes.load(Ordering::Relaxed);
        let seconds = started.elapsed().as_secs_f64();
        match outcome {
            Ok(None) => {}
            Err(PullError::GivenUp) => {
                tracing::debug!(%image, digest = %fill.digest, "gave up fetching {image}@{}", fill.digest);
                self.fail(PullError::GivenUp);
            }
            Ok(Some(length)) => tracing::info!(
                %image, digest = %fill.digest, upstream = %self.upstream.name(), bytes = length, seconds, joined, resumes,
                "fetched {image}@{}: {length} bytes in {seconds:.2} s, {joined} joined", fill.digest
            ),
            Err(error) => {
                self.inner.remember_failure(&fill.source, &fill.digest, &error);
                if error.is_full() {
                    // Who follows is served past the store, and says once that there is no room.
                    tracing::debug!(%image, digest = %fill.digest, %error, "no room to keep {image}@{}: {error}", fill.digest);
                } else if !error.is_not_found() {
                    tracing::warn!(
                        %image, digest = %fill.digest, upstream = %self.upstream.name(), seconds, joined, resumes, %error,
                        "could not fetch {image}@{}: {error}", fill.digest
                    );
                }
                self.fail(error);
            }
        }
    }

    /// Tells all who follow. What was verified stays readable for them, though it could not be put away.
    fn fail(&self, error: PullError) {
        self.publish.send_if_modified(|state| {
            let fails = !matches!(state, State::Whole { .. });
            if fails {
                *state = State::Failed(error);
            }
            fails
        });
    }

    /// Waits for a slot as long as somebody waits for the blob.
    async fn turn(&self) -> Result<Turn, PullError> {
        let Self { inner, fill, .. } = self;
        let mut turn = inner.fills.slots.ask(&fill.source.repo, fill.size);
        if turn.has_come() {
            return Ok(turn);
        }
        let _waiting = inner.metrics.fill_waiting();
        fill.had_to_wait.store(true, Ordering::Release);
        self.publish.send_replace(State::Queued);
        // Whoever leaves from now on sees that it is queued.
        if fill.followers.load(Ordering::Acquire) == 0 {
            return Err(PullError::GivenUp);
        }
        inner.fills.make_room();
        let come = timeout(LONGEST_WAIT, turn.come()).await;
        come.map_err(|_| PullError::Busy { upstream: self.upstream.name().to_string() })?;
        self.publish.send_replace(State::Asking);
        Ok(turn)
    }

    /// The whole blob, verified; `None` if it was here already. `slot` is what it holds until it has ended.
    async fn fetch(&self, slot: &mut Option<(Turn, InFlight)>) -> Result<Option<Whole>, PullError> {
        let (inner, digest) = (&self.inner, &self.fill.digest);
        let source = &self.fill.source.repo;
        // Another fill may have ended between the look at the store and the election.
        if let Some(blob) = inner.store.blob(digest).await?
            && inner.may_read(source, digest).await?.is_some()
        {
            let (length, reader) = (blob.len(), blob);
            self.publish.send_replace(State::Committed { length, generation: 0, reader, found: true });
            return Ok(None);
        }
        *slot = Some((self.turn().await?, inner.metrics.fill_started()));
        let mut generation = Generation::first(self);
        loop {
            let outcome = generation.run().await;
            if outcome.as_ref().is_err_and(PullError::is_wrong) {
                inner.metrics.digest_mismatch(self.upstream.name());
            }
            match outcome {
                Err(error) if error.is_wrong() && generation.may_be_repeated() => {
                    tracing::warn!(
                        image = %source, %digest, upstream = %self.upstream.name(), %error,
                        "fetching {source}@{digest} afresh: {error}"
                    );
                    // Who comes now waits for the next one instead of being led to bytes that are known to be wrong.
                    self.publish.send_replace(State::Asking);
                    generation = generation.next();
                }
                outcome => return outcome.map(Some),
            }
        }
    }
}

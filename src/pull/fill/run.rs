//! The task of one fill. It waits for a slot, makes attempts, commits the blob, and publishes and logs the outcome.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tokio::time::timeout;
use tracing::{Instrument, Span};

use super::super::context::Context;
use super::super::error::PullError;
use super::super::slots::Turn;
use super::super::source::BlobSource;
use super::attempt::{Attempt, Verified};
use super::job::Job;
use super::progress::{Extent, Publisher};
use super::registry::{Following, Registry};
use crate::oci::Reference;
use crate::telemetry::InFlight;

/// Maximum wait for a slot. After it the fill fails, because the running fills must be stuck.
const MAX_SLOT_WAIT: Duration = Duration::from_secs(30 * 60);

pub(super) struct Run {
    job: Job,
    registry: Arc<Registry>,
}

/// How a fill ended without an error.
enum Filled {
    /// The blob was fetched and stored. Its length in bytes.
    Stored(u64),
    /// The blob was in the store before.
    Found,
}

/// A slot with its count in the metrics. Held until the fill has ended.
type Slot = (Turn, InFlight);

impl Run {
    pub(super) fn new(
        context: &Arc<Context>,
        registry: &Arc<Registry>,
        source: Arc<dyn BlobSource>,
        following: &Following,
        publisher: Publisher,
    ) -> Self {
        let (fill, slots) = (following.fill().clone(), registry.slots.clone());
        let job = Job { context: context.clone(), fill, source, publisher, slots };
        Self { job, registry: registry.clone() }
    }

    /// Runs to the end, or until the fill is cancelled, and publishes the outcome.
    pub(super) async fn run(self) {
        let span = self.job.fill.span.lock().clone().unwrap_or_else(Span::none);
        let started = Instant::now();
        async {
            // The slot is released after the outcome is published.
            let mut slot = None;
            match self.fill(&mut slot).await {
                Ok(filled) => self.log_success(&filled, started),
                Err(error) => {
                    self.log_failure(&error, started);
                    self.remember(&error).await;
                    self.job.publisher.failed(error);
                }
            }
            self.job.fill.span.lock().take();
        }
        .instrument(span)
        .await;
    }

    async fn remember(&self, error: &PullError) {
        let Job { context, fill, .. } = &self.job;
        context.note_answer(&fill.source.repo, Reference::Digest(fill.digest.clone()), Some(error)).await;
        context.memory.remember_failure(&fill.source, &fill.digest, error);
        if fill.received.load(Ordering::Relaxed) > 0 {
            context.memory.remember_unstorable(&fill.source, &fill.digest, error);
        }
    }

    async fn fill(&self, slot: &mut Option<Slot>) -> Result<Filled, PullError> {
        let abandon = self.job.fill.abandon.clone();
        let fetched = abandon.run_until_cancelled(self.fetch(slot)).await;
        match fetched.unwrap_or(Err(PullError::Abandoned))? {
            // Cancelling has no effect from now on: followers with all bytes may leave, and the blob is committed.
            Some(verified) => {
                let length = verified.commit(&self.job).await?;
                let Job { context, fill, .. } = &self.job;
                context.note_answer(&fill.source.repo, Reference::Digest(fill.digest.clone()), None).await;
                Ok(Filled::Stored(length))
            }
            None => Ok(Filled::Found),
        }
    }

    /// Returns the verified blob, or `None` if it was in the store.
    async fn fetch(&self, slot: &mut Option<Slot>) -> Result<Option<Verified>, PullError> {
        let Job { context, fill, publisher, source, .. } = &self.job;
        // Another fill may have stored the blob after the requester checked the store.
        if let Some(blob) = context.store.blob(&fill.digest).await?
            && context.membership(&fill.source.repo, &fill.digest).await?.is_some_and(|member| member.proven)
        {
            publisher.readable(Extent::found(blob));
            return Ok(None);
        }
        *slot = Some((self.wait_for_slot().await?, context.metrics.fill_started()));
        let requested = Instant::now();
        let verified = self.attempt().await?;
        context.metrics.fill_verified(source.name(), verified.length, requested.elapsed().as_secs_f64());
        Ok(Some(verified))
    }

    /// Waits for a slot as long as the fill has followers.
    async fn wait_for_slot(&self) -> Result<Turn, PullError> {
        let Job { context, fill, publisher, source, .. } = &self.job;
        let mut turn = self.registry.slots.request(&fill.source.repo, fill.size);
        if turn.is_slot() {
            return Ok(turn);
        }
        let _waiting = context.metrics.fill_waiting();
        fill.had_to_wait.store(true, Ordering::Release);
        publisher.queued();
        // A follower that leaves from now on sees that the fill is queued, and cancels it.
        if fill.follower_count() == 0 {
            return Err(PullError::Abandoned);
        }
        self.registry.free_slot();
        timeout(MAX_SLOT_WAIT, turn.wait()).await.map_err(|_| PullError::Busy { upstream: source.name().clone() })?;
        publisher.requesting();
        Ok(turn)
    }

    async fn attempt(&self) -> Result<Verified, PullError> {
        let Job { context, publisher, source, .. } = &self.job;
        let mut attempt = Attempt::first(&self.job);
        loop {
            let error = match attempt.run().await {
                Ok(verified) => return Ok(verified),
                Err(error) => error,
            };
            if error.is_wrong_content() {
                context.metrics.digest_mismatch(source.name());
            }
            if !error.is_wrong_content() || !attempt.may_be_repeated() {
                return Err(error);
            }
            tracing::warn!(%error, "fetching the blob once more from its beginning");
            publisher.requesting();
            attempt = attempt.next();
        }
    }

    fn log_success(&self, filled: &Filled, started: Instant) {
        let fill = &self.job.fill;
        let Filled::Stored(bytes) = *filled else {
            Span::current().record("outcome", "found");
            return;
        };
        Span::current().record("bytes", bytes).record("outcome", "stored");
        let (seconds, joined) = (started.elapsed().as_secs_f64(), fill.joined.load(Ordering::Relaxed));
        let resumes = fill.resumes.load(Ordering::Relaxed);
        tracing::info!(seconds, joined, resumes, "fetched a blob");
    }

    fn log_failure(&self, error: &PullError, started: Instant) {
        let fill = &self.job.fill;
        Span::current().record("bytes", fill.received.load(Ordering::Relaxed)).record("outcome", outcome(error));
        let (seconds, joined) = (started.elapsed().as_secs_f64(), fill.joined.load(Ordering::Relaxed));
        let resumes = fill.resumes.load(Ordering::Relaxed);
        match error {
            PullError::Abandoned => tracing::debug!(seconds, "abandoned a fill"),
            PullError::NotFound | PullError::PresumedAbsent => {}
            // The followers are served past the store, which warns that there is no room.
            error if error.is_full() => tracing::debug!(%error, "cannot store a blob"),
            error if error.is_local() => {
                tracing::error!(%error, seconds, joined, resumes, "the local store failed during a fill");
            }
            error => tracing::warn!(%error, seconds, joined, resumes, "cannot fetch a blob"),
        }
    }
}

/// Returns the value of the span's `outcome` field.
fn outcome(error: &PullError) -> &'static str {
    match error {
        PullError::Abandoned => "abandoned",
        PullError::NotFound | PullError::PresumedAbsent => "not_found",
        error if error.is_full() => "no_room",
        error if error.is_local() => "local_failure",
        error if error.is_wrong_content() => "wrong_content",
        _ => "upstream_failure",
    }
}

//! The data that all parts of the engine share: the store, the configuration, metrics, memory, and the deadlines.

use std::future::Future;
use std::hash::Hash;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, timeout_at};

use super::ask::may_serve_stale;
use super::error::PullError;
use super::fill::window;
use super::flight::{Flights, Role};
use super::memory::Memory;
use super::notes::Notes;
use super::visibility::Visibilities;
use crate::config::{CacheConfig, Config};
use crate::oci::{Digest, Reference, RepoId};
use crate::store::{Member, Store, StoreError};
use crate::telemetry::Metrics;
use crate::upstream::Upstream;

/// Maximum wait for a fresh response if there is a stale one.
pub(super) const MAX_WAIT_WITH_STALE: Duration = Duration::from_secs(2);

pub(super) struct Context {
    pub(super) store: Store,
    pub(super) config: CacheConfig,
    pub(super) metrics: Arc<Metrics>,
    pub(super) memory: Memory,
    pub(super) notes: Notes,
    pub(super) visibilities: Visibilities,
    /// How many bytes ahead of the first missing one a blob is received unasked.
    pub(super) segment_window: u64,
}

impl Context {
    pub(super) fn new(store: Store, config: &Config, metrics: Arc<Metrics>) -> Self {
        let visibilities = Visibilities::new(config.auth.is_some());
        let config = config.cache.clone();
        let memory = Memory::new(&config);
        let notes = Notes::new(store.clone(), config.stale_if_error);
        Self { store, config, metrics, memory, notes, visibilities, segment_window: window() }
    }

    /// Returns the deadline of a request that arrives now.
    pub(super) fn deadline(&self) -> Instant {
        Instant::now() + self.config.answer_within
    }

    /// Returns the deadline of a request that arrives now and for which there is a stale response.
    pub(super) fn deadline_with_stale(&self) -> Instant {
        Instant::now() + self.config.answer_within.min(MAX_WAIT_WITH_STALE)
    }

    pub(super) fn too_late(&self, upstream: &Arc<str>) -> PullError {
        PullError::TooLate { upstream: upstream.clone(), within: self.config.answer_within }
    }

    /// Joins or starts the flight for `key` and waits for its result until `deadline`. `upstream` is for the error.
    ///
    /// # Errors
    /// Those of the work; `TooLate` at the deadline, and `Abandoned` if the work was stopped or panicked.
    pub(super) async fn run_flight<K, T, F>(
        &self,
        flights: &Flights<K, Result<T, PullError>>,
        key: K,
        upstream: &Arc<str>,
        deadline: Instant,
        work: impl FnOnce() -> F,
    ) -> Result<(T, Role), PullError>
    where
        K: Clone + Eq + Hash + Send + 'static,
        T: Clone + Send + Sync + 'static,
        F: Future<Output = Result<T, PullError>> + Send + 'static,
    {
        match timeout_at(deadline, flights.run(key, work)).await {
            Ok((Some(result), role)) => result.map(|value| (value, role)),
            Ok((None, _)) => Err(PullError::Abandoned),
            Err(_) => Err(self.too_late(upstream)),
        }
    }

    /// Returns the membership of a digest. If it is proven, the content may be read in this repository without a
    /// request to its upstream.
    pub(super) async fn membership(&self, repo: &RepoId, digest: &Digest) -> Result<Option<Member>, StoreError> {
        if let Some(member) = self.store.member(repo, digest).await? {
            return Ok(Some(member));
        }
        let is_manifest = self.store.has_manifest(repo, digest).await?;
        Ok(is_manifest.then_some(Member { size: None, proven: true }))
    }

    /// Remembers or forgets an absence after the upstream was asked for the content; `error` is `None` if it has the
    /// content. A confirmed absence is kept in memory for `negative_ttl`, and in the repository's note for an outage.
    /// A presumed one is kept in memory only.
    pub(super) async fn note_answer(&self, repo: &RepoId, reference: Reference, error: Option<&PullError>) {
        match error {
            None => self.notes.forget_absent(repo, reference).await,
            Some(PullError::NotFound) => {
                self.memory.remember_absent(repo, reference.clone(), PullError::NotFound);
                self.notes.remember_absent(repo, reference).await;
            }
            Some(PullError::PresumedAbsent) => {
                self.memory.remember_absent(repo, reference, PullError::PresumedAbsent);
            }
            Some(_) => {}
        }
    }

    /// Returns the error of a request for content that is not stored. If the upstream failed, and said before that the
    /// content does not exist, that is still the best answer.
    pub(super) async fn or_known_absence(
        &self,
        upstream: &Upstream,
        repo: &RepoId,
        reference: Reference,
        error: PullError,
    ) -> PullError {
        let is_trouble = may_serve_stale(upstream, repo, &error) && !error.is_local();
        if is_trouble && self.notes.is_absent(repo, &reference).await {
            tracing::debug!(%repo, %reference, %error, "the upstream said before that this does not exist");
            return PullError::PresumedAbsent;
        }
        error
    }

    /// Counts content that is served but not stored. Logs a warning for the first one in five minutes.
    pub(super) fn note_not_stored(&self, error: &StoreError) {
        if self.metrics.no_room() {
            let obstacle = error.obstacle().map(|obstacle| obstacle.to_string()).unwrap_or_default();
            tracing::warn!(%error, obstacle, "pulled content is served but not stored");
        }
    }
}

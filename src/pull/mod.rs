//! The miss engine: what is not here is fetched once, verified, kept, and streamed to everybody who asked meanwhile.
//!
//! A request for a blob becomes a follower of the one fill of its digest (`inflight`, `fill`, `follower`); a request for a
//! tag or manifest joins the one question to the upstream (`flight`, `tags`, `manifests`). Who may read what is decided
//! before either: a digest is readable in a mirrored repository if a manifest served there refers to it, or if the
//! upstream, asked with that repository's credentials, said so once (`blobs`). The module knows no HTTP of ours.

mod blobs;
mod content;
mod direct;
mod error;
mod fill;
mod flight;
mod follower;
mod generation;
mod inflight;
mod link;
mod manifests;
mod pace;
mod referrers;
mod slots;
mod tag_list;
mod tags;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use http::Method;
use moka::sync::Cache;
use tokio::time::Instant;

use crate::config::{CacheConfig, OnDenied};
use crate::oci::{Digest, Reference, Referrer, RepoId, Scope, Tag, UpstreamName};
use crate::store::{Member, Store, StoreError};
use crate::tasks::Tasks;
use crate::telemetry::Metrics;
use crate::upstream::{BreakerState, Effort, Hops, Kind, Upstream, UpstreamError, UpstreamRequest, UpstreamResponse};
use fill::Source;
use flight::Flights;
use inflight::Fills;
use referrers::Listed;
use slots::Slots;

pub use blobs::Want;
pub use content::{Content, ContentBody, ContentStream};
pub use error::{ContentError, PullError};
pub use manifests::Served;
pub use tag_list::{AskedTags, TagList};

/// A failure is shared with whoever asks the same within this time.
const FAILURE_MEMORY: Duration = Duration::from_secs(1);
/// The length of a blob that is not here is asked once in this time.
const LENGTH_MEMORY: Duration = Duration::from_secs(10 * 60);
/// Entries of each of the short-lived memories.
const MEMORY_ENTRIES: u64 = 100_000;
/// Lists of referrers, in bytes.
const LISTED_BYTES: u64 = 8 << 20;
/// With a stale answer at hand, nobody waits longer than this for a fresh one.
const STALE_PATIENCE: Duration = Duration::from_secs(2);

type Referrers = Arc<Vec<Referrer>>;

/// A handle on the engine; clones share it.
#[derive(Clone)]
pub struct Puller {
    inner: Arc<Inner>,
    /// What the request that it serves has come through.
    hops: Hops,
}

struct Inner {
    store: Store,
    upstreams: HashMap<UpstreamName, Arc<Upstream>>,
    cache: CacheConfig,
    metrics: Arc<Metrics>,
    tasks: Tasks,
    fills: Fills,
    /// For what passes by the store: a client may take as long as it likes, and must not keep fills waiting.
    bypasses: Slots,
    tags: Flights<(RepoId, Tag), Result<Served, PullError>>,
    manifests: Flights<(RepoId, Digest), Result<Served, PullError>>,
    proofs: Flights<(RepoId, Digest), Result<Member, PullError>>,
    /// What an upstream said it does not have, for `negative_ttl`.
    absent: Cache<(RepoId, Reference), ()>,
    failures: Cache<(Source, Digest), PullError>,
    lengths: Cache<(RepoId, Digest), u64>,
    referrers: Flights<(RepoId, Digest), Result<(Referrers, bool), PullError>>,
    listed: Cache<(RepoId, Digest), Listed>,
}

impl Puller {
    pub fn new(
        store: Store,
        upstreams: HashMap<UpstreamName, Arc<Upstream>>,
        cache: CacheConfig,
        metrics: Arc<Metrics>,
        tasks: Tasks,
    ) -> Self {
        let most_of_each =
            upstreams.iter().map(|(name, upstream)| (Scope::Upstream(name.clone()), upstream.max_fills()));
        let inner = Inner {
            bypasses: Slots::new(cache.max_bypasses, []),
            fills: Fills::new(Slots::new(cache.max_fills, most_of_each)),
            tags: Flights::new(tasks.clone()),
            manifests: Flights::new(tasks.clone()),
            proofs: Flights::new(tasks.clone()),
            absent: memory(cache.negative_ttl),
            failures: memory(FAILURE_MEMORY),
            lengths: memory(LENGTH_MEMORY),
            referrers: Flights::new(tasks.clone()),
            listed: Cache::builder()
                .max_capacity(LISTED_BYTES)
                .weigher(|_, listed: &Listed| listed.weight())
                .time_to_live(cache.stale_if_error)
                .build(),
            store,
            upstreams,
            cache,
            metrics,
            tasks,
        };
        Self { inner: Arc::new(inner), hops: Hops::default() }
    }

    /// The same for a request that came through these. Of several that share one question to an upstream, the hops of
    /// the first are sent with it.
    #[must_use]
    pub fn behind(&self, hops: Hops) -> Self {
        Self { inner: self.inner.clone(), hops }
    }

    /// The upstream that a repository mirrors, to be asked for this request.
    fn upstream(&self, repo: &RepoId) -> Result<Arc<Upstream>, PullError> {
        let upstream = match &repo.scope {
            Scope::Upstream(name) => self.inner.upstreams.get(name).ok_or(PullError::NotFound)?,
            Scope::Local => return Err(PullError::NotFound),
        };
        if self.hops.is_empty() {
            return Ok(upstream.clone());
        }
        Ok(Arc::new(upstream.with_hops(self.hops.clone())))
    }

    /// Whether an upstream is asked at present, or left alone after failures; `None` for one that is not configured.
    pub fn breaker_state(&self, upstream: &str) -> Option<BreakerState> {
        self.inner.upstreams.get(upstream).map(|upstream| upstream.breaker_state())
    }

    /// Ends the fills that nobody waits for: the first step of a stop.
    pub fn give_up_orphans(&self) {
        self.inner.fills.give_up_orphans();
    }
}

fn memory<K, V>(ttl: Duration) -> Cache<K, V>
where
    K: std::hash::Hash + Eq + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
{
    Cache::builder().max_capacity(MEMORY_ENTRIES).time_to_live(ttl).build()
}

impl Inner {
    /// When a request that comes now has to be answered.
    fn deadline(&self) -> Instant {
        Instant::now() + self.cache.answer_within
    }

    /// The same where there is something else to answer with.
    fn deadline_of_stale(&self) -> Instant {
        Instant::now() + self.cache.answer_within.min(STALE_PATIENCE)
    }

    /// Asks the upstream. A denial to nobody in particular is how many registries say that there is no such thing.
    async fn send(
        &self,
        upstream: &Upstream,
        request: UpstreamRequest,
        deadline: Instant,
    ) -> Result<UpstreamResponse, PullError> {
        let repository = request.repository.clone();
        upstream.send(request, deadline).await.map_err(|error| match error {
            UpstreamError::Denied { .. }
                if !upstream.has_credentials(&repository) && upstream.on_denied(&repository) == OnDenied::Deny =>
            {
                PullError::NotFound
            }
            error => error.into(),
        })
    }

    fn too_late(&self, upstream: &Upstream) -> PullError {
        PullError::TooLate { upstream: upstream.name().to_string(), within: self.cache.answer_within }
    }

    /// Whether the digest may be read in this repository without asking anybody.
    async fn may_read(&self, repo: &RepoId, digest: &Digest) -> Result<Option<Member>, StoreError> {
        if let Some(member) = self.store.member(repo, digest).await? {
            return Ok(Some(member));
        }
        let is_manifest = self.store.has_manifest(repo, digest).await?;
        Ok(is_manifest.then_some(Member { size: None }))
    }

    /// Something is served that cannot be kept.
    fn note_no_room(&self, error: &StoreError) {
        if self.metrics.no_room() {
            tracing::warn!(%error, "no room: until there is some, what is pulled passes by and is not kept ({error})");
        }
    }

    fn is_absent(&self, repo: &RepoId, reference: &Reference) -> bool {
        self.absent.contains_key(&(repo.clone(), reference.clone()))
    }

    fn remember_absent(&self, repo: &RepoId, reference: Reference) {
        if !self.cache.negative_ttl.is_zero() {
            self.absent.insert((repo.clone(), reference), ());
        }
    }

    /// Remembers a digest that was asked for and is not there.
    fn note_absent(&self, repo: &RepoId, digest: &Digest, error: &PullError) {
        if error.is_not_found() {
            self.remember_absent(repo, Reference::Digest(digest.clone()));
        }
    }

    fn remember_failure(&self, source: &Source, digest: &Digest, error: &PullError) {
        match error {
            PullError::NotFound => self.remember_absent(&source.repo, Reference::Digest(digest.clone())),
            // None says anything of the next request; the breaker remembers for itself.
            PullError::GivenUp | PullError::Busy { .. } | PullError::Upstream(UpstreamError::CircuitOpen { .. }) => {}
            error => self.failures.insert((source.clone(), digest.clone()), error.clone()),
        }
    }
}

fn request(method: Method, kind: Kind, repo: &RepoId, path: String) -> UpstreamRequest {
    UpstreamRequest {
        kind,
        method,
        repository: repo.name.clone(),
        path,
        range: None,
        if_none_match: None,
        if_range: None,
        skip_urls: 0,
        effort: Effort::Rounds,
    }
}

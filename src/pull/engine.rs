//! The pull engine: its parts, and the handle that requests use.

use std::collections::HashMap;
use std::sync::Arc;

use super::bypass::Bypasses;
use super::context::Context;
use super::error::PullError;
use super::fill::Fills;
use super::flight::Flights;
use super::freshness::TagFreshness;
use super::large_documents::LargeDocuments;
use super::memory::Referrers;
use super::proof::Proofs;
use super::served::Served;
use super::slots::Slots;
use super::visibility::VisibilityProbes;
use crate::config::Config;
use crate::oci::{Digest, Reference, RepoId, Scope, Tag, UpstreamName};
use crate::store::Store;
use crate::tasks::Tasks;
use crate::telemetry::{Metrics, RequestTrace};
use crate::upstream::{BreakerState, Hops, Upstream};

/// Large manifests of one upstream that are received and parsed at the same time. Each upstream has this limit of its
/// own, so a slow upstream delays only its own manifests.
const MAX_LARGE_MANIFESTS: usize = 4;

/// A handle on the engine. Clones share it.
#[derive(Clone)]
pub struct Puller {
    pub(super) engine: Arc<Engine>,
}

/// The engine on behalf of one request.
#[derive(Clone, Copy)]
pub struct PullRequest<'a> {
    pub(super) engine: &'a Arc<Engine>,
    /// The trace of the request. A miss opens its span.
    pub(super) trace: &'a RequestTrace,
    /// The servers that the request has passed (`Via`).
    hops: &'a Hops,
}

pub(super) struct Engine {
    pub(super) context: Arc<Context>,
    pub(super) fills: Fills,
    pub(super) bypasses: Bypasses,
    pub(super) proofs: Arc<Proofs>,
    visibility: VisibilityProbes,
    pub(super) large_manifests: LargeDocuments,
    pub(super) tags: Flights<(RepoId, Tag), Result<Served, PullError>>,
    pub(super) manifests: Flights<(RepoId, Digest), Result<Served, PullError>>,
    /// The flag is true if the list may be out of date.
    pub(super) referrers: Flights<(RepoId, Digest), Result<(Referrers, bool), PullError>>,
    upstreams: HashMap<UpstreamName, Arc<Upstream>>,
}

impl Puller {
    pub fn new(
        store: Store,
        upstreams: HashMap<UpstreamName, Arc<Upstream>>,
        config: &Config,
        metrics: Arc<Metrics>,
        tasks: Tasks,
    ) -> Self {
        let caps = upstreams.iter().map(|(name, upstream)| (Scope::Upstream(name.clone()), upstream.max_fills()));
        let fill_slots = Slots::new(config.cache.max_fills, caps);
        let scopes = upstreams.keys().map(|name| Scope::Upstream(name.clone()));
        let large_manifests = LargeDocuments::for_each(MAX_LARGE_MANIFESTS, scopes);
        let bypasses = Bypasses::new(config.cache.max_bypasses, metrics.clone());
        let context = Arc::new(Context::new(store, config, metrics));
        let engine = Engine {
            fills: Fills::new(context.clone(), fill_slots, tasks.clone()),
            bypasses,
            large_manifests,
            proofs: Arc::new(Proofs::new(context.clone(), tasks.clone())),
            visibility: VisibilityProbes::new(context.clone(), tasks.clone()),
            tags: Flights::new(tasks.clone()),
            manifests: Flights::new(tasks.clone()),
            referrers: Flights::new(tasks),
            context,
            upstreams,
        };
        Self { engine: Arc::new(engine) }
    }

    /// Returns the engine for a request that has passed the servers `hops`. If several requests share a flight, the
    /// flight sends the hops of the first one.
    pub fn on_behalf_of<'a>(&'a self, trace: &'a RequestTrace, hops: &'a Hops) -> PullRequest<'a> {
        PullRequest { engine: &self.engine, trace, hops }
    }

    /// Returns the state of an upstream's circuit breaker; `None` for an upstream that is not configured.
    pub fn breaker_state(&self, upstream: &str) -> Option<BreakerState> {
        self.engine.upstreams.get(upstream).map(|upstream| upstream.breaker_state())
    }

    /// Returns the current age limits of a repository's tags; `None` for an upstream that is not configured.
    pub fn tag_freshness(&self, repo: &RepoId) -> Option<TagFreshness> {
        let upstream = self.engine.upstreams.get(repo.scope.as_str())?;
        Some(self.engine.tag_freshness(upstream, repo))
    }

    /// Whether everybody may read a mirrored repository at its upstream, as far as is known without asking.
    pub fn is_known_public(&self, repo: &RepoId) -> bool {
        let upstream = self.engine.upstreams.get(repo.scope.as_str());
        upstream.is_some_and(|upstream| self.engine.context.visibilities.is_known_public(upstream, repo))
    }

    /// Cancels the fills without followers: the first step of a shutdown.
    pub fn abandon_orphans(&self) {
        self.engine.fills.abandon_orphans();
    }
}

impl PullRequest<'_> {
    /// Whether everybody may read a mirrored repository at its upstream. `wanted`: the manifest that the client asks it for, if it does.
    ///
    /// # Errors
    /// If that cannot be found out, and `NotFound` if the upstream shows neither the manifest nor the repository to a request
    /// without credentials.
    pub async fn is_public(&self, repo: &RepoId, wanted: Option<Reference>) -> Result<bool, PullError> {
        self.engine.visibility.is_public(&*self.upstream(repo)?, repo, wanted).await
    }

    /// Warns, once it is found out, if content that everybody was just sent is private at its upstream.
    pub async fn warn_if_private(&self, repo: &RepoId, wanted: Option<Reference>) {
        if let Ok(upstream) = self.upstream(repo) {
            self.engine.visibility.warn_if_private(&upstream, repo, wanted).await;
        }
    }

    /// Returns the upstream that a repository mirrors, with the hops of this request.
    pub(super) fn upstream(&self, repo: &RepoId) -> Result<Arc<Upstream>, PullError> {
        let upstream = match &repo.scope {
            Scope::Upstream(name) => self.engine.upstreams.get(name).ok_or(PullError::NotFound)?,
            Scope::Local => return Err(PullError::NotFound),
        };
        if self.hops.is_empty() {
            return Ok(upstream.clone());
        }
        Ok(Arc::new(upstream.with_hops(self.hops.clone())))
    }
}

impl Engine {
    pub(super) fn tag_freshness(&self, upstream: &Upstream, repo: &RepoId) -> TagFreshness {
        TagFreshness::new(&self.context.config, upstream.is_scarce(&repo.name))
    }
}

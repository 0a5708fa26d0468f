//! Tags of mirrored repositories. A fresh tag is served at once. An older tag is confirmed by a HEAD. In an outage a
//! stale tag is served.
//!
//! The age limits are in `freshness`, the requests to the upstream in `confirm_tag`. At most one flight runs per tag,
//! so an older response never overwrites a newer one.

use std::sync::Arc;
use std::time::SystemTime;

use tracing::{Instrument, Span};

use super::ask::may_serve_stale;
use super::confirm_tag::TagConfirmation;
use super::context::MAX_WAIT_WITH_STALE;
use super::engine::{Engine, PullRequest, Puller};
use super::error::PullError;
use super::served::Served;
use crate::oci::{Reference, RepoId, Tag};
use crate::store::{StoredManifest, TagRecord};
use crate::telemetry::CacheResult;
use crate::upstream::Upstream;

/// A tag in the cache.
struct CachedTag {
    record: TagRecord,
    /// `None` if the manifest was evicted.
    manifest: Option<Arc<StoredManifest>>,
}

impl CachedTag {
    /// Returns the manifest with `result`, if `is_usable` is true and it is stored.
    fn served_if(&self, is_usable: bool, result: CacheResult) -> Option<Served> {
        let manifest = self.manifest.clone().filter(|_| is_usable)?;
        Some(Served::new(manifest, result))
    }
}

impl Puller {
    /// Returns a manifest of a mirrored repository if it can be served at once: it is in memory, and its tag is fresh
    /// at `now`. `None`: [`PullRequest`] decides.
    pub fn cached(&self, repo: &RepoId, reference: &Reference, now: SystemTime) -> Option<Arc<StoredManifest>> {
        let store = &self.engine.context.store;
        let tag = match reference {
            Reference::Digest(digest) => return store.cached_manifest(repo, digest),
            Reference::Tag(tag) => tag,
        };
        let record = store.cached_tag(repo, tag)?;
        let is_fresh = self.tag_freshness(repo)?.is_fresh(record.confirmed, now);
        if is_fresh { store.cached_manifest(repo, &record.digest) } else { None }
    }
}

impl PullRequest<'_> {
    /// Returns a manifest of a mirrored repository by tag.
    pub async fn tag(&self, repo: &RepoId, tag: &Tag) -> Result<Served, PullError> {
        self.engine.serve_tag(&self.upstream(repo)?, repo, tag, || self.trace.span()).await
    }
}

impl Engine {
    /// Returns a manifest by tag, from the cache or from a flight. Waits for the flight within `span`.
    pub(super) async fn serve_tag(
        self: &Arc<Self>,
        upstream: &Arc<Upstream>,
        repo: &RepoId,
        tag: &Tag,
        span: impl FnOnce() -> Span,
    ) -> Result<Served, PullError> {
        let context = &self.context;
        let cached = self.cached_tag(repo, tag).await?;
        let (freshness, now) = (self.tag_freshness(upstream, repo), SystemTime::now());
        if let Some(cached) = &cached
            && let Some(served) = cached.served_if(freshness.is_fresh(cached.record.confirmed, now), CacheResult::Hit)
        {
            return Ok(served);
        }
        if let Some(error) = context.memory.absence(repo, &Reference::Tag(tag.clone())) {
            return Err(error);
        }
        let key = (repo.clone(), tag.clone());
        let work = || {
            let (engine, upstream, (repo, tag)) = (self.clone(), upstream.clone(), key.clone());
            async move { engine.resolve_tag(&upstream, &repo, &tag).await }
        };
        if let Some(cached) = &cached {
            let is_usable = freshness.is_usable_during_refresh(cached.record.confirmed, now);
            if let Some(served) = cached.served_if(is_usable, CacheResult::Refreshing) {
                self.tags.start(key.clone(), work);
                return Ok(served);
            }
        }
        // The flight ends by this deadline. The added time is for a request that joins the flight late.
        let deadline = context.deadline() + MAX_WAIT_WITH_STALE;
        // Boxed, so that the rare case does not make the future of every request larger.
        let flight = context.run_flight(&self.tags, key.clone(), upstream.name(), deadline, work);
        let flight = Box::pin(flight.instrument(span()));
        let (served, role) = flight.await?;
        Ok(served.counted_for(role))
    }

    async fn cached_tag(&self, repo: &RepoId, tag: &Tag) -> Result<Option<CachedTag>, PullError> {
        let Some(record) = self.context.store.tag(repo, tag).await? else { return Ok(None) };
        let manifest = self.context.store.manifest(repo, &record.digest).await?;
        Ok(Some(CachedTag { record, manifest }))
    }

    async fn resolve_tag(
        self: &Arc<Self>,
        upstream: &Arc<Upstream>,
        repo: &RepoId,
        tag: &Tag,
    ) -> Result<Served, PullError> {
        let context = &self.context;
        let cached = self.cached_tag(repo, tag).await?;
        let (freshness, now) = (self.tag_freshness(upstream, repo), SystemTime::now());
        // Another flight may have confirmed the tag after the requester checked the store.
        if let Some(cached) = &cached
            && let Some(served) = cached.served_if(freshness.is_fresh(cached.record.confirmed, now), CacheResult::Hit)
        {
            return Ok(served);
        }
        let stale = cached.as_ref().and_then(|cached| {
            cached.served_if(freshness.is_usable_in_outage(cached.record.confirmed, now), CacheResult::Stale)
        });
        let deadline = if stale.is_some() { context.deadline_with_stale() } else { context.deadline() };
        let known = cached.map(|cached| (cached.record.digest, cached.manifest.is_some()));
        let confirmation = TagConfirmation { engine: self, upstream, repo, tag, known, deadline };
        let (reference, answer) = (Reference::Tag(tag.clone()), confirmation.run().await);
        context.note_answer(repo, reference.clone(), answer.as_ref().err()).await;
        let error = match answer {
            Ok(served) => {
                let (digest, result) = (&served.manifest.digest, served.result.as_str());
                tracing::info!(%repo, %tag, %digest, result, "resolved a tag");
                return Ok(served);
            }
            Err(error) if error.is_not_found() => return Err(error),
            Err(error) => error,
        };
        // An absence that is still remembered is newer than the last confirmation of the cached tag.
        let error = context.or_known_absence(upstream, repo, reference, error).await;
        if error.is_not_found() {
            return Err(error);
        }
        match stale.filter(|_| may_serve_stale(upstream, repo, &error)) {
            Some(stale) => {
                tracing::warn!(%repo, %tag, digest = %stale.manifest.digest, %error, "serving a stale tag");
                Ok(stale)
            }
            None => {
                tracing::warn!(%repo, %tag, %error, "cannot resolve a tag");
                Err(error)
            }
        }
    }
}

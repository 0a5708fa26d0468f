//! Tags of mirrored repositories. A fresh tag is served at once. An older tag is confirmed by a HEAD. In an outage a stale tag
//! is served.
//!
//! The age limits are in `freshness`. At most one flight runs per tag, so an older response never overwrites a newer one.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use http::{Method, StatusCode};
use tokio::time::Instant;
use tracing::{Instrument, Span};

use super::ask::{ask, request};
use super::context::MAX_WAIT_WITH_STALE;
use super::engine::{Engine, PullRequest};
use super::error::PullError;
use super::served::Served;
use crate::config::OnDenied;
use crate::oci::{Digest, Reference, RepoId, Tag};
use crate::store::{StoredManifest, TagRecord};
use crate::telemetry::CacheResult;
use crate::upstream::{Kind, Upstream, UpstreamError, UpstreamResponse};

/// Minimum time between two rewrites of a tag file that only update the time of the confirmation.
const MIN_REWRITE_INTERVAL: Duration = Duration::from_secs(10 * 60);

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
        let (freshness, now) = (self.tag_freshness(upstream), SystemTime::now());
        if let Some(cached) = &cached
            && let Some(served) = cached.served_if(freshness.is_fresh(cached.record.confirmed, now), CacheResult::Hit)
        {
            return Ok(served);
        }
        if context.memory.is_absent(repo, &Reference::Tag(tag.clone())) {
            return Err(PullError::NotFound);
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
        let (freshness, now) = (self.tag_freshness(upstream), SystemTime::now());
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
        let known = cached.map(|cached| cached.record);
        let error = match self.ask_for_tag(upstream, repo, tag, known, deadline).await {
            Ok(served) => {
                let (digest, result) = (&served.manifest.digest, served.result.as_str());
                tracing::info!(%repo, %tag, %digest, result, "resolved a tag");
                return Ok(served);
            }
            Err(error) => error,
        };
        if error.is_not_found() {
            context.memory.remember_absent(repo, Reference::Tag(tag.clone()));
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

    async fn ask_for_tag(
        self: &Arc<Self>,
        upstream: &Arc<Upstream>,
        repo: &RepoId,
        tag: &Tag,
        known: Option<TagRecord>,
        deadline: Instant,
    ) -> Result<Served, PullError> {
        let path = format!("manifests/{tag}");
        let Some(known) = known else {
            let response = ask(upstream, request(Method::GET, Kind::Manifest, repo, path), deadline).await?;
            return self.take_tag(upstream, repo, tag, None, response, deadline).await;
        };
        match ask(upstream, request(Method::HEAD, Kind::Manifest, repo, path.clone()), deadline).await {
            Ok(head) => {
                if let Some(digest) = head.docker_content_digest().and_then(|digest| digest.parse().ok()) {
                    if head.is_stale()
                        && digest == known.digest
                        && let Some(served) = self.unconfirmed(repo, &digest).await?
                    {
                        return Ok(served);
                    }
                    let pointed = self.point_tag(upstream, repo, tag, Some(known.digest), digest, deadline).await?;
                    return Ok(pointed.or_stale(head.is_stale()));
                }
            }
            // Some registries support only GET.
            Err(PullError::Upstream(UpstreamError::Status {
                status: StatusCode::METHOD_NOT_ALLOWED | StatusCode::NOT_IMPLEMENTED,
                ..
            })) => {}
            Err(error) => return Err(error),
        }
        let mut get = request(Method::GET, Kind::Manifest, repo, path);
        get.if_none_match = Some(format!("\"{}\"", known.digest));
        let response = ask(upstream, get, deadline).await?;
        self.take_tag(upstream, repo, tag, Some(known.digest), response, deadline).await
    }

    /// Returns the cached manifest as stale, because the upstream is a Roadstead that could not confirm it either.
    async fn unconfirmed(&self, repo: &RepoId, digest: &Digest) -> Result<Option<Served>, PullError> {
        let manifest = self.context.store.manifest(repo, digest).await?;
        Ok(manifest.map(|manifest| Served::new(manifest, CacheResult::Stale)))
    }

    /// Handles the response to the GET of a tag: the manifest, or 304.
    async fn take_tag(
        self: &Arc<Self>,
        upstream: &Arc<Upstream>,
        repo: &RepoId,
        tag: &Tag,
        known: Option<Digest>,
        response: UpstreamResponse,
        deadline: Instant,
    ) -> Result<Served, PullError> {
        let stale = response.is_stale();
        if let (StatusCode::NOT_MODIFIED, Some(digest)) = (response.status, known.clone()) {
            if stale && let Some(served) = self.unconfirmed(repo, &digest).await? {
                return Ok(served);
            }
            return self.point_tag(upstream, repo, tag, known, digest, deadline).await;
        }
        let new = self.read_manifest(upstream, response, None, deadline).await?;
        let (manifest, stored) = self.store_manifest(repo, new).await?;
        if !stored {
            return Ok(Served::new(manifest, CacheResult::Bypass));
        }
        let confirmed = known.as_ref() == Some(&manifest.digest);
        self.confirm(repo, tag, known, &manifest).await?;
        let result = if confirmed { CacheResult::Revalidated } else { CacheResult::Miss };
        Ok(Served::new(manifest, result).or_stale(stale))
    }

    /// Points the tag to `digest`, as the upstream reported. Fetches that manifest unless it is stored.
    async fn point_tag(
        self: &Arc<Self>,
        upstream: &Arc<Upstream>,
        repo: &RepoId,
        tag: &Tag,
        known: Option<Digest>,
        digest: Digest,
        deadline: Instant,
    ) -> Result<Served, PullError> {
        let served = match self.context.store.manifest(repo, &digest).await? {
            Some(manifest) => Served::new(manifest, CacheResult::Revalidated),
            None => self.manifest_by_digest(upstream, repo, &digest, deadline).await?,
        };
        if served.result == CacheResult::Bypass {
            return Ok(served);
        }
        self.confirm(repo, tag, known, &served.manifest).await?;
        Ok(served)
    }

    /// Records that the tag names `manifest` as of now, unless it was changed since `known` was read.
    async fn confirm(
        &self,
        repo: &RepoId,
        tag: &Tag,
        known: Option<Digest>,
        manifest: &StoredManifest,
    ) -> Result<(), PullError> {
        let record = TagRecord {
            digest: manifest.digest.clone(),
            media_type: manifest.media_type.clone(),
            confirmed: SystemTime::now(),
        };
        let rewrite = self.context.config.tag_ttl.max(MIN_REWRITE_INTERVAL);
        match self.context.store.compare_and_set_tag(repo, tag, known, record, rewrite).await {
            // The next request asks the upstream again.
            Err(error) if error.is_full() => Ok(()),
            outcome => Ok(outcome.map(drop)?),
        }
    }
}

/// Whether to serve a stale tag instead of this error. For a denial, `on_denied` decides.
fn may_serve_stale(upstream: &Upstream, repo: &RepoId, error: &PullError) -> bool {
    match error {
        PullError::Upstream(UpstreamError::Denied { .. }) => upstream.on_denied(&repo.name) == OnDenied::Stale,
        error => error.is_inconclusive(),
    }
}

//! Tags of mirrored repositories: fresh for `tag_ttl`, then confirmed by a HEAD; in an outage served stale.
//!
//! One question at a time for a tag, so an answer that was asked for earlier never overwrites one asked for later.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use http::{Method, StatusCode};
use tokio::time::Instant;

use super::manifests::Served;
use super::{Inner, PullError, Puller, STALE_PATIENCE, request};
use crate::config::OnDenied;
use crate::oci::{Digest, Reference, RepoId, Tag};
use crate::store::{StoredManifest, TagRecord};
use crate::telemetry::CacheResult;
use crate::upstream::{Kind, Upstream, UpstreamError, UpstreamResponse};

/// A tag's file is rewritten for a mere confirmation at most this often.
const REWRITE: Duration = Duration::from_secs(10 * 60);
/// By how much `tag_ttl` is stretched where few pulls are left, and to what at most.
const SCARCE_STRETCH: u32 = 10;
const SCARCE_TTL: Duration = Duration::from_secs(60 * 60);

/// What the cache has for a tag.
struct Cached {
    record: TagRecord,
    /// Its content may have been evicted.
    manifest: Option<Arc<StoredManifest>>,
}

impl Cached {
    /// What may be served without waiting for anybody, and without asking anybody where `ttl` has not passed.
    fn younger_than(&self, ttl: Duration, result: CacheResult) -> Option<Served> {
        let manifest = self.manifest.clone().filter(|_| age(&self.record).is_some_and(|age| age < ttl))?;
        Some(Served::new(manifest, result))
    }
}

impl Puller {
    /// A manifest of a mirrored repository by tag.
    pub async fn tag(&self, repo: &RepoId, tag: &Tag) -> Result<Served, PullError> {
        let inner = &self.inner;
        let upstream = self.upstream(repo)?;
        let cached = inner.cached_tag(repo, tag).await?;
        let ttl = inner.tag_ttl(&upstream);
        if let Some(served) = cached.as_ref().and_then(|cached| cached.younger_than(ttl, CacheResult::Hit)) {
            return Ok(served);
        }
        if inner.is_absent(repo, &Reference::Tag(tag.clone())) {
            return Err(PullError::NotFound);
        }
        let key = (repo.clone(), tag.clone());
        let question = || {
            let (inner, upstream, (repo, tag)) = (inner.clone(), upstream.clone(), key.clone());
            async move { inner.resolve_tag(&upstream, &repo, &tag).await }
        };
        let extended = ttl.saturating_add(inner.cache.stale_while_revalidate);
        if !ttl.is_zero()
            && let Some(served) = cached.and_then(|cached| cached.younger_than(extended, CacheResult::Refreshing))
        {
            inner.tags.start(key.clone(), question);
            return Ok(served);
        }
        // In a box: what is rare is not to make every request larger.
        let flight = Box::pin(inner.tags.run(key.clone(), question));
        // The flight keeps the deadline itself; this one is for whoever waits for a flight that cannot.
        let patience = inner.deadline() + STALE_PATIENCE;
        let (answer, part) = tokio::time::timeout_at(patience, flight).await.map_err(|_| inner.too_late(&upstream))?;
        Ok(answer.unwrap_or(Err(PullError::GivenUp))?.seen_as(part))
    }
}

impl Inner {
    async fn cached_tag(&self, repo: &RepoId, tag: &Tag) -> Result<Option<Cached>, PullError> {
        let Some(record) = self.store.tag(repo, tag).await? else { return Ok(None) };
        let manifest = self.store.manifest(repo, &record.digest).await?;
        Ok(Some(Cached { record, manifest }))
    }

    /// How long a tag is believed. Where few pulls are left, changes are looked for less often: confirming a tag costs
    /// nothing there, but one that has moved costs a pull, which somebody who has nothing cached needs more.
    fn tag_ttl(&self, upstream: &Upstream) -> Duration {
        let ttl = self.cache.tag_ttl;
        if upstream.is_scarce() { ttl.max(ttl.saturating_mul(SCARCE_STRETCH).min(SCARCE_TTL)) } else { ttl }
    }

    async fn resolve_tag(
        self: &Arc<Self>,
        upstream: &Arc<Upstream>,
        repo: &RepoId,
        tag: &Tag,
    ) -> Result<Served, PullError> {
        let cached = self.cached_tag(repo, tag).await?;
        // Another question may have been answered between the look at the store and this one's start.
        let ttl = self.tag_ttl(upstream);
        if let Some(served) = cached.as_ref().and_then(|cached| cached.younger_than(ttl, CacheResult::Hit)) {
            return Ok(served);
        }
        let stale = cached.as_ref().and_then(|cached| {
            let servable = age(&cached.record).is_none_or(|age| age < self.cache.stale_if_error);
            cached.manifest.clone().filter(|_| servable)
        });
        let deadline = if stale.is_some() { self.deadline_of_stale() } else { self.deadline() };
        let known = cached.map(|cached| cached.record);
        let asked = self.ask_for_tag(upstream, repo, tag, known, deadline).await;
        let image = format_args!("{repo}:{tag}");
        match asked {
            Ok(served) => {
                tracing::info!(%repo, %tag, digest = %served.manifest.digest, result = served.result.as_str(), "resolved {image}");
                Ok(served)
            }
            Err(error) if error.is_not_found() => {
                self.remember_absent(repo, Reference::Tag(tag.clone()));
                Err(error)
            }
            Err(error) => match stale.filter(|_| may_serve_stale(upstream, repo, &error)) {
                Some(manifest) => {
                    tracing::warn!(%repo, %tag, digest = %manifest.digest, %error, "serving {image} as it was: {error}");
                    Ok(Served::new(manifest, CacheResult::Stale))
                }
                None => {
                    tracing::warn!(%repo, %tag, %error, "could not resolve {image}: {error}");
                    Err(error)
                }
            },
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
            let response = self.send(upstream, request(Method::GET, Kind::Manifest, repo, path), deadline).await?;
            return self.take_tag(upstream, repo, tag, None, response, deadline).await;
        };
        match self.send(upstream, request(Method::HEAD, Kind::Manifest, repo, path.clone()), deadline).await {
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
            // Some servers answer only GET.
            Err(PullError::Upstream(UpstreamError::Status {
                status: StatusCode::METHOD_NOT_ALLOWED | StatusCode::NOT_IMPLEMENTED,
                ..
            })) => {}
            Err(error) => return Err(error),
        }
        let mut get = request(Method::GET, Kind::Manifest, repo, path);
        get.if_none_match = Some(format!("\"{}\"", known.digest));
        let response = self.send(upstream, get, deadline).await?;
        self.take_tag(upstream, repo, tag, Some(known.digest), response, deadline).await
    }

    /// What is cached and its upstream, a Roadstead, could not confirm either.
    async fn unconfirmed(&self, repo: &RepoId, digest: &Digest) -> Result<Option<Served>, PullError> {
        let manifest = self.store.manifest(repo, digest).await?;
        Ok(manifest.map(|manifest| Served::new(manifest, CacheResult::Stale)))
    }

    /// Takes the answer to a GET of a tag: the manifest itself, or that it has not changed.
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
        let (manifest, kept) = self.keep(repo, new).await?;
        if !kept {
            return Ok(Served::new(manifest, CacheResult::Bypass));
        }
        let confirmed = known.as_ref() == Some(&manifest.digest);
        self.confirm(repo, tag, known, &manifest).await?;
        let result = if confirmed { CacheResult::Revalidated } else { CacheResult::Miss };
        Ok(Served::new(manifest, result).or_stale(stale))
    }

    /// The upstream says that the tag means `digest`: fetches that manifest unless it is here.
    async fn point_tag(
        self: &Arc<Self>,
        upstream: &Arc<Upstream>,
        repo: &RepoId,
        tag: &Tag,
        known: Option<Digest>,
        digest: Digest,
        deadline: Instant,
    ) -> Result<Served, PullError> {
        let served = match self.store.manifest(repo, &digest).await? {
            Some(manifest) => Served::new(manifest, CacheResult::Revalidated),
            None => self.manifest_by_digest(upstream, repo, &digest, deadline).await?,
        };
        if served.result == CacheResult::Bypass {
            return Ok(served);
        }
        self.confirm(repo, tag, known, &served.manifest).await?;
        Ok(served)
    }

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
        let rewrite = self.cache.tag_ttl.max(REWRITE);
        match self.store.compare_and_set_tag(repo, tag, known, record, rewrite).await {
            // What could not be written is asked for again.
            Err(error) if error.is_full() => Ok(()),
            outcome => Ok(outcome.map(drop)?),
        }
    }
}

/// `None` where the clock has been set back.
fn age(record: &TagRecord) -> Option<Duration> {
    SystemTime::now().duration_since(record.confirmed).ok()
}

fn may_serve_stale(upstream: &Upstream, repo: &RepoId, error: &PullError) -> bool {
    match error {
        PullError::Upstream(UpstreamError::Denied { .. }) => upstream.on_denied(&repo.name) == OnDenied::Stale,
        error => error.is_trouble(),
    }
}

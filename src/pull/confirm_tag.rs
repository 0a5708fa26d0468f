//! Asks an upstream which manifest a tag names.
//!
//! 1. If the tag is known, one HEAD. It costs no pull at Docker Hub. Its digest leads to a stored manifest, or to one
//!    that is fetched by digest.
//! 2. If the tag is not known, or the HEAD did not lead to a manifest: the GET of the tag. Registries and storage
//!    services may refuse HEAD, and a tag may have moved before its manifest is there. Only the GET decides that a tag
//!    does not exist.
//!
//! The digest of the bytes decides. If an upstream announces another digest, both manifests are requested by digest.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use http::{Method, StatusCode};
use tokio::time::Instant;

use super::ask::{ask, may_be_sent_by_next_url, request};
use super::engine::Engine;
use super::error::PullError;
use super::served::Served;
use crate::oci::{Digest, RepoId, Tag};
use crate::store::{StoredManifest, TagRecord};
use crate::telemetry::CacheResult;
use crate::upstream::{Effort, Kind, Upstream, UpstreamError, UpstreamRequest, UpstreamResponse};

/// Minimum time between two rewrites of a tag file that only update the time of the confirmation.
const MIN_REWRITE_INTERVAL: Duration = Duration::from_secs(10 * 60);

/// One confirmation of a tag.
pub(super) struct TagConfirmation<'a> {
    pub(super) engine: &'a Arc<Engine>,
    pub(super) upstream: &'a Arc<Upstream>,
    pub(super) repo: &'a RepoId,
    pub(super) tag: &'a Tag,
    /// The digest that the tag had, and whether its manifest is stored.
    pub(super) known: Option<(Digest, bool)>,
    pub(super) deadline: Instant,
}

/// The result of a HEAD.
enum HeadAnswer {
    Manifest(Served),
    /// The tag exists, but the HEAD did not lead to a manifest.
    Exists,
    /// The upstream did not answer it.
    Nothing,
}

impl TagConfirmation<'_> {
    /// Returns the manifest of the tag, and records that the tag names it.
    ///
    /// # Errors
    /// `NotFound` if a GET of the tag is answered 404 and no HEAD contradicts it; otherwise the failure.
    pub(super) async fn run(&self) -> Result<Served, PullError> {
        let head = if self.known.is_some() { self.head().await? } else { HeadAnswer::Nothing };
        let exists = match head {
            HeadAnswer::Manifest(served) => return Ok(served),
            HeadAnswer::Exists => true,
            HeadAnswer::Nothing => false,
        };
        match self.get().await {
            Err(PullError::NotFound | PullError::PresumedAbsent) if exists => {
                Err(PullError::Upstream(UpstreamError::Contradicted { upstream: self.upstream.name().clone() }))
            }
            answer => answer,
        }
    }

    async fn head(&self) -> Result<HeadAnswer, PullError> {
        let head = UpstreamRequest { effort: Effort::Once, ..self.request(Method::HEAD) };
        let head = match ask(self.upstream, head, self.deadline).await {
            Ok(head) => head,
            Err(error) if error.may_be_answered_by_get() => return Ok(HeadAnswer::Nothing),
            Err(error) => return Err(error),
        };
        let Some(digest) = head.docker_content_digest().and_then(|digest| digest.parse().ok()) else {
            return Ok(HeadAnswer::Exists);
        };
        if head.is_stale()
            && self.is_known(&digest)
            && let Some(served) = self.unconfirmed(&digest).await?
        {
            return Ok(HeadAnswer::Manifest(served));
        }
        match self.point_to(digest).await {
            Ok(served) => Ok(HeadAnswer::Manifest(served.or_stale(head.is_stale()))),
            Err(error) if error.may_be_answered_by_get() => {
                let (repo, tag) = (self.repo, self.tag);
                tracing::debug!(%repo, %tag, %error, "the manifest that HEAD announced is not there; asking by tag");
                Ok(HeadAnswer::Exists)
            }
            Err(error) => Err(error),
        }
    }

    async fn get(&self) -> Result<Served, PullError> {
        let mut next_url = 0;
        match self.get_from(&mut next_url).await {
            Err(error) if may_be_sent_by_next_url(self.upstream, &error, next_url) => {
                self.get_from(&mut next_url).await.map_err(|_| error)
            }
            answer => answer,
        }
    }

    /// Sends a GET, first to the URL at `next_url`, which becomes that of the response.
    async fn get_from(&self, next_url: &mut usize) -> Result<Served, PullError> {
        let mut get = self.request(Method::GET);
        get.skip_urls = *next_url;
        get.if_none_match = self.stored().map(|known| format!("\"{known}\""));
        let response = ask(self.upstream, get, self.deadline).await?;
        *next_url = response.next_url;
        let stale = response.is_stale();
        if let (StatusCode::NOT_MODIFIED, Some(digest)) = (response.status, self.stored()) {
            if stale && let Some(served) = self.unconfirmed(digest).await? {
                return Ok(served);
            }
            return self.point_to(digest.clone()).await;
        }
        self.take(response).await.map(|served| served.or_stale(stale))
    }

    /// Stores the manifest in the response, and points the tag to it.
    async fn take(&self, response: UpstreamResponse) -> Result<Served, PullError> {
        let new = match self.engine.read_manifest(self.upstream, self.repo, response, None, self.deadline).await {
            Err(PullError::WrongManifest { upstream, announced, found }) => {
                for digest in [&announced, &found] {
                    if let Ok(served) = self.point_to(digest.clone()).await {
                        return Ok(served);
                    }
                }
                return Err(PullError::WrongManifest { upstream, announced, found });
            }
            read => read?,
        };
        let (manifest, stored) = self.engine.store_manifest(self.repo, new).await?;
        if !stored {
            return Ok(Served::new(manifest, CacheResult::Bypass));
        }
        self.confirm(&manifest).await?;
        let result = if self.is_known(&manifest.digest) { CacheResult::Revalidated } else { CacheResult::Miss };
        Ok(Served::new(manifest, result))
    }

    /// Points the tag to `digest`, as the upstream reported. Fetches that manifest unless it is stored.
    async fn point_to(&self, digest: Digest) -> Result<Served, PullError> {
        let served = match self.engine.context.store.manifest(self.repo, &digest).await? {
            Some(manifest) => Served::new(manifest, CacheResult::Revalidated),
            None => self.engine.manifest_by_digest(self.upstream, self.repo, &digest, self.deadline).await?,
        };
        if served.result != CacheResult::Bypass {
            self.confirm(&served.manifest).await?;
        }
        Ok(served)
    }

    /// Records that the tag names `manifest` as of now, unless it was changed since `known` was read.
    async fn confirm(&self, manifest: &StoredManifest) -> Result<(), PullError> {
        let record = TagRecord {
            digest: manifest.digest.clone(),
            media_type: manifest.media_type.as_str().into(),
            confirmed: SystemTime::now(),
        };
        let context = &self.engine.context;
        let rewrite = context.config.tag_ttl.max(MIN_REWRITE_INTERVAL);
        let known = self.known.as_ref().map(|(digest, _)| digest.clone());
        match context.store.compare_and_set_tag(self.repo, self.tag, known, record, rewrite).await {
            // The next request asks the upstream again.
            Err(error) if error.obstacle().is_some() => Ok(()),
            outcome => Ok(outcome.map(drop)?),
        }
    }

    /// Returns the cached manifest as stale, because the upstream is a Roadstead that could not confirm it either.
    async fn unconfirmed(&self, digest: &Digest) -> Result<Option<Served>, PullError> {
        let manifest = self.engine.context.store.manifest(self.repo, digest).await?;
        Ok(manifest.map(|manifest| Served::new(manifest, CacheResult::Stale)))
    }

    fn request(&self, method: Method) -> UpstreamRequest {
        request(method, Kind::Manifest, self.repo, format!("manifests/{}", self.tag))
    }

    fn is_known(&self, digest: &Digest) -> bool {
        self.known.as_ref().is_some_and(|(known, _)| known == digest)
    }

    /// The digest that the tag had, if its manifest is stored.
    fn stored(&self) -> Option<&Digest> {
        self.known.as_ref().filter(|(_, is_stored)| *is_stored).map(|(digest, _)| digest)
    }
}

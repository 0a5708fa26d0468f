//! Manifests by digest: immutable, so asked for once and never again.

use std::sync::Arc;

use bytes::Bytes;
use http::{Method, StatusCode};
use tokio::time::Instant;

use super::flight::Part;
use super::{Inner, PullError, Puller, request};
use crate::oci::{Algorithm, Digest, Manifest, Reference, RepoId, media_type};
use crate::store::{NewManifest, StoreError, StoredManifest};
use crate::tasks::on_bytes;
use crate::telemetry::CacheResult;
use crate::upstream::{Kind, Upstream, UpstreamResponse};

/// A manifest and how it was come by.
#[derive(Clone, Debug)]
pub struct Served {
    pub manifest: Arc<StoredManifest>,
    pub result: CacheResult,
    /// Older than it could be confirmed (RFC 9111, 4.2.4), here or at an upstream that is a Roadstead.
    pub stale: bool,
}

impl Puller {
    /// A manifest of a mirrored repository by digest.
    pub async fn manifest(&self, repo: &RepoId, digest: &Digest) -> Result<Served, PullError> {
        let inner = &self.inner;
        if let Some(manifest) = inner.store.manifest(repo, digest).await? {
            return Ok(Served::new(manifest, CacheResult::Hit));
        }
        if inner.is_absent(repo, &Reference::Digest(digest.clone())) {
            return Err(PullError::NotFound);
        }
        // In a box: what is rare is not to make every request larger.
        Box::pin(inner.manifest_by_digest(&self.upstream(repo)?, repo, digest, inner.deadline())).await
    }
}

impl Inner {
    /// Joins or starts the one question for this manifest.
    pub(super) async fn manifest_by_digest(
        self: &Arc<Self>,
        upstream: &Arc<Upstream>,
        repo: &RepoId,
        digest: &Digest,
        deadline: Instant,
    ) -> Result<Served, PullError> {
        let key = (repo.clone(), digest.clone());
        let flight = self.manifests.run(key.clone(), || {
            let (inner, upstream, (repo, digest)) = (self.clone(), upstream.clone(), key);
            async move { inner.ask_for_manifest(&upstream, &repo, &digest, deadline).await }
        });
        let (answer, part) = tokio::time::timeout_at(deadline, flight).await.map_err(|_| self.too_late(upstream))?;
        let served = answer.unwrap_or(Err(PullError::GivenUp))?;
        Ok(served.seen_as(part))
    }

    async fn ask_for_manifest(
        &self,
        upstream: &Upstream,
        repo: &RepoId,
        digest: &Digest,
        deadline: Instant,
    ) -> Result<Served, PullError> {
        if let Some(manifest) = self.store.manifest(repo, digest).await? {
            return Ok(Served::new(manifest, CacheResult::Hit));
        }
        let path = format!("manifests/{digest}");
        // Here already, for another repository's sake: what is missing is the right to it, or only its type.
        if let Some(bytes) = self.store.manifest_content(digest).await?
            && let Ok(manifest) = Manifest::parse(&bytes)
        {
            let (declared, result) = if self.store.member(repo, digest).await?.is_some() {
                (None, CacheResult::Hit)
            } else {
                let asked =
                    self.send(upstream, request(Method::HEAD, Kind::Manifest, repo, path.clone()), deadline).await;
                let head = asked.inspect_err(|error| self.note_absent(repo, digest, error))?;
                (usable_media_type(&head), CacheResult::Revalidated)
            };
            let media_type = declared.unwrap_or_else(|| manifest.guess_media_type());
            let new = NewManifest { digest: digest.clone(), media_type, bytes, manifest };
            let (manifest, _) = self.keep(repo, new).await?;
            return Ok(Served::new(manifest, result));
        }
        let asked = self.send(upstream, request(Method::GET, Kind::Manifest, repo, path), deadline).await;
        let response = asked.inspect_err(|error| self.note_absent(repo, digest, error))?;
        let new = self.read_manifest(upstream, response, Some(digest), deadline).await?;
        let (manifest, kept) = self.keep(repo, new).await?;
        Ok(Served::new(manifest, if kept { CacheResult::Miss } else { CacheResult::Bypass }))
    }

    /// Stores a manifest; one for which there is no room is served all the same. Whether it was kept.
    pub(super) async fn keep(&self, repo: &RepoId, new: NewManifest) -> Result<(Arc<StoredManifest>, bool), PullError> {
        let passing = StoredManifest::new(new.digest.clone(), new.media_type.clone(), new.bytes.clone(), &new.manifest);
        match self.store.put_manifest(repo, new, Vec::new()).await {
            Ok(manifest) => Ok((manifest, true)),
            Err(StoreError::ReadOnly) => Ok((Arc::new(passing), false)),
            Err(error) if error.is_full() => {
                self.note_no_room(&error);
                tracing::debug!(%repo, digest = %passing.digest, %error, "no room to keep {repo}@{}: {error}", passing.digest);
                Ok((Arc::new(passing), false))
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Reads and checks a manifest: its digest against what was asked for, else against what the upstream says it is.
    pub(super) async fn read_manifest(
        &self,
        upstream: &Upstream,
        response: UpstreamResponse,
        expected: Option<&Digest>,
        deadline: Instant,
    ) -> Result<NewManifest, PullError> {
        let bad = |reason: String| PullError::BadManifest { upstream: upstream.name().to_string(), reason };
        if response.status != StatusCode::OK {
            return Err(bad(format!("status {}", response.status.as_u16())));
        }
        let declared = usable_media_type(&response);
        let announced = response.docker_content_digest().and_then(|digest| digest.parse().ok());
        let bytes: Bytes = response.body.collect(Manifest::MAX_LENGTH as usize, deadline).await?;
        let expected: Option<Digest> = expected.cloned().or(announced);
        let algorithm = expected.as_ref().map_or(Algorithm::Sha256, Digest::algorithm);
        let read = on_bytes(bytes.clone(), move |bytes| (Digest::of(algorithm, bytes), Manifest::parse(bytes)));
        let (digest, manifest) = read.await.ok_or(PullError::GivenUp)?;
        if let Some(expected) = expected.filter(|expected| *expected != digest) {
            self.metrics.digest_mismatch(upstream.name());
            tracing::warn!(
                upstream = %upstream.name(), %expected, found = %digest,
                "{} sent a manifest that is not {expected}", upstream.name()
            );
            return Err(PullError::WrongContent { upstream: upstream.name().to_string(), digest: expected });
        }
        let manifest = manifest.map_err(|error| bad(error.to_string()))?;
        let media_type = declared.unwrap_or_else(|| manifest.guess_media_type());
        Ok(NewManifest { digest, media_type, bytes, manifest })
    }
}

impl Served {
    pub fn new(manifest: Arc<StoredManifest>, result: CacheResult) -> Self {
        Self { manifest, result, stale: result == CacheResult::Stale }
    }

    pub(super) fn or_stale(mut self, stale: bool) -> Self {
        self.stale |= stale;
        self
    }

    /// As it is counted for one of those who asked: who joined a miss did not cause it.
    pub(super) fn seen_as(mut self, part: Part) -> Self {
        if part == Part::Joined && self.result == CacheResult::Miss {
            self.result = CacheResult::Joined;
        }
        self
    }
}

/// The type the upstream gives, unless it is one that says nothing about a manifest (`text/plain`, Red Hat's).
fn usable_media_type(response: &UpstreamResponse) -> Option<String> {
    let essence = media_type::essence(response.content_type()?)?;
    let says_nothing = matches!(&*essence, "text/plain" | "application/json" | media_type::OCTET_STREAM);
    (!says_nothing).then_some(essence)
}

//! Manifests by digest. Such content never changes, so it is fetched once.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::{Bytes, BytesMut};
use http::{Method, StatusCode};
use tokio::time::{Instant, timeout_at};
use tracing::Instrument;

use super::ask::{ask, may_be_sent_by_next_url, request};
use super::engine::{Engine, PullRequest};
use super::error::PullError;
use super::large_documents::{DocumentTurn, LARGE_DOCUMENT_BYTES};
use super::proof::{confirms, has_shared_right};
use super::served::Served;
use crate::oci::{Algorithm, Digest, Manifest, Reference, RepoId, media_type};
use crate::store::{NewManifest, StoreError, StoredManifest};
use crate::tasks::on_bytes;
use crate::telemetry::CacheResult;
use crate::upstream::{Effort, Kind, Upstream, UpstreamBody, UpstreamError, UpstreamResponse};

impl PullRequest<'_> {
    /// Returns a manifest of a mirrored repository by digest.
    pub async fn manifest(&self, repo: &RepoId, digest: &Digest) -> Result<Served, PullError> {
        let context = &self.engine.context;
        if let Some(manifest) = context.store.manifest(repo, digest).await? {
            return Ok(Served::new(manifest, CacheResult::Hit));
        }
        if let Some(error) = context.memory.absence(repo, &Reference::Digest(digest.clone())) {
            return Err(error);
        }
        // Boxed, so that the rare case does not make the future of every request larger.
        let upstream = self.upstream(repo)?;
        let fetched = self.engine.manifest_by_digest(&upstream, repo, digest, context.deadline());
        match Box::pin(fetched.instrument(self.trace.span())).await {
            Err(error) => {
                Err(context.or_known_absence(&upstream, repo, Reference::Digest(digest.clone()), error).await)
            }
            served => served,
        }
    }
}

impl Engine {
    /// Joins or starts the flight for this manifest.
    pub(super) async fn manifest_by_digest(
        self: &Arc<Self>,
        upstream: &Arc<Upstream>,
        repo: &RepoId,
        digest: &Digest,
        deadline: Instant,
    ) -> Result<Served, PullError> {
        let key = (repo.clone(), digest.clone());
        let work = || {
            let (engine, upstream, (repo, digest)) = (self.clone(), upstream.clone(), key.clone());
            async move { engine.fetch_manifest(&upstream, &repo, &digest, deadline).await }
        };
        let flight = self.context.run_flight(&self.manifests, key.clone(), upstream.name(), deadline, work);
        let (served, role) = flight.await?;
        Ok(served.counted_for(role))
    }

    async fn fetch_manifest(
        &self,
        upstream: &Upstream,
        repo: &RepoId,
        digest: &Digest,
        deadline: Instant,
    ) -> Result<Served, PullError> {
        let store = &self.context.store;
        if let Some(manifest) = store.manifest(repo, digest).await? {
            return Ok(Served::new(manifest, CacheResult::Hit));
        }
        // The content is stored. Only this repository's manifest link is missing.
        if let Some(bytes) = store.manifest_content(digest).await?
            && let Ok(manifest) = Manifest::parse(&bytes)
            && let Some((declared, result)) =
                self.prove_manifest(upstream, repo, digest, bytes.len() as u64, deadline).await?
        {
            let media_type = declared.unwrap_or_else(|| manifest.guess_media_type());
            let new = NewManifest { digest: digest.clone(), media_type, bytes, manifest };
            let (manifest, _) = self.store_manifest(repo, new).await?;
            return Ok(Served::new(manifest, result));
        }
        let mut next_url = 0;
        let new = match self.receive_by_digest(upstream, repo, digest, &mut next_url, deadline).await {
            Err(error) if may_be_sent_by_next_url(upstream, &error, next_url) => {
                let again = self.receive_by_digest(upstream, repo, digest, &mut next_url, deadline).await;
                again.map_err(|_| error)?
            }
            new => new?,
        };
        let (manifest, stored) = self.store_manifest(repo, new).await?;
        Ok(Served::new(manifest, if stored { CacheResult::Miss } else { CacheResult::Bypass }))
    }

    /// Requests a manifest, first from the URL at `next_url`, which becomes that of the response.
    async fn receive_by_digest(
        &self,
        upstream: &Upstream,
        repo: &RepoId,
        digest: &Digest,
        next_url: &mut usize,
        deadline: Instant,
    ) -> Result<NewManifest, PullError> {
        let response = self.ask_for_manifest(Method::GET, upstream, repo, digest, *next_url, deadline).await?;
        *next_url = response.next_url;
        self.read_manifest(upstream, repo, response, Some(digest), deadline).await
    }

    /// Whether this repository may read a manifest that is stored for another one. It may if an index that was served
    /// here lists the manifest and a repository with the same rights has it, or if the upstream confirms it. Returns
    /// the media type that the upstream sent. `None`: the upstream does not answer the HEAD, or its answer does not fit
    /// the manifest of `length` bytes, so a GET must decide.
    async fn prove_manifest(
        &self,
        upstream: &Upstream,
        repo: &RepoId,
        digest: &Digest,
        length: u64,
        deadline: Instant,
    ) -> Result<Option<(Option<String>, CacheResult)>, PullError> {
        if let Some(listed) = self.context.store.member(repo, digest).await?
            && (listed.proven || has_shared_right(&self.context, upstream, repo, digest, deadline).await?)
        {
            return Ok(Some((None, CacheResult::Hit)));
        }
        match self.ask_for_manifest(Method::HEAD, upstream, repo, digest, 0, deadline).await {
            Ok(head) if !confirms(&head, digest, Some(length)) => Ok(None),
            Ok(head) => Ok(Some((usable_media_type(&head), CacheResult::Revalidated))),
            Err(error) if error.may_be_answered_by_get() => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn ask_for_manifest(
        &self,
        method: Method,
        upstream: &Upstream,
        repo: &RepoId,
        digest: &Digest,
        skip_urls: usize,
        deadline: Instant,
    ) -> Result<UpstreamResponse, PullError> {
        let is_get = method == Method::GET;
        let mut request = request(method, Kind::Manifest, repo, format!("manifests/{digest}"));
        request.skip_urls = skip_urls;
        if !is_get {
            request.effort = Effort::Once;
        }
        let answer = ask(upstream, request, deadline).await;
        // Only a GET says that the manifest does not exist.
        if is_get {
            self.context.note_answer(repo, Reference::Digest(digest.clone()), answer.as_ref().err()).await;
        }
        answer
    }

    /// Stores a manifest if the store can. If not, the manifest is served without being stored. The flag is true if it
    /// was stored.
    pub(super) async fn store_manifest(
        &self,
        repo: &RepoId,
        new: NewManifest,
    ) -> Result<(Arc<StoredManifest>, bool), PullError> {
        let unstored =
            StoredManifest::new(new.digest.clone(), new.media_type.clone(), new.bytes.clone(), &new.manifest);
        match self.context.store.put_manifest(repo, new, Vec::new()).await {
            Ok(manifest) => {
                self.context.notes.forget_absent(repo, Reference::Digest(unstored.digest)).await;
                self.context.notes.keep(repo).await;
                Ok((manifest, true))
            }
            Err(StoreError::ReadOnly) => Ok((Arc::new(unstored), false)),
            Err(error) if error.obstacle().is_some() => {
                self.context.note_not_stored(&error);
                tracing::debug!(%repo, digest = %unstored.digest, %error, "cannot store a manifest");
                Ok((Arc::new(unstored), false))
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Reads and checks a manifest. Its digest must be the requested one or, for a tag, the one that the upstream
    /// announced.
    pub(super) async fn read_manifest(
        &self,
        upstream: &Upstream,
        repo: &RepoId,
        response: UpstreamResponse,
        requested: Option<&Digest>,
        deadline: Instant,
    ) -> Result<NewManifest, PullError> {
        let bad = |reason: String| PullError::BadDocument { upstream: upstream.name().clone(), reason };
        if response.status != StatusCode::OK {
            return Err(bad(format!("a manifest with status {}", response.status.as_u16())));
        }
        let declared = usable_media_type(&response);
        let announced = response.docker_content_digest().and_then(|digest| digest.parse().ok());
        let (bytes, _turn) = self.receive_manifest(repo, response.body, deadline).await?;
        let expected: Option<Digest> = requested.cloned().or(announced);
        let algorithm = expected.as_ref().map_or(Algorithm::Sha256, Digest::algorithm);
        let read =
            on_bytes(bytes.clone(), move |bytes| (Digest::of(algorithm, bytes), Manifest::parse_mirrored(bytes)));
        let (digest, manifest) = read.await.ok_or(PullError::Abandoned)?;
        if let Some(expected) = expected.filter(|expected| *expected != digest) {
            self.context.metrics.digest_mismatch(upstream.name());
            tracing::warn!(
                upstream = %upstream.name(), %expected, found = %digest,
                "the upstream sent a manifest with another digest"
            );
            let upstream = upstream.name().clone();
            return Err(match requested {
                Some(_) => PullError::WrongContent { upstream, digest: expected },
                None => PullError::WrongManifest { upstream, announced: expected, found: digest },
            });
        }
        let manifest = manifest.map_err(|error| bad(error.to_string()))?;
        let media_type = declared.unwrap_or_else(|| manifest.guess_media_type());
        Ok(NewManifest { digest, media_type, bytes, manifest })
    }

    /// Receives a manifest. A large one waits for a turn, which the result holds.
    async fn receive_manifest(
        &self,
        repo: &RepoId,
        mut body: UpstreamBody,
        deadline: Instant,
    ) -> Result<(Bytes, Option<DocumentTurn>), PullError> {
        let limit = Manifest::MAX_LENGTH as usize;
        let announced = body.announced_length(limit)?;
        let mut bytes = BytesMut::with_capacity(announced.min(LARGE_DOCUMENT_BYTES));
        let begin = body.receive(&mut bytes, LARGE_DOCUMENT_BYTES, limit);
        let has_ended = timeout_at(deadline, begin).await;
        if has_ended.unwrap_or_else(|_| Err(body.is_too_slow()))? {
            return Ok((bytes.freeze(), None));
        }
        let turn = self.large_manifests.turn(repo, deadline).await.ok_or_else(|| body.has_no_turn())?;
        // Allocated at once, because a growing buffer leaves freed buffers of half its size to the allocator.
        bytes.reserve(announced.saturating_sub(bytes.len()));
        let received = AtomicUsize::new(bytes.len());
        let rest = async {
            let mut has_ended = false;
            while !has_ended {
                let enough = bytes.len();
                has_ended = body.receive(&mut bytes, enough, limit).await?;
                received.store(bytes.len(), Ordering::Relaxed);
            }
            Ok::<_, UpstreamError>(())
        };
        let done = timeout_at(deadline, turn.receive(&received, rest)).await;
        done.ok().flatten().unwrap_or_else(|| Err(body.is_too_slow()))?;
        Ok((bytes.freeze(), Some(turn)))
    }
}

/// Returns the media type of the response, unless it is a general type or one that a browser would display. Red Hat's
/// registry sends `text/plain` for manifests.
fn usable_media_type(response: &UpstreamResponse) -> Option<String> {
    let essence = media_type::of_manifest(response.content_type()?)?;
    let says_nothing = matches!(&*essence, "application/json" | media_type::OCTET_STREAM);
    (!says_nothing).then_some(essence)
}

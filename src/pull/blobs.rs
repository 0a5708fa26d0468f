//! Blobs of mirrored repositories: who may read one, and where its bytes come from.

use std::sync::Arc;

use http::{Method, StatusCode};
use tokio::time::{Instant, timeout_at};

use super::content::{Content, ContentBody, ContentStream};
use super::error::ContentError;
use super::fill::Source;
use super::follower::Following;
use super::inflight::{Asker, Joined};
use super::{Inner, PullError, Puller, request};
use crate::oci::{ByteRange, Digest, RangeSet, Reference, RepoId, Selected};
use crate::store::Member;
use crate::telemetry::CacheResult;
use crate::upstream::{Effort, Kind, Upstream, UpstreamBody};

/// A range that begins further beyond a fill's mark than this does not wait for it.
const NEAR: u64 = 8 << 20;

/// Elections one request takes part in before it gives up: its own, and those after somebody else's fill failed.
const ATTEMPTS: usize = 3;

/// What a client wants of a blob.
#[derive(Clone, Debug, Default)]
pub struct Want {
    pub ranges: Option<RangeSet>,
    /// It can take an answer only if its length is known: to HTTP/1.0 a body without length that fails looks whole.
    pub needs_length: bool,
}

impl Puller {
    /// A blob of a mirrored repository, or the part of it that is wanted.
    ///
    /// # Errors
    /// [`PullError::Range`] where the wanted part lies outside; else as the upstream answers, within `answer_within`.
    pub async fn blob(&self, repo: &RepoId, digest: &Digest, want: Want) -> Result<Content, PullError> {
        let inner = &self.inner;
        let member = inner.may_read(repo, digest).await?;
        if member.is_some()
            && let Some(blob) = inner.store.blob(digest).await?
        {
            return Ok(Content::of_blob(&blob, want.select(blob.len())?, CacheResult::Hit));
        }
        if inner.is_absent(repo, &Reference::Digest(digest.clone())) {
            return Err(PullError::NotFound);
        }
        let upstream = self.upstream(repo)?;
        // In a box: what is rare is not to make every request larger.
        Box::pin(inner.cold_blob(&upstream, repo, digest, member, want)).await
    }

    /// The length of a blob of a mirrored repository, in bytes; `None` if its upstream does not say.
    pub async fn blob_length(&self, repo: &RepoId, digest: &Digest) -> Result<Option<u64>, PullError> {
        let inner = &self.inner;
        let member = inner.may_read(repo, digest).await?;
        if member.is_some()
            && let Some(blob) = inner.store.blob(digest).await?
        {
            return Ok(Some(blob.len()));
        }
        if inner.is_absent(repo, &Reference::Digest(digest.clone())) {
            return Err(PullError::NotFound);
        }
        if let Some(length) = inner.lengths.get(&(repo.clone(), digest.clone())) {
            return Ok(Some(length));
        }
        let upstream = self.upstream(repo)?;
        // A manifest that was served may say how long it is.
        let known = member.and_then(|member| member.size);
        let deadline = if known.is_some() { inner.deadline_of_stale() } else { inner.deadline() };
        match Box::pin(inner.prove(&upstream, repo, digest, deadline)).await {
            Ok(proof) => Ok(proof.size.or(known)),
            // The upstream will be asked again.
            Err(error) if error.is_trouble() => known.map(Some).ok_or(error),
            Err(error) => Err(error),
        }
    }
}

impl Inner {
    async fn cold_blob(
        self: &Arc<Self>,
        upstream: &Arc<Upstream>,
        repo: &RepoId,
        digest: &Digest,
        member: Option<Member>,
        want: Want,
    ) -> Result<Content, PullError> {
        let deadline = self.deadline();
        let mut asker = Asker {
            source: Source { repo: repo.clone(), credential: upstream.credential(&repo.name) },
            upstream: upstream.clone(),
            proven: member.is_some(),
            new_repository: member.is_none() && !self.store.repository_exists(repo).await?,
            size: member.and_then(|member| member.size),
        };
        let mut last = PullError::GivenUp;
        for _ in 0..ATTEMPTS {
            if !asker.proven && !self.fills.is_running(digest) && self.store.blob(digest).await?.is_some() {
                asker.prove(self.prove(upstream, repo, digest, deadline).await?);
            }
            if asker.proven
                && let Some(blob) = self.store.blob(digest).await?
            {
                return Ok(Content::of_blob(&blob, want.select(blob.len())?, CacheResult::Revalidated));
            }
            // The upstream's answer to the one who asks is the proof.
            if self.store.is_read_only() {
                return self.direct(upstream, repo, digest, asker.size, &want, deadline).await;
            }
            match self.failures.get(&(asker.source.clone(), digest.clone())) {
                Some(PullError::Store(error)) if error.is_full() => {
                    self.note_no_room(&error);
                    return self.direct(upstream, repo, digest, asker.size, &want, deadline).await;
                }
                Some(error) => return Err(error),
                None => {}
            }
            let (following, result) = match self.fills.join(self, digest, &asker) {
                Joined::Led(following) => (following, CacheResult::Miss),
                Joined::Followed(following) => (following, CacheResult::Joined),
                Joined::NeedsProof => {
                    asker.prove(self.prove(upstream, repo, digest, deadline).await?);
                    continue;
                }
            };
            let others = following.fill.source != asker.source;
            match self.follow(upstream, repo, following, result, &want, deadline).await {
                // There is no room for it, and it is not the client's fault.
                Err(PullError::Store(error)) if error.is_full() => {
                    self.note_no_room(&error);
                    return self.direct(upstream, repo, digest, asker.size, &want, deadline).await;
                }
                // Given up for want of a slot, or failed with somebody else's rights: not our answer yet.
                Err(error) if error.is_of_one_fill(others) => last = error,
                outcome => return outcome,
            }
        }
        Err(last)
    }

    /// Answers from a fill, once there are bytes to answer with: by following it, or, where the wanted part is far ahead of
    /// it, past it.
    async fn follow(
        self: &Arc<Self>,
        upstream: &Upstream,
        repo: &RepoId,
        mut following: Following,
        result: CacheResult,
        want: &Want,
        deadline: Instant,
    ) -> Result<Content, PullError> {
        loop {
            let mut start = following.start_by(deadline, want.needs_length).await?;
            if want.ranges.is_some() && start.total.is_none() {
                // What part is meant cannot be told before the length is known: the whole is served if that takes too long.
                if let Ok(whole) = timeout_at(deadline, following.start(true)).await {
                    start = whole?;
                }
            }
            let result = start.result(result);
            let selected = match start.total {
                Some(total) => want.select(total)?,
                None => Selected::Whole,
            };
            let (next, end) = match (&selected, start.total) {
                (Selected::Part(part), Some(total)) if part.start > start.mark.saturating_add(NEAR) => {
                    let digest = &following.fill.digest;
                    // Who would have to wait for a turn may as well wait for the fill.
                    if let Some(bypass) = self.bypass_now(repo, part.len())
                        && let Some(body) = self.pass_through(upstream, repo, digest, *part, total, deadline).await
                    {
                        let bytes = ContentStream::Passthrough { body, left: part.len(), _bypass: bypass };
                        let body = ContentBody::Part(*part, bytes);
                        return Ok(Content { total: start.total, body, result: CacheResult::Bypass });
                    }
                    (part.start, Some(part.end))
                }
                (Selected::Part(part), _) => (part.start, Some(part.end)),
                (Selected::Parts(parts), Some(total)) => match &start.reader {
                    Some(reader) if parts.iter().all(|part| part.end <= start.mark) => {
                        return Ok(Content::of_reader(reader, total, selected, result));
                    }
                    // Several parts that have not all come yet: the whole is an answer, too (RFC 9110, 14.2).
                    _ => (0, start.total),
                },
                (Selected::Parts(_) | Selected::Whole, total) => (0, total),
            };
            let mut follower = following.read(&start, next, end);
            match follower.read_ahead(deadline).await {
                // Nothing was sent: the next generation is as good, also if it is of another length.
                Err(ContentError::Restarted) => following = follower.into_following(),
                Err(ContentError::Fill(error)) => return Err(error),
                // Anything else comes back when the body is read.
                _ => {
                    let bytes = ContentStream::Follow(Box::new(follower));
                    let body = match selected {
                        Selected::Part(part) => ContentBody::Part(part, bytes),
                        Selected::Parts(_) | Selected::Whole => ContentBody::Whole(bytes),
                    };
                    return Ok(Content { total: start.total, body, result });
                }
            }
        }
    }

    /// A range straight from the upstream; `None` if it does not answer with exactly that, and the whole has to do.
    pub(super) async fn pass_through(
        &self,
        upstream: &Upstream,
        repo: &RepoId,
        digest: &Digest,
        range: ByteRange,
        total: u64,
        deadline: Instant,
    ) -> Option<Box<UpstreamBody>> {
        let mut get = request(Method::GET, Kind::Blob, repo, format!("blobs/{digest}"));
        get.range = Some((range.start, range.end - 1));
        get.effort = Effort::Once;
        let response = self.send(upstream, get, deadline).await.ok()?;
        let exact = response.status == StatusCode::PARTIAL_CONTENT
            && response.content_range().is_some_and(|(start, last, whole)| {
                (start, last + 1) == (range.start, range.end) && whole.is_none_or(|whole| whole == total)
            });
        exact.then(|| Box::new(response.body))
    }

    /// Asks the upstream whether this repository has the blob, and records a yes. Its length comes with it.
    async fn prove(
        self: &Arc<Self>,
        upstream: &Arc<Upstream>,
        repo: &RepoId,
        digest: &Digest,
        deadline: Instant,
    ) -> Result<Member, PullError> {
        let key = (repo.clone(), digest.clone());
        let flight = self.proofs.run(key.clone(), || {
            let (inner, upstream, (repo, digest)) = (self.clone(), upstream.clone(), key);
            async move { inner.ask_for_proof(&upstream, &repo, &digest, deadline).await }
        });
        let (answer, _) = timeout_at(deadline, flight).await.map_err(|_| self.too_late(upstream))?;
        answer.unwrap_or(Err(PullError::GivenUp))
    }

    async fn ask_for_proof(
        &self,
        upstream: &Upstream,
        repo: &RepoId,
        digest: &Digest,
        deadline: Instant,
    ) -> Result<Member, PullError> {
        let head = request(Method::HEAD, Kind::Blob, repo, format!("blobs/{digest}"));
        let answer = self.send(upstream, head, deadline).await;
        let answer = answer.inspect_err(|error| self.note_absent(repo, digest, error))?;
        let proof = Member { size: answer.content_length() };
        if let Some(length) = proof.size {
            self.lengths.insert((repo.clone(), digest.clone()), length);
        }
        match self.store.link_blob(repo, digest, proof.size).await {
            // A proof that cannot be recorded is asked for again.
            Err(error) if error.is_full() => Ok(proof),
            recorded => Ok(recorded.map(|()| proof)?),
        }
    }

    /// The length of a blob whose GET did not say: what a manifest or an earlier HEAD said, or a HEAD of its own.
    pub(super) async fn known_size(
        self: &Arc<Self>,
        upstream: &Arc<Upstream>,
        repo: &RepoId,
        digest: &Digest,
    ) -> Option<u64> {
        if let Ok(Some(Member { size: Some(size) })) = self.store.member(repo, digest).await {
            return Some(size);
        }
        self.prove(upstream, repo, digest, self.deadline()).await.ok()?.size
    }
}

impl Want {
    /// What is wanted of content of `length` bytes.
    pub fn select(&self, length: u64) -> Result<Selected, PullError> {
        match &self.ranges {
            Some(ranges) => ranges.select(length).map_err(|_unsatisfiable| PullError::Range { length }),
            None => Ok(Selected::Whole),
        }
    }
}

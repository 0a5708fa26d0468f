//! Proofs: an upstream confirms, to the credentials of a repository, that the repository has a blob.
//!
//! A blob that is stored for one repository is served in another one only after such a proof. A manifest that refers
//! to the blob is not enough. A proof is one HEAD, or a GET of the first byte if the upstream refuses HEAD. Its
//! headers must fit the stored content: a page, as for a login, proves nothing. No request is needed if a repository
//! of the same upstream, with the same credentials, has proven it before. The store records a proof as a link.

use std::fmt;
use std::sync::Arc;

use http::{Method, StatusCode};
use tokio::time::Instant;

use super::ask::{ask, request};
use super::context::Context;
use super::error::PullError;
use super::flight::Flights;
use crate::oci::{Digest, Reference, RepoId, RepoName};
use crate::store::Member;
use crate::tasks::Tasks;
use crate::upstream::{Kind, Upstream, UpstreamRequest, UpstreamResponse};

pub(super) struct Proofs {
    context: Arc<Context>,
    flights: Flights<(RepoId, Digest), Result<Member, PullError>>,
}

impl Proofs {
    pub(super) fn new(context: Arc<Context>, tasks: Tasks) -> Self {
        Self { context, flights: Flights::new(tasks) }
    }

    /// Asks the upstream whether this repository has the blob, and records a link if it has. The result may include
    /// the blob's length.
    pub(super) async fn prove(
        &self,
        upstream: &Arc<Upstream>,
        repo: &RepoId,
        digest: &Digest,
        deadline: Instant,
    ) -> Result<Member, PullError> {
        let key = (repo.clone(), digest.clone());
        let work = || {
            let (context, upstream, (repo, digest)) = (self.context.clone(), upstream.clone(), key.clone());
            async move { ask_for_proof(&context, &upstream, &repo, &digest, deadline).await }
        };
        let flight = self.context.run_flight(&self.flights, key.clone(), upstream.name(), deadline, work);
        Ok(flight.await?.0)
    }

    /// Returns the length that a manifest or an earlier proof gave. Without one, asks for a proof now.
    pub(super) async fn known_length(
        &self,
        upstream: &Arc<Upstream>,
        repo: &RepoId,
        digest: &Digest,
        deadline: Instant,
    ) -> Option<u64> {
        if let Ok(Some(Member { size: Some(size), .. })) = self.context.store.member(repo, digest).await {
            return Some(size);
        }
        self.prove(upstream, repo, digest, deadline).await.ok()?.size
    }
}

/// Whether a repository of the same upstream, which uses the same credentials, has a proven right to read this digest.
/// Where there are users, both repositories must also be public: nobody may read what only another repository may.
pub(super) async fn has_shared_right(
    context: &Context,
    upstream: &Upstream,
    repo: &RepoId,
    digest: &Digest,
    deadline: Instant,
) -> Result<bool, PullError> {
    upstream.read_credentials(&repo.name, deadline).await;
    let (credential, upstream, scope) = (upstream.credential(&repo.name), upstream.clone(), repo.scope.clone());
    let visibilities = context.visibilities.clone();
    if !visibilities.may_share(&upstream, repo) {
        return Ok(false);
    }
    let may_share = Box::new(move |name: &RepoName| {
        upstream.credential(name) == credential
            && visibilities.may_share(&upstream, &RepoId::new(scope.clone(), name.clone()))
    });
    Ok(context.store.find_proven(&repo.scope, digest, may_share).await?.is_some())
}

/// Proves the right to stored content without a request: a manifest of the repository refers to it, and it was fetched
/// from the same upstream with the same credentials. So images that share layers can be pulled in an outage.
async fn proof_by_shared_right(
    context: &Context,
    upstream: &Upstream,
    repo: &RepoId,
    digest: &Digest,
    deadline: Instant,
) -> Result<Option<Member>, PullError> {
    let store = &context.store;
    let Some(listed) = store.member(repo, digest).await? else { return Ok(None) };
    if store.blob(digest).await?.is_none() || !has_shared_right(context, upstream, repo, digest, deadline).await? {
        return Ok(None);
    }
    match store.link_blob(repo, digest, listed.size).await {
        Err(error) if error.obstacle().is_none() => Err(error.into()),
        _ => Ok(Some(Member { proven: true, ..listed })),
    }
}

async fn ask_for_proof(
    context: &Context,
    upstream: &Upstream,
    repo: &RepoId,
    digest: &Digest,
    deadline: Instant,
) -> Result<Member, PullError> {
    if let Some(proof) = proof_by_shared_right(context, upstream, repo, digest, deadline).await? {
        return Ok(proof);
    }
    let stored = context.store.blob(digest).await?.map(|blob| blob.len());
    let answer = ask_about_blob(upstream, repo, digest, stored, deadline).await;
    // If the upstream did not answer the HEAD, `send` has sent a GET. So a 404 is an absence.
    context.note_answer(repo, Reference::Digest(digest.clone()), answer.as_ref().err()).await;
    let proof = Member { size: stored.or(answer?), proven: true };
    if let Some(length) = proof.size {
        context.memory.remember_length(repo, digest, length);
    }
    match context.store.link_blob(repo, digest, proof.size).await {
        // The next request asks for a proof again.
        Err(error) if error.obstacle().is_some() => Ok(proof),
        recorded => Ok(recorded.map(|()| proof)?),
    }
}

/// Asks whether the repository has the blob, whose length is `stored` if it is stored. Returns the length that the
/// upstream announces.
async fn ask_about_blob(
    upstream: &Upstream,
    repo: &RepoId,
    digest: &Digest,
    stored: Option<u64>,
    deadline: Instant,
) -> Result<Option<u64>, PullError> {
    let path = format!("blobs/{digest}");
    let head = ask(upstream, request(Method::HEAD, Kind::Blob, repo, path.clone()), deadline).await?;
    if confirms(&head, digest, stored) {
        return Ok(head.content_length());
    }
    let first_byte = UpstreamRequest { range: Some((0, 0)), ..request(Method::GET, Kind::Blob, repo, path) };
    let answer = ask(upstream, first_byte, deadline).await?;
    if !confirms(&answer, digest, stored) {
        tracing::warn!(%repo, %digest, "the upstream's answer about a blob does not fit the blob, so it is no proof");
        let reason = "its answer about a blob has another type, length or digest than the blob".to_owned();
        return Err(PullError::BadDocument { upstream: upstream.name().clone(), reason });
    }
    match answer.content_range() {
        Some((_, _, total)) => Ok(total),
        None => Ok(answer.content_length()),
    }
}

/// Whether the headers of a successful response show that the upstream has the content with this digest, rather than
/// that it answers everything, for instance with a login page. `stored`: the length of the content, if it is known.
pub(super) fn confirms(answer: &UpstreamResponse, digest: &Digest, stored: Option<u64>) -> bool {
    let announced = answer.docker_content_digest().and_then(|announced| announced.parse().ok());
    let announced = announced.filter(|announced: &Digest| announced.algorithm() == digest.algorithm());
    if announced.as_ref().is_some_and(|announced| announced != digest) {
        return false;
    }
    if answer.status == StatusCode::PARTIAL_CONTENT {
        let total = answer.content_range().map(|(_, _, total)| total);
        return total.is_some_and(|total| total.zip(stored).is_none_or(|(total, stored)| total == stored));
    }
    // Some registries send a length of 0 in every response to HEAD.
    let length = answer.content_length().filter(|length| *length > 0 || stored == Some(0));
    match (stored, length) {
        (Some(stored), Some(length)) if stored != length => false,
        (Some(_), None) => announced.is_some(),
        _ => announced.is_some() || !answer.is_page(),
    }
}

impl fmt::Debug for Proofs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Proofs").finish_non_exhaustive()
    }
}

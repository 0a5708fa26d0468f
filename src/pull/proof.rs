//! Proofs: an upstream confirms, to the credentials of a repository, that the repository has a blob.
//!
//! A blob that is stored for one repository is served in another one only after such a proof. A manifest that refers to
//! the blob is not enough. A proof is one HEAD, or a GET of the first byte if the upstream refuses HEAD. No request is
//! needed if a repository of the same upstream, with the same credentials, has proven it before. The store records a
//! proof as a link.

use std::fmt;
use std::sync::Arc;

use http::Method;
use tokio::time::Instant;

use super::ask::{ask, request};
use super::context::Context;
use super::error::PullError;
use super::flight::Flights;
use crate::oci::{Digest, Reference, RepoId, RepoName};
use crate::store::Member;
use crate::tasks::Tasks;
use crate::upstream::{Kind, Upstream};

pub(super) struct Proofs {
    context: Arc<Context>,
    flights: Flights<(RepoId, Digest), Result<Member, PullError>>,
}

impl Proofs {
    pub(super) fn new(context: Arc<Context>, tasks: Tasks) -> Self {
        Self { context, flights: Flights::new(tasks) }
    }

    /// Asks the upstream whether this repository has the blob, and records a link if it has. The result may include the blob's
    /// length.
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
pub(super) async fn has_shared_right(
    context: &Context,
    upstream: &Upstream,
    repo: &RepoId,
    digest: &Digest,
) -> Result<bool, PullError> {
    let (credential, upstream) = (upstream.credential(&repo.name), upstream.clone());
    let may_share = Box::new(move |name: &RepoName| upstream.credential(name) == credential);
    Ok(context.store.find_proven(&repo.scope, digest, may_share).await?.is_some())
}

/// Proves the right to stored content without a request: a manifest of the repository refers to it, and it was fetched
/// from the same upstream with the same credentials. So images that share layers can be pulled in an outage.
async fn proof_by_shared_right(
    context: &Context,
    upstream: &Upstream,
    repo: &RepoId,
    digest: &Digest,
) -> Result<Option<Member>, PullError> {
    let store = &context.store;
    let Some(listed) = store.member(repo, digest).await? else { return Ok(None) };
    if store.blob(digest).await?.is_none() || !has_shared_right(context, upstream, repo, digest).await? {
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
    if let Some(proof) = proof_by_shared_right(context, upstream, repo, digest).await? {
        return Ok(proof);
    }
    let head = request(Method::HEAD, Kind::Blob, repo, format!("blobs/{digest}"));
    let answer = ask(upstream, head, deadline).await;
    // If the upstream did not answer the HEAD, `send` has sent a GET. So a 404 is an absence.
    context.note_answer(repo, Reference::Digest(digest.clone()), answer.as_ref().err()).await;
    let answer = answer?;
    let proof = Member { size: answer.content_length(), proven: true };
    if let Some(length) = proof.size {
        context.memory.remember_length(repo, digest, length);
    }
    match context.store.link_blob(repo, digest, proof.size).await {
        // The next request asks for a proof again.
        Err(error) if error.obstacle().is_some() => Ok(proof),
        recorded => Ok(recorded.map(|()| proof)?),
    }
}

impl fmt::Debug for Proofs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Proofs").finish_non_exhaustive()
    }
}

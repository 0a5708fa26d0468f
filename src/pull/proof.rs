//! Proofs: an upstream confirms, to the credentials of a repository, that the repository has a blob.
//!
//! A blob that is stored for one repository is served in another one only after such a proof. A proof is one HEAD. The store
//! records it as a link.

use std::fmt;
use std::sync::Arc;

use http::Method;
use tokio::time::Instant;

use super::ask::{ask, request};
use super::context::Context;
use super::error::PullError;
use super::flight::Flights;
use crate::oci::{Digest, RepoId};
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
        if let Ok(Some(Member { size: Some(size) })) = self.context.store.member(repo, digest).await {
            return Some(size);
        }
        self.prove(upstream, repo, digest, deadline).await.ok()?.size
    }
}

async fn ask_for_proof(
    context: &Context,
    upstream: &Upstream,
    repo: &RepoId,
    digest: &Digest,
    deadline: Instant,
) -> Result<Member, PullError> {
    let head = request(Method::HEAD, Kind::Blob, repo, format!("blobs/{digest}"));
    let answer = ask(upstream, head, deadline).await;
    let answer = answer.inspect_err(|error| context.memory.note_absent(repo, digest, error))?;
    let proof = Member { size: answer.content_length() };
    if let Some(length) = proof.size {
        context.memory.remember_length(repo, digest, length);
    }
    match context.store.link_blob(repo, digest, proof.size).await {
        // The next request asks for a proof again.
        Err(error) if error.is_full() => Ok(proof),
        recorded => Ok(recorded.map(|()| proof)?),
    }
}

impl fmt::Debug for Proofs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Proofs").finish_non_exhaustive()
    }
}

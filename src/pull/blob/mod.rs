//! Blobs of mirrored repositories: GET and HEAD.

mod cold;
mod from_fill;
mod past_store;
mod request;

use tracing::Instrument;

use super::content::Content;
use super::engine::PullRequest;
use super::error::PullError;
use crate::oci::{Digest, Reference, RepoId};
use crate::telemetry::CacheResult;
use cold::ColdBlob;

pub use request::BlobRequest;

impl PullRequest<'_> {
    /// Returns a blob of a mirrored repository, or the requested part of it.
    ///
    /// # Errors
    /// [`PullError::Range`] if the requested part lies outside of the blob; otherwise the error of the upstream or the store,
    /// within `answer_within`.
    pub async fn blob(&self, repo: &RepoId, digest: &Digest, request: BlobRequest) -> Result<Content, PullError> {
        let context = &self.engine.context;
        let member = context.membership(repo, digest).await?;
        if let Some(member) = member.filter(|member| member.proven)
            && let Some(blob) = context.store.blob_of(repo, digest, member).await?
        {
            return Ok(Content::of_blob(&blob, request.select(blob.len())?, CacheResult::Hit));
        }
        if let Some(error) = context.memory.absence(repo, &Reference::Digest(digest.clone())) {
            return Err(error);
        }
        let upstream = self.upstream(repo)?;
        // Boxed, so that the rare case does not make the future of every request larger.
        let asked = upstream.clone();
        let cold = async { ColdBlob::new(self.engine, asked, repo, digest, member, request).await?.run().await };
        match Box::pin(cold.instrument(self.trace.span())).await {
            Err(error) => {
                Err(context.or_known_absence(&upstream, repo, Reference::Digest(digest.clone()), error).await)
            }
            content => content,
        }
    }

    /// Returns the length of a blob of a mirrored repository, in bytes; `None` if its upstream does not send one.
    pub async fn blob_length(&self, repo: &RepoId, digest: &Digest) -> Result<Option<u64>, PullError> {
        let context = &self.engine.context;
        let member = context.membership(repo, digest).await?;
        if let Some(member) = member.filter(|member| member.proven)
            && let Some(blob) = context.store.blob_of(repo, digest, member).await?
        {
            return Ok(Some(blob.len()));
        }
        if let Some(error) = context.memory.absence(repo, &Reference::Digest(digest.clone())) {
            return Err(error);
        }
        // A manifest that was served may give the length. The client expects that length, and the header of a HEAD may
        // be wrong.
        let known = member.and_then(|member| member.size);
        if let Some(length) = context.memory.length(repo, digest) {
            return Ok(Some(known.unwrap_or(length)));
        }
        let upstream = self.upstream(repo)?;
        let deadline = if known.is_some() { context.deadline_with_stale() } else { context.deadline() };
        let proof = self.engine.proofs.prove(&upstream, repo, digest, deadline).instrument(self.trace.span());
        match Box::pin(proof).await {
            Ok(proof) => Ok(known.or(proof.size)),
            // The GET that follows asks the upstream again.
            Err(error) if error.is_inconclusive() && known.is_some() => Ok(known),
            Err(error) => {
                Err(context.or_known_absence(&upstream, repo, Reference::Digest(digest.clone()), error).await)
            }
        }
    }
}

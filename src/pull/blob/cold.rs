//! Handles a request for a blob that is not served from the store at once. It is a state machine.
//!
//! ```text
//! CheckStore     -> Prove | CheckFailures | PastStore: it cannot be read | exit: it is stored
//! Prove          -> CheckStore | exit: the upstream does not confirm that the repository has it
//! CheckFailures  -> Join | PastStore | exit: the last fill failed less than a second ago
//! Join           -> Follow | Prove: a fill with other rights is running
//! Follow         -> exit | PastStore: it cannot be stored | CheckStore: cancelled, or failed with other rights
//! PastStore      -> exit
//! ```
//!
//! pingora's cache lock has the same outcomes for a waiting reader under the names `Done`, `TransientError`,
//! `Dangling`, `GiveUp` and `WaitTimeout`. Here a reader need not wait for the writer to finish: it follows.

use std::sync::Arc;

use super::super::content::Content;
use super::super::engine::Engine;
use super::super::error::PullError;
use super::super::fill::{Following, Joined, Requester};
use super::super::source::BlobSource;
use super::super::source::upstream::UpstreamSource;
use super::request::{BlobRequest, ColdRequest};
use crate::oci::{Digest, RepoId};
use crate::store::{Member, StoreError};
use crate::telemetry::CacheResult;
use crate::upstream::Upstream;

/// Maximum number of fills that one request joins: its own, and further ones if a fill of another request fails.
const MAX_FILLS_PER_REQUEST: usize = 3;

pub(super) struct ColdBlob {
    request: ColdRequest,
    upstream: Arc<Upstream>,
    requester: Requester,
    fills_joined: usize,
    /// Why the last fill did not answer the request.
    last_failure: PullError,
}

enum State {
    /// Checks whether the blob is stored and may be read.
    CheckStore,
    /// Asks the upstream whether the repository has the blob.
    Prove,
    /// Checks whether a fill of the blob failed less than a second ago, or the store cannot be written.
    CheckFailures,
    /// Starts a fill or joins the running one.
    Join,
    /// Answers from the fill.
    Follow(Following, CacheResult),
    /// Answers with a bypass.
    PastStore,
}

/// How the request ends.
enum Exit {
    ServedFromStore(Content),
    ServedFromFill(Content),
    ServedPastStore(Content),
    /// The requested range lies outside of the stored blob.
    OutOfRange(PullError),
    /// The upstream does not confirm that the repository has the blob.
    NotProven(PullError),
    /// A fill from the same source failed less than a second ago.
    FailedRecently(PullError),
    FillFailed(PullError),
    TransferPastStoreFailed(PullError),
    /// All fills that the request joined were cancelled or failed with other rights.
    FillsExhausted(PullError),
    StoreFailed(StoreError),
}

impl ColdBlob {
    pub(super) async fn new(
        engine: &Arc<Engine>,
        upstream: Arc<Upstream>,
        repo: &RepoId,
        digest: &Digest,
        member: Option<Member>,
        wanted: BlobRequest,
    ) -> Result<Self, PullError> {
        let deadline = engine.context.deadline();
        upstream.read_credentials(&repo.name, deadline).await;
        let source: Arc<dyn BlobSource> = Arc::new(UpstreamSource::new(&upstream, repo, &engine.proofs));
        let requester = Requester {
            source: source.clone(),
            proven: member.is_some_and(|member| member.proven),
            listed: member.is_some(),
            may_share: engine.context.visibilities.may_share(&upstream, repo),
            new_repository: member.is_none() && !engine.context.store.repository_exists(repo).await?,
            size: member.and_then(|member| member.size),
            is_for_range: wanted.ranges.is_some(),
        };
        let request = ColdRequest { engine: engine.clone(), source, digest: digest.clone(), wanted, deadline };
        Ok(Self { request, upstream, requester, fills_joined: 0, last_failure: PullError::Abandoned })
    }

    /// Runs the state machine to its end.
    ///
    /// # Errors
    /// Those of the upstream or the store, by the request's deadline.
    pub(super) async fn run(mut self) -> Result<Content, PullError> {
        let mut state = State::CheckStore;
        loop {
            let next = match state {
                State::CheckStore => self.check_store().await,
                State::Prove => self.prove().await,
                State::CheckFailures => self.check_failures(),
                State::Join => Ok(self.join()),
                State::Follow(following, result) => self.follow(following, result).await,
                State::PastStore => self.serve_past_store().await,
            };
            match next {
                Ok(next) => state = next,
                Err(exit) => return exit.into_result(),
            }
        }
    }

    async fn check_store(&self) -> Result<State, Exit> {
        let ColdRequest { engine, digest, wanted, .. } = &self.request;
        let store = &engine.context.store;
        if !self.requester.proven {
            // A running fill of the same source needs no proof, and the response to a new one is the proof.
            let needs_proof = !engine.fills.is_running(digest) && store.blob(digest).await?.is_some();
            return Ok(if needs_proof { State::Prove } else { State::CheckFailures });
        }
        let member = Member { size: self.requester.size, proven: true };
        let blob = match store.blob_of(self.request.repo(), digest, member).await {
            Ok(Some(blob)) => blob,
            Ok(None) => return Ok(State::CheckFailures),
            // The disk cannot read the blob, but the upstream still has it.
            Err(error) if error.obstacle().is_some() => return Ok(self.pass_by(&error)),
            Err(error) => return Err(error.into()),
        };
        let selected = wanted.select(blob.len()).map_err(Exit::OutOfRange)?;
        Err(Exit::ServedFromStore(Content::of_blob(&blob, selected, CacheResult::Revalidated)))
    }

    async fn prove(&mut self) -> Result<State, Exit> {
        let ColdRequest { engine, digest, deadline, .. } = &self.request;
        let proof = engine.proofs.prove(&self.upstream, self.request.repo(), digest, *deadline).await;
        self.requester.set_proven(proof.map_err(Exit::NotProven)?);
        self.start_over()
    }

    fn check_failures(&self) -> Result<State, Exit> {
        let ColdRequest { engine, source, digest, .. } = &self.request;
        if engine.context.store.is_read_only() {
            return Ok(State::PastStore);
        }
        // Without this check, a fill would fail after its request, and the blob would be requested a second time.
        if let Some(error) = engine.context.store.write_failure() {
            return Ok(self.pass_by(&error));
        }
        match engine.context.memory.failure(source.id(), digest) {
            Some(PullError::Store(error)) if error.obstacle().is_some() => Ok(self.pass_by(&error)),
            Some(error) => Err(Exit::FailedRecently(error)),
            None => Ok(State::Join),
        }
    }

    /// Serves the blob without storing it.
    fn pass_by(&self, error: &StoreError) -> State {
        self.request.engine.context.note_not_stored(error);
        State::PastStore
    }

    fn join(&mut self) -> State {
        self.fills_joined += 1;
        match self.request.engine.fills.join(&self.request.digest, &self.requester) {
            Joined::Led(following) => State::Follow(following, CacheResult::Miss),
            Joined::Followed(following) => State::Follow(following, CacheResult::Joined),
            Joined::NeedsProof => State::Prove,
        }
    }

    async fn follow(&mut self, following: Following, result: CacheResult) -> Result<State, Exit> {
        let foreign = following.fill().source() != self.request.source.id();
        match self.request.answer_from_fill(following, result).await {
            Ok(content) => Err(Exit::ServedFromFill(content)),
            Err(PullError::Store(error)) if error.obstacle().is_some() => Ok(self.pass_by(&error)),
            Err(error) if error.concerns_one_fill(foreign) => {
                self.last_failure = error;
                self.start_over()
            }
            Err(error) => Err(Exit::FillFailed(error)),
        }
    }

    /// Checks the store again, unless the request has joined too many fills.
    fn start_over(&self) -> Result<State, Exit> {
        if self.fills_joined < MAX_FILLS_PER_REQUEST {
            Ok(State::CheckStore)
        } else {
            Err(Exit::FillsExhausted(self.last_failure.clone()))
        }
    }

    async fn serve_past_store(&self) -> Result<State, Exit> {
        Err(match self.request.answer_past_store(self.requester.size).await {
            Ok(content) => Exit::ServedPastStore(content),
            Err(error) => Exit::TransferPastStoreFailed(error),
        })
    }
}

impl From<StoreError> for Exit {
    fn from(error: StoreError) -> Self {
        Self::StoreFailed(error)
    }
}

impl Exit {
    fn into_result(self) -> Result<Content, PullError> {
        match self {
            Self::ServedFromStore(content) | Self::ServedFromFill(content) | Self::ServedPastStore(content) => {
                Ok(content)
            }
            Self::OutOfRange(error)
            | Self::NotProven(error)
            | Self::FailedRecently(error)
            | Self::FillFailed(error)
            | Self::TransferPastStoreFailed(error)
            | Self::FillsExhausted(error) => Err(error),
            Self::StoreFailed(error) => Err(error.into()),
        }
    }
}

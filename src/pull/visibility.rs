//! Whether everybody may read a mirrored repository at its upstream.
//!
//! The credentials of this server may open repositories that its own users must not read. A repository to which a
//! credential rule applies is *public* only if the upstream sends its content to a request without credentials. This is
//! found out once per repository, with the content that a client asks for, and kept in the repository's note.
//!
//! An upstream that fails says nothing: what was last known stays in force, and without it the client's request fails.

use std::sync::Arc;
use std::time::Duration;

use http::Method;
use moka::sync::Cache;
use tokio::time::Instant;

use super::ask::request;
use super::context::Context;
use super::error::PullError;
use super::flight::Flights;
use super::notes::{KnownVisibility, seconds_now};
use crate::oci::{Digest, Reference, RepoId};
use crate::tasks::Tasks;
use crate::upstream::{Effort, Kind, Upstream, UpstreamError, UpstreamRequest};

/// How long a repository counts as public until the upstream is asked again.
const PUBLIC_PERIOD: Duration = Duration::from_secs(24 * 60 * 60);
/// The same for a private one. Shorter, so that a repository that was made public can soon be pulled.
const PRIVATE_PERIOD: Duration = Duration::from_secs(60 * 60);
/// Repositories whose visibility is kept in memory.
const MAX_KNOWN: u64 = 50_000;
/// Absences that are kept in memory.
const MAX_ABSENT: u64 = 10_000;

/// What a client asks a repository for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum RequestedContent {
    Manifest(Reference),
    Blob(Digest),
    /// A list of tags or referrers.
    List,
}

/// What is known about repositories, in memory. Clones share it.
#[derive(Clone)]
pub(super) struct Visibilities {
    known: Cache<RepoId, KnownVisibility>,
    /// Whether there are users, so that private content is not everybody's.
    has_users: bool,
}

/// Asks upstreams.
pub(super) struct VisibilityProbes {
    context: Arc<Context>,
    flights: Flights<ProbeKey, Result<bool, PullError>>,
    /// Content that the upstream has just not shown, in a repository that it did not show either.
    absent: Cache<ProbeKey, ()>,
}

type ProbeKey = (RepoId, RequestedContent);

/// What a request without credentials is told.
enum Seen {
    Content,
    Denied,
    Absent,
}

// === impl Visibilities ===

impl Visibilities {
    pub(super) fn new(has_users: bool) -> Self {
        Self { known: Cache::new(MAX_KNOWN), has_users }
    }

    /// Whether content may be readable in the repository because another one of the upstream has it, or the other way
    /// round.
    pub(super) fn may_share(&self, upstream: &Upstream, repo: &RepoId) -> bool {
        !self.has_users || self.is_known_public(upstream, repo)
    }

    /// Whether the repository is known to be public, without asking anything.
    pub(super) fn is_known_public(&self, upstream: &Upstream, repo: &RepoId) -> bool {
        !upstream.has_credential_rule(&repo.name)
            || self.known.get(repo).is_some_and(|known| known.public && is_recent(&known))
    }
}

// === impl VisibilityProbes ===

impl VisibilityProbes {
    pub(super) fn new(context: Arc<Context>, tasks: Tasks) -> Self {
        let absent = Cache::builder().max_capacity(MAX_ABSENT).time_to_live(context.config.negative_ttl).build();
        Self { context, flights: Flights::new(tasks), absent }
    }

    /// Whether the repository is public. `content` is what a client asks it for.
    ///
    /// # Errors
    /// `VisibilityUnknown` if the upstream fails and nothing is known. `NotFound` if it shows neither the content nor the
    /// repository to a request without credentials.
    pub(super) async fn is_public(
        &self,
        upstream: &Upstream,
        repo: &RepoId,
        content: RequestedContent,
    ) -> Result<bool, PullError> {
        let context = &self.context;
        if context.visibilities.is_known_public(upstream, repo) {
            return Ok(true);
        }
        let known = self.last_known(repo).await;
        if let Some(known) = known.filter(is_recent) {
            return Ok(known.public);
        }
        let key = (repo.clone(), content.clone());
        if self.absent.contains_key(&key) {
            return Err(PullError::NotFound);
        }
        let deadline = if known.is_some() { context.deadline_with_stale() } else { context.deadline() };
        let work = || self.probe(upstream, repo, content);
        let answer = context.run_flight(&self.flights, key.clone(), upstream.name(), deadline, work).await;
        match (answer, known) {
            (Ok((public, _)), _) => Ok(public),
            (Err(error), Some(known)) if !error.is_not_found() => {
                tracing::debug!(%repo, %error, public = known.public, "using what was last known of the repository");
                Ok(known.public)
            }
            (Err(error), _) if error.is_not_found() => {
                self.absent.insert(key, ());
                Err(error)
            }
            (Err(error), _) => {
                Err(PullError::VisibilityUnknown { upstream: upstream.name().clone(), cause: Arc::new(error) })
            }
        }
    }

    /// Finds out in the background whether content that everybody was just sent is private, and warns if it is.
    pub(super) async fn warn_if_private(&self, upstream: &Upstream, repo: &RepoId, content: RequestedContent) {
        if self.context.visibilities.is_known_public(upstream, repo)
            || self.last_known(repo).await.is_some_and(|known| is_recent(&known))
        {
            return;
        }
        let (probe, context) = (self.probe(upstream, repo, content.clone()), self.context.clone());
        let repo = repo.clone();
        self.flights.start((repo.clone(), content), || async move {
            let public = probe.await?;
            if !public {
                context.metrics.private_served_openly(repo.scope.as_str());
                tracing::warn!(
                    %repo,
                    "clients got content of a private repository without a login, because this server has credentials for \
                     it; set up users ([auth]), or restrict the credentials to repositories that everybody may read"
                );
            }
            Ok(public)
        });
    }

    /// Reads the note of the repository if the memory has nothing.
    async fn last_known(&self, repo: &RepoId) -> Option<KnownVisibility> {
        let memory = &self.context.visibilities.known;
        if let Some(known) = memory.get(repo) {
            return Some(known);
        }
        let known = self.context.notes.visibility(repo).await?;
        // An answer that came in the meantime is newer.
        Some(memory.entry_by_ref(repo).or_insert(known).into_value())
    }

    /// Asks the upstream, and remembers the answer.
    fn probe(
        &self,
        upstream: &Upstream,
        repo: &RepoId,
        content: RequestedContent,
    ) -> impl Future<Output = Result<bool, PullError>> + Send + 'static {
        let (context, anonymous, repo) = (self.context.clone(), upstream.without_credentials(), repo.clone());
        async move {
            let public = is_shown(&anonymous, &repo, &content, context.deadline()).await?;
            let known = KnownVisibility { public, at: seconds_now() };
            context.visibilities.known.insert(repo.clone(), known);
            context.notes.remember_visibility(&repo, known).await;
            Ok(public)
        }
    }
}

fn is_recent(known: &KnownVisibility) -> bool {
    let period = if known.public { PUBLIC_PERIOD } else { PRIVATE_PERIOD };
    // After the clock was set back, the upstream is asked again.
    seconds_now().checked_sub(known.at).is_some_and(|age| Duration::from_secs(age) < period)
}

/// Whether the upstream shows the repository to requests without credentials. If it does not answer for the content, or
/// does not have it, the list of tags decides: for instance if it limits the pulls of everybody.
async fn is_shown(
    anonymous: &Upstream,
    repo: &RepoId,
    content: &RequestedContent,
    deadline: Instant,
) -> Result<bool, PullError> {
    let mut failure = None;
    if let Some(get) = get_of(repo, content) {
        match see_by_head(anonymous, get, deadline).await {
            Ok(Seen::Content) => return Ok(true),
            Ok(Seen::Denied) => return Ok(false),
            Ok(Seen::Absent) => {}
            Err(error) => failure = Some(error),
        }
    }
    let tags = request(Method::GET, Kind::Tags, repo, "tags/list?n=1".to_owned());
    match see(anonymous, tags, deadline).await? {
        Seen::Content => Ok(true),
        Seen::Denied => Ok(false),
        Seen::Absent => Err(failure.unwrap_or(PullError::NotFound)),
    }
}

/// Sends the request as a HEAD first. Only a GET can confirm that content is denied or absent: some registries refuse
/// HEAD.
async fn see_by_head(anonymous: &Upstream, get: UpstreamRequest, deadline: Instant) -> Result<Seen, PullError> {
    let head = UpstreamRequest { method: Method::HEAD, range: None, ..get.clone() };
    match see(anonymous, head, deadline).await {
        Ok(Seen::Content) => Ok(Seen::Content),
        Err(error) if !error.may_be_answered_by_get() => Err(error),
        _ => see(anonymous, get, deadline).await,
    }
}

/// What the response to a request says. Its body is not read. A page, as for a login, is no content.
async fn see(anonymous: &Upstream, request: UpstreamRequest, deadline: Instant) -> Result<Seen, PullError> {
    match anonymous.send(request, deadline).await {
        Ok(answer) if !answer.is_page() => Ok(Seen::Content),
        Ok(_) => {
            let reason = "its answer to a request without credentials is a page".to_owned();
            Err(PullError::BadDocument { upstream: anonymous.name().clone(), reason })
        }
        Err(UpstreamError::Denied { .. }) => Ok(Seen::Denied),
        Err(UpstreamError::NotFound { .. }) => Ok(Seen::Absent),
        Err(error) => Err(error.into()),
    }
}

/// A request for the content; `None` for lists.
fn get_of(repo: &RepoId, content: &RequestedContent) -> Option<UpstreamRequest> {
    let (kind, path, range) = match content {
        RequestedContent::Manifest(reference) => (Kind::Manifest, format!("manifests/{reference}"), None),
        RequestedContent::Blob(digest) => (Kind::Blob, format!("blobs/{digest}"), Some((0, 0))),
        RequestedContent::List => return None,
    };
    Some(UpstreamRequest { range, effort: Effort::Extra, ..request(Method::GET, kind, repo, path) })
}

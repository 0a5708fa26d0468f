//! Whether everybody may read a mirrored repository at its upstream.
//!
//! The credentials of this server may open repositories that its own users must not read. A repository to which a
//! credential rule applies is *public* only if the upstream sends its content to a request without credentials. This is
//! found out once per repository, with a manifest, and kept in the repository's note.
//!
//! An upstream that fails says nothing: what was last known stays in force, and without it the client's request fails.

use std::sync::Arc;
use std::time::Duration;

use http::{Method, StatusCode};
use moka::sync::Cache;
use tokio::time::Instant;

use super::ask::request;
use super::context::Context;
use super::error::PullError;
use super::flight::Flights;
use super::notes::{KnownVisibility, seconds_now};
use super::tag_list::first_tag;
use crate::oci::{Digest, Reference, RepoId, Tag, media_type};
use crate::tasks::Tasks;
use crate::upstream::{Effort, Kind, Upstream, UpstreamError, UpstreamRequest, UpstreamResponse};

/// How long a repository counts as public until the upstream is asked again.
const PUBLIC_PERIOD: Duration = Duration::from_secs(24 * 60 * 60);
/// The same if the upstream has shown a tag, and no manifest.
const LISTED_PERIOD: Duration = Duration::from_secs(10 * 60);
/// The same for a private one, at first. It doubles with each answer that says the same. Shorter, so that an upstream that
/// refuses requests by mistake, and a repository that was made public, keep nobody out for long.
const FIRST_PRIVATE_PERIOD: Duration = Duration::from_secs(60);
const LAST_PRIVATE_PERIOD: Duration = Duration::from_secs(60 * 60);
/// Repositories whose visibility is kept in memory.
const MAX_KNOWN: u64 = 50_000;
/// Absences that are kept in memory.
const MAX_ABSENT: u64 = 10_000;

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
    /// Manifests that the upstream has just not shown, in repositories that it did not show either.
    absent: Cache<ProbeKey, ()>,
    /// Private repositories whose content was sent to everybody, and that were reported.
    reported: Cache<RepoId, ()>,
}

/// The repository, and the manifest that the client wants from it, if it wants one.
type ProbeKey = (RepoId, Option<Reference>);

/// What a request without credentials is told.
enum Seen {
    Content,
    Denied,
    Absent,
}

/// What the upstream shows of a repository to requests without credentials.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Shown {
    Manifest,
    /// A tag, while it limits the pulls of manifests.
    Tag,
    Nothing,
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
            || self.known.get(repo).is_some_and(|known| known.public && known.is_recent())
    }
}

// === impl VisibilityProbes ===

impl VisibilityProbes {
    pub(super) fn new(context: Arc<Context>, tasks: Tasks) -> Self {
        let absent = Cache::builder().max_capacity(MAX_ABSENT).time_to_live(context.config.negative_ttl).build();
        Self { context, flights: Flights::new(tasks), absent, reported: Cache::new(MAX_KNOWN) }
    }

    /// Whether the repository is public. `wanted`: the manifest that a client asks it for, if it does.
    ///
    /// # Errors
    /// `VisibilityUnknown` if the upstream fails and nothing is known. `NotFound` if it shows neither the manifest nor the
    /// repository to a request without credentials.
    pub(super) async fn is_public(
        &self,
        upstream: &Upstream,
        repo: &RepoId,
        wanted: Option<Reference>,
    ) -> Result<bool, PullError> {
        let context = &self.context;
        if context.visibilities.is_known_public(upstream, repo) {
            return Ok(true);
        }
        let known = self.last_known(repo).await;
        if let Some(known) = known.filter(KnownVisibility::is_recent) {
            return Ok(known.public);
        }
        let key = (repo.clone(), wanted.clone());
        if self.absent.contains_key(&key) {
            return Err(PullError::NotFound);
        }
        let deadline = if known.is_some() { context.deadline_with_stale() } else { context.deadline() };
        let work = || self.probe(upstream, repo, wanted);
        let answer = context.run_flight(&self.flights, key.clone(), upstream.name(), deadline, work).await;
        match (answer, known) {
            (Ok((public, _)), _) => Ok(public),
            (Err(error), _) if error.is_not_found() => {
                self.absent.insert(key, ());
                Err(error)
            }
            (Err(error), Some(known)) if is_outage(&error) && self.may_be_used_in_outage(known) => {
                tracing::debug!(%repo, %error, public = known.public, "using what was last known of the repository");
                Ok(known.public)
            }
            (Err(error), _) => {
                Err(PullError::VisibilityUnknown { upstream: upstream.name().clone(), cause: Arc::new(error) })
            }
        }
    }

    /// Finds out in the background whether content that everybody was just sent is private, and reports it if it is, once
    /// for each repository.
    pub(super) async fn warn_if_private(&self, upstream: &Upstream, repo: &RepoId, wanted: Option<Reference>) {
        if self.reported.contains_key(repo) || self.context.visibilities.is_known_public(upstream, repo) {
            return;
        }
        let (reported, context, repo) = (self.reported.clone(), self.context.clone(), repo.clone());
        let report = move |repo: &RepoId| {
            // Several requests may have found it out at once.
            if !reported.entry_by_ref(repo).or_insert(()).is_fresh() {
                return;
            }
            context.metrics.private_served_openly(repo.scope.as_str());
            tracing::warn!(
                %repo,
                "clients got content of a private repository without a login, because this server has credentials for it; \
                 set up users ([auth]), or restrict the credentials to repositories that everybody may read"
            );
        };
        match self.last_known(&repo).await.filter(KnownVisibility::is_recent) {
            Some(known) if known.public => {}
            Some(_) => report(&repo),
            None => {
                let probe = self.probe(upstream, &repo, wanted.clone());
                self.flights.start((repo.clone(), wanted), || async move {
                    let public = probe.await?;
                    if !public {
                        report(&repo);
                    }
                    Ok(public)
                });
            }
        }
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

    /// A repository that was private stays so.
    fn may_be_used_in_outage(&self, known: KnownVisibility) -> bool {
        !known.public || known.is_younger_than(self.context.config.stale_if_error)
    }

    /// Asks the upstream, and remembers the answer.
    fn probe(
        &self,
        upstream: &Upstream,
        repo: &RepoId,
        wanted: Option<Reference>,
    ) -> impl Future<Output = Result<bool, PullError>> + Send + 'static {
        let (context, anonymous, repo) = (self.context.clone(), upstream.without_credentials(), repo.clone());
        async move {
            let shown = what_is_shown(&anonymous, &repo, wanted.as_ref(), context.deadline()).await?;
            let public = shown != Shown::Nothing;
            let before = context.visibilities.known.get(&repo).filter(|before| !before.public && !public);
            let repeated = before.map_or(0, |before| before.repeated.saturating_add(1));
            let elapsed = if shown == Shown::Tag { PUBLIC_PERIOD - LISTED_PERIOD } else { Duration::ZERO };
            let known = KnownVisibility { public, at: seconds_now().saturating_sub(elapsed.as_secs()), repeated };
            context.visibilities.known.insert(repo.clone(), known);
            context.notes.remember_visibility(&repo, known).await;
            Ok(public)
        }
    }
}

// === impl KnownVisibility ===

impl KnownVisibility {
    /// Whether it holds without asking the upstream. Never after the clock was set back.
    fn is_recent(&self) -> bool {
        let of_private = FIRST_PRIVATE_PERIOD.saturating_mul(1 << self.repeated.min(16)).min(LAST_PRIVATE_PERIOD);
        let period = if self.public { PUBLIC_PERIOD } else { of_private };
        self.is_younger_than(period)
    }

    fn is_younger_than(&self, period: Duration) -> bool {
        seconds_now().checked_sub(self.at).is_some_and(|age| Duration::from_secs(age) < period)
    }
}

/// Whether the upstream could not be asked. If it refuses a request without credentials in a way that is not a registry's, or
/// sends a page, it may have ceased to show the repository.
fn is_outage(error: &PullError) -> bool {
    match error {
        PullError::BadDocument { .. } | PullError::Upstream(UpstreamError::Challenge { .. }) => false,
        PullError::Upstream(UpstreamError::Status { status, .. }) => status.is_server_error(),
        _ => true,
    }
}

/// What the upstream shows to requests without credentials. Only a manifest makes a repository public: that which the client
/// wants, or else one that is in the list of tags. One that is refused or absent says little, as clients choose it. While
/// the upstream limits pulls, a tag must do.
async fn what_is_shown(
    anonymous: &Upstream,
    repo: &RepoId,
    wanted: Option<&Reference>,
    deadline: Instant,
) -> Result<Shown, PullError> {
    let wanted = match wanted {
        Some(reference) => Some(see_manifest(anonymous, repo, reference, deadline).await),
        None => None,
    };
    if matches!(wanted, Some(Ok(Seen::Content))) {
        return Ok(Shown::Manifest);
    }
    let listed = match listed_tag(anonymous, repo, deadline).await {
        Ok(Some(tag)) => match see_manifest(anonymous, repo, &Reference::Tag(tag), deadline).await {
            Err(error) if error.is_rate_limit() => return Ok(Shown::Tag),
            seen => seen,
        },
        Ok(None) => Ok(Seen::Absent),
        Err(error) => Err(error),
    };
    match (listed, wanted) {
        (Ok(Seen::Content), _) => Ok(Shown::Manifest),
        (Ok(Seen::Denied), _) | (_, Some(Ok(Seen::Denied))) => Ok(Shown::Nothing),
        (Ok(Seen::Absent), Some(Err(error))) | (Err(error), _) => Err(error),
        (Ok(Seen::Absent), _) => Err(PullError::NotFound),
    }
}

/// Asks for a manifest by HEAD. Only a GET can confirm that it is denied or absent: some registries refuse HEAD.
async fn see_manifest(
    anonymous: &Upstream,
    repo: &RepoId,
    reference: &Reference,
    deadline: Instant,
) -> Result<Seen, PullError> {
    let path = format!("manifests/{reference}");
    let of = |method| UpstreamRequest { effort: Effort::Extra, ..request(method, Kind::Manifest, repo, path.clone()) };
    let see = async |method| match anonymous.send(of(method), deadline).await {
        Ok(answer) if is_manifest(&answer, reference) => Ok(Seen::Content),
        Ok(_) => {
            let reason = "its answer to a request without credentials is no manifest".to_owned();
            Err(PullError::BadDocument { upstream: anonymous.name().clone(), reason })
        }
        Err(UpstreamError::Denied { .. }) => Ok(Seen::Denied),
        Err(UpstreamError::NotFound { .. }) => Ok(Seen::Absent),
        Err(error) => Err(error.into()),
    };
    match see(Method::HEAD).await {
        Ok(Seen::Content) => Ok(Seen::Content),
        Err(error) if !error.may_be_answered_by_get() => Err(error),
        _ => see(Method::GET).await,
    }
}

/// Whether the headers are those of the manifest. Other servers, and some registries, answer 200 to everything.
fn is_manifest(answer: &UpstreamResponse, reference: &Reference) -> bool {
    let digest: Option<Digest> = answer.docker_content_digest().and_then(|digest| digest.parse().ok());
    let fits = match (reference, &digest) {
        (Reference::Digest(wanted), Some(digest)) => digest == wanted || digest.algorithm() != wanted.algorithm(),
        _ => true,
    };
    let is_typed = answer.content_type().is_some_and(|found| media_type::MANIFESTS.contains(&found));
    answer.status == StatusCode::OK && fits && (is_typed || digest.is_some() && !answer.is_page())
}

/// A tag of the repository; `None` if the upstream shows none.
async fn listed_tag(anonymous: &Upstream, repo: &RepoId, deadline: Instant) -> Result<Option<Tag>, PullError> {
    let get =
        UpstreamRequest { effort: Effort::Extra, ..request(Method::GET, Kind::Tags, repo, "tags/list?n=1".to_owned()) };
    match first_tag(anonymous, &get, deadline).await {
        Err(error) if error.is_not_found() => Ok(None),
        Err(PullError::Upstream(UpstreamError::Denied { .. })) => Ok(None),
        listed => listed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_known_holds_for_a_day_or_from_a_minute_to_an_hour() {
        let known = |public, age: u64, repeated| KnownVisibility { public, at: seconds_now() - age, repeated };
        const DAY: u64 = 24 * 60 * 60;
        assert!(known(true, DAY - 100, 0).is_recent() && !known(true, DAY + 100, 0).is_recent());
        assert!(known(false, 30, 0).is_recent() && !known(false, 90, 0).is_recent());
        assert!(known(false, 90, 1).is_recent() && !known(false, 150, 1).is_recent());
        for repeated in [6, 31, u32::MAX] {
            assert!(known(false, 3500, repeated).is_recent() && !known(false, 3700, repeated).is_recent());
        }
        assert!(!KnownVisibility { public: true, at: seconds_now() + 100, repeated: 0 }.is_recent());
    }

    #[test]
    fn an_upstream_that_refuses_or_sends_pages_has_no_outage() {
        let upstream: Arc<str> = "docker.io".into();
        let status =
            |status: StatusCode| UpstreamError::Status { upstream: upstream.clone(), status, retry_after: None };
        for (error, expected) in [
            (status(StatusCode::BAD_GATEWAY), true),
            (UpstreamError::RateLimited { upstream: upstream.clone(), retry_after: None }, true),
            (UpstreamError::Timeout { upstream: upstream.clone(), what: "x" }, true),
            (status(StatusCode::FORBIDDEN), false),
            (UpstreamError::Challenge { upstream: upstream.clone(), challenge: "x".into() }, false),
        ] {
            assert_eq!(is_outage(&error.clone().into()), expected, "{error}");
        }
    }
}

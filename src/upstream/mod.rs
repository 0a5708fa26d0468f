//! HTTP requests to other registries.
//!
//! An [`Upstream`] is one configured registry. [`Upstream::send`] performs one logical request, which may need several
//! HTTP requests: it tries the URLs in order, answers challenges, fetches tokens and follows redirects (`send`), and
//! retries all of that after a pause (`rounds`). It returns the headers of a usable response and its body as a stream,
//! or an [`UpstreamError`]. The error says whether the upstream answered about the content (`NotFound`, `Denied`) or
//! failed.
//!
//! After repeated failures the circuit breaker withholds requests until a probe succeeds (`breaker`, `probe`). After
//! a 429, requests that the limit applies to are withheld (`limits`). Requests in progress are bounded (`in_flight`).
//! The text for each error is in `error`.
//!
//! All HTTP requests of the server are sent here. This module neither verifies nor stores content, and knows neither
//! the store nor the server's own clients. A host that is not configured is contacted only if a configured one
//! redirects to it, within the rules of `allowed_hosts`.

mod allowed_hosts;
mod auth;
mod breaker;
mod cause;
mod challenge;
mod client;
mod credentials;
mod error;
mod hidden_names;
mod hops;
mod identity;
mod in_flight;
mod limits;
mod probe;
mod remote;
mod response;
mod retry_after;
mod rounds;
mod send;
#[cfg(test)]
mod tests;
mod tls;
mod token;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use http::Method;
use tokio::time::Instant;

use crate::config::{OnDenied, UpstreamConfig};
use crate::oci::RepoName;
use crate::tasks::Tasks;
use crate::telemetry::Metrics;

use credentials::Login;
use remote::Remote;

/// Time for which an upstream that ignored a range gets range requests only for resumes.
const NO_RANGES_PERIOD: Duration = Duration::from_secs(60 * 60);

pub use breaker::BreakerState;
pub use cause::causes;
pub use error::{UpstreamError, UpstreamSetupError};
pub use hops::Hops;
pub use response::{UpstreamBody, UpstreamResponse};

/// One configured registry, as used by one client's request. Clones use the same registry.
#[derive(Clone)]
pub struct Upstream {
    remote: Arc<Remote>,
    /// For requests without credentials; `None` if there are no credential rules.
    anonymous: Option<Arc<Remote>>,
    /// The hops of the client's request, which are forwarded in `Via`.
    hops: Hops,
}

/// One request to an upstream.
#[derive(Debug, Clone)]
pub struct UpstreamRequest {
    /// What is requested.
    pub kind: Kind,
    /// GET or HEAD.
    pub method: Method,
    /// The repository, without the upstream's host.
    pub repository: RepoName,
    /// The rest of the path after `/v2/<repository>/`, with its query: `manifests/latest`, `tags/list?n=100`.
    pub path: String,
    /// First and last byte, both inclusive. There are no open ranges, because some registries reject them.
    pub range: Option<(u64, u64)>,
    /// An entity tag. If the content still has it, the response is 304.
    pub if_none_match: Option<String>,
    /// With `range`: a strong entity tag. If the content has changed, the complete content is sent instead of the range
    /// (RFC 9110, section 13.1.5).
    pub if_range: Option<String>,
    /// Number of URLs, from the first one, that are tried last because a transfer from them broke or was wrong.
    pub skip_urls: usize,
    /// How often the request is retried.
    pub effort: Effort,
}

/// How often a request is retried within its deadline.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Effort {
    /// Several rounds over all URLs, with growing pauses.
    #[default]
    Rounds,
    /// One round over all URLs.
    Once,
    /// One round, even if the circuit is open. For the rest of a transfer, which has retries of its own.
    Resume,
    /// One round. For a request that is not needed, such as a further transfer of a blob that is being transferred. A 429
    /// pauses no other requests: the upstream may only limit the number of connections, or pulls.
    Extra,
}

/// What is requested. Determines the HTTP client, the `Accept` header and the metrics label.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    Manifest,
    Blob,
    Tags,
    Referrers,
}

/// Identifies which credentials of an upstream are used. Two values are equal if the credential rule is the same and,
/// for Docker's file, also the login in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CredentialId {
    /// The position of the rule. `None`: no rule is for the repository.
    rule: Option<usize>,
    /// `None`: all repositories of the rule use the same credentials.
    login: Option<Login>,
}

// === impl Upstream ===

impl Upstream {
    /// Creates an upstream from its configuration, without network access. Its background work runs in `tasks`.
    ///
    /// `via` is this server's name in `Via` (RFC 9110, section 7.6.3): `roadstead-<instance>`.
    ///
    /// # Errors
    /// If a TLS file cannot be read or parsed, or a value cannot be sent in an HTTP header.
    pub fn new(
        config: &UpstreamConfig,
        via: &str,
        metrics: Arc<Metrics>,
        tasks: Tasks,
    ) -> Result<Self, UpstreamSetupError> {
        let remote = Remote::new(config, via, metrics, tasks)?;
        let has_rules = !config.credentials.is_empty();
        let anonymous = has_rules.then(|| remote.without_credentials(config, via).map(Arc::new)).transpose()?;
        Ok(Self { remote: Arc::new(remote), anonymous, hops: Hops::default() })
    }

    /// The same upstream for a client's request with these hops. They precede this server in `Via`, so that the first
    /// server that is passed twice detects a loop.
    #[must_use]
    pub fn with_hops(&self, hops: Hops) -> Self {
        Self { hops, ..self.clone() }
    }

    /// The same upstream for requests without credentials, which get what everybody gets there. They are not on behalf of a
    /// client, whose `Via` could make them fail.
    #[must_use]
    pub fn without_credentials(&self) -> Self {
        let remote = self.anonymous.as_ref().unwrap_or(&self.remote).clone();
        Self { remote, anonymous: None, hops: Hops::default() }
    }

    /// Whether a credential rule is for the repository. Its source may have no credentials.
    pub fn has_credential_rule(&self, repository: &RepoName) -> bool {
        self.remote.keyring.has_rule(repository.as_str())
    }

    /// The configured name, such as `docker.io`.
    pub fn name(&self) -> &Arc<str> {
        &self.remote.name
    }

    /// The credentials for a repository. Requests with different ids must not share a response.
    ///
    /// While Docker's file was not read, each repository has an id of its own: see [`Self::read_credentials`].
    pub fn credential(&self, repository: &RepoName) -> CredentialId {
        self.remote.keyring.id(repository.as_str())
    }

    /// Reads Docker's file, if it has the credentials for a repository and was not checked for changes recently. So
    /// that repositories with the same login have the same [`CredentialId`].
    pub async fn read_credentials(&self, repository: &RepoName, deadline: Instant) {
        self.remote.keyring.read(repository.as_str(), deadline).await;
    }

    /// Whether requests for a repository use credentials. Before the first request this may be false although a file or
    /// program has some, because it was not read yet.
    pub fn has_credentials(&self, repository: &RepoName) -> bool {
        self.remote.keyring.has(repository.as_str())
    }

    /// How a denied request for cached content is treated.
    pub fn on_denied(&self, repository: &RepoName) -> OnDenied {
        self.remote.on_denied.unwrap_or_else(|| OnDenied::default_for(self.has_credentials(repository)))
    }

    /// Time limit for the next bytes of a body.
    pub fn idle_timeout(&self) -> Duration {
        self.remote.idle_timeout
    }

    /// Lowest transfer rate in bytes per second; zero: no limit.
    pub fn min_rate(&self) -> u64 {
        self.remote.min_rate
    }

    /// Largest number of concurrent fills from this upstream.
    pub fn max_fills(&self) -> usize {
        self.remote.max_fills
    }

    /// The number of connections that receive one large blob.
    pub fn connections(&self) -> usize {
        self.remote.connections
    }

    /// Whether it has several URLs, so that another one may send what one of them does not.
    pub fn has_several_urls(&self) -> bool {
        self.remote.urls.len() > 1
    }

    /// False if the upstream has ignored or refused a range of a blob in the last hour.
    pub fn serves_ranges(&self) -> bool {
        self.remote.ignored_range.lock().is_none_or(|ignored| ignored.elapsed() >= NO_RANGES_PERIOD)
    }

    /// Records that the upstream sent a complete blob in response to a request for a range, or after it had refused the
    /// range.
    pub fn note_ignored_range(&self) {
        let ignored_before = self.remote.ignored_range.lock().replace(Instant::now());
        if ignored_before.is_none() {
            tracing::info!(
                upstream = %self.name(),
                "the upstream does not serve ranges of blobs; blobs are fetched by one connection each"
            );
        }
    }

    /// The state of the circuit breaker.
    pub fn breaker_state(&self) -> BreakerState {
        self.remote.breaker.lock().state(Instant::now())
    }

    /// Whether the account for a repository has so few pulls left that they should be kept for content that is not
    /// cached.
    pub fn is_scarce(&self, repository: &RepoName) -> bool {
        let is_scarce = |url| {
            let account = self.remote.account_at(url, repository);
            self.remote.limits.read(account, |limits| limits.is_scarce(Instant::now()))
        };
        self.remote.limits.may_be_scarce() && self.remote.urls.iter().any(is_scarce)
    }
}

impl fmt::Debug for Upstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Upstream").field("name", self.name()).finish_non_exhaustive()
    }
}

// === impl Kind ===

impl Kind {
    /// The value of the `kind` label in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Manifest => "manifest",
            Self::Blob => "blob",
            Self::Tags => "tags",
            Self::Referrers => "referrers",
        }
    }
}

// === impl CredentialId ===

impl CredentialId {
    /// No rule: requests without credentials.
    pub const ANONYMOUS: Self = Self { rule: None, login: None };
}

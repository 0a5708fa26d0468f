//! Asking the registries that images come from.
//!
//! An [`Upstream`] is one configured registry. [`Upstream::send`] takes one request and does on the wire what it
//! takes to get an answer: the URLs in their order, challenges and tokens, redirects (`send`), and all that again after
//! a pause where that may help (`rounds`). It returns with the head of a usable answer and a body to read, or with an
//! [`UpstreamError`] that says whether the upstream spoke about the content (`NotFound`, `Denied`) or was in trouble.
//!
//! An upstream that fails again and again is left alone until a probe finds it alive (`breaker`, `probe`), and one that
//! limits us is not asked what its limit covers (`limits`).
//!
//! This is the only place that sends HTTP requests. It verifies no content, keeps none, and knows neither the store
//! nor our own clients. A host that is not configured is reached only where a configured one sends us, within the
//! rules of the `trust` module.

mod auth;
mod breaker;
mod challenge;
mod client;
mod credentials;
mod error;
mod hops;
mod identity;
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
mod trust;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use http::Method;
use tokio::time::Instant;

use crate::config::{OnDenied, UpstreamConfig};
use crate::oci::RepoName;
use crate::tasks::Tasks;
use crate::telemetry::Metrics;

use remote::Remote;

pub use breaker::BreakerState;
pub use error::{UpstreamError, UpstreamSetupError};
pub use hops::Hops;
pub use response::{UpstreamBody, UpstreamResponse};

/// One registry that images come from, as one client's request asks it. Clones ask the same registry.
#[derive(Clone)]
pub struct Upstream {
    remote: Arc<Remote>,
    /// What the client's request has come through, and ours therefore, too.
    hops: Hops,
}

/// One thing to ask of an upstream.
#[derive(Debug, Clone)]
pub struct UpstreamRequest {
    pub kind: Kind,
    /// GET or HEAD.
    pub method: Method,
    pub repository: RepoName,
    /// What follows `/v2/<repository>/`, query included: `manifests/latest`, `tags/list?n=100`.
    pub path: String,
    /// First and last byte, both included. Closed ranges only: some registries refuse open ones.
    pub range: Option<(u64, u64)>,
    pub if_none_match: Option<String>,
    /// With `range`: a strong entity tag; content that has changed since comes whole (RFC 9110, 13.1.5).
    pub if_range: Option<String>,
    /// URLs that are asked after the others, because a transfer from them broke.
    pub skip_urls: usize,
    pub effort: Effort,
}

/// How much is done to get an answer, within the deadline.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Effort {
    /// Several rounds over the URLs, with growing pauses.
    #[default]
    Rounds,
    /// One round: there is another way to what is wanted.
    Once,
    /// One round, also while the upstream is left alone: the rest of a transfer, by somebody who tries again himself.
    Resume,
}

/// What a request is for: decides on its client, its `Accept`, and where it is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    Manifest,
    Blob,
    Tags,
    Referrers,
}

/// Which of an upstream's credentials are used, without saying what they are. Anonymous equals only anonymous.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct CredentialId(Option<usize>);

// === impl Upstream ===

impl Upstream {
    /// Sets an upstream up as configured, without touching the network. What it does beside requests runs in `tasks`.
    ///
    /// `via` is how we call ourselves to others (RFC 9110, 7.6.3): `roadstead-<instance>`.
    ///
    /// # Errors
    /// When a file for TLS cannot be read or holds nothing of its kind, and for what cannot be put into a header.
    pub fn new(
        config: &UpstreamConfig,
        via: &str,
        metrics: Arc<Metrics>,
        tasks: Tasks,
    ) -> Result<Self, UpstreamSetupError> {
        Ok(Self { remote: Arc::new(Remote::new(config, via, metrics, tasks)?), hops: Hops::default() })
    }

    /// The same, asked for a request that came through these: they stand in `Via` before ourselves, so that a loop
    /// over several servers is seen by the first of them that is passed twice.
    #[must_use]
    pub fn behind(&self, hops: Hops) -> Self {
        Self { remote: self.remote.clone(), hops }
    }

    /// The name it is configured under: `docker.io`.
    pub fn name(&self) -> &Arc<str> {
        &self.remote.name
    }

    /// Part of what makes two requests for one digest the same: others' rights are not ours.
    pub fn credential(&self, repository: &RepoName) -> CredentialId {
        self.remote.keyring.id(repository.as_str())
    }

    /// Whether requests for a repository use credentials. True after the first one; before it, a file or program that
    /// may have some has not been asked.
    pub fn has_credentials(&self, repository: &RepoName) -> bool {
        self.remote.keyring.has(repository.as_str())
    }

    /// What a denial means for content that is cached.
    pub fn on_denied(&self, repository: &RepoName) -> OnDenied {
        self.remote.on_denied.unwrap_or_else(|| OnDenied::default_for(self.has_credentials(repository)))
    }

    /// Of silence in a body.
    pub fn idle_timeout(&self) -> Duration {
        self.remote.idle_timeout
    }

    /// Bytes a second below which a body counts as cut; zero: none.
    pub fn min_rate(&self) -> u64 {
        self.remote.min_rate
    }

    /// Blobs that may be fetched at once.
    pub fn max_fills(&self) -> usize {
        self.remote.max_fills
    }

    /// Whether it is asked, or left alone after failures.
    pub fn breaker_state(&self) -> BreakerState {
        self.remote.breaker.lock().report(Instant::now())
    }

    /// Whether so few pulls are left to us there that they are to be kept for what is not cached at all.
    pub fn is_scarce(&self) -> bool {
        self.remote.limits.lock().is_scarce(Instant::now())
    }
}

impl fmt::Debug for Upstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Upstream").field("name", self.name()).finish_non_exhaustive()
    }
}

// === impl Kind ===

impl Kind {
    /// As in the metrics' `kind` label.
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
    pub const ANONYMOUS: Self = Self(None);
}

//! Asking the registries that images come from.
//!
//! An [`Upstream`] is one configured registry. [`Upstream::send`] takes one request and does on the wire what it
//! takes to get an answer: the URLs in their order, challenges and tokens, redirects. It returns with the head of a
//! usable answer and a body to read, or with an [`UpstreamError`] that says whether the upstream spoke about the
//! content (`NotFound`, `Denied`) or was in trouble.
//!
//! This is the only place that sends HTTP requests. It verifies no content, keeps none, and knows neither the store
//! nor our own clients. A host that is not configured is reached only where a configured one sends us, within the
//! rules of the `trust` module.

mod auth;
mod challenge;
mod client;
mod error;
mod response;
mod retry_after;
mod send;
#[cfg(test)]
mod tests;
mod token;
mod trust;

use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use http::Method;
use http::header::HeaderValue;
use tokio::sync::OnceCell;
use url::Url;

use crate::config::{OnDenied, Secret, UpstreamConfig};
use crate::oci::RepoName;
use crate::telemetry::Metrics;

use auth::Authorizer;
use client::{ClientSetup, Wire};
use token::Tokens;
use trust::Trust;

pub use error::{UpstreamError, UpstreamSetupError};
pub use response::{UpstreamBody, UpstreamResponse};

/// One registry that images come from.
///
/// Costs next to nothing until it is first asked: the HTTP clients are built then, and the certificates of the system
/// are read once for the process.
pub struct Upstream {
    name: Arc<str>,
    /// At least one, tried in order.
    urls: Vec<Url>,
    credentials: Option<Credentials>,
    on_denied: OnDenied,
    header_timeout: Duration,
    idle_timeout: Duration,
    min_rate: u64,
    max_fills: usize,
    trust: Arc<Trust>,
    metrics: Arc<Metrics>,
    setup: Arc<ClientSetup>,
    live: OnceCell<Live>,
}

/// What an upstream has once it was asked.
struct Live {
    wire: Wire,
    auth: Authorizer,
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
}

/// What a request is for: decides on its client, its `Accept`, and where it is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    Manifest,
    Blob,
    Tags,
    Referrers,
}

/// Which credentials are used, without saying what they are. Anonymous equals only anonymous.
///
/// Meaningful within one run of the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct CredentialId(Option<u64>);

#[derive(Clone)]
struct Credentials {
    id: CredentialId,
    username: String,
    password: Secret,
    /// `Basic …`, marked sensitive.
    basic: HeaderValue,
}

// === impl Upstream ===

impl Upstream {
    /// Sets an upstream up as configured, without touching the network.
    ///
    /// `via` is how we call ourselves to others (RFC 9110, 7.6.3): `roadstead-<instance>`.
    ///
    /// # Errors
    /// When `ca_file` cannot be read or holds no certificate, and for what cannot be put into a header.
    pub fn new(config: &UpstreamConfig, via: &str, metrics: Arc<Metrics>) -> Result<Self, UpstreamSetupError> {
        let upstream = || config.name.clone();
        if config.urls.is_empty() {
            return Err(UpstreamSetupError::NoUrl { upstream: upstream() });
        }
        let via = HeaderValue::try_from(format!("1.1 {via}"));
        let via =
            via.map_err(|_| UpstreamSetupError::Header { upstream: upstream(), what: "the name of this instance" })?;
        let extra_roots = match &config.ca_file {
            Some(path) => client::read_ca_file(path).map_err(|cause| UpstreamSetupError::CaFile {
                upstream: upstream(),
                path: path.clone(),
                cause,
            })?,
            None => Vec::new(),
        };
        Ok(Self {
            name: config.name.as_str().into(),
            urls: config.urls.clone(),
            credentials: Credentials::new(config)?,
            on_denied: config.on_denied,
            header_timeout: config.header_timeout,
            idle_timeout: config.idle_timeout,
            min_rate: config.min_rate,
            max_fills: config.max_fills,
            trust: Arc::new(Trust::new(config)),
            metrics,
            setup: Arc::new(ClientSetup {
                via,
                connect_timeout: config.connect_timeout,
                extra_roots,
                use_proxy: !config.urls.iter().all(client::is_loopback),
            }),
            live: OnceCell::new(),
        })
    }

    /// The name it is configured under: `docker.io`.
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// Part of what makes two requests for one digest the same: others' rights are not ours.
    pub fn credential(&self) -> CredentialId {
        self.credentials.as_ref().map_or(CredentialId::ANONYMOUS, |credentials| credentials.id)
    }

    pub fn has_credentials(&self) -> bool {
        self.credentials.is_some()
    }

    /// What a denial means for content that is cached.
    pub fn on_denied(&self) -> OnDenied {
        self.on_denied
    }

    /// Of silence in a body.
    pub fn idle_timeout(&self) -> Duration {
        self.idle_timeout
    }

    /// Bytes a second below which a body counts as cut; zero: none.
    pub fn min_rate(&self) -> u64 {
        self.min_rate
    }

    /// Blobs that may be fetched at once.
    pub fn max_fills(&self) -> usize {
        self.max_fills
    }

    async fn live(&self) -> Result<&Live, UpstreamError> {
        self.live.get_or_try_init(|| self.build()).await
    }

    async fn build(&self) -> Result<Live, UpstreamError> {
        let (name, setup) = (self.name.clone(), self.setup.clone());
        let (trust, metrics) = (self.trust.clone(), self.metrics.clone());
        let built = tokio::task::spawn_blocking(move || Wire::build(&name, &setup, &trust, &metrics)).await;
        let wire = built.unwrap_or_else(|error| {
            Err(UpstreamError::Connect { upstream: self.name.clone(), cause: error.to_string().into() })
        })?;
        let tokens = Tokens::new(&self.name, self.header_timeout);
        let auth = Authorizer::new(&self.name, &self.trust, self.credentials.clone(), tokens);
        Ok(Live { wire, auth })
    }
}

impl fmt::Debug for Upstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Upstream").field("name", &self.name).finish_non_exhaustive()
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

    fn of(username: &str, password: &str) -> Self {
        /// Keyed afresh by every process, so that an id says nothing about a password.
        static KEY: LazyLock<RandomState> = LazyLock::new(RandomState::new);
        Self(Some(KEY.hash_one((username, password))))
    }
}

// === impl Credentials ===

impl Credentials {
    fn new(config: &UpstreamConfig) -> Result<Option<Self>, UpstreamSetupError> {
        let (Some(username), Some(password)) = (&config.username, &config.password) else {
            return Ok(None);
        };
        let secret = password.expose();
        let encoded = BASE64_STANDARD.encode(format!("{username}:{secret}"));
        let basic = HeaderValue::try_from(format!("Basic {encoded}"));
        let mut basic =
            basic.map_err(|_| UpstreamSetupError::Header { upstream: config.name.clone(), what: "the password" })?;
        basic.set_sensitive(true);
        let id = CredentialId::of(username, secret);
        Ok(Some(Self { id, username: username.clone(), password: password.clone(), basic }))
    }
}

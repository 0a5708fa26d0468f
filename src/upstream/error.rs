//! Errors of requests to upstreams, and their texts for clients.
//!
//! The `Display` text of [`UpstreamError`] is also the text that a client reads: it names the upstream, the cause and,
//! if there is one, the remedy. The texts for connections and untrusted certificates are in `cause`.
//! `http::error` decides the status, the code and the headers of the response, and replaces the text of
//! [`UpstreamError::Credentials`], whose cause may name local files and programs.

use std::error::Error;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use http::header::{HeaderMap, WWW_AUTHENTICATE};

use super::allowed_hosts::ForbiddenAddress;
use super::cause;
use crate::printable;

/// What a request waited for if it timed out before a connection was made.
const CONNECTING: &str = "connecting";
/// When a request that was refused because of others may succeed.
const OVERLOADED_RETRY_AFTER: Duration = Duration::from_secs(2);
/// Largest number of bytes of a challenge that an error repeats.
const MAX_CHALLENGE_BYTES: usize = 300;

/// Why a request to an upstream failed.
///
/// An error is shared by all requests that waited for the same content, hence `Clone`. No text contains a credential, a
/// token, or the query of a URL (storage services sign their URLs there).
#[derive(Debug, Clone, thiserror::Error)]
pub enum UpstreamError {
    /// 404: the upstream does not have the content.
    #[error("{upstream} does not have the requested content")]
    NotFound { upstream: Arc<str> },

    /// One response of the upstream says that the content does not exist, and another response contradicts it or is
    /// missing. Two URLs disagree, or a tag names a manifest that does not exist.
    #[error("{upstream} gives contradictory answers about the requested content; try again later")]
    Contradicted { upstream: Arc<str> },

    /// 401 or 403, after one retry with a new token if the upstream uses tokens.
    #[error("{upstream} denies access ({status}); check the name of the image and the credentials for it")]
    Denied { upstream: Arc<str>, status: StatusCode },

    /// 401 with a challenge that cannot be answered: without a usable realm, or of an unknown scheme. It says nothing
    /// about the content. `challenge` is the header as sent, shortened.
    #[error(
        "{upstream} requires authentication by a challenge that cannot be answered ({challenge}); \
         check the realm that it sends in WWW-Authenticate, and proxies in front of it"
    )]
    Challenge { upstream: Arc<str>, challenge: Arc<str> },

    /// 429, or a request withheld because of an earlier 429. `retry_after`: as sent, or the remaining time.
    #[error("{upstream} limits the rate of requests; try again later")]
    RateLimited { upstream: Arc<str>, retry_after: Option<Duration> },

    /// Any other 4xx or 5xx status.
    #[error("{upstream} answered with status {status}{}", remedy(*status))]
    Status { upstream: Arc<str>, status: StatusCode, retry_after: Option<Duration> },

    /// No connection: refused, unknown host or a failed TLS handshake. No request was sent.
    #[error("cannot reach {upstream}: {cause}; check the network, the resolver and upstream.\"{upstream}\".url")]
    Connect { upstream: Arc<str>, cause: Arc<str> },

    /// This server has no file descriptor or memory for a connection. No request was sent, and the upstream has not
    /// failed. `cause` names the limit and the remedy.
    #[error("cannot open a connection to {upstream}: {cause}")]
    LocalLimit { upstream: Arc<str>, cause: &'static str },

    /// The upstream's certificate is not trusted. No request was sent.
    #[error("the certificate of {upstream} is not trusted: {cause}")]
    Certificate { upstream: Arc<str>, cause: Arc<str> },

    /// The circuit breaker is open. No request was sent; the next probe is sent after `retry_after`.
    #[error("{upstream} failed repeatedly and gets no requests until it answers a probe; try again later")]
    CircuitOpen { upstream: Arc<str>, retry_after: Duration },

    /// Too many requests to the upstream are in progress. No request was sent.
    #[error("too many requests to {upstream} are in progress; try again in a few seconds")]
    Overloaded { upstream: Arc<str> },

    /// The file or program that should provide credentials failed. No request was sent.
    #[error("no credentials for {upstream}: {cause}")]
    Credentials { upstream: Arc<str>, cause: Arc<str> },

    /// A time limit was reached. `what` says what was waited for.
    #[error("the request to {upstream} timed out: {what}")]
    Timeout { upstream: Arc<str>, what: &'static str },

    /// The connection ended before the response was complete.
    #[error("the connection to {upstream} broke: {cause}")]
    Interrupted { upstream: Arc<str>, cause: Arc<str> },

    /// A response that is malformed, or a redirect that may not be followed.
    #[error("{upstream} sent an unusable response: {reason}")]
    BadResponse { upstream: Arc<str>, reason: Arc<str> },
}

/// What may help against a status.
fn remedy(status: StatusCode) -> &'static str {
    match status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
            ", which is no answer of a registry; check the credentials and the proxies in front of it"
        }
        _ => "",
    }
}

/// Why an upstream cannot be used as configured. Reported at the start.
#[derive(Debug, thiserror::Error)]
pub enum UpstreamSetupError {
    #[error("upstream.\"{upstream}\": has no url; set url")]
    NoUrl { upstream: String },
    #[error("upstream.\"{upstream}\".{key}: {}: {cause}", path.display())]
    TlsFile { upstream: String, key: &'static str, path: PathBuf, cause: String },
    #[error("upstream.\"{upstream}\": {what} contains characters that are not allowed in an HTTP header")]
    Header { upstream: String, what: &'static str },
}

// === impl UpstreamError ===

impl UpstreamError {
    /// Whether the upstream does not have the content. Of these errors, only this one may become a 404 for a client.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::NotFound { .. })
    }

    /// Whether the error says nothing about the content, so that a cached response is better.
    ///
    /// A denied request is not a failure in this sense: `on_denied` decides what it means.
    pub fn is_upstream_failure(&self) -> bool {
        !matches!(self, Self::NotFound { .. } | Self::Denied { .. })
    }

    /// How long to wait before the next request, if known.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::RateLimited { retry_after, .. } | Self::Status { retry_after, .. } => *retry_after,
            Self::CircuitOpen { retry_after, .. } => Some(*retry_after),
            Self::Overloaded { .. } => Some(OVERLOADED_RETRY_AFTER),
            _ => None,
        }
    }

    /// Whether another URL of the same upstream may succeed.
    pub(super) fn is_worth_another_url(&self) -> bool {
        match self {
            // The next URL may have the content that this one lacks, or may allow the access that this one denies.
            Self::NotFound { .. } | Self::Contradicted { .. } | Self::Denied { .. } | Self::Challenge { .. } => true,
            Self::Status { .. } | Self::BadResponse { .. } | Self::Certificate { .. } => true,
            // Another host has limits of its own.
            Self::RateLimited { .. } => true,
            _ => self.is_outage(),
        }
    }

    /// The error of a request that one URL answered with `self` and a later one with `later`. `anonymous`: the request
    /// had no credentials, so that a denial may mean that the content does not exist.
    pub(super) fn combined_with(self, later: Self, anonymous: bool) -> Self {
        match (&self, &later) {
            // The limit that ends first decides when to try again.
            (Self::RateLimited { retry_after: Some(one), .. }, Self::RateLimited { retry_after: Some(other), .. })
                if one < other =>
            {
                self
            }
            (Self::NotFound { .. }, Self::NotFound { .. }) | (_, Self::RateLimited { .. }) => later,
            // A retry may succeed at the URL without a limit.
            (Self::RateLimited { .. }, later_failure) if later_failure.is_outage() => later,
            (Self::RateLimited { .. }, _) => self,
            // One URL says that the content does not exist, and another one could not be asked.
            (Self::NotFound { upstream } | Self::Contradicted { upstream }, _)
            | (_, Self::NotFound { upstream } | Self::Contradicted { upstream }) => {
                Self::Contradicted { upstream: upstream.clone() }
            }
            (Self::Denied { .. }, _) => later,
            // The URL that failed may have the content. What it has is not known from the other one.
            (_, Self::Denied { .. }) if anonymous => self,
            // No URL says that the content does not exist.
            _ => later,
        }
    }

    /// Whether this response to a HEAD does not predict the response to a GET. Some registries and storage services
    /// refuse HEAD or answer it wrongly (moby/moby#50065, buildbuddy-io/buildbuddy#12635).
    pub(super) fn may_concern_head_only(&self) -> bool {
        matches!(
            self,
            Self::NotFound { .. }
                | Self::Contradicted { .. }
                | Self::Denied { .. }
                | Self::Challenge { .. }
                | Self::Status { .. }
                | Self::Timeout { .. }
                | Self::Interrupted { .. }
                | Self::BadResponse { .. }
        )
    }

    /// Whether no connection could be made, so that the failure concerns every request.
    pub(super) fn is_connection_failure(&self) -> bool {
        match self {
            Self::Connect { .. } | Self::Certificate { .. } => true,
            Self::Timeout { what, .. } => *what == CONNECTING,
            _ => false,
        }
    }

    /// Whether the upstream, or this server, has a problem that may be temporary, so that a retry may succeed.
    pub fn is_outage(&self) -> bool {
        match self {
            Self::Connect { .. } | Self::LocalLimit { .. } | Self::Timeout { .. } | Self::Interrupted { .. } => true,
            Self::Status { status, .. } => is_outage(*status),
            _ => false,
        }
    }

    /// A [`Self::BadResponse`].
    pub(super) fn bad(upstream: &Arc<str>, reason: impl Into<Arc<str>>) -> Self {
        Self::BadResponse { upstream: upstream.clone(), reason: reason.into() }
    }

    /// A [`Self::Challenge`]. `challenges` are the headers of the response.
    pub(super) fn challenge(upstream: &Arc<str>, headers: &HeaderMap) -> Self {
        let lines = headers.get_all(WWW_AUTHENTICATE).iter().map(|line| String::from_utf8_lossy(line.as_bytes()));
        let mut text = lines.collect::<Vec<_>>().join(", ");
        if text.is_empty() {
            text.push_str("401 without WWW-Authenticate");
        }
        if text.len() > MAX_CHALLENGE_BYTES {
            text.truncate(text.floor_char_boundary(MAX_CHALLENGE_BYTES));
            text.push('…');
        }
        Self::Challenge { upstream: upstream.clone(), challenge: printable::line(&text).into() }
    }

    /// A [`Self::Timeout`].
    pub(super) fn timeout(upstream: &Arc<str>, what: &'static str) -> Self {
        Self::Timeout { upstream: upstream.clone(), what }
    }

    /// A [`Self::Interrupted`], with the error's causes as text.
    pub(super) fn interrupted(upstream: &Arc<str>, error: reqwest::Error) -> Self {
        Self::Interrupted { upstream: upstream.clone(), cause: cause::plain(error).into() }
    }

    /// The error of a request that received no response headers.
    pub(super) fn from_send(upstream: &Arc<str>, error: reqwest::Error) -> Self {
        if let Some(forbidden) = find::<ForbiddenAddress>(&error) {
            return Self::bad(upstream, forbidden.to_string());
        }
        if let Some(cause) = cause::local_limit(&error) {
            return Self::LocalLimit { upstream: upstream.clone(), cause };
        }
        if error.is_connect() && error.is_timeout() {
            return Self::timeout(upstream, CONNECTING);
        }
        if let Some(refused) = cause::refused_certificate(&error) {
            let cause = cause::certificate_text(refused, upstream);
            return Self::Certificate { upstream: upstream.clone(), cause: cause.into() };
        }
        if error.is_connect() {
            return Self::Connect { upstream: upstream.clone(), cause: cause::plain(error).into() };
        }
        Self::interrupted(upstream, error)
    }
}

/// Whether a 5xx status says that the server has a problem, rather than that it does not support the request (501, 505)
/// or that it is part of a loop (508).
pub(super) fn is_outage(status: StatusCode) -> bool {
    status.is_server_error() && !matches!(status.as_u16(), 501 | 505 | 508)
}

/// The first error of type `E` among an error and its sources.
fn find<'a, E: Error + 'static>(error: &'a (dyn Error + 'static)) -> Option<&'a E> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref() {
            return Some(found);
        }
        next = error.source();
    }
    None
}

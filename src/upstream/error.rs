//! What can go wrong between here and an upstream.

use std::error::Error;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;

use super::trust::ForbiddenAddress;

/// Why a request to an upstream gave nothing that can be used.
///
/// One failure is shared by all who waited for the same bytes, hence `Clone`. No message carries a credential,
/// a token, or the query of a URL (blob storage signs its URLs there).
#[derive(Debug, Clone, thiserror::Error)]
pub enum UpstreamError {
    /// 404: the upstream itself says that there is no such thing.
    #[error("{upstream} does not have it")]
    NotFound { upstream: Arc<str> },

    /// 401 or 403, after one attempt with a fresh token where the upstream hands out tokens.
    #[error("{upstream} denies access ({status})")]
    Denied { upstream: Arc<str>, status: StatusCode },

    /// 429.
    #[error("{upstream} limits our rate of requests")]
    RateLimited { upstream: Arc<str>, retry_after: Option<Duration> },

    /// Any other 4xx, and all 5xx.
    #[error("{upstream} answered {status}")]
    Status { upstream: Arc<str>, status: StatusCode, retry_after: Option<Duration> },

    /// No connection: refused, unknown host, TLS. No request was sent.
    #[error("{upstream} cannot be reached: {cause}")]
    Connect { upstream: Arc<str>, cause: Arc<str> },

    /// No connection that could be trusted. No request was sent.
    #[error("{upstream} shows a certificate that is not trusted: {cause}")]
    Certificate { upstream: Arc<str>, cause: Arc<str> },

    /// It has failed again and again: nobody waits for it until a probe finds it alive, the next in `retry_after`.
    #[error("{upstream} is in trouble and is left alone for a moment")]
    LeftAlone { upstream: Arc<str>, retry_after: Duration },

    /// A file or program that should give them does not. Nothing was sent.
    #[error("no credentials for {upstream}: {cause}")]
    Credentials { upstream: Arc<str>, cause: Arc<str> },

    #[error("{upstream} took too long: {what}")]
    Timeout { upstream: Arc<str>, what: &'static str },

    /// The connection ended before the answer did.
    #[error("the connection to {upstream} broke: {cause}")]
    Interrupted { upstream: Arc<str>, cause: Arc<str> },

    /// An answer that cannot be used, or that we refuse to follow.
    #[error("{upstream} sent a bad answer: {reason}")]
    BadResponse { upstream: Arc<str>, reason: Arc<str> },
}

/// Why an upstream cannot be set up as configured.
#[derive(Debug, thiserror::Error)]
pub enum UpstreamSetupError {
    #[error("upstream {upstream}: no url")]
    NoUrl { upstream: String },
    #[error("upstream {upstream}: {key} {}: {cause}", path.display())]
    TlsFile { upstream: String, key: &'static str, path: PathBuf, cause: String },
    #[error("upstream {upstream}: {what} cannot be sent in an HTTP header")]
    Header { upstream: String, what: &'static str },
}

// === impl UpstreamError ===

impl UpstreamError {
    /// Only this may become a 404 for the client without further thought.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::NotFound { .. })
    }

    /// Whether this says nothing about the content, so that a cached answer is better than this error.
    ///
    /// A denial is not trouble by itself: what it means is configured per upstream (`on_denied`).
    pub fn is_trouble(&self) -> bool {
        !matches!(self, Self::NotFound { .. } | Self::Denied { .. })
    }

    /// How long the upstream asks us to stay away, where it said so.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::RateLimited { retry_after, .. } | Self::Status { retry_after, .. } => *retry_after,
            Self::LeftAlone { retry_after, .. } => Some(*retry_after),
            _ => None,
        }
    }

    /// Whether another URL of the same upstream may do better.
    pub(super) fn is_worth_another_url(&self) -> bool {
        match self {
            Self::Status { status, .. } => status.is_server_error(),
            Self::Certificate { .. } => true,
            _ => self.is_outage(),
        }
    }

    /// Whether the upstream is not at its work, so that the same may go well a moment later.
    pub(super) fn is_outage(&self) -> bool {
        match self {
            Self::Connect { .. } | Self::Timeout { .. } | Self::Interrupted { .. } => true,
            Self::Status { status, .. } => is_outage(*status),
            _ => false,
        }
    }

    pub(super) fn bad(upstream: &Arc<str>, reason: impl Into<Arc<str>>) -> Self {
        Self::BadResponse { upstream: upstream.clone(), reason: reason.into() }
    }

    pub(super) fn timeout(upstream: &Arc<str>, what: &'static str) -> Self {
        Self::Timeout { upstream: upstream.clone(), what }
    }

    pub(super) fn interrupted(upstream: &Arc<str>, error: reqwest::Error) -> Self {
        Self::Interrupted { upstream: upstream.clone(), cause: chain(error) }
    }

    /// From a request that got no response head.
    pub(super) fn from_send(upstream: &Arc<str>, error: reqwest::Error) -> Self {
        if let Some(forbidden) = find::<ForbiddenAddress>(&error) {
            return Self::bad(upstream, forbidden.to_string());
        }
        if error.is_connect() && error.is_timeout() {
            return Self::timeout(upstream, "connecting");
        }
        if has_bad_certificate(&error) {
            return Self::Certificate { upstream: upstream.clone(), cause: chain(error) };
        }
        if error.is_connect() {
            return Self::Connect { upstream: upstream.clone(), cause: chain(error) };
        }
        Self::interrupted(upstream, error)
    }
}

/// The 5xx by which a server says that something is wrong with it, and not with what was asked: it cannot do that (501,
/// 505), or the way to it is a loop (508).
pub(super) fn is_outage(status: StatusCode) -> bool {
    status.is_server_error() && !matches!(status.as_u16(), 501 | 505 | 508)
}

/// As rustls says it, inside of the `io::Error`s of a connection.
fn has_bad_certificate(error: &reqwest::Error) -> bool {
    let mut next: Option<&(dyn Error + 'static)> = Some(error);
    while let Some(error) = next {
        if matches!(innermost(error).downcast_ref(), Some(rustls::Error::InvalidCertificate(_))) {
            return true;
        }
        next = error.source();
    }
    false
}

/// What `io::Error`s were made of, which they do not show as their source.
fn innermost<'a>(mut error: &'a (dyn Error + 'static)) -> &'a (dyn Error + 'static) {
    while let Some(inner) = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
        error = inner;
    }
    error
}

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

/// The causes below reqwest's own sentence, which would only repeat that a request failed and show its URL.
fn chain(error: reqwest::Error) -> Arc<str> {
    let error = error.without_url();
    let mut text = String::new();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            if !text.is_empty() {
                text.push_str(": ");
            }
            text.push_str(&cause_text);
        }
        next = cause.source();
    }
    if text.is_empty() { error.to_string().into() } else { text.into() }
}

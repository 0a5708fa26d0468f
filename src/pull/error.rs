//! The errors of serving mirrored content.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;

use crate::oci::Digest;
use crate::store::StoreError;
use crate::upstream::UpstreamError;

/// Why mirrored content cannot be served. `Clone`, because all requests of a fill or flight share one failure.
#[derive(Debug, Clone, thiserror::Error)]
pub enum PullError {
    /// The upstream answered 404, now or within `negative_ttl`; or no upstream is configured for the repository.
    #[error("the content does not exist")]
    NotFound,
    /// Answered as 404, but the upstream has not just said so about this request: it denied an anonymous request, or it
    /// failed and said so before. Never remembered as an absence.
    #[error("the content does not exist, as far as is known")]
    PresumedAbsent,
    #[error(transparent)]
    Upstream(UpstreamError),
    #[error("{upstream} sent content that does not have digest {digest}")]
    WrongContent { upstream: Arc<str>, digest: Digest },
    /// The manifest of a tag has another digest than its header says, and the upstream has neither manifest by digest.
    #[error("{upstream} announced a manifest with digest {announced} and sent {found}")]
    WrongManifest { upstream: Arc<str>, announced: Digest, found: Digest },
    /// A resumed transfer does not continue the bytes that were received before it.
    #[error("{upstream} changed the content in the middle of a transfer")]
    Changed { upstream: Arc<str> },
    /// A manifest or a list that cannot be parsed.
    #[error("{upstream} sent a document that cannot be used: {reason}")]
    BadDocument { upstream: Arc<str>, reason: String },
    #[error("{upstream} did not answer within {} s", within.as_secs())]
    TooLate { upstream: Arc<str>, within: Duration },
    /// Whether everybody may read the repository cannot be found out, and was not known before.
    #[error("cannot find out whether the repository is public at {upstream}: {cause}")]
    VisibilityUnknown { upstream: Arc<str>, cause: Arc<PullError> },
    /// No slot was released in time. No request was sent to the upstream.
    #[error("too many transfers from {upstream} are running; try again in a few seconds")]
    Busy { upstream: Arc<str> },
    #[error("the requested range lies outside of the content's {length} bytes")]
    Range { length: u64 },
    /// A transfer was cancelled, because others needed its slot or the server stops. A repeated request may succeed.
    #[error("the transfer was abandoned; try again")]
    Abandoned,
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A local file cannot be read. This is no failure of the upstream.
    #[error("cannot read the local file of {digest}: {cause}")]
    LocalRead { digest: Digest, cause: Arc<io::Error> },
}

impl PullError {
    /// Whether the response is 404.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::NotFound | Self::PresumedAbsent)
    }

    /// Whether there is no room to store the content.
    pub(super) fn is_full(&self) -> bool {
        matches!(self, Self::Store(error) if error.is_full())
    }

    /// Whether the disk did not accept the bytes that were written.
    pub(super) fn is_of_writing(&self) -> bool {
        matches!(self, Self::Store(error @ StoreError::Io { .. }) if error.obstacle().is_some())
    }

    /// Whether the local disk or store failed, and not the upstream.
    pub(super) fn is_local(&self) -> bool {
        matches!(self, Self::Store(_) | Self::LocalRead { .. })
    }

    /// Whether the received bytes are wrong. Another transfer of the complete blob may succeed.
    pub(super) fn is_wrong_content(&self) -> bool {
        matches!(self, Self::WrongContent { .. } | Self::WrongManifest { .. } | Self::Changed { .. })
    }

    /// Whether the error concerns one fill only, so that the requester may try again with another fill. `foreign`: a
    /// requester with other rights started the fill.
    pub(super) fn concerns_one_fill(&self, foreign: bool) -> bool {
        match self {
            Self::Abandoned => true,
            Self::Range { .. } | Self::TooLate { .. } | Self::Busy { .. } => false,
            _ => foreign,
        }
    }

    /// Whether a transfer was interrupted and may be resumed.
    pub(super) fn is_interruption(&self) -> bool {
        matches!(self, Self::Upstream(UpstreamError::Interrupted { .. } | UpstreamError::Timeout { .. }))
    }

    /// Whether the upstream may send the complete content although it did not send a range of it. No answer to the range
    /// excludes that, not even 404. Errors for which nothing was asked exclude it, such as a rate limit or an open circuit.
    pub(super) fn may_concern_range_only(&self) -> bool {
        match self {
            Self::NotFound | Self::PresumedAbsent | Self::Changed { .. } => true,
            error @ Self::Upstream(_) => error.may_be_answered_by_get() && !error.is_loop(),
            _ => false,
        }
    }

    /// Whether the same request may succeed a moment later.
    pub(super) fn may_pass(&self) -> bool {
        matches!(self, Self::Upstream(error) if error.is_outage() && !matches!(error, UpstreamError::Timeout { .. }))
    }

    /// Whether the upstream answered 429.
    pub(super) fn is_rate_limit(&self) -> bool {
        matches!(self, Self::Upstream(UpstreamError::RateLimited { .. }))
    }

    /// Whether a GET may give the answer that this request did not give. A refused HEAD, or a manifest that is missing
    /// under the digest that a HEAD announced, says nothing about the GET.
    pub(super) fn may_be_answered_by_get(&self) -> bool {
        match self {
            Self::Upstream(error) => !matches!(
                error,
                UpstreamError::RateLimited { .. }
                    | UpstreamError::CircuitOpen { .. }
                    | UpstreamError::Overloaded { .. }
                    | UpstreamError::Credentials { .. }
            ),
            error => !error.is_local() && !matches!(error, Self::Abandoned),
        }
    }

    /// Whether the request came back to this server.
    pub(super) fn is_loop(&self) -> bool {
        matches!(self, Self::Upstream(UpstreamError::Status { status: StatusCode::LOOP_DETECTED, .. }))
    }

    /// Returns the time that the upstream asks to wait, if it sent one.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Upstream(error) => error.retry_after(),
            Self::VisibilityUnknown { cause, .. } => cause.retry_after(),
            _ => None,
        }
    }

    /// Whether the error is not about the content, so that a cached response is better than this error.
    pub fn is_inconclusive(&self) -> bool {
        match self {
            Self::NotFound | Self::PresumedAbsent | Self::Range { .. } => false,
            Self::Upstream(error) => error.is_upstream_failure(),
            _ => true,
        }
    }
}

impl From<UpstreamError> for PullError {
    fn from(error: UpstreamError) -> Self {
        if error.is_not_found() { Self::NotFound } else { Self::Upstream(error) }
    }
}

/// Why a body ends before its announced end. The server then ends the client's connection, so that the client does
/// not take a part of the content for the complete content.
#[derive(Debug, thiserror::Error)]
pub enum ContentError {
    /// The local disk failed, and not the upstream.
    #[error("cannot read the local file: {0}")]
    LocalRead(#[from] io::Error),
    /// The fill or the bypass failed.
    #[error("the transfer failed: {0}")]
    Transfer(#[from] PullError),
    #[error("the transfer started again after bytes had been sent")]
    Restarted,
    #[error("the upstream sent another number of bytes than it announced")]
    Length,
}

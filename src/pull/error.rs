//! Why mirrored content cannot be served.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use crate::oci::Digest;
use crate::store::StoreError;
use crate::upstream::UpstreamError;

/// One failure is shared by all requests that waited for the same thing, hence `Clone`.
#[derive(Debug, Clone, thiserror::Error)]
pub enum PullError {
    /// The upstream said so, now or within `negative_ttl`; or no configured upstream could have it.
    #[error("the content does not exist")]
    NotFound,
    #[error(transparent)]
    Upstream(UpstreamError),
    #[error("{upstream} sent content that does not have digest {digest}")]
    WrongContent { upstream: Arc<str>, digest: Digest },
    /// A resumed transfer does not continue the bytes that were received before it.
    #[error("{upstream} changed the content in the middle of a transfer")]
    Changed { upstream: Arc<str> },
    /// A manifest or a list that cannot be parsed.
    #[error("{upstream} sent a document that cannot be used: {reason}")]
    BadDocument { upstream: Arc<str>, reason: String },
    #[error("{upstream} did not answer within {} s", within.as_secs())]
    TooLate { upstream: Arc<str>, within: Duration },
    /// No slot came free in time. The upstream was not asked.
    #[error("too many transfers from {upstream} are running; try again in a few seconds")]
    Busy { upstream: Arc<str> },
    #[error("the requested range lies outside of the content's {length} bytes")]
    Range { length: u64 },
    /// A transfer was abandoned in favour of others, or because the server stops. A repeated request may succeed.
    #[error("the transfer was abandoned; try again")]
    Abandoned,
    #[error(transparent)]
    Store(#[from] StoreError),
    /// An open file of ours cannot be read. The upstream has no part in it.
    #[error("cannot read the local file of {digest}: {cause}")]
    LocalRead { digest: Digest, cause: Arc<io::Error> },
}

impl PullError {
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::NotFound)
    }

    /// Whether there is no room to store the content. It can be served without being stored.
    pub(super) fn is_full(&self) -> bool {
        matches!(self, Self::Store(error) if error.is_full())
    }

    /// Whether our own disk or store failed, and not the upstream.
    pub(super) fn is_local(&self) -> bool {
        matches!(self, Self::Store(_) | Self::LocalRead { .. })
    }

    /// Whether the bytes received are not the content: another transfer of the complete blob may bring the right ones.
    pub(super) fn is_wrong_content(&self) -> bool {
        matches!(self, Self::WrongContent { .. } | Self::Changed { .. })
    }

    /// Whether it concerns one fill only, so that the requester may try again with another fill. `foreign`: the fill was
    /// started by a requester with other rights.
    pub(super) fn concerns_one_fill(&self, foreign: bool) -> bool {
        match self {
            Self::Abandoned => true,
            Self::Range { .. } | Self::TooLate { .. } | Self::Busy { .. } => false,
            _ => foreign,
        }
    }

    /// Whether a transfer broke off, so that it may be resumed where it ended.
    pub(super) fn is_interruption(&self) -> bool {
        matches!(self, Self::Upstream(UpstreamError::Interrupted { .. } | UpstreamError::Timeout { .. }))
    }

    /// Whether the upstream limits our rate of requests.
    pub(super) fn is_rate_limit(&self) -> bool {
        matches!(self, Self::Upstream(UpstreamError::RateLimited { .. }))
    }

    /// How long the upstream asks us to wait, where it says so.
    pub(super) fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Upstream(error) => error.retry_after(),
            _ => None,
        }
    }

    /// Whether it says nothing about the content, so that a cached answer is better than this error.
    pub fn is_inconclusive(&self) -> bool {
        match self {
            Self::NotFound | Self::Range { .. } => false,
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

/// Why a body ends before its announced end. The client's connection ends with it, so that the client cannot take a part
/// of the content for all of it.
#[derive(Debug, thiserror::Error)]
pub enum ContentError {
    /// Our own disk failed, and not the upstream.
    #[error("cannot read the local file: {0}")]
    LocalRead(#[from] io::Error),
    /// The fill that is followed, or the bypass, failed.
    #[error("the transfer failed: {0}")]
    Transfer(#[from] PullError),
    #[error("the transfer started again after bytes had been sent")]
    Restarted,
    #[error("the upstream sent another number of bytes than it announced")]
    Length,
}

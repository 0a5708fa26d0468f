//! Why mirrored content cannot be served.

use std::io;
use std::time::Duration;

use crate::oci::Digest;
use crate::store::StoreError;
use crate::upstream::UpstreamError;

/// One failure is shared by everybody who waited for the same thing.
#[derive(Debug, Clone, thiserror::Error)]
pub enum PullError {
    /// The upstream said so, now or a moment ago; or nothing is configured that could have it.
    #[error("it does not exist")]
    NotFound,
    #[error(transparent)]
    Upstream(UpstreamError),
    #[error("{upstream} sent content that is not {digest}")]
    WrongContent { upstream: String, digest: Digest },
    /// What came when the transfer was taken up again is not what had come before.
    #[error("{upstream} changed the content in the middle of a transfer")]
    Changed { upstream: String },
    #[error("{upstream} sent a manifest that cannot be used: {reason}")]
    BadManifest { upstream: String, reason: String },
    #[error("{upstream} did not answer within {} s", within.as_secs())]
    TooLate { upstream: String, within: Duration },
    /// Too much is being fetched at once; it was not asked for, and may be in a moment.
    #[error("too many transfers from {upstream} are under way")]
    Busy { upstream: String },
    #[error("the range lies outside of the content's {length} bytes")]
    Range { length: u64 },
    /// The work was given up in favour of other work, or with the server; asking again may succeed.
    #[error("the transfer was given up")]
    GivenUp,
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl PullError {
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::NotFound)
    }

    /// Whether there is no room to keep it: it can be served all the same.
    pub(super) fn is_full(&self) -> bool {
        matches!(self, Self::Store(error) if error.is_full())
    }

    /// Whether bytes came that are not the content: another transfer of the whole may bring the right ones.
    pub(super) fn is_wrong(&self) -> bool {
        matches!(self, Self::WrongContent { .. } | Self::Changed { .. })
    }

    /// Whether it says something about one fill only, so that another one may do better: `others` says that it was
    /// somebody else's, with other rights.
    pub(super) fn is_of_one_fill(&self, others: bool) -> bool {
        match self {
            Self::GivenUp => true,
            Self::Range { .. } | Self::TooLate { .. } | Self::Busy { .. } => false,
            _ => others,
        }
    }

    /// Whether a transfer broke off that may be taken up again where it was.
    pub(super) fn is_cut(&self) -> bool {
        matches!(self, Self::Upstream(UpstreamError::Interrupted { .. } | UpstreamError::Timeout { .. }))
    }

    /// Whether we ask too much, in the upstream's eyes.
    pub(super) fn is_limit(&self) -> bool {
        matches!(self, Self::Upstream(UpstreamError::RateLimited { .. }))
    }

    /// How long the upstream asks us to stay away, where it said so.
    pub(super) fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Upstream(error) => error.retry_after(),
            _ => None,
        }
    }

    /// Whether this says nothing about the content, so that something cached is better than this error.
    pub fn is_trouble(&self) -> bool {
        match self {
            Self::NotFound | Self::Range { .. } => false,
            Self::Upstream(error) => error.is_trouble(),
            _ => true,
        }
    }
}

impl From<UpstreamError> for PullError {
    fn from(error: UpstreamError) -> Self {
        if error.is_not_found() { Self::NotFound } else { Self::Upstream(error) }
    }
}

/// Why a body ends before its end. The client's connection ends with it, so that it cannot take a part for the whole.
#[derive(Debug, thiserror::Error)]
pub enum ContentError {
    #[error("the file cannot be read: {0}")]
    Read(#[from] io::Error),
    #[error("the fill it follows failed: {0}")]
    Fill(#[from] PullError),
    #[error("the fill it follows began again after bytes had been sent")]
    Restarted,
    #[error(transparent)]
    Upstream(#[from] UpstreamError),
    #[error("the upstream sent another number of bytes than it said")]
    Length,
}

//! Where the bytes of a blob are fetched from: an upstream today, another replica or a bucket later.
//!
//! [`BlobSource`] is a trait object and not an enum or a type parameter, for three reasons. A source is chosen at run time,
//! for each fill. A new kind of source is a file of its own, and neither a fill nor a bypass is touched for it. Tests script
//! one in memory (`scripted`). The price is two small allocations a transfer and a dynamic call a chunk, next to a read from
//! a socket.
//!
//! A source verifies nothing. All that it says of the content (length, digest, entity tag) is a hint; the digest of the bytes
//! decides.

#[cfg(test)]
pub(super) mod scripted;
pub(super) mod upstream;

use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use tokio::time::Instant;

use super::error::PullError;
use crate::oci::{ByteRange, Digest, RepoId};
use crate::upstream::{CredentialId, Effort};

/// The repository and the credentials that a transfer uses. Two requesters with equal ids have equal rights to its bytes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct SourceId {
    pub(super) repo: RepoId,
    pub(super) credential: CredentialId,
}

/// One repository at one place that blobs can be fetched from.
pub(super) trait BlobSource: Debug + Send + Sync {
    fn id(&self) -> &SourceId;

    /// As it is configured, for errors, logs and metrics: `docker.io`.
    fn name(&self) -> &Arc<str>;

    /// Requests a blob or a range of it. It answers with the facts about the transfer at `deadline` at the latest; the bytes
    /// that follow are not covered by the deadline.
    ///
    /// # Errors
    /// `NotFound` only where the source says that the content does not exist; `Changed` where the requested range lies beyond
    /// the content; `is_inconclusive` for a source that failed.
    fn open(&self, request: FetchRequest, deadline: Instant) -> BoxFuture<'_, Result<Transfer, PullError>>;

    /// The blob's length in bytes, where it is known or the source tells it without a transfer.
    fn length<'a>(&'a self, digest: &'a Digest, deadline: Instant) -> BoxFuture<'a, Option<u64>>;

    /// The rate below which a transfer counts as interrupted.
    fn min_rate(&self) -> MinRate;
}

/// What is requested of a source.
#[derive(Clone, Debug)]
pub(super) struct FetchRequest {
    pub(super) digest: Digest,
    /// `None`: the complete blob.
    pub(super) range: Option<ByteRange>,
    /// With `range`: a strong entity tag. If it does not match any more the source sends the complete blob.
    pub(super) if_range: Option<String>,
    /// URLs of the source that are asked last, because transfers from them broke.
    pub(super) skip_urls: usize,
    pub(super) effort: Effort,
}

/// The start of a source's answer.
pub(super) struct Transfer {
    pub(super) sent: Sent,
    /// The digest that the source says the blob has.
    pub(super) digest: Option<Digest>,
    /// A strong entity tag (RFC 9110, 8.8.3): equal tags mean equal bytes.
    pub(super) strong_etag: Option<String>,
    pub(super) bytes: ByteStream,
}

/// Which bytes of the blob follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sent {
    Complete { length: Option<u64> },
    Part { range: ByteRange, total: Option<u64> },
}

/// The bytes of a transfer, up to its end or its first error. Dropping it ends the transfer.
pub(super) type ByteStream = BoxStream<'static, Result<Bytes, PullError>>;

/// A lower bound on the average rate of a transfer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct MinRate {
    /// Zero: no bound.
    pub(super) bytes_per_second: u64,
    /// The time over which the average is taken.
    pub(super) window: Duration,
}

impl FetchRequest {
    /// For the complete blob.
    pub(super) fn complete(digest: &Digest) -> Self {
        Self { digest: digest.clone(), range: None, if_range: None, skip_urls: 0, effort: Effort::Rounds }
    }

    /// For a part of it that could be served in another way, too.
    pub(super) fn part(digest: &Digest, range: ByteRange) -> Self {
        Self { range: Some(range), effort: Effort::Once, ..Self::complete(digest) }
    }
}

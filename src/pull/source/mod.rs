//! Blob sources: the origins of a blob's bytes. Today the only kind is an upstream; a replica or a bucket may follow.
//!
//! [`BlobSource`] is a trait object and not an enum or a type parameter, for three reasons. A source is chosen at run
//! time, for each fill. A new kind of source needs its own file only; fills and bypasses do not change. Tests use a
//! scripted source in memory (`scripted`). The cost is two small allocations per transfer and a dynamic call per
//! chunk, which is little compared with a read from a socket.
//!
//! A source verifies nothing. The length, digest and entity tag that it announces are hints. The digest of the bytes
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

/// The repository and the credentials that a transfer uses. Two requesters with equal ids have equal rights to its
/// bytes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct SourceId {
    pub(super) repo: RepoId,
    pub(super) credential: CredentialId,
}

/// One repository at one place that blobs can be fetched from.
pub(super) trait BlobSource: Debug + Send + Sync {
    fn id(&self) -> &SourceId;

    /// The configured name, for errors, logs and metrics, such as `docker.io`.
    fn name(&self) -> &Arc<str>;

    /// Requests a blob or a range of it. Returns the start of the transfer by `deadline`; the deadline does not cover
    /// the bytes that follow.
    ///
    /// # Errors
    /// `NotFound` only if the source says that the content does not exist; `Changed` if the requested range lies
    /// beyond the content; an error for which `is_inconclusive` is true if the source failed.
    fn open(&self, request: FetchRequest, deadline: Instant) -> BoxFuture<'_, Result<Transfer, PullError>>;

    /// Returns the blob's length in bytes, if it is known or the source can tell it without a transfer.
    fn length<'a>(&'a self, digest: &'a Digest, deadline: Instant) -> BoxFuture<'a, Option<u64>>;

    /// The rate below which a transfer counts as interrupted.
    fn min_rate(&self) -> MinRate;

    /// The number of connections that receive one large blob.
    fn connections(&self) -> usize;

    /// False if the source has ignored or refused a range recently.
    fn serves_ranges(&self) -> bool;

    /// Records that the source sent the complete blob in response to a request for a range, or after it had refused the
    /// range.
    fn note_ignored_range(&self);
}

/// A request to a source.
#[derive(Clone, Debug)]
pub(super) struct FetchRequest {
    pub(super) digest: Digest,
    /// `None`: the complete blob.
    pub(super) range: Option<ByteRange>,
    /// Only with `range`: a strong entity tag. If it no longer matches, the source sends the complete blob.
    pub(super) if_range: Option<String>,
    /// The number of URLs that are tried last, because transfers from them broke or were wrong.
    pub(super) skip_urls: usize,
    pub(super) effort: Effort,
}

/// The start of a source's response.
pub(super) struct Transfer {
    pub(super) sent: Sent,
    /// The digest that the source announces.
    pub(super) digest: Option<Digest>,
    /// A strong entity tag (RFC 9110, 8.8.3): equal tags mean equal bytes.
    pub(super) strong_etag: Option<String>,
    /// The `skip_urls` of a request that tries the URL after the one that answered.
    pub(super) next_url: usize,
    pub(super) bytes: ByteStream,
}

/// The bytes of the blob that follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sent {
    Complete {
        length: Option<u64>,
    },
    Part {
        range: ByteRange,
        total: Option<u64>,
    },
    /// Bytes whose place in the blob is not known: a 206 without a usable `Content-Range`.
    Unplaced,
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
    /// Returns a request for the complete blob.
    pub(super) fn complete(digest: &Digest) -> Self {
        Self { digest: digest.clone(), range: None, if_range: None, skip_urls: 0, effort: Effort::Rounds }
    }

    /// Returns a request for a part of the blob, without retries, because the caller can serve the part in another way.
    pub(super) fn part(digest: &Digest, range: ByteRange) -> Self {
        Self { range: Some(range), effort: Effort::Once, ..Self::complete(digest) }
    }

    /// Returns a request for a part of a blob of which another transfer runs.
    pub(super) fn extra(digest: &Digest, range: ByteRange) -> Self {
        Self { effort: Effort::Extra, ..Self::part(digest, range) }
    }
}

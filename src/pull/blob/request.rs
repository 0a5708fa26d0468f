//! A client's request for a blob, and the data that the cold path needs for it.

use std::sync::Arc;

use tokio::time::Instant;

use super::super::engine::Engine;
use super::super::error::PullError;
use super::super::source::BlobSource;
use crate::oci::{Digest, RangeSet, RepoId, Selected};

/// A client's request for a blob.
#[derive(Clone, Debug, Default)]
pub struct BlobRequest {
    pub ranges: Option<RangeSet>,
    /// The response must have a length: an HTTP/1.0 client cannot detect that a body without length is incomplete.
    pub needs_length: bool,
}

/// One request for a blob that is not served from the store at once.
pub(super) struct ColdRequest {
    pub(super) engine: Arc<Engine>,
    pub(super) source: Arc<dyn BlobSource>,
    pub(super) digest: Digest,
    pub(super) wanted: BlobRequest,
    /// The time by which the response headers must be sent.
    pub(super) deadline: Instant,
}

impl BlobRequest {
    /// Returns the requested part of content of `length` bytes.
    ///
    /// # Errors
    /// `Range` if no requested range lies within the content.
    pub fn select(&self, length: u64) -> Result<Selected, PullError> {
        match &self.ranges {
            Some(ranges) => ranges.select(length).map_err(|_unsatisfiable| PullError::Range { length }),
            None => Ok(Selected::Whole),
        }
    }
}

impl ColdRequest {
    pub(super) fn repo(&self) -> &RepoId {
        &self.source.id().repo
    }
}

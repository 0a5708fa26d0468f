//! What a client requests of a blob, and what the cold path knows about the request.

use std::sync::Arc;

use tokio::time::Instant;

use super::super::engine::Engine;
use super::super::error::PullError;
use super::super::source::BlobSource;
use crate::oci::{Digest, RangeSet, RepoId, Selected};

/// What a client requests of a blob.
#[derive(Clone, Debug, Default)]
pub struct BlobRequest {
    pub ranges: Option<RangeSet>,
    /// The response must have a length: to an HTTP/1.0 client a body without length that breaks off looks complete.
    pub needs_length: bool,
}

/// One request for a blob that is not served from the store at once.
pub(super) struct ColdRequest {
    pub(super) engine: Arc<Engine>,
    pub(super) source: Arc<dyn BlobSource>,
    pub(super) digest: Digest,
    pub(super) wanted: BlobRequest,
    /// When the response headers have to be sent.
    pub(super) deadline: Instant,
}

impl BlobRequest {
    /// The requested part of content of `length` bytes.
    ///
    /// # Errors
    /// `Range` where no requested range lies within the content.
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

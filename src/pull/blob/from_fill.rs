//! Builds the response to a request that joined a fill. A bypass fetches a range far ahead of the mark. All other responses
//! follow the fill.

use std::sync::Arc;

use tokio::time::timeout_at;

use super::super::content::{Content, ContentBody, ContentStream};
use super::super::error::{ContentError, PullError};
use super::super::fill::{Following, Start};
use super::request::ColdRequest;
use crate::oci::{ByteRange, Selected};
use crate::telemetry::CacheResult;

/// Maximum distance from the mark for which a range waits.
const MAX_WAIT_DISTANCE_BYTES: u64 = 8 << 20;

impl ColdRequest {
    /// `result` is the cache result if the fill succeeds.
    pub(super) async fn answer_from_fill(
        &self,
        mut following: Following,
        result: CacheResult,
    ) -> Result<Content, PullError> {
        loop {
            let start = self.wait_for_start(&mut following).await?;
            let result = start.result(result);
            let selected = match start.total() {
                Some(total) => self.wanted.select(total)?,
                None => Selected::Whole,
            };
            if let Some(content) = self.answer_at_once(&start, &selected, result).await {
                return Ok(content);
            }
            let (next, end) = match selected {
                Selected::Part(part) => (part.start, Some(part.end)),
                // These parts are not yet readable. A complete response is also valid (RFC 9110, 14.2).
                Selected::Parts(_) | Selected::Whole => (0, start.total()),
            };
            let mut follower = following.read(&start, next, end);
            match follower.read_ahead(self.deadline).await {
                // No byte was sent, so the response can restart with the next attempt, even with another length.
                Err(ContentError::Restarted) => following = follower.into_following(),
                Err(ContentError::Transfer(error)) => return Err(error),
                Err(ContentError::LocalRead(cause)) => {
                    return Err(PullError::LocalRead { digest: self.digest.clone(), cause: Arc::new(cause) });
                }
                // The same length error is returned when the body is read.
                Ok(()) | Err(ContentError::Length) => {
                    let bytes = ContentStream::Follow(Box::new(follower));
                    let body = match selected {
                        Selected::Part(part) => ContentBody::Part(part, bytes),
                        Selected::Parts(_) | Selected::Whole => ContentBody::Whole(bytes),
                    };
                    return Ok(Content { total: start.total(), body, result });
                }
            }
        }
    }

    async fn wait_for_start(&self, following: &mut Following) -> Result<Start, PullError> {
        let answer_within = self.engine.context.config.answer_within;
        let start = following.start_by(self.deadline, self.wanted.needs_length, answer_within).await?;
        if self.wanted.ranges.is_some() && start.total().is_none() {
            // A suffix range needs the blob length. If the length is not known in time, the complete blob is served.
            if let Ok(complete) = timeout_at(self.deadline, following.start(true)).await {
                return complete;
            }
        }
        Ok(start)
    }

    /// Returns a response that does not follow the fill: a range far ahead of the mark, or several parts that are all
    /// readable.
    async fn answer_at_once(&self, start: &Start, selected: &Selected, result: CacheResult) -> Option<Content> {
        let total = start.total()?;
        match selected {
            Selected::Part(part) if start.distance_to(part.start) > MAX_WAIT_DISTANCE_BYTES => {
                self.range_past_fill(*part, total).await
            }
            Selected::Parts(parts) => {
                let extent = start.extent().filter(|extent| parts.iter().all(|part| extent.covers(part)))?;
                Some(Content::of_file(extent.file(), total, selected.clone(), result))
            }
            Selected::Part(_) | Selected::Whole => None,
        }
    }

    /// Fetches the range with a bypass. `None`: no slot is free, or the source sent a different range. The request then follows
    /// the fill.
    async fn range_past_fill(&self, part: ByteRange, total: u64) -> Option<Content> {
        let slot = self.engine.bypasses.free_slot(self.repo(), part.len())?;
        self.range_past_store(part, total, slot).await.ok()
    }
}

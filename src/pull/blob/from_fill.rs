//! Builds the response to a request that joined a fill. It follows the fill, which starts a transfer for a range far
//! ahead of what it receives. A fill that cannot do that leaves such a range to a bypass.

use std::sync::Arc;

use tokio::time::timeout_at;

use super::super::content::{Content, ContentBody, ContentStream};
use super::super::error::{ContentError, PullError};
use super::super::fill::{Following, MAX_WAIT_DISTANCE_BYTES, Readiness, Start};
use super::request::ColdRequest;
use crate::oci::{ByteRange, Selected};
use crate::telemetry::CacheResult;

/// A range far ahead that is at most this long may reach into the held-back tail before it is verified. It is the
/// footer that lazy pullers read first; they verify what they read.
const MAX_UNVERIFIED_BYTES: u64 = 1 << 20;

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
            if end.is_some_and(|end| end - next <= MAX_UNVERIFIED_BYTES && is_far(&start, next)) {
                follower = follower.before_verification();
            }
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
        if self.wanted.needs_length {
            return following.start_by(self.deadline, Readiness::Complete, answer_within).await;
        }
        if self.wanted.ranges.is_none() {
            return following.start_by(self.deadline, Readiness::FirstBytes, answer_within).await;
        }
        let start = following.start_by(self.deadline, Readiness::Length, answer_within).await?;
        match start.total().map(|total| self.wanted.select(total)).transpose()? {
            Some(Selected::Part(part)) if is_far(&start, part.start) => Ok(start),
            Some(_) => following.start_by(self.deadline, Readiness::FirstBytes, answer_within).await,
            // A suffix range needs the blob length. If the length is not known in time, the complete blob is served.
            None => {
                let complete = timeout_at(self.deadline, following.start(Readiness::Complete)).await;
                complete.unwrap_or(Ok(start))
            }
        }
    }

    /// Returns a response that does not follow the fill: a range far ahead that the fill starts no transfer for, or
    /// several parts that are all readable.
    async fn answer_at_once(&self, start: &Start, selected: &Selected, result: CacheResult) -> Option<Content> {
        let total = start.total()?;
        match selected {
            Selected::Part(part) if is_far(start, part.start) && start.is_gapless() && self.source.serves_ranges() => {
                self.range_past_fill(*part, total).await
            }
            Selected::Parts(parts) => {
                let extent = start.extent().filter(|extent| parts.iter().all(|part| extent.covers(part)))?;
                Some(Content::of_file(extent.file(), total, selected.clone(), result))
            }
            Selected::Part(_) | Selected::Whole => None,
        }
    }

    /// Fetches the range with a bypass. `None`: no slot is free, or the source sent a different range. The request
    /// then follows the fill.
    async fn range_past_fill(&self, part: ByteRange, total: u64) -> Option<Content> {
        let slot = self.engine.bypasses.free_slot(self.repo(), part.len())?;
        self.range_past_store(part, total, slot).await.ok()
    }
}

fn is_far(start: &Start, position: u64) -> bool {
    start.distance_to(position) > MAX_WAIT_DISTANCE_BYTES
}

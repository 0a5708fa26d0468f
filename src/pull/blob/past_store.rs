//! Responses with a bypass: a range far ahead of a fill, or a blob that cannot be stored because the disk is full or the
//! folder is read-only.

use tokio::time::timeout_at;

use super::super::bypass::{BypassSlot, RangeBypass};
use super::super::content::{Content, ContentBody, ContentStream};
use super::super::error::PullError;
use super::super::held_back_tail::HELD_BACK_TAIL_BYTES;
use super::super::source::{FetchRequest, Sent, Transfer};
use super::request::ColdRequest;
use crate::oci::{ByteRange, Selected};
use crate::telemetry::CacheResult;

impl ColdRequest {
    /// Answers with a bypass. `size` is the length of the blob, if it is known. Requests only the range if the length is known.
    pub(super) async fn answer_past_store(&self, size: Option<u64>) -> Result<Content, PullError> {
        let (context, bypasses, source) = (&self.engine.context, &self.engine.bypasses, &self.source);
        let mut slot = bypasses.slot(self.repo(), size, source.name(), self.deadline).await?;
        if self.wanted.ranges.is_some()
            && let Some(total) = source.length(&self.digest, context.deadline()).await
            && let Selected::Part(part) = self.wanted.select(total)?
        {
            match self.range_past_store(part, total, slot).await {
                Ok(content) => return Ok(content),
                Err(unused) => slot = unused,
            }
        }
        let transfer = source.open(FetchRequest::complete(&self.digest), self.deadline).await?;
        let Sent::Complete { length: total } = transfer.sent else {
            return Err(PullError::Changed { upstream: source.name().clone() });
        };
        let mut bypass = bypasses.complete(transfer, source.name(), &self.digest, total, slot);
        // A small blob is verified before its response begins, so that wrong content becomes an error status.
        if total.is_some_and(|total| total <= HELD_BACK_TAIL_BYTES) {
            let received = timeout_at(self.deadline, bypass.receive()).await;
            received.map_err(|_| context.too_late(source.name()))??;
        }
        let body = ContentBody::Whole(ContentStream::CompleteBypass(Box::new(bypass)));
        Ok(Content { total, body, result: CacheResult::Bypass })
    }

    /// Fetches a range of a blob of `total` bytes directly from the source. If the source does not send exactly that range,
    /// returns the slot, and the caller answers in another way.
    pub(super) async fn range_past_store(
        &self,
        part: ByteRange,
        total: u64,
        slot: BypassSlot,
    ) -> Result<Content, BypassSlot> {
        match self.open_range(part, total).await {
            Some(transfer) => {
                let bytes = ContentStream::RangeBypass(Box::new(RangeBypass::new(transfer, part.len(), slot)));
                let body = ContentBody::Part(part, bytes);
                Ok(Content { total: Some(total), body, result: CacheResult::Bypass })
            }
            None => Err(slot),
        }
    }

    async fn open_range(&self, part: ByteRange, total: u64) -> Option<Transfer> {
        let transfer = self.source.open(FetchRequest::part(&self.digest, part), self.deadline).await.ok()?;
        let is_exact = match transfer.sent {
            Sent::Part { range, total: announced } => {
                range == part && announced.is_none_or(|announced| announced == total)
            }
            Sent::Complete { .. } | Sent::Unplaced => false,
        };
        is_exact.then_some(transfer)
    }
}

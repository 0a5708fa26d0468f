//! The bytes of one transfer on their way into a segment. A transfer may go on after the end of its segment: another
//! segment was begun there. The bytes after the end are kept for the next segment.

use bytes::{Buf, Bytes};
use futures_util::{Stream, StreamExt, stream};

use super::super::error::PullError;
use super::super::source::ByteStream;
use super::job::Job;
use super::segments::Segment;
use crate::oci::ByteRange;

pub(super) struct Inflow {
    bytes: ByteStream,
    /// Received bytes that no segment has taken.
    leftover: Bytes,
    /// The position in the blob of the next byte.
    position: u64,
    /// The position after the last byte that the transfer sends, if that is known.
    end: Option<u64>,
    /// Whether the transfer sends the blob to its end. Otherwise it may send less than was requested (RFC 9110,
    /// 15.3.7).
    is_complete: bool,
    has_ended: bool,
}

impl Inflow {
    /// The bytes of a transfer of the complete blob, whose length is `total` if it is known.
    pub(super) fn complete(bytes: ByteStream, total: Option<u64>) -> Self {
        Self { bytes, leftover: Bytes::new(), position: 0, end: total, is_complete: true, has_ended: false }
    }

    /// The bytes of a transfer of a part of the blob.
    pub(super) fn part(bytes: ByteStream, ByteRange { start, end }: ByteRange) -> Self {
        Self { position: start, is_complete: false, ..Self::complete(bytes, Some(end)) }
    }

    /// Nothing more: all bytes of the segment have arrived.
    pub(super) fn ended(position: u64) -> Self {
        Self { position, has_ended: true, ..Self::complete(stream::empty().boxed(), None) }
    }

    pub(super) fn is_complete(&self) -> bool {
        self.is_complete
    }

    /// Whether the transfer can go on with a segment that starts at `position`.
    pub(super) fn continues_at(&self, position: u64, is_single: bool) -> bool {
        let goes_on = !self.has_ended && self.end.is_none_or(|end| position < end);
        goes_on && (self.position == position || (is_single && self.is_complete && self.position < position))
    }

    /// The bytes of `segment`.
    pub(super) fn for_segment<'a>(
        &'a mut self,
        job: &'a Job,
        segment: &'a Segment,
    ) -> impl Stream<Item = Result<Bytes, PullError>> + 'a {
        stream::unfold(self, move |inflow| async move { Some((inflow.next(job, segment).await?, inflow)) })
    }

    async fn next(&mut self, job: &Job, segment: &Segment) -> Option<Result<Bytes, PullError>> {
        // A complete transfer is read to its end, because it must not send more. What a part sends after its end is
        // ignored.
        let ends_with_blob = segment.is_last() && self.is_complete;
        if segment.is_claimed() && !ends_with_blob {
            return None;
        }
        let mut chunk = match self.receive().await? {
            Ok(chunk) => chunk,
            Err(error) => return Some(Err(error)),
        };
        let claimed = segment.claim(chunk.len() as u64);
        if claimed < chunk.len() as u64 {
            if ends_with_blob {
                return Some(Err(job.wrong_content()));
            }
            self.leftover = chunk.split_off(claimed as usize);
        }
        self.position += claimed;
        Some(Ok(chunk))
    }

    /// Drops the bytes before `position`.
    ///
    /// # Errors
    /// Those of the transfer; `Changed` if it ends before.
    pub(super) async fn skip_to(&mut self, job: &Job, position: u64) -> Result<(), PullError> {
        while self.position < position {
            let mut chunk = self.receive().await.transpose()?.ok_or_else(|| job.changed())?;
            let skipped = chunk.len().min((position - self.position) as usize);
            chunk.advance(skipped);
            self.position += skipped as u64;
            self.leftover = chunk;
        }
        Ok(())
    }

    /// Takes the next bytes, but none at or after `end`. `None` at the end of the transfer.
    pub(super) async fn receive_before(&mut self, end: u64) -> Result<Option<Bytes>, PullError> {
        let Some(mut chunk) = self.receive().await.transpose()? else { return Ok(None) };
        let taken = chunk.len().min(end.saturating_sub(self.position) as usize);
        self.leftover = chunk.split_off(taken);
        self.position += taken as u64;
        Ok(Some(chunk))
    }

    async fn receive(&mut self) -> Option<Result<Bytes, PullError>> {
        if !self.leftover.is_empty() {
            return Some(Ok(std::mem::take(&mut self.leftover)));
        }
        let received = self.bytes.next().await;
        self.has_ended = !matches!(received, Some(Ok(_)));
        received
    }
}

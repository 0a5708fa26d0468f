//! Writes a segment into the spool, with one or more transfers, and publishes the mark.

use std::sync::atomic::Ordering;

use super::super::error::PullError;
use super::super::source::ByteStream;
use super::job::Job;
use super::pace::paced;
use super::resume::{Continuation, Resumption};
use super::segment::Segment;
use crate::store::{self, Spool};
use crate::upstream::UpstreamError;

/// Minimum number of bytes between two interruptions that counts as progress. Otherwise a source that sends one byte per
/// transfer would be asked forever.
const MIN_PROGRESS_BYTES: u64 = 4 << 10;

pub(super) struct SegmentTransfer<'a> {
    job: &'a Job,
    spool: &'a Spool,
    segment: Segment,
    strong_etag: Option<String>,
}

impl<'a> SegmentTransfer<'a> {
    /// `strong_etag` is the entity tag of the first transfer.
    pub(super) fn new(job: &'a Job, spool: &'a Spool, segment: Segment, strong_etag: Option<String>) -> Self {
        Self { job, spool, segment, strong_etag }
    }

    /// Receives to the end. Resumes after interruptions as long as there is progress. Returns the position reached.
    pub(super) async fn run(mut self, bytes: ByteStream) -> Result<u64, PullError> {
        let source = &self.job.source;
        let bytes = paced(bytes, source.min_rate(), source.name().clone());
        let mut transfer = Continuation { bytes, may_stop_short: false };
        let (mut reached, mut fruitless) = (0, 0);
        loop {
            match self.receive(transfer).await {
                Err(error) if error.is_interruption() => {
                    let position = self.segment.position();
                    fruitless = if position >= reached + MIN_PROGRESS_BYTES { 0 } else { fruitless + 1 };
                    reached = position;
                    let Self { job, spool, segment, strong_etag } = &self;
                    let resumption = Resumption { job, spool, segment, strong_etag: strong_etag.as_ref() };
                    transfer = resumption.run(error, fruitless).await?;
                }
                outcome => return outcome.map(|()| self.segment.position()),
            }
        }
    }

    /// Writes the received bytes and moves the mark, until the transfer ends or breaks.
    async fn receive(&mut self, transfer: Continuation) -> Result<(), PullError> {
        let (job, spool) = (self.job, self.spool);
        let segment = &mut self.segment;
        let progress = |position| {
            job.fill.received.store(position, Ordering::Relaxed);
            segment.advance_to(position).map_err(|_overrun| job.wrong_content())?;
            job.publisher.received(position);
            Ok(())
        };
        store::pump(transfer.bytes, |chunks| spool.append(chunks), progress).await?;
        if transfer.may_stop_short && self.segment.is_short() {
            let cause = "it sent less than the requested range".into();
            return Err(UpstreamError::Interrupted { upstream: job.source.name().clone(), cause }.into());
        }
        Ok(())
    }
}

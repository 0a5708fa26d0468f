//! Requests a segment, and the rest of it after an interruption. Clients notice only a pause.
//!
//! Requests the rest as a closed range, with the entity tag of the first transfer as `If-Range`. If the source sends
//! the complete blob instead, compares its beginning with the bytes in the spool. If it sends something else, requests
//! the complete blob.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::super::error::PullError;
use super::super::source::{FetchRequest, Sent, Transfer};
use super::inflow::Inflow;
use super::job::Job;
use super::pace::paced;
use super::segments::{Segment, Segments};
use crate::oci::ByteRange;
use crate::store::FileRange;
use crate::store::Spool;
use crate::upstream::Effort;

/// Maximum number of requests for the rest without progress between them.
const MAX_FRUITLESS_RESUMES: u32 = 5;
/// Pause before the first request for the rest. Each further pause is twice as long. Each pause varies by ± 50 %.
const FIRST_PAUSE: Duration = Duration::from_millis(100);

pub(super) struct Resumption<'a> {
    pub(super) job: &'a Job,
    pub(super) spool: &'a Spool,
    pub(super) segments: &'a Segments,
    pub(super) segment: &'a Segment,
    pub(super) strong_etag: Option<&'a String>,
    /// The URLs that are tried last, because an earlier attempt received wrong bytes.
    pub(super) skip_urls: usize,
}

impl Resumption<'_> {
    /// Requests a segment of which nothing was received.
    pub(super) async fn begin(&self) -> Result<Inflow, PullError> {
        match self.ask(0).await? {
            Ok(inflow) => Ok(inflow),
            Err(cause) => self.run(cause, 0).await,
        }
    }

    /// Requests the rest, with growing pauses, until the source sends it or there are too many failures. `cause` is
    /// the error that interrupted the transfer, and `fruitless` the number of consecutive interruptions without
    /// progress.
    pub(super) async fn run(&self, mut cause: PullError, fruitless: u32) -> Result<Inflow, PullError> {
        let Job { context, fill, source, .. } = self.job;
        if self.segment.is_complete() {
            // All bytes arrived before the connection broke.
            return Ok(Inflow::ended(self.segment.position()));
        }
        let mut was_limited = false;
        for attempt in fruitless..MAX_FRUITLESS_RESUMES {
            let asked_to_wait = cause.retry_after().unwrap_or_default();
            // Wait for a rate limit only once.
            if (was_limited && cause.is_rate_limit()) || asked_to_wait > context.config.answer_within {
                return Err(cause);
            }
            was_limited |= cause.is_rate_limit();
            tokio::time::sleep(pause(attempt).max(asked_to_wait)).await;
            tracing::debug!(position = self.segment.position(), error = %cause, "resuming the transfer");
            match self.ask(attempt).await? {
                Err(error) => cause = error,
                Ok(inflow) => {
                    context.metrics.fill_resumed(source.name());
                    fill.resumes.fetch_add(1, Ordering::Relaxed);
                    return Ok(inflow);
                }
            }
        }
        Err(cause)
    }

    /// Sends one request, or two if the answer to the first one cannot be used. The inner error is one that may pass.
    async fn ask(&self, attempt: u32) -> Result<Result<Inflow, PullError>, PullError> {
        let request = self.request(attempt);
        let complete = FetchRequest { range: None, if_range: None, ..request.clone() };
        let is_for_range = request.range.is_some();
        let Job { context, source, .. } = self.job;
        let mut opened = source.open(request, context.deadline()).await;
        if is_for_range && opened.as_ref().is_ok_and(|transfer| !self.fits(transfer.sent)) {
            tracing::debug!("the source sent something else than the rest of the blob; requesting all of it");
            self.segments.set_single();
            opened = source.open(complete, context.deadline()).await;
        }
        let transfer = match opened {
            Ok(transfer) => transfer,
            Err(error) if error.is_inconclusive() && !error.is_wrong_content() => return Ok(Err(error)),
            Err(error) => return Err(error),
        };
        match self.accept(transfer).await {
            Err(error) if !error.is_interruption() => Err(error),
            accepted => Ok(accepted),
        }
    }

    fn request(&self, attempt: u32) -> FetchRequest {
        let range = self.segment.missing();
        FetchRequest {
            range,
            if_range: range.and(self.strong_etag.cloned()),
            // Try URLs that sent nothing last.
            skip_urls: self.skip_urls + attempt as usize,
            effort: Effort::Resume,
            ..FetchRequest::complete(&self.job.fill.digest)
        }
    }

    /// Whether these bytes are those of the complete blob, or of a part that begins at the segment's position.
    fn fits(&self, sent: Sent) -> bool {
        match sent {
            Sent::Part { range, total } => {
                range.start == self.segment.position()
                    && self.segment.end().is_some_and(|end| range.end <= end)
                    && total.is_none_or(|total| Some(total) == self.segments.total())
            }
            Sent::Complete { .. } => true,
            Sent::Unplaced => false,
        }
    }

    /// Accepts a part, or the complete blob if it begins with the bytes in the spool.
    async fn accept(&self, transfer: Transfer) -> Result<Inflow, PullError> {
        let (position, total) = (self.segment.position(), self.segments.total());
        let bytes = paced(transfer.bytes, self.job);
        match transfer.sent {
            Sent::Part { range, .. } if self.fits(transfer.sent) => Ok(Inflow::part(bytes, range)),
            Sent::Part { .. } | Sent::Unplaced => Err(self.job.changed()),
            Sent::Complete { length } => {
                if length.zip(total).is_some_and(|(length, total)| length != total) {
                    return Err(self.job.changed());
                }
                if position > 0 {
                    // No other transfer may be started: each would send the complete blob.
                    self.segments.set_single();
                    self.job.note_ignored_range(self.strong_etag, transfer.strong_etag.as_ref());
                }
                self.skip_known(Inflow::complete(bytes, total)).await
            }
        }
    }

    /// Skips the beginning of the complete blob. The bytes before the first missing one must be those in the spool.
    async fn skip_known(&self, mut inflow: Inflow) -> Result<Inflow, PullError> {
        let position = self.segment.position();
        let known = self.spool.range_to(self.segments.prefix().min(position));
        let mut start = 0;
        while start < known.end() {
            let chunk = inflow.receive_before(known.end()).await?.ok_or_else(|| self.job.changed())?;
            let end = start + chunk.len() as u64;
            self.compare(known.with_range(ByteRange { start, end }), &chunk).await?;
            start = end;
        }
        inflow.skip_to(self.job, position).await?;
        Ok(inflow)
    }

    /// Compares received bytes with the spool.
    ///
    /// # Errors
    /// `Changed` if the bytes differ; `LocalRead` if the file cannot be read, because that is no failure of the source.
    async fn compare(&self, mut known: FileRange, mut received: &[u8]) -> Result<(), PullError> {
        let local_read = |cause| PullError::LocalRead { digest: self.job.fill.digest.clone(), cause: Arc::new(cause) };
        while let Some(known) = known.read().await.map_err(local_read)? {
            let (same, rest) = received.split_at(known.len());
            if same != known {
                return Err(self.job.changed());
            }
            received = rest;
        }
        Ok(())
    }
}

/// Returns a pause with a random part, so that transfers that broke together are not resumed together.
fn pause(attempt: u32) -> Duration {
    FIRST_PAUSE.mul_f64(f64::from(2u32.pow(attempt)) * (0.5 + fastrand::f64()))
}

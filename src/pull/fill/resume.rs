//! Resumes a segment after an interruption. Clients notice only a pause.
//!
//! Requests the rest as a closed range, with the entity tag of the first transfer as `If-Range`. If the source sends the
//! complete blob instead, compares its beginning with the bytes in the spool.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt, stream};

use super::super::error::PullError;
use super::super::source::{ByteStream, FetchRequest, Sent, Transfer};
use super::job::Job;
use super::pace::paced;
use super::segment::Segment;
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
    pub(super) segment: &'a Segment,
    pub(super) strong_etag: Option<&'a String>,
}

/// The bytes that follow the segment's position.
pub(super) struct Continuation {
    pub(super) bytes: ByteStream,
    /// A server may send less than the requested range (RFC 9110, 15.3.7), so the stream may end before the segment.
    pub(super) may_stop_short: bool,
}

impl Resumption<'_> {
    /// Requests the rest, with growing pauses, until the source sends it or there are too many failures. `cause` is the error
    /// that interrupted the transfer, and `fruitless` the number of consecutive interruptions without progress.
    pub(super) async fn run(&self, mut cause: PullError, fruitless: u32) -> Result<Continuation, PullError> {
        let Job { context, fill, source, .. } = self.job;
        if self.segment.is_complete() {
            // All bytes arrived before the connection broke.
            return Ok(Continuation { bytes: stream::empty().boxed(), may_stop_short: false });
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
            let continuation = match source.open(self.request(attempt), context.deadline()).await {
                Ok(transfer) => self.accept(transfer).await,
                Err(error) if error.is_inconclusive() && !error.is_wrong_content() => {
                    cause = error;
                    continue;
                }
                Err(error) => Err(error),
            };
            match continuation {
                Err(error) if error.is_interruption() => cause = error,
                Err(error) => return Err(error),
                Ok(continuation) => {
                    context.metrics.fill_resumed(source.name());
                    fill.resumes.fetch_add(1, Ordering::Relaxed);
                    return Ok(continuation);
                }
            }
        }
        Err(cause)
    }

    fn request(&self, attempt: u32) -> FetchRequest {
        let range = self.segment.rest();
        FetchRequest {
            range,
            if_range: range.and(self.strong_etag.cloned()),
            // Try URLs that sent nothing last.
            skip_urls: attempt as usize,
            effort: Effort::Resume,
            ..FetchRequest::complete(&self.job.fill.digest)
        }
    }

    /// Accepts a part that begins at the segment's position, or the complete blob if it begins with the bytes in the spool.
    async fn accept(&self, transfer: Transfer) -> Result<Continuation, PullError> {
        let (position, end) = (self.segment.position(), self.segment.end());
        match transfer.sent {
            Sent::Part { range, total } => {
                let fits = range.start == position
                    && end.is_some_and(|end| range.end <= end)
                    && total.is_none_or(|total| Some(total) == end);
                if !fits {
                    return Err(self.job.changed());
                }
                Ok(Continuation { bytes: self.paced(transfer.bytes), may_stop_short: true })
            }
            Sent::Complete { length } => {
                if length.zip(end).is_some_and(|(length, end)| length != end) {
                    return Err(self.job.changed());
                }
                self.skip_known(transfer.bytes).await
            }
        }
    }

    /// Reads the beginning of the complete blob, which must be the bytes in the spool.
    async fn skip_known(&self, mut bytes: ByteStream) -> Result<Continuation, PullError> {
        let known = self.spool.range_to(self.segment.position());
        let mut first_new = Bytes::new();
        let mut compared = 0;
        while compared < known.end() {
            let mut chunk = bytes.next().await.transpose()?.ok_or_else(|| self.job.changed())?;
            let to_compare = chunk.split_to(chunk.len().min((known.end() - compared) as usize));
            self.compare(
                known.with_range(ByteRange { start: compared, end: compared + to_compare.len() as u64 }),
                &to_compare,
            )
            .await?;
            compared += to_compare.len() as u64;
            first_new = chunk;
        }
        let ahead = (!first_new.is_empty()).then_some(Ok(first_new));
        let bytes = stream::iter(ahead).chain(self.paced(bytes)).boxed();
        Ok(Continuation { bytes, may_stop_short: false })
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

    fn paced(&self, bytes: ByteStream) -> ByteStream {
        let source = &self.job.source;
        paced(bytes, source.min_rate(), source.name().clone())
    }
}

/// Returns a pause with a random part, so that transfers that broke together are not resumed together.
fn pause(attempt: u32) -> Duration {
    FIRST_PAUSE.mul_f64(f64::from(2u32.pow(attempt)) * (0.5 + fastrand::f64()))
}

//! One attempt to fetch a blob: a spool, its hash, and one or more transfers.
//!
//! Wrong bytes are never repaired. The attempt ends, and another one may begin, as the next generation.

use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

use tokio::time::Instant;

use super::super::error::PullError;
use super::super::source::{BlobSource, FetchRequest, Sent, Transfer};
use super::inflow::Inflow;
use super::job::Job;
use super::pace::paced;
use super::segments::{PIECE_BYTES, Segments};
use super::transfer::Transfers;
use crate::oci::ByteRange;
use crate::store::Spool;
use crate::upstream::Effort;

/// Maximum number of attempts after the first one. Wrong bytes may have been damaged in transit.
const MAX_REPEATS: u32 = 1;

/// The part of `answer_within` that the first request may take if it is for a range.
const RANGE_PART_OF_DEADLINE: u32 = 4;

/// Blobs of fewer bytes are not divided among several connections.
const MIN_DIVIDED_BYTES: u64 = 4 * PIECE_BYTES;

pub(super) struct Attempt<'a> {
    job: &'a Job,
    generation: u32,
    /// The URLs that are tried last, because one of them sent wrong bytes.
    skip_urls: usize,
    /// The `skip_urls` of the next attempt. Written when the first response arrives.
    next_url: AtomicUsize,
}

/// A verified blob that only has to be committed to the store.
pub(super) struct Verified {
    spool: Spool,
    pub(super) length: u64,
    generation: u32,
}

impl<'a> Attempt<'a> {
    pub(super) fn first(job: &'a Job) -> Self {
        Self { job, generation: 0, skip_urls: 0, next_url: AtomicUsize::new(0) }
    }

    pub(super) fn next(self) -> Self {
        let skip_urls = self.next_url.into_inner();
        Self { job: self.job, generation: self.generation + 1, skip_urls, next_url: AtomicUsize::new(0) }
    }

    /// Whether another attempt may begin: only if the fill has followers. Followers that have sent bytes end with an
    /// error. The others follow the next attempt.
    pub(super) fn may_be_repeated(&self) -> bool {
        self.generation < MAX_REPEATS && self.job.fill.follower_count() > 0
    }

    /// Receives and verifies all of the blob, and publishes the progress.
    pub(super) async fn run(&self) -> Result<Verified, PullError> {
        let Job { context, fill, source, publisher, .. } = self.job;
        let (digest, generation) = (&fill.digest, self.generation);
        fill.received.store(0, Ordering::Relaxed);
        let transfer = self.open().await?;
        self.next_url.store(transfer.next_url, Ordering::Relaxed);
        let (total, first_end) = match transfer.sent {
            Sent::Part { range, total } => (total, Some(range.end)),
            Sent::Complete { length: Some(total) } => (Some(total), None),
            // The length from a HEAD is a hint. If it was wrong, the next attempt does not use it.
            Sent::Complete { length: None } if generation > 0 => (None, None),
            Sent::Complete { length: None } => (source.length(digest, context.deadline()).await, None),
            Sent::Unplaced => return Err(self.job.changed()),
        };
        let is_doubtful = self.is_doubtful(&transfer, total);
        let spool = context.store.begin(digest.algorithm(), total).await?;
        let (segments, segment) = Segments::begin(total, first_end);
        // After wrong bytes nothing is mixed: one connection, one URL.
        if is_doubtful || generation > 0 || !source.serves_ranges() {
            segments.set_single();
        } else if !spool.may_have_gaps() {
            segments.set_gapless();
        }
        if !is_doubtful {
            publisher.receiving(spool.range_to(0), segments.clone(), generation);
        }
        let assistants = if segments.is_single() { 0 } else { assistants(&**source, total) };
        if assistants > 0 {
            segments.divide();
        }
        let (job, strong_etag) = (self.job, transfer.strong_etag.as_ref());
        let transfers = Transfers {
            job,
            spool: &spool,
            segments: &segments,
            strong_etag,
            assistants,
            skip_urls: self.skip_urls,
            fruitless: AtomicU32::new(0),
        };
        let bytes = paced(transfer.bytes, job);
        let inflow = match first_end {
            Some(end) => Inflow::part(bytes, ByteRange { start: 0, end }),
            None => Inflow::complete(bytes, total),
        };
        transfers.run(segment, inflow).await?;
        let length = segments.prefix();
        if total.is_some_and(|total| total != length) || spool.digest().await? != *digest {
            return Err(self.job.wrong_content());
        }
        publisher.verified(spool.range_to(length), generation);
        Ok(Verified { spool, length, generation })
    }

    /// Sends the first request: for the first piece if other transfers are expected beside it, otherwise for the
    /// complete blob. If the complete blob were requested then, that transfer would be cut later, and its bytes in
    /// flight would be wasted.
    async fn open(&self) -> Result<Transfer, PullError> {
        let Job { context, fill, source, .. } = self.job;
        let complete = FetchRequest { skip_urls: self.skip_urls, ..FetchRequest::complete(&fill.digest) };
        let mut range_was_refused = false;
        if let Some((piece, total)) = self.first_piece() {
            let request = FetchRequest { range: Some(piece), effort: Effort::Once, ..complete.clone() };
            // The complete blob may have to be requested within the same time.
            let deadline = Instant::now() + context.config.answer_within / RANGE_PART_OF_DEADLINE;
            match source.open(request, deadline).await {
                Ok(transfer) if transfer.sent == (Sent::Part { range: piece, total: Some(total) }) => {
                    return Ok(transfer);
                }
                Ok(transfer) if matches!(transfer.sent, Sent::Complete { .. }) => {
                    source.note_ignored_range();
                    return Ok(transfer);
                }
                Ok(_) => range_was_refused = true,
                // Not only refusals: a range may be missing, hang, or break where the complete blob does not.
                Err(error) if error.may_concern_range_only() => {
                    tracing::debug!(%error, "the source refused a range of the blob; requesting all of it");
                    range_was_refused = !error.may_pass();
                }
                Err(error) => return Err(error),
            }
        }
        match source.open(complete, context.deadline()).await? {
            Transfer { sent: Sent::Part { .. } | Sent::Unplaced, .. } => Err(self.job.changed()),
            transfer => {
                if range_was_refused {
                    source.note_ignored_range();
                }
                Ok(transfer)
            }
        }
    }

    /// The range of the first request and the length of the blob, if the blob is to be received in pieces.
    fn first_piece(&self) -> Option<(ByteRange, u64)> {
        let Job { fill, source, .. } = self.job;
        let total = fill.size.filter(|total| *total > 2 * PIECE_BYTES)?;
        let in_pieces = fill.is_for_range || assistants(&**source, Some(total)) > 0;
        let may_ask = self.generation == 0 && source.serves_ranges();
        (in_pieces && may_ask).then_some((ByteRange { start: 0, end: PIECE_BYTES }, total))
    }

    /// Whether the headers contradict the known length or digest of the blob. The digest decides, not a header. But
    /// no byte is sent to a client before verification.
    fn is_doubtful(&self, transfer: &Transfer, total: Option<u64>) -> bool {
        let fill = &self.job.fill;
        let other_length = fill.size.zip(total).is_some_and(|(known, total)| known != total);
        let announced = transfer.digest.as_ref();
        let other_digest = announced
            .is_some_and(|announced| announced.algorithm() == fill.digest.algorithm() && *announced != fill.digest);
        if other_length || other_digest {
            tracing::warn!(
                other_length,
                other_digest,
                "the response announces another length or digest; the blob is held back until it is verified"
            );
        }
        other_length || other_digest
    }
}

impl Verified {
    /// Moves the blob into the store and links it in the source's repository. Returns its length in bytes.
    pub(super) async fn commit(self, job: &Job) -> Result<u64, PullError> {
        let Self { spool, length, generation } = self;
        let file = spool.range_to(length);
        job.context.store.commit(spool, &job.fill.digest, &job.fill.source.repo).await?;
        job.publisher.committed(file, generation);
        Ok(length)
    }
}

/// The number of connections beside the first one that receive a blob of this length.
fn assistants(source: &dyn BlobSource, total: Option<u64>) -> usize {
    let is_worth_it = total.is_some_and(|total| total >= MIN_DIVIDED_BYTES);
    if is_worth_it { source.connections().saturating_sub(1) } else { 0 }
}

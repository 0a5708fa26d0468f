//! One attempt to fetch a blob from byte zero: a spool, its running hash, and one or more transfers.
//!
//! Wrong bytes are never repaired. The attempt ends, and another one may begin, as the next generation.

use super::super::error::PullError;
use super::super::source::{FetchRequest, Sent, Transfer};
use super::job::Job;
use super::segment::Segment;
use super::transfer::SegmentTransfer;
use crate::store::Spool;

/// Maximum number of attempts after the first one. Wrong bytes may have been damaged in transit.
const MAX_REPEATS: u32 = 1;

pub(super) struct Attempt<'a> {
    job: &'a Job,
    generation: u32,
}

/// A verified blob that only has to be committed to the store.
pub(super) struct Verified {
    spool: Spool,
    length: u64,
    generation: u32,
}

impl<'a> Attempt<'a> {
    pub(super) fn first(job: &'a Job) -> Self {
        Self { job, generation: 0 }
    }

    pub(super) fn next(self) -> Self {
        Self { job: self.job, generation: self.generation + 1 }
    }

    /// Whether another attempt may begin: only if the fill has followers. Followers that have sent bytes end with an error. The
    /// others follow the next attempt.
    pub(super) fn may_be_repeated(&self) -> bool {
        self.generation < MAX_REPEATS && self.job.fill.follower_count() > 0
    }

    /// Receives and verifies all of the blob, and publishes the progress.
    pub(super) async fn run(&self) -> Result<Verified, PullError> {
        let Job { context, fill, source, publisher } = self.job;
        let (digest, generation) = (&fill.digest, self.generation);
        let transfer = source.open(FetchRequest::complete(digest), context.deadline()).await?;
        let total = match announced_length(transfer.sent) {
            Some(total) => Some(total),
            // The length from a HEAD is a hint. If it was wrong, the next attempt does not use it.
            None if generation > 0 => None,
            None => source.length(digest, context.deadline()).await,
        };
        let is_doubtful = self.is_doubtful(&transfer, total);
        let spool = context.store.begin(digest.algorithm(), total).await?;
        if !is_doubtful {
            publisher.receiving(spool.range_to(0), total, generation);
        }
        let segment = Segment::complete(total);
        let length = SegmentTransfer::new(self.job, &spool, segment, transfer.strong_etag).run(transfer.bytes).await?;
        if total.is_some_and(|total| total != length) || spool.digest().await? != *digest {
            return Err(self.job.wrong_content());
        }
        publisher.verified(spool.range_to(length), generation);
        Ok(Verified { spool, length, generation })
    }

    /// Whether the headers contradict the known length or digest of the blob. The digest decides, not a header. But no byte is
    /// sent to a client before verification.
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

fn announced_length(sent: Sent) -> Option<u64> {
    match sent {
        Sent::Complete { length } => length,
        Sent::Part { total, .. } => total,
    }
}

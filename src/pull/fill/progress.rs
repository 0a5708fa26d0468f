//! What a fill publishes: where it is, and which bytes of its spool file may be read.
//!
//! This module owns the rules of the mark: it moves forward only, stays behind the held-back tail until verification, and
//! belongs to one attempt at the blob (its generation).

use tokio::sync::watch;

use super::super::error::PullError;
use super::super::held_back_tail::readable_before_verification;
use crate::oci::ByteRange;
use crate::store::FileRange;

/// Where a fill is. If the publisher is dropped before it published an end, the fill has failed.
#[derive(Clone, Debug)]
pub(super) enum Progress {
    /// It waits for a slot.
    Queued,
    /// It has requested the blob; nothing can be read.
    Requesting,
    Readable(Extent),
    Failed(PullError),
}

/// What may be read of one attempt's file.
#[derive(Clone, Debug)]
pub(in crate::pull) struct Extent {
    /// From the first byte of the blob to the mark.
    file: FileRange,
    /// The length of the blob in bytes, if it is known.
    total: Option<u64>,
    /// Counts attempts from zero. A follower that has sent bytes of one generation must not send bytes of another.
    generation: u32,
    stage: Stage,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Receiving,
    /// Length and digest are right, and all of it may be read.
    Verified,
    /// Verified and in the store. `found`: it was there before the fill began.
    Committed {
        found: bool,
    },
}

/// The writing end of a fill's progress; only the fill's task has it.
#[derive(Debug)]
pub(super) struct Publisher(watch::Sender<Progress>);

impl Progress {
    /// A new fill's progress, and the end that publishes it.
    pub(super) fn channel() -> (Publisher, watch::Receiver<Self>) {
        let (publisher, progress) = watch::channel(Self::Requesting);
        (Publisher(publisher), progress)
    }
}

impl Extent {
    /// A blob that was in the store before the fill began.
    pub(super) fn found(file: FileRange) -> Self {
        Self { total: Some(file.end()), file, generation: 0, stage: Stage::Committed { found: true } }
    }

    /// How far the blob may be read from its first byte, in bytes.
    pub(in crate::pull) fn mark(&self) -> u64 {
        self.file.end()
    }

    pub(in crate::pull) fn total(&self) -> Option<u64> {
        self.total
    }

    pub(super) fn generation(&self) -> u32 {
        self.generation
    }

    /// Whether all of the blob has come and is verified.
    pub(super) fn is_complete(&self) -> bool {
        self.stage != Stage::Receiving
    }

    pub(super) fn is_committed(&self) -> bool {
        matches!(self.stage, Stage::Committed { .. })
    }

    /// Whether it was in the store before the fill began.
    pub(super) fn was_found(&self) -> bool {
        self.stage == Stage::Committed { found: true }
    }

    pub(in crate::pull) fn covers(&self, range: &ByteRange) -> bool {
        range.end <= self.mark()
    }

    /// Bytes that are missing between what may be read and `position`.
    pub(in crate::pull) fn distance_to(&self, position: u64) -> u64 {
        position.saturating_sub(self.mark())
    }

    /// What may be read from `position` on, but not beyond `end`; `None` where that is nothing.
    pub(in crate::pull) fn readable_from(&self, position: u64, end: Option<u64>) -> Option<FileRange> {
        let end = end.map_or(self.mark(), |end| end.min(self.mark()));
        (position < end).then(|| self.file.with_range(ByteRange { start: position, end }))
    }

    /// The file, of which any range that it covers can be read.
    pub(in crate::pull) fn file(&self) -> &FileRange {
        &self.file
    }
}

impl Publisher {
    pub(super) fn queued(&self) {
        self.0.send_replace(Progress::Queued);
    }

    /// Also between two attempts: requests that arrive now wait for the next one and get no bytes that are known to be wrong.
    pub(super) fn requesting(&self) {
        self.0.send_replace(Progress::Requesting);
    }

    /// An attempt begins to receive into `file`, which is still empty.
    pub(super) fn receiving(&self, file: FileRange, total: Option<u64>, generation: u32) {
        self.readable(Extent { file, total, generation, stage: Stage::Receiving });
    }

    /// The first `received` bytes of the attempt are in the file: moves the mark.
    pub(super) fn received(&self, received: u64) {
        self.0.send_if_modified(|progress| match progress {
            Progress::Readable(extent) if extent.stage == Stage::Receiving => {
                let mark = readable_before_verification(received, extent.total);
                let moved = mark > extent.mark();
                extent.file.extend_to(mark);
                moved
            }
            _ => false,
        });
    }

    /// Length and digest of `file` are right.
    pub(super) fn verified(&self, file: FileRange, generation: u32) {
        self.readable(Extent { total: Some(file.end()), file, generation, stage: Stage::Verified });
    }

    pub(super) fn committed(&self, file: FileRange, generation: u32) {
        self.readable(Extent { total: Some(file.end()), file, generation, stage: Stage::Committed { found: false } });
    }

    pub(super) fn readable(&self, extent: Extent) {
        self.0.send_replace(Progress::Readable(extent));
    }

    /// Tells all followers. What was verified stays readable for them, though it could not be committed.
    pub(super) fn failed(&self, error: PullError) {
        self.0.send_if_modified(|progress| {
            let verified = matches!(progress, Progress::Readable(extent) if extent.is_complete());
            if !verified {
                *progress = Progress::Failed(error);
            }
            !verified
        });
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::super::super::held_back_tail::HELD_BACK_TAIL_BYTES;
    use super::*;
    use crate::oci::Algorithm;
    use crate::store::{Spool, Store};

    const TAIL: u64 = HELD_BACK_TAIL_BYTES;
    const TOTAL: u64 = 3 * TAIL;

    async fn spool(store: &Store) -> Spool {
        let spool = store.begin(Algorithm::Sha256, Some(TOTAL)).await.unwrap();
        spool.append(vec![Bytes::from(vec![1; TOTAL as usize])]).await.unwrap();
        spool
    }

    fn extent(progress: &watch::Receiver<Progress>) -> Extent {
        match &*progress.borrow() {
            Progress::Readable(extent) => extent.clone(),
            other => panic!("{other:?}"),
        }
    }

    fn range(file: Option<FileRange>) -> Option<(u64, u64)> {
        file.map(|file| (file.start(), file.end()))
    }

    #[tokio::test]
    async fn the_mark_moves_forward_only_and_reaches_the_tail_after_verification() {
        let folder = tempfile::tempdir().unwrap();
        let spool = spool(&Store::open(folder.path()).unwrap()).await;
        let (publisher, progress) = Progress::channel();
        publisher.received(1000);
        assert!(matches!(*progress.borrow(), Progress::Requesting), "no attempt receives yet");
        publisher.receiving(spool.range_to(0), Some(TOTAL), 0);
        for (received, mark) in [(1000, 1000), (500, 1000), (TOTAL, 2 * TAIL)] {
            publisher.received(received);
            assert_eq!(extent(&progress).mark(), mark, "{received}");
        }
        assert_eq!(range(extent(&progress).readable_from(10, None)), Some((10, 2 * TAIL)));
        assert_eq!(range(extent(&progress).readable_from(10, Some(20))), Some((10, 20)));
        assert_eq!(range(extent(&progress).readable_from(2 * TAIL, None)), None);
        assert!(!extent(&progress).is_complete() && extent(&progress).distance_to(TOTAL) == TAIL);
        publisher.verified(spool.range_to(TOTAL), 0);
        assert!(extent(&progress).is_complete() && extent(&progress).mark() == TOTAL);
    }

    #[tokio::test]
    async fn a_failure_to_commit_takes_nothing_away_from_followers() {
        let folder = tempfile::tempdir().unwrap();
        let spool = spool(&Store::open(folder.path()).unwrap()).await;
        let (publisher, progress) = Progress::channel();
        publisher.verified(spool.range_to(TOTAL), 0);
        publisher.failed(PullError::Abandoned);
        assert_eq!(extent(&progress).mark(), TOTAL);
        publisher.requesting();
        publisher.failed(PullError::Abandoned);
        assert!(matches!(*progress.borrow(), Progress::Failed(PullError::Abandoned)));
    }
}

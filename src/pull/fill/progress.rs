//! The progress that a fill publishes: its state, and which bytes of its spool file may be read.
//!
//! The state changes a few times for each attempt. The bytes that arrive in between move the mark, which followers
//! watch in [`Segments`]. All of it belongs to one attempt (its generation).

use std::sync::Arc;

use tokio::sync::watch;

use super::super::error::PullError;
use super::segments::Segments;
use crate::oci::ByteRange;
use crate::store::FileRange;

/// The state of a fill. If the publisher is dropped before it published an end, the fill has failed.
#[derive(Clone, Debug)]
pub(super) enum Progress {
    /// The fill waits for a slot.
    Queued,
    /// The fill has requested the blob; no bytes can be read.
    Requesting,
    Readable(Extent),
    Failed(PullError),
}

/// What may be read of one attempt's file.
#[derive(Clone, Debug)]
pub(in crate::pull) struct Extent {
    /// The complete file once it is verified. Before that, only for reading what `segments` allows.
    file: FileRange,
    /// What was received so far; `None` once all of the file may be read.
    segments: Option<Arc<Segments>>,
    /// The length of the blob in bytes, if it is known.
    total: Option<u64>,
    /// Counts attempts from zero. A follower that has sent bytes of one generation must not send bytes of another.
    generation: u32,
    stage: Stage,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Receiving,
    /// Length and digest are correct, and all bytes may be read.
    Verified,
    /// Verified and in the store. `found`: it was stored before the fill began.
    Committed {
        found: bool,
    },
}

/// The writing end of a fill's progress; only the fill's task has it.
#[derive(Debug)]
pub(super) struct Publisher(watch::Sender<Progress>);

impl Progress {
    /// Returns the publisher and the receiver of a new fill's progress.
    pub(super) fn channel() -> (Publisher, watch::Receiver<Self>) {
        let (publisher, progress) = watch::channel(Self::Requesting);
        (Publisher(publisher), progress)
    }
}

impl Extent {
    /// Returns the extent of a blob that was in the store before the fill began.
    pub(super) fn found(file: FileRange) -> Self {
        Self { total: Some(file.end()), file, segments: None, generation: 0, stage: Stage::Committed { found: true } }
    }

    /// Returns the number of bytes that may be read from the start of the blob.
    pub(in crate::pull) fn mark(&self) -> u64 {
        self.segments.as_ref().map_or(self.file.end(), |segments| segments.mark())
    }

    pub(super) fn segments(&self) -> Option<&Arc<Segments>> {
        self.segments.as_ref()
    }

    pub(in crate::pull) fn total(&self) -> Option<u64> {
        self.total
    }

    pub(super) fn generation(&self) -> u32 {
        self.generation
    }

    /// Whether all bytes of the blob arrived and are verified.
    pub(super) fn is_complete(&self) -> bool {
        self.stage != Stage::Receiving
    }

    pub(super) fn is_committed(&self) -> bool {
        matches!(self.stage, Stage::Committed { .. })
    }

    /// Whether the blob was in the store before the fill began.
    pub(super) fn was_found(&self) -> bool {
        self.stage == Stage::Committed { found: true }
    }

    pub(in crate::pull) fn covers(&self, range: &ByteRange) -> bool {
        range.end <= self.mark()
    }

    /// Returns the number of bytes between the mark and `position`; 0 if the mark is beyond it.
    pub(in crate::pull) fn distance_to(&self, position: u64) -> u64 {
        position.saturating_sub(self.mark())
    }

    /// Returns the readable bytes from `position`, but not beyond `end`; `None` if there are none.
    pub(in crate::pull) fn readable_from(&self, position: u64, end: Option<u64>) -> Option<FileRange> {
        let mark = self.mark();
        let end = end.map_or(mark, |end| end.min(mark));
        (position < end).then(|| self.range(ByteRange { start: position, end }))
    }

    /// Returns a range of the file. Its bytes must have been received.
    pub(super) fn range(&self, range: ByteRange) -> FileRange {
        self.file.with_range(range)
    }

    /// Returns the file as a range. During a fill it is empty: use `with_range`.
    pub(in crate::pull) fn file(&self) -> &FileRange {
        &self.file
    }
}

impl Publisher {
    pub(super) fn queued(&self) {
        self.0.send_replace(Progress::Queued);
    }

    /// Publishes that no bytes can be read. Called also between two attempts, so that new requests wait for the next
    /// attempt and get no bytes that are known to be wrong.
    pub(super) fn requesting(&self) {
        self.0.send_replace(Progress::Requesting);
    }

    /// Publishes that an attempt receives into `file`.
    pub(super) fn receiving(&self, file: FileRange, segments: Arc<Segments>, generation: u32) {
        let (total, segments) = (segments.total(), Some(segments));
        self.readable(Extent { file, segments, total, generation, stage: Stage::Receiving });
    }

    /// Publishes that length and digest of `file` are correct.
    pub(super) fn verified(&self, file: FileRange, generation: u32) {
        self.readable(Extent { total: Some(file.end()), file, segments: None, generation, stage: Stage::Verified });
    }

    pub(super) fn committed(&self, file: FileRange, generation: u32) {
        let stage = Stage::Committed { found: false };
        self.readable(Extent { total: Some(file.end()), file, segments: None, generation, stage });
    }

    pub(super) fn readable(&self, extent: Extent) {
        self.0.send_replace(Progress::Readable(extent));
    }

    /// Publishes the error. A verified blob that could not be committed stays readable for its followers.
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
        spool.write_at(0, vec![Bytes::from(vec![1; TOTAL as usize])]).await.unwrap();
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
    async fn the_tail_is_readable_after_verification() {
        let folder = tempfile::tempdir().unwrap();
        let spool = spool(&Store::open(folder.path()).unwrap()).await;
        let (publisher, progress) = Progress::channel();
        let (segments, segment) = Segments::begin(Some(TOTAL), None);
        publisher.receiving(spool.range_to(TOTAL), segments, 0);
        for (received, mark) in [(1000, 1000), (TOTAL, 2 * TAIL)] {
            segment.received(received);
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

//! A running fill as its followers see it ([`Fill`]), and the data of its own task ([`Job`]).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use parking_lot::Mutex;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::Span;

use super::super::context::Context;
use super::super::error::PullError;
use super::super::slots::Slots;
use super::super::source::{BlobSource, SourceId};
use super::progress::{Progress, Publisher};
use crate::oci::Digest;

/// A running fill.
#[derive(Debug)]
pub(in crate::pull) struct Fill {
    pub(super) digest: Digest,
    pub(super) source: SourceId,
    /// The length in bytes, if a manifest or an earlier answer gave it.
    pub(super) size: Option<u64>,
    /// The request that started it asks for a range. More ranges may follow, each of another part of the blob.
    pub(super) is_for_range: bool,
    /// Written by the fill's task.
    pub(super) progress: watch::Receiver<Progress>,
    /// The source's repository has no stored content.
    pub(super) new_repository: bool,
    /// The source's repository may share rights with others.
    pub(super) may_share: bool,
    /// Written by followers when they join and leave.
    pub(super) followers: AtomicUsize,
    /// The number of requests that have joined it.
    pub(super) joined: AtomicUsize,
    /// Bytes of the current attempt, written by the fill's task.
    pub(super) received: AtomicU64,
    /// The number of times that its transfer was resumed after an interruption.
    pub(super) resumes: AtomicUsize,
    /// The fill had to wait for a slot.
    pub(super) had_to_wait: AtomicBool,
    pub(super) abandon: CancellationToken,
    /// The fill's own span, because a fill outlives the request that started it. The spans of followers link to it.
    /// The fill's task takes it when it ends, so that the span does not last as long as the slowest follower.
    pub(super) span: Mutex<Option<Span>>,
}

impl Fill {
    pub(in crate::pull) fn source(&self) -> &SourceId {
        &self.source
    }

    pub(super) fn follower_count(&self) -> usize {
        self.followers.load(Ordering::Acquire)
    }

    /// Whether the fill runs without followers. A fill that has received all bytes is no orphan: it only has to be
    /// committed.
    pub(super) fn is_orphan(&self) -> bool {
        let fetches = match &*self.progress.borrow() {
            Progress::Requesting => true,
            Progress::Readable(extent) => !extent.is_complete(),
            Progress::Queued | Progress::Failed(_) => false,
        };
        fetches && self.follower_count() == 0 && !self.abandon.is_cancelled()
    }

    pub(super) fn is_queued(&self) -> bool {
        matches!(*self.progress.borrow(), Progress::Queued)
    }

    /// Whether the fill is cancelled and will release its slot.
    pub(super) fn is_ending(&self) -> bool {
        self.abandon.is_cancelled() && !self.is_queued()
    }

    pub(super) fn has_failed(&self) -> bool {
        matches!(*self.progress.borrow(), Progress::Failed(_))
    }
}

/// The data of the task of one fill.
pub(super) struct Job {
    pub(super) context: Arc<Context>,
    pub(super) fill: Arc<Fill>,
    pub(super) source: Arc<dyn BlobSource>,
    pub(super) publisher: Publisher,
    /// The slots of all fills. A transfer beside the first one needs a slot of its own.
    pub(super) slots: Slots,
}

impl Job {
    pub(super) fn wrong_content(&self) -> PullError {
        PullError::WrongContent { upstream: self.source.name().clone(), digest: self.fill.digest.clone() }
    }

    /// Remembers that the source sent the complete blob instead of a range, unless its entity tags show that the blob
    /// has changed since the first transfer.
    pub(super) fn note_ignored_range(&self, first_etag: Option<&String>, etag: Option<&String>) {
        if first_etag.is_none() || first_etag == etag {
            self.source.note_ignored_range();
        }
    }

    pub(super) fn changed(&self) -> PullError {
        PullError::Changed { upstream: self.source.name().clone() }
    }
}

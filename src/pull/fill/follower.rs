//! A follower: one client's reading position in a fill's file. A slow client delays neither the fill nor other followers.

use std::fmt;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

use super::super::error::{ContentError, PullError};
use super::super::held_back_tail::HELD_BACK_TAIL_BYTES;
use super::progress::{Extent, Progress};
use super::registry::Following;
use crate::store::FileRange;
use crate::telemetry::CacheResult;

/// What a response needs to know before it can begin, from one look at the fill: a second look may see another generation,
/// whose length is not the one that the client is told.
#[derive(Clone, Debug)]
pub(in crate::pull) struct Start {
    generation: u32,
    total: Option<u64>,
    /// `None` before any bytes could be read.
    extent: Option<Extent>,
}

/// The bytes `next..end` of a fill, as they become readable.
pub struct Follower {
    following: Following,
    next: u64,
    /// `None`: to the end of the blob, whose length is not known.
    end: Option<u64>,
    /// The length that the client was told; it cannot be told another one when a later generation has it.
    total: Option<u64>,
    generation: u32,
    /// Whether bytes of this generation were handed out.
    sent: bool,
    /// The first bytes, read before the client was told anything.
    read_ahead: Option<Bytes>,
}

/// What the fill's progress allows a follower to do.
enum Step {
    Read(FileRange),
    Wait,
    End,
}

// === impl Start ===

impl Start {
    pub(in crate::pull) fn total(&self) -> Option<u64> {
        self.total
    }

    pub(in crate::pull) fn extent(&self) -> Option<&Extent> {
        self.extent.as_ref()
    }

    /// How far `position` lies beyond what can be read, in bytes.
    pub(in crate::pull) fn distance_to(&self, position: u64) -> u64 {
        self.extent.as_ref().map_or(position, |extent| extent.distance_to(position))
    }

    /// How the request counts, which joined the fill as `result`. The request that caused a fetch is a miss, however fast the
    /// fetch was.
    pub(in crate::pull) fn result(&self, result: CacheResult) -> CacheResult {
        let extent = self.extent.as_ref();
        match result {
            CacheResult::Miss if extent.is_some_and(Extent::was_found) => CacheResult::Hit,
            CacheResult::Joined if extent.is_some_and(Extent::is_committed) => CacheResult::JoinedCommitted,
            result => result,
        }
    }
}

impl From<&Extent> for Start {
    fn from(extent: &Extent) -> Self {
        Self { generation: extent.generation(), total: extent.total(), extent: Some(extent.clone()) }
    }
}

// === impl Following ===

impl Following {
    /// Waits until a response can begin. At the deadline a response begins without bytes if the blob's length is known.
    /// `complete`: only a complete blob will do. `answer_within` is for the error.
    ///
    /// # Errors
    /// Those of the fill; at the deadline `Busy` or `TooLate`.
    pub(in crate::pull) async fn start_by(
        &mut self,
        deadline: Instant,
        complete: bool,
        answer_within: Duration,
    ) -> Result<Start, PullError> {
        match timeout_at(deadline, self.start(complete)).await {
            Ok(start) => start,
            Err(_) => self.start_without_bytes(complete, answer_within),
        }
    }

    /// A small blob has no such start, because it has to be verified before its response begins.
    fn start_without_bytes(&self, complete: bool, answer_within: Duration) -> Result<Start, PullError> {
        let (progress, fill) = (self.progress.borrow(), self.fill());
        let (total, generation) = match &*progress {
            Progress::Readable(extent) if !extent.is_complete() => (extent.total(), extent.generation()),
            // A manifest says that such a blob exists, so its slot will come, and clients wait longer for bytes than for
            // headers.
            _ if fill.had_to_wait.load(Ordering::Acquire) => (fill.size, 0),
            _ => (None, 0),
        };
        let upstream = || fill.source.repo.scope.as_str().into();
        match total {
            Some(total) if total > HELD_BACK_TAIL_BYTES && !complete => {
                Ok(Start { generation, total: Some(total), extent: None })
            }
            _ if matches!(*progress, Progress::Queued) => Err(PullError::Busy { upstream: upstream() }),
            _ => Err(PullError::TooLate { upstream: upstream(), within: answer_within }),
        }
    }

    /// Waits until bytes can be read; with `complete`, until all of them can.
    pub(in crate::pull) async fn start(&mut self, complete: bool) -> Result<Start, PullError> {
        let is_ready = |progress: &Progress| match progress {
            Progress::Queued | Progress::Requesting => false,
            Progress::Readable(extent) => extent.is_complete() || (extent.mark() > 0 && !complete),
            Progress::Failed(_) => true,
        };
        match &*self.progress.wait_for(is_ready).await.map_err(|_| PullError::Abandoned)? {
            Progress::Readable(extent) => Ok(Start::from(extent)),
            Progress::Failed(error) => Err(error.clone()),
            Progress::Queued | Progress::Requesting => Err(PullError::Abandoned),
        }
    }

    /// Reads the bytes `next..end` of what `start` saw.
    pub(in crate::pull) fn read(self, start: &Start, next: u64, end: Option<u64>) -> Follower {
        let Start { generation, total, .. } = *start;
        Follower { following: self, next, end, total, generation, sent: false, read_ahead: None }
    }
}

// === impl Follower ===

impl Follower {
    /// Reads the first bytes, if they become readable by `deadline`: a failure before them can be answered with an error.
    pub(in crate::pull) async fn read_ahead(&mut self, deadline: Instant) -> Result<(), ContentError> {
        if let Ok(first) = timeout_at(deadline, self.next()).await {
            self.read_ahead = first?;
        }
        Ok(())
    }

    pub(in crate::pull) fn into_following(self) -> Following {
        self.following
    }

    /// The next bytes, once they are readable; `None` at the end.
    ///
    /// # Errors
    /// `Transfer` if the fill fails, `LocalRead` if our file cannot be read, `Restarted` if bytes that were handed out turn
    /// out to be wrong.
    pub async fn next(&mut self) -> Result<Option<Bytes>, ContentError> {
        if let Some(first) = self.read_ahead.take() {
            return Ok(Some(first));
        }
        loop {
            match self.step()? {
                Step::End => return Ok(None),
                Step::Read(mut range) => {
                    let bytes = range.read().await?.ok_or(ContentError::Length)?;
                    self.next += bytes.len() as u64;
                    self.sent = true;
                    return Ok(Some(bytes));
                }
                Step::Wait => self.progress().changed().await.map_err(|_| PullError::Abandoned)?,
            }
        }
    }

    fn progress(&mut self) -> &mut watch::Receiver<Progress> {
        &mut self.following.progress
    }

    fn step(&mut self) -> Result<Step, ContentError> {
        if self.end == Some(self.next) {
            return Ok(Step::End);
        }
        let progress = self.following.progress.borrow_and_update();
        let extent = match &*progress {
            // The bytes that were handed out are wrong.
            Progress::Queued | Progress::Requesting if self.sent => return Err(ContentError::Restarted),
            Progress::Queued | Progress::Requesting => return Ok(Step::Wait),
            Progress::Readable(extent) => extent,
            Progress::Failed(error) => return Err(error.clone().into()),
        };
        if extent.generation() != self.generation {
            let told_another_length = self.total.zip(extent.total()).is_some_and(|(told, total)| told != total);
            if self.sent || told_another_length {
                return Err(ContentError::Restarted);
            }
            self.generation = extent.generation();
        }
        match (extent.readable_from(self.next, self.end), extent.is_complete(), self.end) {
            (Some(range), ..) => Ok(Step::Read(range)),
            (None, false, _) => Ok(Step::Wait),
            (None, true, None) => Ok(Step::End),
            // The complete blob is shorter than the client was told.
            (None, true, Some(_)) => Err(ContentError::Length),
        }
    }
}

impl fmt::Debug for Follower {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Follower")
            .field("digest", &self.following.fill().digest)
            .field("next", &self.next)
            .finish_non_exhaustive()
    }
}

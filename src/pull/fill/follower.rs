//! A follower: a request that reads a fill's file at its own position. A slow client delays neither the fill nor other
//! followers.

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
use super::segments::Reach;
use crate::oci::ByteRange;
use crate::store::FileRange;
use crate::telemetry::CacheResult;

/// The state of a fill when a response begins. It is read once: a later state may have another generation with
/// another length than the one sent to the client.
#[derive(Clone, Debug)]
pub(in crate::pull) struct Start {
    generation: u32,
    total: Option<u64>,
    /// `None` before any bytes could be read.
    extent: Option<Extent>,
}

/// Reads the bytes `next..end` of a fill as they become readable.
pub struct Follower {
    following: Following,
    next: u64,
    /// `None`: the end of the blob, because its length is not known.
    end: Option<u64>,
    /// The length in the response headers. A later generation with another length cannot continue the response.
    total: Option<u64>,
    generation: u32,
    /// Whether bytes of this generation were returned to the caller.
    sent: bool,
    /// Whether the bytes of the held-back tail are read before they are verified.
    before_verification: bool,
    /// The first bytes, read before the response headers were sent.
    read_ahead: Option<Bytes>,
}

/// What must be known before a response begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::pull) enum Readiness {
    /// The length of the blob.
    Length,
    /// The first bytes.
    FirstBytes,
    /// All bytes.
    Complete,
}

/// The next step of a follower, by the fill's progress.
enum Step {
    Read(FileRange),
    /// Waits until the state of the fill, the position or the list of segments changes.
    Wait(Option<watch::Receiver<u64>>, Option<watch::Receiver<()>>),
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

    /// Returns the number of bytes between the mark and `position`.
    pub(in crate::pull) fn distance_to(&self, position: u64) -> u64 {
        self.extent.as_ref().map_or(position, |extent| extent.distance_to(position))
    }

    /// Whether the fill starts no transfer for a range far ahead, because its file cannot have gaps.
    pub(in crate::pull) fn is_gapless(&self) -> bool {
        self.extent.as_ref().and_then(Extent::segments).is_some_and(|segments| segments.is_gapless())
    }

    /// Returns the cache result of a request that joined the fill as `result`. The request that caused a fetch is a
    /// miss, even if the fetch has ended.
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
    /// Waits until a response can begin. At the deadline a response begins without bytes if the fill has a slot, and
    /// the blob's length is known and more than 64 KiB. `answer_within` is for the error.
    ///
    /// # Errors
    /// Those of the fill; at the deadline `Busy` or `TooLate`.
    pub(in crate::pull) async fn start_by(
        &mut self,
        deadline: Instant,
        readiness: Readiness,
        answer_within: Duration,
    ) -> Result<Start, PullError> {
        match timeout_at(deadline, self.start(readiness)).await {
            Ok(start) => start,
            Err(_) => self.start_without_bytes(readiness == Readiness::Complete, answer_within),
        }
    }

    /// Returns a start without bytes. A small blob has none, because it must be verified before its response begins.
    fn start_without_bytes(&self, complete: bool, answer_within: Duration) -> Result<Start, PullError> {
        let (progress, fill) = (self.progress.borrow(), self.fill());
        let (total, generation) = match &*progress {
            Progress::Readable(extent) if !extent.is_complete() => (extent.total(), extent.generation()),
            // Without a slot, nothing says that the bytes come at all.
            Progress::Queued => (None, 0),
            // The length is from a manifest, so the blob should exist. Send the headers now: clients wait longer for
            // bytes than for headers.
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

    /// Waits until a response can begin.
    pub(in crate::pull) async fn start(&mut self, readiness: Readiness) -> Result<Start, PullError> {
        loop {
            let mark = match &*self.progress.borrow_and_update() {
                Progress::Queued | Progress::Requesting => None,
                Progress::Failed(error) => return Err(error.clone()),
                Progress::Readable(extent) => {
                    // Watched before it is read, so that no move is missed.
                    let mark = extent.segments().map(|segments| segments.watch_mark());
                    let is_ready = match readiness {
                        Readiness::Length => extent.total().is_some() || extent.mark() > 0,
                        Readiness::FirstBytes => extent.mark() > 0,
                        Readiness::Complete => false,
                    };
                    if is_ready || extent.is_complete() {
                        return Ok(Start::from(extent));
                    }
                    mark.filter(|_| readiness != Readiness::Complete)
                }
            };
            wait(&mut self.progress, mark, None).await?;
        }
    }

    /// Returns a follower that reads the bytes `next..end` of the generation in `start`.
    pub(in crate::pull) fn read(self, start: &Start, next: u64, end: Option<u64>) -> Follower {
        let Start { generation, total, .. } = *start;
        let before_verification = false;
        Follower { following: self, next, end, total, generation, sent: false, before_verification, read_ahead: None }
    }
}

/// Waits until the state of the fill, the position or the list of segments changes.
async fn wait(
    progress: &mut watch::Receiver<Progress>,
    position: Option<watch::Receiver<u64>>,
    changes: Option<watch::Receiver<()>>,
) -> Result<(), PullError> {
    // A segment that has ended has no position to watch: its sender is gone.
    tokio::select! {
        changed = progress.changed() => changed.map_err(|_| PullError::Abandoned),
        () = changed(position) => Ok(()),
        () = changed(changes) => Ok(()),
    }
}

async fn changed<T>(watched: Option<watch::Receiver<T>>) {
    match watched {
        Some(mut watched) => drop(watched.changed().await),
        None => std::future::pending().await,
    }
}

// === impl Follower ===

impl Follower {
    /// Reads the first bytes, if they become readable by `deadline`. A failure before them becomes an error status.
    pub(in crate::pull) async fn read_ahead(&mut self, deadline: Instant) -> Result<(), ContentError> {
        if let Ok(first) = timeout_at(deadline, self.next()).await {
            self.read_ahead = first?;
        }
        Ok(())
    }

    /// Reads the held-back tail before it is verified. Only for a range that is a small part of the blob: its client
    /// verifies the result, and a complete blob is never sent unverified.
    #[must_use]
    pub(in crate::pull) fn before_verification(self) -> Self {
        Self { before_verification: true, ..self }
    }

    pub(in crate::pull) fn into_following(self) -> Following {
        self.following
    }

    /// Waits for the next bytes and returns them; `None` at the end.
    ///
    /// # Errors
    /// `Transfer` if the fill fails, `LocalRead` if the spool file cannot be read, `Restarted` if bytes that were
    /// returned turned out to be wrong.
    pub async fn next(&mut self) -> Result<Option<Bytes>, ContentError> {
        if let Some(first) = self.read_ahead.take() {
            return Ok(Some(first));
        }
        let Some(mut range) = self.readable().await? else { return Ok(None) };
        // A read that is cancelled here has returned nothing.
        let bytes = range.read().await?.ok_or(ContentError::Length)?;
        self.advance_to(range.start());
        Ok(Some(bytes))
    }

    /// Waits for the next bytes and returns them as a range of the fill's file; `None` at the end. The range has at
    /// least one byte, and at most `max` bytes, which must not be 0. They count as returned, even if the caller does
    /// not read them.
    ///
    /// # Errors
    /// As [`Follower::next`]. Whether the file can be read is found out by reading the range.
    pub async fn next_range(&mut self, max: u64) -> Result<Option<FileRange>, ContentError> {
        if let Some(first) = self.read_ahead.take() {
            // These bytes were read and not returned.
            self.next -= first.len() as u64;
            self.sent = false;
        }
        let Some(range) = self.readable().await? else { return Ok(None) };
        let end = range.end().min(range.start().saturating_add(max));
        self.advance_to(end);
        Ok(Some(range.with_range(ByteRange { start: range.start(), end })))
    }

    /// Waits for the next bytes, up to the mark; `None` at the end.
    async fn readable(&mut self) -> Result<Option<FileRange>, ContentError> {
        loop {
            match self.step()? {
                Step::End => return Ok(None),
                Step::Read(range) => return Ok(Some(range)),
                Step::Wait(position, changes) => wait(&mut self.following.progress, position, changes).await?,
            }
        }
    }

    /// The bytes before `position` were returned to the caller.
    fn advance_to(&mut self, position: u64) {
        self.next = position;
        self.sent = true;
    }

    fn step(&mut self) -> Result<Step, ContentError> {
        if self.end == Some(self.next) {
            return Ok(Step::End);
        }
        let progress = self.following.progress.borrow_and_update();
        let extent = match &*progress {
            // The bytes that were returned are wrong.
            Progress::Queued | Progress::Requesting if self.sent => return Err(ContentError::Restarted),
            Progress::Queued | Progress::Requesting => return Ok(Step::Wait(None, None)),
            Progress::Readable(extent) => extent,
            Progress::Failed(error) => return Err(error.clone().into()),
        };
        if extent.generation() != self.generation {
            let length_differs = self.total.zip(extent.total()).is_some_and(|(announced, total)| announced != total);
            if self.sent || length_differs {
                return Err(ContentError::Restarted);
            }
            self.generation = extent.generation();
        }
        let Some(segments) = extent.segments() else {
            return match (extent.readable_from(self.next, self.end), self.end) {
                (Some(range), _) => Ok(Step::Read(range)),
                (None, None) => Ok(Step::End),
                // The complete blob is shorter than the length in the response headers.
                (None, Some(_)) => Err(ContentError::Length),
            };
        };
        // Watched before they are read, so that no change is missed.
        let (mark, changes) = (segments.watch_mark(), segments.watch_changes());
        if let Some(range) = extent.readable_from(self.next, self.end) {
            return Ok(Step::Read(range));
        }
        if self.next == extent.mark() && !self.before_verification {
            return Ok(Step::Wait(Some(mark), None));
        }
        match segments.reach(self.next, self.before_verification) {
            Reach::Readable(readable) => {
                let end = self.end.map_or(readable, |end| end.min(readable));
                Ok(Step::Read(extent.range(ByteRange { start: self.next, end })))
            }
            Reach::Receiving(position) => Ok(Step::Wait(Some(position), Some(changes))),
            Reach::Later => Ok(Step::Wait(None, Some(changes))),
            Reach::Far(position) => {
                if let Some(end) = self.end {
                    segments.want(ByteRange { start: self.next, end });
                }
                // If no transfer can start, those that run will reach the position.
                Ok(Step::Wait(Some(position.unwrap_or(mark)), Some(changes)))
            }
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

//! A follower: one client's way through a fill's file. Each has its own position, so a slow one costs the others nothing.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

use super::error::ContentError;
use super::fill::{Fill, HELD_BACK, State};
use super::{Inner, PullError};
use crate::store::FileRange;
use crate::telemetry::CacheResult;

/// Counts as one of the fill's followers until it is dropped.
pub(super) struct Following {
    inner: Arc<Inner>,
    pub(super) fill: Arc<Fill>,
    pub(super) state: watch::Receiver<State>,
}

/// What a request has to know before it can answer: all of one look at the fill, for the next look may see another
/// generation, whose length is not the one that the client is told.
#[derive(Clone, Debug)]
pub(super) struct Start {
    pub(super) generation: u32,
    /// `None` before anything came.
    pub(super) reader: Option<FileRange>,
    pub(super) total: Option<u64>,
    pub(super) mark: u64,
    /// It was in the store by then.
    pub(super) committed: bool,
    /// It had been there before the fill began.
    pub(super) found: bool,
}

impl Start {
    /// Who caused the fetch has missed, however fast it was.
    pub(super) fn result(&self, result: CacheResult) -> CacheResult {
        match result {
            CacheResult::Miss if self.found => CacheResult::Hit,
            CacheResult::Joined if self.committed => CacheResult::JoinedCommitted,
            result => result,
        }
    }
}

/// The bytes `next..end` of a fill, as they can be read.
pub struct Follower {
    following: Following,
    next: u64,
    /// `None`: to the end, which nobody knows yet.
    end: Option<u64>,
    /// What the client was told: another generation may know better, but not say so any more.
    total: Option<u64>,
    generation: u32,
    sent: bool,
    /// The first bytes, read before the client was told anything.
    ahead: Option<Bytes>,
}

/// What a look at the fill's state says to do.
enum Step {
    Read(FileRange, u64),
    End,
    Wait,
}

impl Following {
    pub(super) fn new(inner: Arc<Inner>, fill: Arc<Fill>) -> Self {
        fill.followers.fetch_add(1, Ordering::AcqRel);
        let state = fill.state.clone();
        Self { inner, fill, state }
    }

    /// Waits until an answer can begin, until `deadline`; then it begins without bytes, if the length is known.
    ///
    /// # Errors
    /// Those of the fill; `Busy` and `TooLate` when nothing can be said by then.
    pub(super) async fn start_by(&mut self, deadline: Instant, whole: bool) -> Result<Start, PullError> {
        match timeout_at(deadline, self.start(whole)).await {
            Ok(start) => start,
            Err(_) => self.start_late(whole),
        }
    }

    /// The beginning of an answer whose bytes are still to come. Of a small blob there is none: it has to be right first.
    fn start_late(&self, whole: bool) -> Result<Start, PullError> {
        let (state, fill) = (self.state.borrow(), &self.fill);
        let (total, generation) = match &*state {
            State::Streaming { total, generation, .. } => (*total, *generation),
            // It is a manifest's word that such a blob exists: its turn comes, and clients wait longer for bytes.
            _ if fill.had_to_wait.load(Ordering::Acquire) => (fill.size, 0),
            _ => (None, 0),
        };
        match total {
            Some(total) if total > HELD_BACK && !whole => {
                Ok(Start { generation, reader: None, total: Some(total), mark: 0, committed: false, found: false })
            }
            _ if matches!(*state, State::Queued) => {
                Err(PullError::Busy { upstream: fill.source.repo.scope.as_str().to_owned() })
            }
            _ => Err(PullError::TooLate {
                upstream: fill.source.repo.scope.as_str().to_owned(),
                within: self.inner.cache.answer_within,
            }),
        }
    }

    /// Waits until bytes can be sent: of a small blob, or with `whole`, all of them.
    pub(super) async fn start(&mut self, whole: bool) -> Result<Start, PullError> {
        let ready = |state: &State| match state {
            State::Queued | State::Asking => false,
            State::Streaming { mark, .. } => *mark > 0 && !whole,
            State::Whole { .. } | State::Committed { .. } | State::Failed(_) => true,
        };
        let state = self.state.wait_for(ready).await.map_err(|_| PullError::GivenUp)?;
        let (total, mark, generation, reader) = match &*state {
            State::Streaming { total, mark, generation, reader } => (*total, *mark, *generation, reader),
            State::Whole { length, generation, reader } | State::Committed { length, generation, reader, .. } => {
                (Some(*length), *length, *generation, reader)
            }
            State::Failed(error) => return Err(error.clone()),
            State::Queued | State::Asking => return Err(PullError::GivenUp),
        };
        let (committed, found) = match &*state {
            State::Committed { found, .. } => (true, *found),
            _ => (false, false),
        };
        Ok(Start { generation, reader: Some(reader.clone()), total, mark, committed, found })
    }

    /// The bytes `next..end` of what `start` saw.
    pub(super) fn read(self, start: &Start, next: u64, end: Option<u64>) -> Follower {
        Follower {
            following: self,
            next,
            end,
            total: start.total,
            generation: start.generation,
            sent: false,
            ahead: None,
        }
    }
}

impl Drop for Following {
    fn drop(&mut self) {
        if self.fill.followers.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.inner.fills.orphaned(&self.fill);
        }
    }
}

impl Follower {
    /// Reads the first bytes, if they come by `deadline`: what fails before them can be answered with an error.
    pub(super) async fn read_ahead(&mut self, deadline: Instant) -> Result<(), ContentError> {
        if let Ok(first) = timeout_at(deadline, self.next()).await {
            self.ahead = first?;
        }
        Ok(())
    }

    pub(super) fn into_following(self) -> Following {
        self.following
    }

    /// The next bytes, waiting for them if need be, or `None` at the end. A fill that failed or vanished is an error.
    pub async fn next(&mut self) -> Result<Option<Bytes>, ContentError> {
        if let Some(first) = self.ahead.take() {
            return Ok(Some(first));
        }
        loop {
            match self.step()? {
                Step::End => return Ok(None),
                Step::Read(reader, upto) => {
                    let bytes = reader.part(self.next..upto).read().await?.unwrap_or_default();
                    self.next += bytes.len() as u64;
                    self.sent = true;
                    return Ok(Some(bytes));
                }
                Step::Wait => self.following.state.changed().await.map_err(|_| PullError::GivenUp)?,
            }
        }
    }

    fn step(&mut self) -> Result<Step, ContentError> {
        if self.end == Some(self.next) {
            return Ok(Step::End);
        }
        let state = self.following.state.borrow_and_update();
        let (open, total, generation, reader) = match &*state {
            // What was sent turned out wrong.
            State::Queued | State::Asking if self.sent => return Err(ContentError::Restarted),
            State::Queued | State::Asking => return Ok(Step::Wait),
            State::Streaming { mark, total, generation, reader } => (*mark, *total, *generation, reader),
            State::Whole { length, generation, reader } | State::Committed { length, generation, reader, .. } => {
                (*length, Some(*length), *generation, reader)
            }
            State::Failed(error) => return Err(error.clone().into()),
        };
        if generation != self.generation {
            if self.sent || (self.total.is_some() && total.is_some() && self.total != total) {
                return Err(ContentError::Restarted);
            }
            self.generation = generation;
        }
        let upto = self.end.map_or(open, |end| end.min(open));
        if upto > self.next {
            return Ok(Step::Read(reader.clone(), upto));
        }
        let whole = matches!(&*state, State::Whole { .. } | State::Committed { .. });
        // Beyond the end of a whole blob there is nothing to wait for, whatever had been announced.
        match (whole, self.end) {
            (true, None) => Ok(Step::End),
            (true, Some(_)) => Err(ContentError::Length),
            (false, _) => Ok(Step::Wait),
        }
    }
}

impl std::fmt::Debug for Follower {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Follower")
            .field("digest", &self.following.fill.digest)
            .field("next", &self.next)
            .finish_non_exhaustive()
    }
}

//! The transfers of one attempt. The first one, the *lead*, closes the gaps of the blob in order, and resumes after
//! interruptions. Only its failure, or an error of the disk, ends the attempt.
//!
//! Others receive pieces beside it: those that followers want, and those of further connections
//! (`upstream.connections`). They need slots of their own, which they release as soon as a fill waits for one. If one
//! of them ends early, the lead closes its gap. If the source refuses to serve ranges or several connections, the lead
//! goes on alone. A lead that has nothing else to do takes over the rest of a segment that makes it wait.

use std::future::pending;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt, future};
use tokio::time::{Instant, sleep_until};

use super::super::error::PullError;
use super::super::slots::Turn;
use super::super::source::{FetchRequest, Sent};
use super::inflow::Inflow;
use super::job::Job;
use super::pace::paced;
use super::resume::Resumption;
use super::segments::{Segment, Segments};
use crate::oci::ByteRange;
use crate::store::{self, Spool};
use crate::upstream::UpstreamError;

/// Minimum number of bytes between two interruptions that counts as progress. Otherwise a source that sends one byte
/// per transfer would be asked forever.
const MIN_PROGRESS_BYTES: u64 = 4 << 10;
/// Transfers for wanted ranges that run at the same time. Further ranges wait.
const MAX_WANTED_TRANSFERS: usize = 8;
/// Transfers beside the lead that may fail without progress before the lead goes on alone.
const MAX_FRUITLESS_TRANSFERS: u32 = 2;
/// How long the lead waits for the segments of others when no gap is left. Far more than a piece takes on a connection
/// that is worth having.
const MAX_STRAGGLER_WAIT: Duration = Duration::from_secs(5);

pub(super) struct Transfers<'a> {
    pub(super) job: &'a Job,
    pub(super) spool: &'a Spool,
    pub(super) segments: &'a Arc<Segments>,
    /// The entity tag of the first transfer.
    pub(super) strong_etag: Option<&'a String>,
    /// Further connections of the source that receive pieces unasked.
    pub(super) assistants: usize,
    /// The URLs that are tried last, because an earlier attempt received wrong bytes.
    pub(super) skip_urls: usize,
    /// Failures of transfers beside the lead without progress.
    pub(super) fruitless: AtomicU32,
}

impl Transfers<'_> {
    /// Receives all of the blob. `inflow` is the first transfer, and `segment` what it receives.
    pub(super) async fn run(&self, segment: Segment, inflow: Inflow) -> Result<(), PullError> {
        let lead = self.lead(segment, inflow);
        if self.segments.is_single() {
            return lead.await;
        }
        let assist = async {
            future::try_join_all((0..self.assistants).map(|_| self.assist())).await?;
            pending().await
        };
        tokio::select! {
            biased;
            outcome = lead => outcome,
            outcome = self.serve_wanted() => outcome,
            outcome = assist => outcome,
        }
    }

    // === the lead ===

    async fn lead(&self, mut segment: Segment, mut inflow: Inflow) -> Result<(), PullError> {
        loop {
            inflow = self.receive_all(&segment, inflow).await?;
            drop(segment);
            segment = match self.next_segment().await {
                Some(next) => next,
                None => return Ok(()),
            };
            inflow = self.continue_at(&segment, inflow).await?;
        }
    }

    /// Begins the segment of the first gap. Waits while there is none and other transfers run, but not long: then they
    /// are stopped, and leave their gaps to the lead. `None` at the end.
    async fn next_segment(&self) -> Option<Segment> {
        let mut changes = self.segments.watch_changes();
        let mut patience = Instant::now() + MAX_STRAGGLER_WAIT;
        loop {
            if let Some(segment) = self.segments.begin_next() {
                return Some(segment);
            }
            if self.segments.total().is_none() || self.segments.is_complete() {
                return None;
            }
            tokio::select! {
                changed = changes.changed() => changed.ok()?,
                () = sleep_until(patience) => {
                    tracing::debug!("taking over the rest of slow transfers");
                    self.segments.stop_running();
                    patience = Instant::now() + MAX_STRAGGLER_WAIT;
                }
            }
        }
    }

    /// The transfer for a segment: the rest of the last one if it goes on there, otherwise a new one.
    async fn continue_at(&self, segment: &Segment, mut last: Inflow) -> Result<Inflow, PullError> {
        let resumption = self.resumption(segment);
        if last.continues_at(segment.start(), self.segments.is_single()) {
            return match last.skip_to(self.job, segment.start()).await {
                Err(error) if error.is_interruption() => resumption.run(error, 0).await,
                outcome => outcome.map(|()| last),
            };
        }
        drop(last);
        resumption.begin().await
    }

    /// Receives to the end of the segment. Resumes after interruptions as long as there is progress. Returns the
    /// transfer.
    async fn receive_all(&self, segment: &Segment, mut inflow: Inflow) -> Result<Inflow, PullError> {
        let (mut reached, mut fruitless) = (segment.start(), 0);
        loop {
            match self.receive(segment, &mut inflow).await {
                Err(error) if error.is_interruption() => {
                    let position = segment.position();
                    fruitless = if position >= reached + MIN_PROGRESS_BYTES { 0 } else { fruitless + 1 };
                    reached = position;
                    inflow = self.resumption(segment).run(error, fruitless).await?;
                }
                outcome => return outcome.map(|()| inflow),
            }
        }
    }

    fn resumption<'a>(&'a self, segment: &'a Segment) -> Resumption<'a> {
        let Self { job, spool, segments, strong_etag, skip_urls, .. } = *self;
        Resumption { job, spool, segments, segment, strong_etag, skip_urls }
    }

    /// Writes the received bytes and records them, until the segment or the transfer ends.
    async fn receive(&self, segment: &Segment, inflow: &mut Inflow) -> Result<(), PullError> {
        let (job, spool) = (self.job, self.spool);
        let progress = |position| {
            job.fill.received.fetch_add(position - segment.position(), Ordering::Relaxed);
            segment.received(position);
            Ok(())
        };
        let bytes = inflow.for_segment(job, segment);
        store::pump(bytes, |chunks| spool.write_at(segment.position(), chunks), progress).await?;
        if segment.end().is_none() || segment.is_complete() {
            return Ok(());
        }
        if inflow.is_complete() {
            return Err(job.wrong_content());
        }
        let cause = "it sent less than the requested range".into();
        Err(UpstreamError::Interrupted { upstream: job.source.name().clone(), cause }.into())
    }

    // === the others ===

    /// Starts a transfer for each wanted range. Ends only with an error of the attempt.
    async fn serve_wanted(&self) -> Result<(), PullError> {
        let mut running = FuturesUnordered::new();
        loop {
            while running.len() < MAX_WANTED_TRANSFERS
                && let Some(range) = self.segments.next_wanted()
            {
                running.push(self.fetch_wanted(range));
            }
            tokio::select! {
                () = self.segments.wait_wanted(), if running.len() < MAX_WANTED_TRANSFERS => {}
                Some(outcome) = running.next() => outcome?,
            }
        }
    }

    async fn fetch_wanted(&self, range: ByteRange) -> Result<(), PullError> {
        let fetched = self.fetch_if_wanted(range).await;
        self.segments.served(range);
        fetched
    }

    async fn fetch_if_wanted(&self, range: ByteRange) -> Result<(), PullError> {
        if !self.segments.is_wanted(range.start) {
            return Ok(());
        }
        if !self.spool.allow_gaps().await {
            self.segments.set_gapless();
            return Ok(());
        }
        let mut turn = self.request_slot();
        if !turn.is_slot() {
            tokio::select! {
                () = turn.wait() => {}
                () = self.until_unwanted(range.start) => return Ok(()),
            }
        }
        match self.segments.begin_wanted(range) {
            Some(segment) => self.fetch_piece(segment, &turn).await,
            None => Ok(()),
        }
    }

    /// Waits until no segment is to begin at `position`, for instance because the lead will reach it soon.
    async fn until_unwanted(&self, position: u64) {
        let (mut changes, mut mark) = (self.segments.watch_changes(), self.segments.watch_mark());
        while self.segments.is_wanted(position) {
            tokio::select! {
                _ = changes.changed() => {}
                _ = mark.changed() => {}
            }
        }
    }

    /// Receives pieces ahead of the lead, as long as slots are free. Ends only with an error of the attempt.
    async fn assist(&self) -> Result<(), PullError> {
        let mut changes = self.segments.watch_changes();
        if !self.spool.allow_gaps().await {
            self.segments.set_gapless();
        }
        loop {
            changes.mark_unchanged();
            // The slot is released after each piece, for those that wait.
            let turn = self.request_slot();
            if turn.is_slot()
                && let Some(segment) = self.segments.begin_ahead(self.job.context.segment_window)
            {
                self.fetch_piece(segment, &turn).await?;
            } else {
                drop(turn);
                if changes.changed().await.is_err() {
                    return Ok(());
                }
            }
        }
    }

    fn request_slot(&self) -> Turn {
        self.job.slots.request_extra(&self.job.fill.source.repo)
    }

    /// Receives a segment with one request, until it is stopped or the slot is recalled. What does not arrive is left to
    /// the lead.
    ///
    /// # Errors
    /// Only those that end the attempt: errors of the store.
    async fn fetch_piece(&self, segment: Segment, turn: &Turn) -> Result<(), PullError> {
        let mut fetch = pin!(self.fetch_until_stopped(&segment));
        tokio::select! {
            biased;
            fetched = &mut fetch => return fetched,
            () = turn.recalled() => segment.stop(),
        }
        tracing::debug!(position = segment.position(), "a part of the blob gives way to another blob");
        // Not dropped: the bytes that it has taken must be written.
        fetch.await
    }

    async fn fetch_until_stopped(&self, segment: &Segment) -> Result<(), PullError> {
        let Job { context, fill, source, .. } = self.job;
        let Some(range) = segment.missing() else { return Ok(()) };
        let request = FetchRequest { if_range: self.strong_etag.cloned(), ..FetchRequest::extra(&fill.digest, range) };
        context.metrics.fill_segment(source.name());
        let opened = tokio::select! {
            biased;
            () = segment.stopped() => return Ok(()),
            opened = source.open(request, context.deadline()) => opened,
        };
        let transfer = match opened {
            Ok(transfer) => transfer,
            Err(error) => {
                tracing::debug!(position = range.start, %error, "the source did not send a part of the blob");
                // It may limit the number of connections.
                self.segments.set_single();
                return Ok(());
            }
        };
        if transfer.sent != (Sent::Part { range, total: self.segments.total() }) {
            if matches!(transfer.sent, Sent::Complete { .. }) {
                self.job.note_ignored_range(self.strong_etag, transfer.strong_etag.as_ref());
            }
            self.segments.set_single();
            return Ok(());
        }
        let bytes = paced(transfer.bytes, self.job).take_until(segment.stopped().boxed()).boxed();
        let mut inflow = Inflow::part(bytes, range);
        match self.receive(segment, &mut inflow).await {
            Err(error) if error.is_interruption() && segment.is_stopped() => Ok(()),
            Err(error) if error.is_interruption() || error.is_wrong_content() => {
                tracing::debug!(position = segment.position(), %error, "a part of the blob was interrupted");
                let is_fruitless = segment.position() < range.start + MIN_PROGRESS_BYTES;
                if is_fruitless && self.fruitless.fetch_add(1, Ordering::Relaxed) + 1 >= MAX_FRUITLESS_TRANSFERS {
                    self.segments.set_single();
                }
                Ok(())
            }
            outcome => outcome,
        }
    }
}

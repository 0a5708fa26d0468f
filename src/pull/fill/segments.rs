//! The segments of one attempt: which bytes of the blob were received, which are being received, and which are wanted.
//!
//! A segment is a range of the blob that one transfer receives in order. Segments do not overlap, so every byte is
//! received once, except those in flight when a transfer is cut. Most attempts have one segment, the complete blob. A
//! request for a range far ahead starts another one there, which ends the segment before it at that position. The
//! bytes that belong to no segment are *gaps*; the fill closes them in order.
//!
//! This is bookkeeping without I/O. Followers learn of changes by watching the *mark*, one segment, or the list of
//! segments.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use super::super::held_back_tail::readable_before_verification;
use crate::oci::ByteRange;

/// Length of a segment that is not the rest of the blob: what one request asks for.
pub(super) const PIECE_BYTES: u64 = 8 << 20;
/// Shortest segment that a range starts, so that many small ranges do not cost a request each, and then another one
/// for each gap between them.
const MIN_WANTED_BYTES: u64 = 1 << 20;
/// Ranges that wait for a transfer. Followers of further ones wait for the segments before them, and try again.
const MAX_WANTED_RANGES: usize = 256;
/// A range waits for a transfer that is at most this many bytes before it. Beyond it, a segment starts.
pub(in crate::pull) const MAX_WAIT_DISTANCE_BYTES: u64 = 8 << 20;

#[derive(Debug)]
pub(in crate::pull) struct Segments {
    /// The length of the blob in bytes, if it is known.
    total: Option<u64>,
    state: Mutex<State>,
    /// Bytes from the start of the blob that may be read.
    mark: watch::Sender<u64>,
    /// A segment has begun or ended, or there will be no further ones.
    changes: watch::Sender<()>,
    /// A range is wanted.
    wanted: Notify,
}

#[derive(Debug)]
struct State {
    /// By their first byte. Two that were received completely and touch are one.
    segments: BTreeMap<u64, Record>,
    /// Ranges that followers wait for and that no segment covers soon.
    wanted: VecDeque<ByteRange>,
    /// The first bytes of the wanted ranges for which a transfer was started or waits for its slot.
    served: Vec<u64>,
    /// One transfer at a time fetches the blob.
    is_single: bool,
    /// That is so because the file cannot have gaps, and for no reason of the source.
    is_gapless: bool,
    /// The gaps are closed piece by piece, because other segments run or may start.
    in_pieces: bool,
}

#[derive(Debug)]
struct Record {
    /// All bytes before this position are in the file.
    received: u64,
    /// All bytes before this position were taken from the transfer. The segment cannot end before it.
    claimed: u64,
    /// `None`: the end of a blob of unknown length.
    end: Option<u64>,
    is_running: bool,
    progress: watch::Sender<u64>,
    /// Cancelled when the transfer is to end, although bytes are missing.
    stop: CancellationToken,
}

/// A segment that a transfer receives. Drop ends it: what was not received is a gap.
#[derive(Debug)]
pub(super) struct Segment {
    segments: Arc<Segments>,
    start: u64,
}

/// How a follower gets the bytes at its position.
#[derive(Debug)]
pub(super) enum Reach {
    /// The bytes up to this position may be read.
    Readable(u64),
    /// A segment will reach the position soon.
    Receiving(watch::Receiver<u64>),
    /// The segment that will reach it has not begun, or the bytes must be verified first.
    Later,
    /// No segment will reach it soon. The segment before it, if it is running, may reach it later.
    Far(Option<watch::Receiver<u64>>),
}

impl Segments {
    /// Begins with a segment from the first byte of the blob to `first_end`; `None`: to the end of the blob.
    pub(super) fn begin(total: Option<u64>, first_end: Option<u64>) -> (Arc<Self>, Segment) {
        let is_piece = first_end.is_some_and(|end| Some(end) != total);
        let mut state = State {
            segments: BTreeMap::new(),
            wanted: VecDeque::new(),
            served: Vec::new(),
            is_single: total.is_none(),
            is_gapless: false,
            in_pieces: false,
        };
        state.add(0, if is_piece { first_end } else { total });
        let segments = Arc::new(Self {
            total,
            state: Mutex::new(state),
            mark: watch::Sender::new(0),
            changes: watch::Sender::new(()),
            wanted: Notify::new(),
        });
        let first = Segment { segments: segments.clone(), start: 0 };
        (segments, first)
    }

    pub(super) fn total(&self) -> Option<u64> {
        self.total
    }

    /// The number of bytes from the start of the blob that may be read before it is verified.
    pub(in crate::pull) fn mark(&self) -> u64 {
        *self.mark.borrow()
    }

    pub(super) fn watch_mark(&self) -> watch::Receiver<u64> {
        self.mark.subscribe()
    }

    pub(super) fn watch_changes(&self) -> watch::Receiver<()> {
        self.changes.subscribe()
    }

    /// The number of bytes that were received before the first missing one.
    pub(super) fn prefix(&self) -> u64 {
        self.state.lock().prefix()
    }

    /// Whether no further transfer may start beside the first one.
    pub(super) fn is_single(&self) -> bool {
        self.state.lock().is_single
    }

    /// From now on one transfer at a time fetches the blob. Segments that run go on to their ends.
    pub(super) fn set_single(&self) {
        let mut state = self.state.lock();
        state.is_single = true;
        state.wanted.clear();
        drop(state);
        self.changes.send_replace(());
    }

    /// As [`Segments::set_single`], because no byte can be written beyond missing ones.
    pub(super) fn set_gapless(&self) {
        self.state.lock().is_gapless = true;
        self.set_single();
    }

    /// Whether the file cannot have gaps. The source may still send a range to another place.
    pub(super) fn is_gapless(&self) -> bool {
        self.state.lock().is_gapless
    }

    /// The gaps are closed piece by piece from now on. A running segment ends after its next piece, so that other
    /// transfers can receive what follows.
    pub(super) fn divide(&self) {
        let mut state = self.state.lock();
        state.in_pieces = true;
        if let Some(last) = state.segments.values_mut().next_back().filter(|last| last.is_running) {
            last.end = last.end.map(|end| end.min(last.claimed + PIECE_BYTES));
        }
        drop(state);
        self.changes.send_replace(());
    }

    /// How the bytes at `position` are reached. `before_verification`: also those of the held-back tail may be read.
    pub(super) fn reach(&self, position: u64, before_verification: bool) -> Reach {
        self.state.lock().reach(self.total, position, before_verification)
    }

    /// Whether a segment is to begin at `position`.
    pub(super) fn is_wanted(&self, position: u64) -> bool {
        self.state.lock().is_wanted(self.total, position)
    }

    /// Records that a follower waits for `range`, which is far. Without effect if no segment can start.
    pub(super) fn want(&self, range: ByteRange) {
        let mut state = self.state.lock();
        let is_known =
            state.wanted.iter().any(|wanted| wanted.start == range.start) || state.served.contains(&range.start);
        if !state.is_single && !is_known && state.wanted.len() < MAX_WANTED_RANGES {
            state.wanted.push_back(range);
            self.wanted.notify_one();
        }
    }

    /// Waits until a range is wanted.
    pub(super) async fn wait_wanted(&self) {
        self.wanted.notified().await;
    }

    /// Takes the first wanted range. Until [`Segments::served`] it is not wanted again.
    pub(super) fn next_wanted(&self) -> Option<ByteRange> {
        let mut state = self.state.lock();
        let range = state.wanted.pop_front()?;
        state.served.push(range.start);
        Some(range)
    }

    /// The transfer for a wanted range has ended, or none was started.
    pub(super) fn served(&self, range: ByteRange) {
        self.state.lock().served.retain(|start| *start != range.start);
        self.changes.send_replace(());
    }

    /// Begins a segment at the start of a wanted range. `None` if its first byte was received or will be soon. A
    /// segment that was to receive the byte much later ends before it.
    pub(super) fn begin_wanted(self: &Arc<Self>, range: ByteRange) -> Option<Segment> {
        let mut state = self.state.lock();
        let total = self.total.filter(|total| range.start < *total && state.is_wanted(self.total, range.start))?;
        let next = state.segments.range(range.start..).next().map_or(total, |(start, _)| *start);
        if let Some((_, before)) = state.segments.range_mut(..=range.start).next_back()
            && before.end.is_none_or(|end| range.start < end)
        {
            if range.start <= before.claimed {
                return None;
            }
            before.end = Some(range.start);
        }
        let length = (range.end - range.start).clamp(MIN_WANTED_BYTES, PIECE_BYTES);
        state.in_pieces = true;
        Some(self.begin_at(state, range.start, (range.start + length).min(next)))
    }

    /// Begins a segment at the first gap. `None` if there is none.
    pub(super) fn begin_next(self: &Arc<Self>) -> Option<Segment> {
        let state = self.state.lock();
        let gap = state.first_gap(self.total?)?;
        let end = if state.in_pieces && !state.is_single { gap.end.min(gap.start + PIECE_BYTES) } else { gap.end };
        Some(self.begin_at(state, gap.start, end))
    }

    /// Begins a segment at the first gap, if it is less than `window` bytes ahead of the received ones.
    pub(super) fn begin_ahead(self: &Arc<Self>, window: u64) -> Option<Segment> {
        let state = self.state.lock();
        let gap = state.first_gap(self.total?)?;
        let is_ahead = !state.is_single && gap.start < state.prefix() + window;
        is_ahead.then(|| self.begin_at(state, gap.start, gap.end.min(gap.start + PIECE_BYTES)))
    }

    /// Stops the running segments that have not received all of their bytes. From now on one transfer at a time fetches
    /// the blob, and closes the gaps that they leave.
    pub(super) fn stop_running(&self) {
        self.set_single();
        let state = self.state.lock();
        let incomplete =
            state.segments.values().filter(|record| record.is_running && record.end != Some(record.claimed));
        incomplete.for_each(|record| record.stop.cancel());
    }

    fn begin_at(self: &Arc<Self>, mut state: parking_lot::MutexGuard<'_, State>, start: u64, end: u64) -> Segment {
        state.add(start, Some(end));
        drop(state);
        self.changes.send_replace(());
        Segment { segments: self.clone(), start }
    }

    /// Whether all bytes were received. False if the length is not known.
    pub(super) fn is_complete(&self) -> bool {
        self.total == Some(self.prefix())
    }
}

impl State {
    fn add(&mut self, start: u64, end: Option<u64>) {
        let progress = watch::Sender::new(start);
        let stop = CancellationToken::new();
        self.segments.insert(start, Record { received: start, claimed: start, end, is_running: true, progress, stop });
    }

    fn reach(&self, total: Option<u64>, position: u64, before_verification: bool) -> Reach {
        let Some((_, before)) = self.segments.range(..=position).next_back() else { return Reach::Later };
        let readable = if before_verification {
            before.received
        } else {
            before.received.min(readable_before_verification(total.unwrap_or(before.received), total))
        };
        if position < readable {
            return Reach::Readable(readable);
        }
        let is_covered = before.end.is_none_or(|end| position < end);
        let is_near = position.saturating_sub(before.received) <= MAX_WAIT_DISTANCE_BYTES;
        match (is_covered, before.is_running) {
            // They were received, so they are in the tail.
            (true, _) if position < before.received => Reach::Later,
            (true, true) if is_near => Reach::Receiving(before.progress.subscribe()),
            (false, true) if is_near => Reach::Later,
            (false, false) if position.saturating_sub(self.prefix()) <= MAX_WAIT_DISTANCE_BYTES => Reach::Later,
            (_, is_running) => Reach::Far(is_running.then(|| before.progress.subscribe())),
        }
    }

    fn is_wanted(&self, total: Option<u64>, position: u64) -> bool {
        !self.is_single && matches!(self.reach(total, position, true), Reach::Far(_))
    }

    fn prefix(&self) -> u64 {
        let mut prefix = 0;
        while let Some(record) = self.segments.get(&prefix).filter(|record| record.received > prefix) {
            prefix = record.received;
            if record.end != Some(prefix) {
                break;
            }
        }
        prefix
    }

    /// The first bytes that belong to no segment.
    fn first_gap(&self, total: u64) -> Option<ByteRange> {
        let mut start = 0;
        while let Some(record) = self.segments.get(&start) {
            // A segment without bytes, and one of unknown length, has no gap after it yet.
            start = record.end.filter(|end| *end > start)?;
        }
        let end = self.segments.range(start..).next().map_or(total, |(next, _)| *next);
        (start < end).then_some(ByteRange { start, end })
    }

    /// Ends a segment. Joins it with its neighbours if they have ended too.
    fn end(&mut self, start: u64) {
        let Some(record) = self.segments.get_mut(&start) else { return };
        record.is_running = false;
        record.end = Some(record.received);
        if record.received == start {
            self.segments.remove(&start);
            return;
        }
        self.join_next(start);
        if let Some(&before) = self.segments.range(..start).next_back().map(|(before, _)| before) {
            self.join_next(before);
        }
    }

    fn join_next(&mut self, start: u64) {
        let ended = |record: &Record| (!record.is_running).then_some(record.received);
        let Some(end) = self.segments.get(&start).and_then(ended) else { return };
        let Some(next_end) = self.segments.get(&end).and_then(ended) else { return };
        self.segments.remove(&end);
        if let Some(record) = self.segments.get_mut(&start) {
            (record.received, record.claimed, record.end) = (next_end, next_end, Some(next_end));
        }
    }
}

impl Segment {
    fn with<T>(&self, read: impl FnOnce(&mut Record) -> T) -> Option<T> {
        self.segments.state.lock().segments.get_mut(&self.start).map(read)
    }

    pub(super) fn start(&self) -> u64 {
        self.start
    }

    /// The position of the next byte to write.
    pub(super) fn position(&self) -> u64 {
        self.with(|record| record.received).unwrap_or(self.start)
    }

    /// The position after the last byte; `None` if the blob's length is not known. It becomes smaller if another
    /// segment begins before it.
    pub(super) fn end(&self) -> Option<u64> {
        self.with(|record| record.end)?
    }

    /// Tells the transfer to end. Bytes that it has taken count.
    pub(super) fn stop(&self) {
        self.with(|record| record.stop.cancel());
    }

    pub(super) fn is_stopped(&self) -> bool {
        self.with(|record| record.stop.is_cancelled()).unwrap_or(true)
    }

    /// Waits until the transfer is to end.
    pub(super) fn stopped(&self) -> impl Future<Output = ()> + Send + use<> {
        let stop = self.with(|record| record.stop.clone());
        async move {
            if let Some(stop) = stop {
                stop.cancelled().await;
            }
        }
    }

    /// Whether the segment is the last one of the blob, so that its transfer must end with it.
    pub(super) fn is_last(&self) -> bool {
        self.end() == self.segments.total
    }

    /// Takes up to `length` bytes from the transfer. Returns how many of them belong to the segment.
    pub(super) fn claim(&self, length: u64) -> u64 {
        let claim = |record: &mut Record| {
            let room = record.end.map_or(length, |end| end.saturating_sub(record.claimed));
            let claimed = length.min(room);
            record.claimed += claimed;
            claimed
        };
        self.with(claim).unwrap_or(0)
    }

    /// Whether all bytes of the segment were claimed. False if the length is not known.
    pub(super) fn is_claimed(&self) -> bool {
        self.with(|record| record.end == Some(record.claimed)).unwrap_or(true)
    }

    /// Records that all bytes before `position` are in the file.
    pub(super) fn received(&self, position: u64) {
        let Segments { total, state, mark, .. } = &*self.segments;
        let mut state = state.lock();
        if let Some(record) = state.segments.get_mut(&self.start) {
            record.received = position;
            record.progress.send_replace(position);
        }
        let readable = readable_before_verification(state.prefix(), *total);
        drop(state);
        mark.send_if_modified(|mark| {
            let moved = readable > *mark;
            *mark = readable.max(*mark);
            moved
        });
    }

    /// Whether all bytes were received. False if the length is not known.
    pub(super) fn is_complete(&self) -> bool {
        self.end() == Some(self.position())
    }

    /// The range to request; `None` for a complete blob of which nothing was received, or whose length is not known,
    /// because some registries refuse open ranges.
    pub(super) fn missing(&self) -> Option<ByteRange> {
        let (position, end) = (self.position(), self.end()?);
        let is_complete_blob = position == 0 && Some(end) == self.segments.total;
        (position < end && !is_complete_blob).then_some(ByteRange { start: position, end })
    }
}

impl Drop for Segment {
    fn drop(&mut self) {
        self.segments.state.lock().end(self.start);
        self.segments.changes.send_replace(());
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::held_back_tail::HELD_BACK_TAIL_BYTES;
    use super::*;

    const MIB: u64 = 1 << 20;
    const TOTAL: u64 = 100 * MIB;

    fn range(start: u64, end: u64) -> ByteRange {
        ByteRange { start: start * MIB, end: end * MIB }
    }

    fn bounds(segment: &Segment) -> (u64, u64) {
        (segment.start() / MIB, segment.end().unwrap() / MIB)
    }

    fn receive(segment: &Segment, to: u64) {
        let length = to * MIB - segment.position();
        assert_eq!(segment.claim(length), length);
        segment.received(to * MIB);
    }

    fn is_far(segments: &Segments, position: u64) -> bool {
        matches!(segments.reach(position * MIB, false), Reach::Far(_))
    }

    #[test]
    fn a_complete_blob_is_requested_whole_and_resumed_as_a_closed_range() {
        let (segments, whole) = Segments::begin(Some(TOTAL), None);
        assert!(whole.missing().is_none() && whole.is_last() && segments.begin_next().is_none());
        receive(&whole, 4);
        assert_eq!(whole.missing(), Some(range(4, 100)));
        receive(&whole, 100);
        assert!(whole.is_complete() && segments.is_complete() && whole.missing().is_none());
        assert_eq!((whole.claim(1), segments.mark()), (0, TOTAL - HELD_BACK_TAIL_BYTES));
    }

    #[test]
    fn a_blob_of_unknown_length_has_one_segment() {
        let (segments, whole) = Segments::begin(None, None);
        receive(&whole, 4);
        assert!(!whole.is_complete() && whole.missing().is_none() && segments.is_single());
        segments.want(range(50, 51));
        assert!(segments.next_wanted().is_none() && segments.begin_next().is_none());
        assert_eq!(segments.mark(), 4 * MIB - HELD_BACK_TAIL_BYTES);
    }

    #[test]
    fn a_far_range_starts_a_segment_and_ends_the_one_before_it() {
        let (segments, whole) = Segments::begin(Some(TOTAL), None);
        receive(&whole, 1);
        assert!(!is_far(&segments, 9) && is_far(&segments, 10));
        segments.want(range(40, 60));
        segments.want(range(40, 41));
        let wanted = segments.next_wanted().unwrap();
        assert!(segments.next_wanted().is_none(), "one request for each position");
        let far = segments.begin_wanted(wanted).unwrap();
        assert_eq!((bounds(&whole), bounds(&far)), ((0, 40), (40, 48)));
        assert!(segments.begin_wanted(range(41, 42)).is_none(), "the segment will reach it soon");
        receive(&far, 44);
        assert!(matches!(segments.reach(42 * MIB, false), Reach::Readable(end) if end == 44 * MIB));
        assert!(matches!(segments.reach(44 * MIB, false), Reach::Receiving(_)));
        // Close behind a running segment, and far behind it.
        assert!(matches!(segments.reach(50 * MIB, false), Reach::Later) && is_far(&segments, 53));
        receive(&whole, 40);
        assert_eq!(segments.mark(), 44 * MIB, "the mark passes over what a later segment received");
        receive(&far, 48);
        drop((far, whole));
        assert_eq!(segments.state.lock().segments.len(), 1);
        let next = segments.begin_next().unwrap();
        assert_eq!(bounds(&next), (48, 56), "further gaps are closed piece by piece");
    }

    #[test]
    fn a_segment_that_breaks_leaves_a_gap() {
        let (segments, whole) = Segments::begin(Some(TOTAL), None);
        let far = segments.begin_wanted(range(40, 42)).unwrap();
        receive(&far, 41);
        drop(far);
        assert!(is_far(&segments, 41));
        receive(&whole, 40);
        drop(whole);
        assert_eq!(segments.mark(), 41 * MIB);
        segments.set_single();
        let rest = segments.begin_next().unwrap();
        assert_eq!(bounds(&rest), (41, 100), "one transfer for the rest");
        let nothing = segments.begin_wanted(range(80, 81));
        assert!(nothing.is_none());
    }

    #[test]
    fn what_was_claimed_stays_with_its_segment() {
        let (segments, whole) = Segments::begin(Some(TOTAL), None);
        assert_eq!(whole.claim(30 * MIB), 30 * MIB);
        assert!(segments.begin_wanted(range(20, 21)).is_none());
        assert_eq!(bounds(&segments.begin_wanted(range(40, 41)).unwrap()), (40, 41));
        assert_eq!(whole.claim(50 * MIB), 10 * MIB);
        assert!(whole.is_claimed());
    }

    #[test]
    fn pieces_ahead_stay_within_the_window() {
        let (segments, first) = Segments::begin(Some(TOTAL), Some(8 * MIB));
        segments.divide();
        let ahead: Vec<_> = std::iter::from_fn(|| segments.begin_ahead(24 * MIB)).collect();
        assert_eq!(ahead.iter().map(bounds).collect::<Vec<_>>(), [(8, 16), (16, 24)]);
        receive(&first, 1);
        assert_eq!(bounds(&segments.begin_ahead(24 * MIB).unwrap()), (24, 32));
    }

    #[test]
    fn a_running_transfer_is_divided_after_its_next_piece() {
        let (segments, whole) = Segments::begin(Some(TOTAL), None);
        receive(&whole, 3);
        segments.divide();
        assert_eq!(bounds(&whole), (0, 11));
        assert_eq!(bounds(&segments.begin_ahead(64 * MIB).unwrap()), (11, 19));
    }

    #[test]
    fn small_ranges_start_segments_of_a_mebibyte() {
        let (segments, _whole) = Segments::begin(Some(TOTAL), None);
        let footer = segments.begin_wanted(ByteRange { start: TOTAL - 10, end: TOTAL }).unwrap();
        assert_eq!((footer.start(), footer.end()), (TOTAL - 10, Some(TOTAL)));
        let small = segments.begin_wanted(ByteRange { start: 50 * MIB, end: 50 * MIB + 10 }).unwrap();
        assert_eq!(bounds(&small), (50, 51));
        let before = segments.begin_wanted(ByteRange { start: 50 * MIB - 10, end: 50 * MIB }).unwrap();
        assert_eq!(before.end(), Some(50 * MIB), "it ends where another one begins");
    }

    #[test]
    fn the_tail_waits_for_verification_unless_the_reader_verifies() {
        let (segments, _whole) = Segments::begin(Some(TOTAL), None);
        let tail = TOTAL - HELD_BACK_TAIL_BYTES;
        let footer = segments.begin_wanted(ByteRange { start: TOTAL - MIB, end: TOTAL }).unwrap();
        receive(&footer, 100);
        assert!(matches!(segments.reach(TOTAL - MIB, false), Reach::Readable(end) if end == tail));
        assert!(matches!(segments.reach(tail, false), Reach::Later));
        assert!(matches!(segments.reach(tail, true), Reach::Readable(TOTAL)));
    }
}

//! Ages that grow only while a process of the store runs, and only as fast as the monotonic clock.
//!
//! Files and records that the store removes by age carry a time of the wall clock. If the clock was set forward, all of
//! them would be removed at once. So the store keeps the *gaps* of the wall clock, which count for no age: jumps
//! forward while a process runs, and the time in which no process runs, because the clock may be set then. If the clock
//! was set back, ages are zero until it has caught up. The file `ages` has the gaps and the time at which a process
//! last ran.

use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;

use super::layout::{Layout, Temporary};
use crate::store::error::{At, StoreError};
use crate::store::fs;

/// Largest difference between the two clocks that is not a jump.
const CLOCK_TOLERANCE: Duration = Duration::from_secs(2);
/// How often the time of the last run is written. After a crash, the time since the last write counts for no age.
const SAVE_INTERVAL: Duration = Duration::from_secs(10 * 60);
/// Largest number of gaps that are kept. Beyond it, the two oldest gaps become one, with the time between them. This
/// makes old files younger.
const MAX_GAPS: usize = 64;

/// The ages of a data folder.
#[derive(Debug)]
pub(in crate::store) struct Ages {
    path: PathBuf,
    state: Mutex<AgeState>,
}

#[derive(Debug)]
struct AgeState {
    clocks: ClockPair,
    gaps: Vec<Gap>,
    saved: Option<Instant>,
    changed: bool,
}

/// The two clocks at one moment.
#[derive(Clone, Copy, Debug)]
struct ClockPair {
    wall: SystemTime,
    monotonic: Instant,
}

/// A span of the wall clock that counts for no age.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Gap {
    from: SystemTime,
    to: SystemTime,
}

/// The content of the file.
#[derive(Debug, Default, PartialEq, Eq)]
struct StoredAges {
    seen: Duration,
    /// Since 1970.
    gaps: Vec<(Duration, Duration)>,
}

// === impl Ages ===

impl Ages {
    /// Continues the ages of earlier processes. `is_new`: the folder was created now.
    pub(super) fn load(layout: &Layout, is_new: bool) -> Self {
        let path = layout.ages();
        let stored = fs::read_to_string(&path).ok().and_then(|text| StoredAges::parse(&text));
        let now = ClockPair::now();
        let mut state = AgeState { clocks: now, gaps: Vec::new(), saved: None, changed: true };
        match stored {
            Some(stored) => {
                let gap = |(from, to): &(Duration, Duration)| Some((at(*from)?, at(*to)?));
                stored.gaps.iter().filter_map(gap).for_each(|(from, to)| state.add_gap(from, to));
                state.add_gap(at(stored.seen).unwrap_or(now.wall), now.wall);
            }
            None if is_new => {}
            // An earlier version or a power cut has left no record, so all ages begin at zero.
            None => state.add_gap(UNIX_EPOCH, now.wall),
        }
        Self { path, state: Mutex::new(state) }
    }

    /// The age of a file or record with the time `since`, without gaps.
    pub(in crate::store) fn age(&self, since: SystemTime) -> Duration {
        let mut state = self.state.lock();
        state.advance(ClockPair::now());
        state.age(since)
    }

    /// Reads the clocks, and writes the record if it is due.
    pub(in crate::store) fn keep(&self, layout: &Layout) -> Result<(), StoreError> {
        let is_due = {
            let mut state = self.state.lock();
            state.advance(ClockPair::now());
            state.changed || state.saved.is_none_or(|saved| saved.elapsed() >= SAVE_INTERVAL)
        };
        if is_due { self.save(layout) } else { Ok(()) }
    }

    /// Writes the record.
    pub(in crate::store) fn save(&self, layout: &Layout) -> Result<(), StoreError> {
        let text = {
            let mut state = self.state.lock();
            state.advance(ClockPair::now());
            state.stored().to_text()
        };
        let temporary = Temporary::new(layout.temporary());
        layout.with_folder(temporary.path(), |path| fs::write(path, &text)).at("write", temporary.path())?;
        layout.replace(temporary.path(), &self.path).at("rename", &self.path)?;
        let mut state = self.state.lock();
        (state.saved, state.changed) = (Some(Instant::now()), false);
        Ok(())
    }
}

impl ClockPair {
    fn now() -> Self {
        Self { wall: SystemTime::now(), monotonic: Instant::now() }
    }
}

impl AgeState {
    /// Records a jump of the wall clock since the last reading.
    fn advance(&mut self, now: ClockPair) {
        let passed = now.monotonic.saturating_duration_since(self.clocks.monotonic);
        let expected = self.clocks.wall + passed;
        match now.wall.duration_since(expected) {
            Ok(ahead) if ahead <= CLOCK_TOLERANCE => {}
            Err(behind) if behind.duration() <= CLOCK_TOLERANCE => {}
            jumped => {
                // The clocks are compared with those at the last jump, not at the last reading, so that many small
                // jumps add up.
                if jumped.is_ok() {
                    self.add_gap(expected, now.wall);
                    self.changed = true;
                }
                self.clocks = now;
            }
        }
    }

    fn add_gap(&mut self, from: SystemTime, to: SystemTime) {
        if from >= to {
            return;
        }
        self.gaps.push(Gap { from, to });
        self.gaps.sort_unstable_by_key(|gap| gap.from);
        let mut merged: Vec<Gap> = Vec::with_capacity(self.gaps.len());
        for gap in self.gaps.drain(..) {
            match merged.last_mut() {
                Some(last) if last.to >= gap.from => last.to = last.to.max(gap.to),
                _ => merged.push(gap),
            }
        }
        while merged.len() > MAX_GAPS {
            let oldest = merged.remove(0);
            merged[0].from = oldest.from;
        }
        self.gaps = merged;
    }

    fn age(&self, since: SystemTime) -> Duration {
        let now = self.clocks.wall + self.clocks.monotonic.elapsed();
        let age = now.duration_since(since).unwrap_or_default();
        let uncounted = self.gaps.iter().map(|gap| {
            let (from, to) = (gap.from.max(since), gap.to.min(now));
            to.duration_since(from).unwrap_or_default()
        });
        age.saturating_sub(uncounted.sum())
    }

    fn stored(&self) -> StoredAges {
        let since_1970 = |at: SystemTime| at.duration_since(UNIX_EPOCH).unwrap_or_default();
        let gaps = self.gaps.iter().map(|gap| (since_1970(gap.from), since_1970(gap.to))).collect();
        StoredAges { seen: since_1970(self.clocks.wall + self.clocks.monotonic.elapsed()), gaps }
    }
}

fn at(since_1970: Duration) -> Option<SystemTime> {
    UNIX_EPOCH.checked_add(since_1970)
}

// === impl StoredAges ===

impl StoredAges {
    /// A line for each gap, and one for the time of the last run, in milliseconds since 1970.
    fn to_text(&self) -> String {
        let gaps = self.gaps.iter().map(|(from, to)| format!("gap {} {}\n", from.as_millis(), to.as_millis()));
        gaps.chain([format!("seen {}\n", self.seen.as_millis())]).collect()
    }

    /// `None` for any other text. An incomplete text lacks its last line.
    fn parse(text: &str) -> Option<Self> {
        let time = |text: &str| text.parse().ok().map(Duration::from_millis);
        let (gaps, seen) = text.strip_suffix('\n')?.rsplit_once("seen ")?;
        let gap = |line: &str| {
            let (from, to) = line.strip_prefix("gap ")?.split_once(' ')?;
            Some((time(from)?, time(to)?))
        };
        Some(Self { seen: time(seen)?, gaps: gaps.lines().map(gap).collect::<Option<_>>()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);
    const YEAR: Duration = Duration::from_secs(365 * 24 * 3600);

    fn state() -> (AgeState, ClockPair) {
        let clocks = ClockPair { wall: SystemTime::now(), monotonic: Instant::now() };
        (AgeState { clocks, gaps: Vec::new(), saved: None, changed: false }, clocks)
    }

    /// The clocks after `passed`, if the wall clock was set by `jump` seconds.
    fn later(start: ClockPair, passed: Duration, jump: i64) -> ClockPair {
        let wall = start.wall + passed;
        let by = Duration::from_secs(jump.unsigned_abs());
        ClockPair { wall: if jump < 0 { wall - by } else { wall + by }, monotonic: start.monotonic + passed }
    }

    fn hours(state: &mut AgeState, now: ClockPair, since: SystemTime) -> u64 {
        age_at(state, now, since).as_secs() / 3600
    }

    /// The age at a moment.
    fn age_at(state: &mut AgeState, now: ClockPair, since: SystemTime) -> Duration {
        state.advance(now);
        state.clocks = now;
        // `age` adds what has passed since; the moments of the test lie in the future.
        let age = now.wall.duration_since(since).unwrap_or_default();
        let gaps = state.gaps.iter().map(|gap| gap.to.min(now.wall).duration_since(gap.from.max(since)));
        age.saturating_sub(gaps.map(Result::unwrap_or_default).sum())
    }

    #[test]
    fn a_clock_that_is_set_forward_ages_nothing() {
        let (mut state, start) = state();
        let jump = YEAR.as_secs() as i64;
        assert_eq!(hours(&mut state, later(start, 2 * HOUR, 0), start.wall), 2);
        assert_eq!(hours(&mut state, later(start, 3 * HOUR, jump), start.wall), 3);
        assert_eq!(hours(&mut state, later(start, 5 * HOUR, jump), start.wall), 5);
        assert_eq!(hours(&mut state, later(start, 5 * HOUR, jump), start.wall + YEAR + 4 * HOUR), 1);
    }

    #[test]
    fn a_clock_that_is_set_back_makes_ages_zero_until_it_has_caught_up() {
        let (mut state, start) = state();
        let jump = -(10 * HOUR.as_secs() as i64);
        assert_eq!(hours(&mut state, later(start, HOUR, jump), start.wall), 0);
        assert_eq!(hours(&mut state, later(start, 12 * HOUR, jump), start.wall), 2);
        // The clock is set forward again. The time that it skips does not count.
        assert_eq!(hours(&mut state, later(start, 13 * HOUR, 0), start.wall), 3);
    }

    #[test]
    fn small_jumps_add_up_and_a_slewed_clock_has_none() {
        let (mut state, start) = state();
        for second in 1..=90 {
            state.advance(later(start, Duration::from_secs(second), second as i64));
        }
        let counted = age_at(&mut state, later(start, Duration::from_secs(90), 90), start.wall);
        assert!((90..93).contains(&counted.as_secs()), "{counted:?}, the clock ran twice as fast");
        let (mut state, start) = super::tests::state();
        state.advance(later(start, HOUR, 1));
        assert_eq!(state.gaps, []);
    }

    #[test]
    fn gaps_are_bounded_and_merging_them_makes_things_younger() {
        let (mut state, start) = state();
        for n in 0..200 {
            state.add_gap(start.wall - YEAR + n * HOUR, start.wall - YEAR + n * HOUR + HOUR / 2);
        }
        assert_eq!(state.gaps.len(), MAX_GAPS);
        assert_eq!(state.gaps[0].from, start.wall - YEAR);
        assert_eq!(state.gaps[0].to, start.wall - YEAR + 136 * HOUR + HOUR / 2);
    }

    #[test]
    fn a_record_reads_back_and_an_incomplete_one_does_not_parse() {
        let ages = StoredAges { seen: 90 * HOUR, gaps: vec![(HOUR, 2 * HOUR), (3 * HOUR, 4 * HOUR)] };
        let text = ages.to_text();
        assert_eq!(StoredAges::parse(&text), Some(ages));
        for cut in 0..text.len() {
            assert_eq!(StoredAges::parse(&text[..cut]), None, "{cut}");
        }
    }

    #[test]
    fn the_time_between_two_processes_does_not_count() {
        let folder = tempfile::tempdir().unwrap();
        let layout = Layout::new(folder.path());
        std::fs::create_dir(folder.path().join("spool")).unwrap();
        let now = SystemTime::now();
        let ages = Ages::load(&layout, true);
        assert_eq!(ages.age(now - 5 * HOUR).as_secs() / 3600, 5, "a new folder may get old files");
        // Another process ran until three hours ago.
        let seen = (now - 3 * HOUR).duration_since(UNIX_EPOCH).unwrap();
        std::fs::write(layout.ages(), StoredAges { seen, gaps: Vec::new() }.to_text()).unwrap();
        let ages = Ages::load(&layout, false);
        assert_eq!(ages.age(now - 5 * HOUR).as_secs().div_ceil(3600), 2);
        assert!(ages.age(now - HOUR) < HOUR / 60);
        ages.save(&layout).unwrap();
        assert_eq!(Ages::load(&layout, false).age(now - 5 * HOUR).as_secs().div_ceil(3600), 2);
        for text in ["", "seen", "gap 1 2\n"] {
            std::fs::write(layout.ages(), text).unwrap();
            assert!(Ages::load(&layout, false).age(now - YEAR) < HOUR / 60, "{text:?}");
        }
    }
}

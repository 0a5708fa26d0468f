//! Whether an upstream that failed again and again is asked at all: a circuit breaker, without clock, network or task.
//!
//! It opens after a run of failures that nothing interrupted, and then nobody waits for the upstream any more. While it is
//! open one probe at a time is sent, at growing intervals; it closes with the first answer, to a probe or to anybody. An
//! upstream that answers probes and yet goes on failing is probed less and less, up to the longest interval.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

/// Failures in a row after which it opens: more than the rounds of one request.
const FAILURES: u32 = 5;
/// And for how long it must have failed: many requests at once meet the same hiccup, and are answered by their retries.
const LASTING: Duration = Duration::from_secs(1);
/// A failure that is older says nothing about now.
const FORGOTTEN: Duration = Duration::from_secs(60);

const FIRST_INTERVAL: Duration = Duration::from_millis(500);
const LONGEST_INTERVAL: Duration = Duration::from_secs(5);
/// So long after a probe was due somebody's request takes its place, whatever has become of it.
const OVERDUE: Duration = Duration::from_secs(30);

#[derive(Debug, Default)]
pub(super) struct Breaker {
    /// Failures since the last success.
    run: Option<Run>,
    open: Option<Open>,
    /// Openings since the last success, as long as they follow one upon the other.
    openings: u32,
    /// Openings ever.
    count: u64,
}

/// One time that the breaker opened: who probes for one opening does not go on in the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Opening(u64);

#[derive(Debug, Clone, Copy)]
struct Run {
    first: Instant,
    last: Instant,
    count: u32,
}

#[derive(Debug, Clone, Copy)]
struct Open {
    opening: Opening,
    since: Instant,
    next_probe: Instant,
    probes: u32,
}

/// What there is to tell about a breaker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum BreakerState {
    /// The upstream is asked. `failures` in a row, so far.
    Closed { failures: u32 },
    /// It is left alone but for probes.
    Open { for_seconds: u64, next_probe_in_seconds: u64 },
}

impl Breaker {
    /// Whether the upstream may be asked; if not, how long until it is probed.
    pub(super) fn admit(&self, now: Instant) -> Result<(), Duration> {
        match self.open {
            Some(open) if now < open.next_probe + OVERDUE => Err(open.next_probe.saturating_duration_since(now)),
            _ => Ok(()),
        }
    }

    /// It answered somebody. Whether that closes the breaker.
    pub(super) fn succeeded(&mut self) -> bool {
        self.run = None;
        self.openings = 0;
        self.open.take().is_some()
    }

    /// It failed somebody. If that opens the breaker, this opening. `slow`: after a time-out, which counts for two
    /// failures, for it has kept somebody waiting.
    pub(super) fn failed(&mut self, now: Instant, slow: bool) -> Option<Opening> {
        let run = self.run.filter(|run| now.saturating_duration_since(run.last) < FORGOTTEN);
        if run.is_none() {
            self.openings = 0;
        }
        let first = run.map_or(now, |run| run.first);
        let count = run.map_or(0, |run| run.count).saturating_add(if slow { 2 } else { 1 });
        self.run = Some(Run { first, last: now, count });
        let opens = self.open.is_none() && count >= FAILURES && now.saturating_duration_since(first) >= LASTING;
        opens.then(|| {
            let opening = Opening(self.count);
            self.open = Some(Open { opening, since: now, next_probe: now + interval(self.openings), probes: 0 });
            self.openings = self.openings.saturating_add(1);
            self.count += 1;
            opening
        })
    }

    /// When to send the next probe; `None` when this opening is over.
    pub(super) fn next_probe(&self, opening: Opening) -> Option<Instant> {
        self.open.filter(|open| open.opening == opening).map(|open| open.next_probe)
    }

    /// A probe was answered, which says less than an answer to a request. Whether that closes the breaker.
    pub(super) fn probe_succeeded(&mut self, now: Instant) -> bool {
        // What failed before the probe has to fail as often again. That it failed is kept for the next interval.
        self.run = self.run.map(|_| Run { first: now, last: now, count: 0 });
        self.open.take().is_some()
    }

    pub(super) fn probe_failed(&mut self, opening: Opening, now: Instant) {
        let openings = self.openings;
        if let Some(open) = self.open.as_mut().filter(|open| open.opening == opening) {
            open.probes = open.probes.saturating_add(1);
            open.next_probe = now + interval(open.probes.max(openings));
        }
    }

    pub(super) fn report(&self, now: Instant) -> BreakerState {
        match self.open {
            None => BreakerState::Closed { failures: self.run.map_or(0, |run| run.count) },
            Some(open) => BreakerState::Open {
                for_seconds: now.saturating_duration_since(open.since).as_secs(),
                next_probe_in_seconds: open.next_probe.saturating_duration_since(now).as_secs(),
            },
        }
    }
}

/// Before the probe of this number: none before the very first one, then twice as long each time.
fn interval(number: u32) -> Duration {
    match number.checked_sub(1) {
        None => Duration::ZERO,
        Some(doublings) => FIRST_INTERVAL.saturating_mul(2_u32.saturating_pow(doublings)).min(LONGEST_INTERVAL),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn failing(breaker: &mut Breaker, from: Instant, times: u32) -> Instant {
        let mut now = from;
        for _ in 0..times {
            breaker.failed(now, false);
            now += SECOND;
        }
        now
    }

    #[test]
    fn it_opens_after_failures_in_a_row_and_only_then() {
        let (mut breaker, now) = (Breaker::default(), Instant::now());
        let now = failing(&mut breaker, now, FAILURES - 1);
        breaker.succeeded();
        let now = failing(&mut breaker, now, FAILURES - 1);
        assert_eq!(breaker.admit(now), Ok(()), "a success between them begins anew");
        assert_eq!(breaker.report(now), BreakerState::Closed { failures: FAILURES - 1 });
        let opening = breaker.failed(now, false).expect("this one opens it");
        assert_eq!(breaker.next_probe(opening), Some(now));
        assert_eq!(breaker.admit(now), Err(Duration::ZERO), "and is followed by a probe at once");
        assert_eq!(breaker.failed(now, false), None, "it opens once");
    }

    #[test]
    fn its_state_can_be_shown() {
        let show = |state| serde_json::to_value::<BreakerState>(state).unwrap();
        assert_eq!(show(BreakerState::Closed { failures: 2 }), json!({"state": "closed", "failures": 2}));
        let open = BreakerState::Open { for_seconds: 7, next_probe_in_seconds: 2 };
        assert_eq!(show(open), json!({"state": "open", "for_seconds": 7, "next_probe_in_seconds": 2}));
    }

    #[test]
    fn time_outs_open_it_sooner() {
        let (mut breaker, now) = (Breaker::default(), Instant::now());
        let opened: Vec<_> = (0..3).map(|n| breaker.failed(now + n * 2 * SECOND, true).is_some()).collect();
        assert_eq!(opened, [false, false, true]);
    }

    #[test]
    fn a_hiccup_that_many_meet_at_once_does_not_open_it() {
        let (mut breaker, now) = (Breaker::default(), Instant::now());
        assert!((0..100).all(|_| breaker.failed(now, false).is_none()));
        assert!(breaker.failed(now + LASTING, false).is_some());
    }

    #[test]
    fn failures_of_long_ago_do_not_count() {
        let (mut breaker, now) = (Breaker::default(), Instant::now());
        let now = failing(&mut breaker, now, FAILURES - 1) + FORGOTTEN;
        assert_eq!(breaker.failed(now, false), None);
        assert_eq!(breaker.report(now), BreakerState::Closed { failures: 1 });
    }

    #[test]
    fn probes_come_at_growing_intervals_within_seconds() {
        let (mut breaker, now) = (Breaker::default(), Instant::now());
        let mut now = failing(&mut breaker, now, FAILURES - 1);
        let opening = breaker.failed(now, false).unwrap();
        let mut intervals = Vec::new();
        for _ in 0..6 {
            breaker.probe_failed(opening, now);
            let next = breaker.next_probe(opening).unwrap();
            intervals.push((next - now).as_millis());
            assert_eq!(breaker.admit(now), Err(next - now));
            now = next;
        }
        assert_eq!(intervals, [500, 1000, 2000, 4000, 5000, 5000]);
        assert!(matches!(breaker.report(now), BreakerState::Open { for_seconds: 17, next_probe_in_seconds: 0 }));
        assert!(breaker.probe_succeeded(now));
        assert_eq!((breaker.admit(now), breaker.next_probe(opening)), (Ok(()), None));
        assert!(!breaker.probe_succeeded(now), "it closes once");
    }

    #[test]
    fn one_that_answers_only_probes_is_probed_less_and_less_until_it_answers_more() {
        let (mut breaker, mut now) = (Breaker::default(), Instant::now());
        let mut intervals = Vec::new();
        for _ in 0..6 {
            now = failing(&mut breaker, now, FAILURES - 1);
            let opening = breaker.failed(now, false).unwrap();
            let next = breaker.next_probe(opening).unwrap();
            intervals.push((next - now).as_millis());
            now = next;
            breaker.probe_succeeded(now);
        }
        assert_eq!(intervals, [0, 500, 1000, 2000, 4000, 5000]);
        breaker.succeeded();
        let now = failing(&mut breaker, now, FAILURES - 1);
        let opening = breaker.failed(now, false).unwrap();
        assert_eq!(breaker.next_probe(opening), Some(now));
    }

    #[test]
    fn an_answer_to_anybody_closes_it() {
        let (mut breaker, now) = (Breaker::default(), Instant::now());
        let now = failing(&mut breaker, now, FAILURES);
        assert!(breaker.succeeded());
        assert_eq!(breaker.report(now), BreakerState::Closed { failures: 0 });
    }

    #[test]
    fn a_probe_that_never_ends_does_not_keep_it_open_for_ever() {
        let (mut breaker, now) = (Breaker::default(), Instant::now());
        let now = failing(&mut breaker, now, FAILURES);
        assert!(breaker.admit(now + OVERDUE - 2 * SECOND).is_err());
        assert!(breaker.admit(now + OVERDUE).is_ok());
    }
}

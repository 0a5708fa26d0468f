//! Circuit breaker of one upstream. This is pure logic without clock, network or task; `probe` contains the task.
//!
//! The circuit opens after consecutive failures. While it is open, requests fail at once, and one probe at a time is
//! sent at growing intervals. It closes with the first response to a probe or request. If an upstream answers probes
//! but fails requests again, the intervals grow from one opening to the next, up to the longest one.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

/// Consecutive failures that open the circuit. One request causes at most four, one per round.
const FAILURES_TO_OPEN: u32 = 5;
/// Shortest time between the first and the last of these failures. Without it, one short interruption of many
/// concurrent requests would open the circuit, although their retries succeed.
const MIN_FAILURE_SPAN: Duration = Duration::from_secs(1);
/// A failure that came longer ago does not count.
const MAX_FAILURE_GAP: Duration = Duration::from_secs(60);

/// Time between the first and the second probe. Each further interval is twice as long.
const FIRST_PROBE_INTERVAL: Duration = Duration::from_millis(500);
/// Longest time between two probes.
const MAX_PROBE_INTERVAL: Duration = Duration::from_secs(5);
/// If a due probe has no result after this time, requests are sent again.
const PROBE_OVERDUE_AFTER: Duration = Duration::from_secs(30);

/// The state of one circuit.
#[derive(Debug, Default)]
pub(super) struct Breaker {
    /// Failures since the last success.
    run: Option<FailureRun>,
    open: Option<OpenCircuit>,
    /// Openings since the last success of a request.
    openings: u32,
    /// All openings so far, for [`Opening`].
    count: u64,
}

/// Identifies one opening of the circuit, so that a probing task ends with the opening that it was started for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Opening(u64);

/// Consecutive failures.
#[derive(Debug, Clone, Copy)]
struct FailureRun {
    first: Instant,
    last: Instant,
    count: u32,
}

/// An open circuit.
#[derive(Debug, Clone, Copy)]
struct OpenCircuit {
    opening: Opening,
    since: Instant,
    next_probe: Instant,
    probes: u32,
}

/// The state of a circuit breaker, for reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum BreakerState {
    /// Requests are sent. `failures` is the number of consecutive failures so far.
    Closed { failures: u32 },
    /// Only probes are sent.
    Open { for_seconds: u64, next_probe_in_seconds: u64 },
}

impl Breaker {
    /// Whether a request may be sent. The error is the time until the next probe.
    pub(super) fn admit(&self, now: Instant) -> Result<(), Duration> {
        match self.open {
            Some(open) if now < open.next_probe + PROBE_OVERDUE_AFTER => {
                Err(open.next_probe.saturating_duration_since(now))
            }
            _ => Ok(()),
        }
    }

    /// Records the success of a request. Returns whether it closed the circuit.
    pub(super) fn succeeded(&mut self) -> bool {
        self.run = None;
        self.openings = 0;
        self.open.take().is_some()
    }

    /// Records the failure of a request, and returns the opening if it opened the circuit. `slow`: the request timed
    /// out, which counts as two failures because a client has waited for it.
    pub(super) fn failed(&mut self, now: Instant, slow: bool) -> Option<Opening> {
        let run = self.run.filter(|run| now.saturating_duration_since(run.last) < MAX_FAILURE_GAP);
        if run.is_none() {
            self.openings = 0;
        }
        let first = run.map_or(now, |run| run.first);
        let count = run.map_or(0, |run| run.count).saturating_add(if slow { 2 } else { 1 });
        self.run = Some(FailureRun { first, last: now, count });
        let opens = self.open.is_none()
            && count >= FAILURES_TO_OPEN
            && now.saturating_duration_since(first) >= MIN_FAILURE_SPAN;
        opens.then(|| {
            let opening = Opening(self.count);
            self.open =
                Some(OpenCircuit { opening, since: now, next_probe: now + probe_interval(self.openings), probes: 0 });
            self.openings = self.openings.saturating_add(1);
            self.count += 1;
            opening
        })
    }

    /// When to send the next probe; `None` if this opening is over.
    pub(super) fn next_probe(&self, opening: Opening) -> Option<Instant> {
        self.open.filter(|open| open.opening == opening).map(|open| open.next_probe)
    }

    /// Records a response to a probe, which says less than a response to a request. Returns whether it closed the
    /// circuit.
    pub(super) fn probe_succeeded(&mut self, now: Instant) -> bool {
        // Counting starts again from 0, but the run is kept, so that the next opening has a longer interval.
        self.run = self.run.map(|_| FailureRun { first: now, last: now, count: 0 });
        self.open.take().is_some()
    }

    /// Records a probe without a response.
    pub(super) fn probe_failed(&mut self, opening: Opening, now: Instant) {
        let openings = self.openings;
        if let Some(open) = self.open.as_mut().filter(|open| open.opening == opening) {
            open.probes = open.probes.saturating_add(1);
            open.next_probe = now + probe_interval(open.probes.max(openings));
        }
    }

    /// The state for reports.
    pub(super) fn state(&self, now: Instant) -> BreakerState {
        match self.open {
            None => BreakerState::Closed { failures: self.run.map_or(0, |run| run.count) },
            Some(open) => BreakerState::Open {
                for_seconds: now.saturating_duration_since(open.since).as_secs(),
                next_probe_in_seconds: open.next_probe.saturating_duration_since(now).as_secs(),
            },
        }
    }
}

/// The time before probe `number`: none before the first one, then doubling.
fn probe_interval(number: u32) -> Duration {
    match number.checked_sub(1) {
        None => Duration::ZERO,
        Some(doublings) => FIRST_PROBE_INTERVAL.saturating_mul(2_u32.saturating_pow(doublings)).min(MAX_PROBE_INTERVAL),
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
    fn opens_only_after_consecutive_failures() {
        let (mut breaker, now) = (Breaker::default(), Instant::now());
        let now = failing(&mut breaker, now, FAILURES_TO_OPEN - 1);
        breaker.succeeded();
        let now = failing(&mut breaker, now, FAILURES_TO_OPEN - 1);
        assert_eq!(breaker.admit(now), Ok(()), "a success resets the count");
        assert_eq!(breaker.state(now), BreakerState::Closed { failures: FAILURES_TO_OPEN - 1 });
        let opening = breaker.failed(now, false).expect("the last failure opens the circuit");
        assert_eq!(breaker.next_probe(opening), Some(now));
        assert_eq!(breaker.admit(now), Err(Duration::ZERO), "the first probe is due at once");
        assert_eq!(breaker.failed(now, false), None, "an open circuit does not open again");
    }

    #[test]
    fn state_serializes() {
        let show = |state| serde_json::to_value::<BreakerState>(state).unwrap();
        assert_eq!(show(BreakerState::Closed { failures: 2 }), json!({"state": "closed", "failures": 2}));
        let open = BreakerState::Open { for_seconds: 7, next_probe_in_seconds: 2 };
        assert_eq!(show(open), json!({"state": "open", "for_seconds": 7, "next_probe_in_seconds": 2}));
    }

    #[test]
    fn timeouts_count_twice() {
        let (mut breaker, now) = (Breaker::default(), Instant::now());
        let opened: Vec<_> = (0..3).map(|n| breaker.failed(now + n * 2 * SECOND, true).is_some()).collect();
        assert_eq!(opened, [false, false, true]);
    }

    #[test]
    fn simultaneous_failures_do_not_open_it() {
        let (mut breaker, now) = (Breaker::default(), Instant::now());
        assert!((0..100).all(|_| breaker.failed(now, false).is_none()));
        assert!(breaker.failed(now + MIN_FAILURE_SPAN, false).is_some());
    }

    #[test]
    fn old_failures_do_not_count() {
        let (mut breaker, now) = (Breaker::default(), Instant::now());
        let now = failing(&mut breaker, now, FAILURES_TO_OPEN - 1) + MAX_FAILURE_GAP;
        assert_eq!(breaker.failed(now, false), None);
        assert_eq!(breaker.state(now), BreakerState::Closed { failures: 1 });
    }

    #[test]
    fn probe_intervals_grow_up_to_the_maximum() {
        let (mut breaker, now) = (Breaker::default(), Instant::now());
        let mut now = failing(&mut breaker, now, FAILURES_TO_OPEN - 1);
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
        assert!(matches!(breaker.state(now), BreakerState::Open { for_seconds: 17, next_probe_in_seconds: 0 }));
        assert!(breaker.probe_succeeded(now));
        assert_eq!((breaker.admit(now), breaker.next_probe(opening)), (Ok(()), None));
        assert!(!breaker.probe_succeeded(now), "a closed circuit does not close again");
    }

    #[test]
    fn answering_only_probes_lengthens_the_intervals() {
        let (mut breaker, mut now) = (Breaker::default(), Instant::now());
        let mut intervals = Vec::new();
        for _ in 0..6 {
            now = failing(&mut breaker, now, FAILURES_TO_OPEN - 1);
            let opening = breaker.failed(now, false).unwrap();
            let next = breaker.next_probe(opening).unwrap();
            intervals.push((next - now).as_millis());
            now = next;
            breaker.probe_succeeded(now);
        }
        assert_eq!(intervals, [0, 500, 1000, 2000, 4000, 5000]);
        breaker.succeeded();
        let now = failing(&mut breaker, now, FAILURES_TO_OPEN - 1);
        let opening = breaker.failed(now, false).unwrap();
        assert_eq!(breaker.next_probe(opening), Some(now));
    }

    #[test]
    fn any_success_closes_it() {
        let (mut breaker, now) = (Breaker::default(), Instant::now());
        let now = failing(&mut breaker, now, FAILURES_TO_OPEN);
        assert!(breaker.succeeded());
        assert_eq!(breaker.state(now), BreakerState::Closed { failures: 0 });
    }

    #[test]
    fn overdue_probe_lets_requests_through() {
        let (mut breaker, now) = (Breaker::default(), Instant::now());
        let now = failing(&mut breaker, now, FAILURES_TO_OPEN);
        assert!(breaker.admit(now + PROBE_OVERDUE_AFTER - 2 * SECOND).is_err());
        assert!(breaker.admit(now + PROBE_OVERDUE_AFTER).is_ok());
    }
}

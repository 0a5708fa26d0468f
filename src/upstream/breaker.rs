//! Circuit breaker of one upstream. This is pure logic without clock, network or task; `probe` contains the task.
//!
//! The circuit opens after consecutive failures that concern the whole upstream: failed connections, and missing
//! responses to requests for different repositories. Missing responses for one repository count once, and responses
//! with a 5xx status do not count, so that broken images do not stop requests for the others. If the threshold is
//! reached only with such failures, a check with one probe decides.
//!
//! While the circuit is open, requests fail at once, and one probe at a time is sent at growing intervals. It closes
//! with the first response to a probe or request. If an upstream answers probes but fails requests again, the intervals
//! grow from one opening to the next, up to the longest one.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::oci::RepoName;

/// Consecutive failures that open the circuit. One request causes at most four, one per round. The same number of
/// failures that do not concern the whole upstream starts a check.
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
    /// Whether a check is running.
    checking: bool,
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
#[derive(Debug, Clone)]
struct FailureRun {
    first: Instant,
    last: Instant,
    /// All failures since the first one or the last check.
    count: u32,
    /// Failures that concern the whole upstream: of connections, and one missing response for each of `repositories`.
    general: u32,
    repositories: Vec<RepoName>,
}

/// The scope of a failure.
#[derive(Debug, Clone, Copy)]
pub(super) enum FailureScope<'a> {
    /// No connection could be made.
    Connection,
    /// A connection was made, and the request for this repository was not answered.
    NoResponse(&'a RepoName),
    /// The upstream responded with a failure. It may concern the requested content only.
    Response,
}

/// What the caller must do after a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum AfterFailure {
    Nothing,
    /// The failures may concern single repositories. Send one probe, and report it with [`Breaker::checked`].
    Check,
    /// The circuit has opened.
    Probe(Opening),
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

    /// Records the failure of a request. `slow`: the request timed out, which counts as two failures because a client
    /// has waited for it.
    pub(super) fn failed(&mut self, now: Instant, scope: FailureScope<'_>, slow: bool) -> AfterFailure {
        let run = self.run.take().filter(|run| now.saturating_duration_since(run.last) < MAX_FAILURE_GAP);
        if run.is_none() {
            self.openings = 0;
        }
        let mut run = run.unwrap_or_else(|| FailureRun::new(now));
        run.add(now, scope, if slow { 2 } else { 1 });
        let long_enough = now.saturating_duration_since(run.first) >= MIN_FAILURE_SPAN;
        let (suspected, certain) = (run.count >= FAILURES_TO_OPEN, run.general >= FAILURES_TO_OPEN);
        self.run = Some(run);
        if self.open.is_some() || !long_enough {
            AfterFailure::Nothing
        } else if certain {
            AfterFailure::Probe(self.open_circuit(now))
        } else if suspected && !self.checking {
            self.checking = true;
            AfterFailure::Check
        } else {
            AfterFailure::Nothing
        }
    }

    /// Records the result of a check, and returns the opening if it opened the circuit. `alive`: the probe was
    /// answered, so the failures concern single repositories.
    pub(super) fn checked(&mut self, now: Instant, alive: bool) -> Option<Opening> {
        self.checking = false;
        if alive {
            if let Some(run) = &mut self.run {
                run.count = run.general;
            }
            return None;
        }
        // A request may have succeeded since the check was started.
        (self.open.is_none() && self.run.is_some()).then(|| self.open_circuit(now))
    }

    fn open_circuit(&mut self, now: Instant) -> Opening {
        let opening = Opening(self.count);
        self.open =
            Some(OpenCircuit { opening, since: now, next_probe: now + probe_interval(self.openings), probes: 0 });
        self.openings = self.openings.saturating_add(1);
        self.count += 1;
        opening
    }

    /// When to send the next probe; `None` if this opening is over.
    pub(super) fn next_probe(&self, opening: Opening) -> Option<Instant> {
        self.open.filter(|open| open.opening == opening).map(|open| open.next_probe)
    }

    /// Records a response to a probe, which says less than a response to a request. Returns whether it closed the
    /// circuit.
    pub(super) fn probe_succeeded(&mut self, now: Instant) -> bool {
        // Counting starts again from 0, but the run is kept, so that the next opening has a longer interval.
        self.run = self.run.take().map(|_| FailureRun::new(now));
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
            None => BreakerState::Closed { failures: self.run.as_ref().map_or(0, |run| run.count) },
            Some(open) => BreakerState::Open {
                for_seconds: now.saturating_duration_since(open.since).as_secs(),
                next_probe_in_seconds: open.next_probe.saturating_duration_since(now).as_secs(),
            },
        }
    }
}

// === impl FailureRun ===

impl FailureRun {
    fn new(now: Instant) -> Self {
        Self { first: now, last: now, count: 0, general: 0, repositories: Vec::new() }
    }

    fn add(&mut self, now: Instant, scope: FailureScope<'_>, weight: u32) {
        self.last = now;
        self.count = self.count.saturating_add(weight);
        let is_general = match scope {
            FailureScope::Connection => true,
            FailureScope::Response => false,
            FailureScope::NoResponse(repository) => {
                let is_new = !self.repositories.contains(repository);
                let is_counted = is_new && self.repositories.len() < FAILURES_TO_OPEN as usize;
                if is_counted {
                    self.repositories.push(repository.clone());
                }
                is_counted
            }
        };
        if is_general {
            self.general = self.general.saturating_add(weight);
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
    const CONNECTION: FailureScope<'_> = FailureScope::Connection;

    /// Records a failure of a connection, which must open the circuit.
    fn opening(breaker: &mut Breaker, now: Instant) -> Opening {
        match breaker.failed(now, CONNECTION, false) {
            AfterFailure::Probe(opening) => opening,
            other => panic!("{other:?}"),
        }
    }

    fn failing(breaker: &mut Breaker, from: Instant, times: u32) -> Instant {
        let mut now = from;
        for _ in 0..times {
            breaker.failed(now, CONNECTION, false);
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
        let opening = opening(&mut breaker, now);
        assert_eq!(breaker.next_probe(opening), Some(now));
        assert_eq!(breaker.admit(now), Err(Duration::ZERO), "the first probe is due at once");
        assert_eq!(
            breaker.failed(now, CONNECTION, false),
            AfterFailure::Nothing,
            "an open circuit does not open again"
        );
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
        let mut fails = |n: u32| breaker.failed(now + n * 2 * SECOND, CONNECTION, true);
        assert_eq!([fails(0), fails(1)], [AfterFailure::Nothing; 2]);
        assert!(matches!(fails(2), AfterFailure::Probe(_)));
    }

    #[test]
    fn simultaneous_failures_do_not_open_it() {
        let (mut breaker, now) = (Breaker::default(), Instant::now());
        assert!((0..100).all(|_| breaker.failed(now, CONNECTION, false) == AfterFailure::Nothing));
        opening(&mut breaker, now + MIN_FAILURE_SPAN);
    }

    #[test]
    fn missing_responses_for_one_repository_open_it_only_after_a_failed_check() {
        let broken: RepoName = "org/broken".parse().unwrap();
        for alive in [true, false] {
            let (mut breaker, mut now) = (Breaker::default(), Instant::now());
            let fails = |breaker: &mut Breaker, now: &mut Instant| {
                *now += SECOND;
                breaker.failed(*now, FailureScope::NoResponse(&broken), false)
            };
            for _ in 1..FAILURES_TO_OPEN {
                assert_eq!(fails(&mut breaker, &mut now), AfterFailure::Nothing);
            }
            assert_eq!(fails(&mut breaker, &mut now), AfterFailure::Check);
            assert_eq!(fails(&mut breaker, &mut now), AfterFailure::Nothing, "one check at a time");
            assert_eq!(breaker.checked(now, alive).is_none(), alive);
            assert_eq!(breaker.admit(now).is_ok(), alive);
            if alive {
                let mut again = (0..FAILURES_TO_OPEN).map(|_| fails(&mut breaker, &mut now));
                assert!(again.any(|after| after == AfterFailure::Check), "the next failures are checked again");
            }
        }
    }

    #[test]
    fn failed_responses_open_it_only_after_a_failed_check() {
        for alive in [true, false] {
            let (mut breaker, mut now) = (Breaker::default(), Instant::now());
            let fails = |breaker: &mut Breaker, now: &mut Instant| {
                *now += SECOND;
                breaker.failed(*now, FailureScope::Response, false)
            };
            let after: Vec<_> = (0..FAILURES_TO_OPEN).map(|_| fails(&mut breaker, &mut now)).collect();
            assert!(matches!(after[..], [.., AfterFailure::Nothing, AfterFailure::Check]), "{after:?}");
            assert!((0..100).all(|_| fails(&mut breaker, &mut now) == AfterFailure::Nothing), "the check decides");
            assert_eq!(breaker.checked(now, alive).is_none(), alive);
            assert_eq!(breaker.admit(now).is_ok(), alive);
        }
    }

    #[test]
    fn missing_responses_for_different_repositories_open_it() {
        let (mut breaker, now) = (Breaker::default(), Instant::now());
        let names: Vec<RepoName> = (0..5).map(|n| format!("org/app{n}").parse().unwrap()).collect();
        let after: Vec<_> = (0_u32..)
            .zip(&names)
            .map(|(n, name)| breaker.failed(now + n * SECOND, FailureScope::NoResponse(name), false))
            .collect();
        assert!(matches!(after[..], [.., AfterFailure::Nothing, AfterFailure::Probe(_)]), "{after:?}");
    }

    #[test]
    fn a_success_during_a_check_keeps_it_closed() {
        let (mut breaker, now) = (Breaker::default(), Instant::now());
        let broken: RepoName = "org/broken".parse().unwrap();
        for n in 0..FAILURES_TO_OPEN {
            breaker.failed(now + n * SECOND, FailureScope::NoResponse(&broken), false);
        }
        breaker.succeeded();
        assert_eq!(breaker.checked(now, false), None);
    }

    #[test]
    fn old_failures_do_not_count() {
        let (mut breaker, now) = (Breaker::default(), Instant::now());
        let now = failing(&mut breaker, now, FAILURES_TO_OPEN - 1) + MAX_FAILURE_GAP;
        assert_eq!(breaker.failed(now, CONNECTION, false), AfterFailure::Nothing);
        assert_eq!(breaker.state(now), BreakerState::Closed { failures: 1 });
    }

    #[test]
    fn probe_intervals_grow_up_to_the_maximum() {
        let (mut breaker, now) = (Breaker::default(), Instant::now());
        let mut now = failing(&mut breaker, now, FAILURES_TO_OPEN - 1);
        let opening = opening(&mut breaker, now);
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
            let opening = opening(&mut breaker, now);
            let next = breaker.next_probe(opening).unwrap();
            intervals.push((next - now).as_millis());
            now = next;
            breaker.probe_succeeded(now);
        }
        assert_eq!(intervals, [0, 500, 1000, 2000, 4000, 5000]);
        breaker.succeeded();
        let now = failing(&mut breaker, now, FAILURES_TO_OPEN - 1);
        let opening = opening(&mut breaker, now);
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

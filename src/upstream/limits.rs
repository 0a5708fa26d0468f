//! What an upstream has said about how often it may be asked: 429 and until when, and how many pulls are left.
//!
//! Docker Hub has two limits. That on pulls counts GETs of manifests and nothing else; blobs flow on, and a tag can still
//! be confirmed by HEAD. That on abuse counts every request of an address. Pure, with the time passed in.

use std::time::Duration;

use http::Method;
use tokio::time::Instant;

use super::Kind;

/// No answer keeps us from asking for longer than this, whatever it says: limits are lifted, raised and paid for.
const LONGEST: Duration = Duration::from_secs(15 * 60);
/// When a 429 names no time. A window of pulls is hours long, and asking in vain costs nothing of it.
const PULLS: Duration = Duration::from_secs(60);
/// Some registries say 429 now and then without meaning it for long.
const OTHERS: Duration = Duration::from_secs(10);
/// Fewer pulls than this part of the limit are few.
const SCARCE: f64 = 0.1;
/// Of the window in which pulls are counted, where it is not named (`w=`), and at most.
const WINDOW: Duration = Duration::from_secs(6 * 60 * 60);

/// Which requests a 429 is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Covers {
    Everything,
    /// GETs of manifests.
    Pulls,
    /// What is redirected to the upstream's storage.
    Blobs,
}

#[derive(Debug, Default)]
pub(super) struct Limits {
    everything: Option<Instant>,
    pulls: Option<Instant>,
    blobs: Option<Instant>,
    scarce_until: Option<Instant>,
}

impl Covers {
    /// What a 429 covers, by what was asked, where, and the body of the answer. `elsewhere`: it came from another host.
    pub(super) fn of(kind: Kind, method: &Method, elsewhere: bool, body: &[u8]) -> Self {
        if elsewhere && kind == Kind::Blob {
            return Self::Blobs;
        }
        // Hub: "You have reached your pull rate limit." Its other one is plain text: "Too Many Requests".
        let says_pulls = || String::from_utf8_lossy(body).to_ascii_lowercase().contains("pull rate limit");
        if is_pull(kind, method) && says_pulls() { Self::Pulls } else { Self::Everything }
    }
}

impl Limits {
    /// Takes a 429 to heart, and says for how long: as it said (`told`), within reason.
    pub(super) fn hold(&mut self, covers: Covers, told: Option<Duration>, now: Instant) -> Duration {
        let (until, default) = match covers {
            Covers::Everything => (&mut self.everything, OTHERS),
            Covers::Pulls => (&mut self.pulls, PULLS),
            Covers::Blobs => (&mut self.blobs, OTHERS),
        };
        let hold = told.unwrap_or(default).min(LONGEST);
        // Many are told at once: who was told to stay away for longest is right.
        *until = (*until).max(Some(now + hold));
        hold
    }

    /// Whether this may be asked; if not, for how long not.
    pub(super) fn admit(&self, kind: Kind, method: &Method, now: Instant) -> Result<(), Duration> {
        let pulls = self.pulls.filter(|_| is_pull(kind, method));
        let blobs = self.blobs.filter(|_| kind == Kind::Blob);
        match self.everything.max(pulls).max(blobs) {
            Some(until) if now < until => Err(until - now),
            _ => Ok(()),
        }
    }

    /// What Docker Hub says with every answer about a manifest: its limit, what is left of it, and the window.
    pub(super) fn note_budget(&mut self, limit: f64, remaining: f64, window: Option<Duration>, now: Instant) {
        let scarce = limit > 0.0 && remaining < limit * SCARCE;
        self.scarce_until = scarce.then(|| now + window.unwrap_or(WINDOW).min(WINDOW));
    }

    /// Whether few pulls are left, by the last word on it.
    pub(super) fn is_scarce(&self, now: Instant) -> bool {
        self.scarce_until.is_some_and(|until| now < until)
    }
}

fn is_pull(kind: Kind, method: &Method) -> bool {
    kind == Kind::Manifest && *method == Method::GET
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const HUB_PULLS: &[u8] = br#"{"errors":[{"code":"TOOMANYREQUESTS","message":"You have reached your unauthenticated pull rate limit. https://www.docker.com/increase-rate-limit"}]}"#;

    #[test]
    fn each_kind_of_429_covers_what_it_is_about() {
        for (kind, method, elsewhere, body, covers) in [
            (Kind::Manifest, Method::GET, false, HUB_PULLS, Covers::Pulls),
            (Kind::Manifest, Method::GET, false, b"Too Many Requests".as_slice(), Covers::Everything),
            (Kind::Manifest, Method::GET, false, br#"{"errors":[{"code":"TOOMANYREQUESTS"}]}"#, Covers::Everything),
            (Kind::Manifest, Method::HEAD, false, b"", Covers::Everything),
            (Kind::Blob, Method::GET, false, HUB_PULLS, Covers::Everything),
            (Kind::Blob, Method::GET, true, b"", Covers::Blobs),
            (Kind::Manifest, Method::GET, true, b"", Covers::Everything),
        ] {
            assert_eq!(Covers::of(kind, &method, elsewhere, body), covers, "{method} {kind:?} {elsewhere}");
        }
    }

    #[test]
    fn a_limit_stops_what_it_covers_until_its_time_is_over() {
        let asked = [
            (Kind::Manifest, Method::GET),
            (Kind::Manifest, Method::HEAD),
            (Kind::Blob, Method::GET),
            (Kind::Tags, Method::GET),
        ];
        for (covers, stopped) in [
            (Covers::Everything, [true, true, true, true]),
            (Covers::Pulls, [true, false, false, false]),
            (Covers::Blobs, [false, false, true, false]),
        ] {
            let (mut limits, now) = (Limits::default(), Instant::now());
            assert_eq!(limits.hold(covers, Some(9 * SECOND), now), 9 * SECOND);
            let then = now + 2 * SECOND;
            for ((kind, method), stopped) in asked.iter().zip(stopped) {
                let expected = if stopped { Err(7 * SECOND) } else { Ok(()) };
                assert_eq!(limits.admit(*kind, method, then), expected, "{covers:?}: {method} {kind:?}");
                assert_eq!(limits.admit(*kind, method, now + 9 * SECOND), Ok(()));
            }
        }
    }

    #[test]
    fn a_hold_is_modest_without_a_word_and_bounded_whatever_is_said() {
        let (mut limits, now) = (Limits::default(), Instant::now());
        let year = Duration::from_secs(365 * 24 * 60 * 60);
        for (covers, told, held) in [
            (Covers::Everything, None, OTHERS),
            (Covers::Pulls, None, PULLS),
            (Covers::Blobs, Some(Duration::ZERO), Duration::ZERO),
            (Covers::Everything, Some(year), LONGEST),
            (Covers::Everything, Some(SECOND), SECOND),
        ] {
            assert_eq!(limits.hold(covers, told, now), held, "{covers:?} {told:?}");
        }
        assert_eq!(limits.admit(Kind::Tags, &Method::GET, now), Err(LONGEST), "the longest one stands");
        assert_eq!(limits.admit(Kind::Tags, &Method::GET, now + LONGEST), Ok(()));
    }

    #[test]
    fn few_are_less_than_a_tenth_until_somebody_says_otherwise_or_the_window_is_over() {
        let (mut limits, now) = (Limits::default(), Instant::now());
        for (limit, remaining, scarce) in
            [(100.0, 10.0, false), (100.0, 9.0, true), (0.0, 0.0, false), (200.0, 0.0, true)]
        {
            limits.note_budget(limit, remaining, Some(60 * SECOND), now);
            assert_eq!(limits.is_scarce(now), scarce, "{remaining} of {limit}");
        }
        assert!(limits.is_scarce(now + 59 * SECOND) && !limits.is_scarce(now + 60 * SECOND));
    }
}

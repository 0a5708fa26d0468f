//! Rate limits of an upstream: 429 responses, and the number of remaining pulls. Pure logic; the time is a parameter.
//!
//! Docker Hub has two limits. The limit on pulls counts GETs of manifests only: blobs can still be fetched, and tags
//! can be confirmed by HEAD. The limit on abuse counts all requests of an address.
//!
//! Registries count pulls for each account. So each account has limits of its own at each host of the upstream's
//! URLs: one exhausted account does not pause the requests of the others, and a mirror's limit does not pause the
//! upstream itself.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use http::Method;
use parking_lot::Mutex;
use tokio::time::Instant;

use super::{CredentialId, Kind};

/// Maximum time for which requests are paused. A longer `Retry-After` is cut, because the limit may end earlier.
const MAX_HOLD: Duration = Duration::from_secs(15 * 60);
/// Default pause of pulls if the 429 has no time. A minute is enough: refused pulls are not counted.
const DEFAULT_PULL_HOLD: Duration = Duration::from_secs(60);
/// Default pause of other requests if the 429 has no time. It is short because some registries send occasional 429s.
const DEFAULT_HOLD: Duration = Duration::from_secs(10);
/// Pulls are scarce if fewer than this fraction of the limit is left.
const SCARCE_FRACTION: f64 = 0.1;
/// Longest window in which pulls are counted; also the default if the response has no `w=`.
const MAX_PULL_WINDOW: Duration = Duration::from_secs(6 * 60 * 60);

/// Accounts of one upstream whose limits are kept, at most. Docker's file may have many logins.
const MAX_LIMITED_ACCOUNTS: usize = 1000;

/// The requests that a 429 applies to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LimitedRequests {
    /// All requests.
    Everything,
    /// GETs of manifests.
    Pulls,
    /// Blobs, which the upstream redirects to its storage.
    Blobs,
}

/// An account at one host of an upstream's URLs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct LimitedAccount {
    /// The position of the first URL with this host and port.
    pub(super) host: usize,
    /// The credentials that requests carry there.
    pub(super) credential: CredentialId,
}

/// The limits of one upstream, by account. At most [`MAX_LIMITED_ACCOUNTS`].
#[derive(Debug, Default)]
pub(super) struct AccountLimits {
    accounts: Mutex<BTreeMap<LimitedAccount, Limits>>,
    /// Whether pulls of any account may be scarce. Written with `accounts` locked. Each hit reads it, without the lock.
    may_be_scarce: AtomicBool,
}

/// The limits of one account at one upstream. Each `Instant` is when a limit ends.
#[derive(Debug, Default)]
pub(super) struct Limits {
    everything: Option<Instant>,
    pulls: Option<Instant>,
    blobs: Option<Instant>,
    scarce_until: Option<Instant>,
}

impl LimitedRequests {
    /// Returns the requests that a 429 applies to, by the request and the response body. `other_host`: the response
    /// came from another host.
    pub(super) fn of(kind: Kind, method: &Method, other_host: bool, body: &[u8]) -> Self {
        if other_host && kind == Kind::Blob {
            return Self::Blobs;
        }
        // Docker Hub's limit on pulls says "You have reached your pull rate limit." in JSON. The limit on abuse says
        // "Too Many Requests" as plain text.
        let says_pulls = || String::from_utf8_lossy(body).to_ascii_lowercase().contains("pull rate limit");
        if is_pull(kind, method) && says_pulls() { Self::Pulls } else { Self::Everything }
    }
}

impl AccountLimits {
    /// Calls `read` with the limits of an account, under the lock.
    pub(super) fn read<T>(&self, account: LimitedAccount, read: impl FnOnce(&Limits) -> T) -> T {
        match self.accounts.lock().get(&account) {
            Some(limits) => read(limits),
            None => read(&Limits::default()),
        }
    }

    /// Calls `change` with the limits of an account, under the lock. If there are too many accounts, the limits that
    /// have ended are dropped, or else those that end first.
    pub(super) fn change<T>(&self, account: LimitedAccount, now: Instant, change: impl FnOnce(&mut Limits) -> T) -> T {
        let mut accounts = self.accounts.lock();
        if accounts.len() >= MAX_LIMITED_ACCOUNTS && !accounts.contains_key(&account) {
            accounts.retain(|_, limits| limits.end().is_some_and(|end| now < end));
            if accounts.len() >= MAX_LIMITED_ACCOUNTS {
                let first = accounts.iter().min_by_key(|(_, limits)| limits.end()).map(|(account, _)| *account);
                first.and_then(|first| accounts.remove(&first));
            }
        }
        let changed = change(accounts.entry(account).or_default());
        let any_scarce = accounts.values().any(|limits| limits.scarce_until.is_some());
        self.may_be_scarce.store(any_scarce, Ordering::Release);
        changed
    }

    /// Whether few pulls may be left of an account. Takes no lock.
    pub(super) fn may_be_scarce(&self) -> bool {
        self.may_be_scarce.load(Ordering::Acquire)
    }
}

impl Limits {
    /// Records a 429. `requested` is the time in the response. Returns the time for which requests are paused.
    pub(super) fn hold(&mut self, covers: LimitedRequests, requested: Option<Duration>, now: Instant) -> Duration {
        let (until, default) = match covers {
            LimitedRequests::Everything => (&mut self.everything, DEFAULT_HOLD),
            LimitedRequests::Pulls => (&mut self.pulls, DEFAULT_PULL_HOLD),
            LimitedRequests::Blobs => (&mut self.blobs, DEFAULT_HOLD),
        };
        let hold = requested.unwrap_or(default).min(MAX_HOLD);
        // Concurrent requests may receive different times; the longest one applies.
        *until = (*until).max(Some(now + hold));
        hold
    }

    /// Whether a request may be sent. The error is the remaining time.
    pub(super) fn admit(&self, kind: Kind, method: &Method, now: Instant) -> Result<(), Duration> {
        let pulls = self.pulls.filter(|_| is_pull(kind, method));
        let blobs = self.blobs.filter(|_| kind == Kind::Blob);
        match self.everything.max(pulls).max(blobs) {
            Some(until) if now < until => Err(until - now),
            _ => Ok(()),
        }
    }

    /// Records Docker Hub's headers of manifest responses: the limit, the remaining pulls and the window.
    pub(super) fn note_budget(&mut self, limit: f64, remaining: f64, window: Option<Duration>, now: Instant) {
        let scarce = limit > 0.0 && remaining < limit * SCARCE_FRACTION;
        self.scarce_until = scarce.then(|| now + window.unwrap_or(MAX_PULL_WINDOW).min(MAX_PULL_WINDOW));
    }

    /// When the last limit ends.
    fn end(&self) -> Option<Instant> {
        self.everything.max(self.pulls).max(self.blobs).max(self.scarce_until)
    }

    /// Whether few pulls are left according to the latest response.
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
    fn limit_scope_depends_on_request_and_body() {
        for (kind, method, other_host, body, covers) in [
            (Kind::Manifest, Method::GET, false, HUB_PULLS, LimitedRequests::Pulls),
            (Kind::Manifest, Method::GET, false, b"Too Many Requests".as_slice(), LimitedRequests::Everything),
            (
                Kind::Manifest,
                Method::GET,
                false,
                br#"{"errors":[{"code":"TOOMANYREQUESTS"}]}"#,
                LimitedRequests::Everything,
            ),
            (Kind::Manifest, Method::HEAD, false, b"", LimitedRequests::Everything),
            (Kind::Blob, Method::GET, false, HUB_PULLS, LimitedRequests::Everything),
            (Kind::Blob, Method::GET, true, b"", LimitedRequests::Blobs),
            (Kind::Manifest, Method::GET, true, b"", LimitedRequests::Everything),
        ] {
            assert_eq!(LimitedRequests::of(kind, &method, other_host, body), covers, "{method} {kind:?} {other_host}");
        }
    }

    #[test]
    fn limit_blocks_its_scope_until_it_expires() {
        let asked = [
            (Kind::Manifest, Method::GET),
            (Kind::Manifest, Method::HEAD),
            (Kind::Blob, Method::GET),
            (Kind::Tags, Method::GET),
        ];
        for (covers, stopped) in [
            (LimitedRequests::Everything, [true, true, true, true]),
            (LimitedRequests::Pulls, [true, false, false, false]),
            (LimitedRequests::Blobs, [false, false, true, false]),
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
    fn hold_has_a_default_and_a_maximum() {
        let (mut limits, now) = (Limits::default(), Instant::now());
        let year = Duration::from_secs(365 * 24 * 60 * 60);
        for (covers, requested, held) in [
            (LimitedRequests::Everything, None, DEFAULT_HOLD),
            (LimitedRequests::Pulls, None, DEFAULT_PULL_HOLD),
            (LimitedRequests::Blobs, Some(Duration::ZERO), Duration::ZERO),
            (LimitedRequests::Everything, Some(year), MAX_HOLD),
            (LimitedRequests::Everything, Some(SECOND), SECOND),
        ] {
            assert_eq!(limits.hold(covers, requested, now), held, "{covers:?} {requested:?}");
        }
        assert_eq!(limits.admit(Kind::Tags, &Method::GET, now), Err(MAX_HOLD), "the longest one stands");
        assert_eq!(limits.admit(Kind::Tags, &Method::GET, now + MAX_HOLD), Ok(()));
    }

    #[test]
    fn pulls_are_scarce_below_a_tenth_until_the_window_ends() {
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

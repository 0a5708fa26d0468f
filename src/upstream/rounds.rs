//! How long a request is kept at: rounds over the URLs, pauses between them, and when asking is of no use.
//!
//! All of it happens before the first byte of an answer, and ends by the caller's deadline: an answer that says what is
//! wrong comes in time, never after. A transfer that breaks later is its reader's business.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::breaker::Breaker;
use super::error::UpstreamError;
use super::remote::Remote;
use super::response::UpstreamResponse;
use super::send::Ask;
use super::{Effort, Upstream, UpstreamRequest};

const ROUNDS: u32 = 4;
/// Before the second round; each further pause is twice as long, give or take half of it, so that those who failed
/// together do not come back together.
const FIRST_PAUSE: Duration = Duration::from_millis(150);
/// A limit that is over sooner than this is waited for, once: GHCR says `retry-after: 1.16ms`.
const SHORT_LIMIT: Duration = Duration::from_millis(500);

impl Upstream {
    /// Asks the upstream and returns when the head of an answer is there: at `deadline` at the latest.
    ///
    /// `deadline` covers tokens, redirects, every URL, every round and the pauses between them; each single step gets at
    /// most `header_timeout` of it. The body that follows is not covered.
    ///
    /// # Errors
    /// Everything but a usable 200, 206 or 304, see [`UpstreamError`].
    pub async fn send(&self, request: UpstreamRequest, deadline: Instant) -> Result<UpstreamResponse, UpstreamError> {
        let remote = &self.remote;
        let live = remote.live().await?;
        let mut failure = None;
        for round in 0.. {
            if let Err(refusal) = remote.admit(&request) {
                // What went wrong in an earlier round says more than that there is no further one.
                return Err(failure.unwrap_or(refusal));
            }
            if Instant::now() >= deadline {
                break;
            }
            let heard = AtomicBool::new(false);
            let (method, range, hops) = (&request.method, request.range, &self.hops);
            let ask = Ask { request: &request, method, range, hops, deadline, heard: &heard };
            let error = match remote.round(live, ask).await {
                Ok(response) => {
                    remote.fared_well();
                    return Ok(response);
                }
                Err(error) => error,
            };
            remote.fared_ill(&error, heard.load(Ordering::Relaxed));
            match pause_after(&error, request.effort, round, deadline.saturating_duration_since(Instant::now())) {
                None => return Err(error),
                Some(pause) => {
                    tracing::debug!(upstream = %remote.name, %error, "asking {} again: {error}", remote.name);
                    sleep(pause).await;
                }
            }
            failure = Some(error);
        }
        Err(failure.unwrap_or_else(|| UpstreamError::timeout(&remote.name, "no time left to ask")))
    }
}

impl Remote {
    /// Whether this may be asked now: the breaker is closed, and no limit covers it.
    fn admit(&self, request: &UpstreamRequest) -> Result<(), UpstreamError> {
        let (upstream, now) = (self.name.clone(), Instant::now());
        if let Err(left) = self.limits.lock().admit(request.kind, &request.method, now) {
            return Err(UpstreamError::RateLimited { upstream, retry_after: Some(left) });
        }
        match self.breaker.lock().admit(now) {
            Err(left) if request.effort != Effort::Resume => {
                Err(UpstreamError::LeftAlone { upstream, retry_after: left.max(Duration::from_secs(1)) })
            }
            _ => Ok(()),
        }
    }

    fn fared_well(&self) {
        let mut breaker = self.breaker.lock();
        if breaker.succeeded() {
            self.is_back(&breaker);
        }
    }

    /// `heard`: the upstream itself answered, and what failed is another host that it sent us to.
    fn fared_ill(self: &Arc<Self>, error: &UpstreamError, heard: bool) {
        if heard {
            return self.fared_well();
        }
        let counts = match error {
            // Who says when to come back is at work, and may serve other things: a mirror whose own upstream is down.
            UpstreamError::Status { retry_after: Some(_), .. } => false,
            UpstreamError::Certificate { .. } => true,
            error => error.is_outage(),
        };
        if !counts {
            return;
        }
        let mut breaker = self.breaker.lock();
        if let Some(opening) = breaker.failed(Instant::now(), matches!(error, UpstreamError::Timeout { .. })) {
            self.metrics.upstream_available(&self.name, false);
            tracing::warn!(upstream = %self.name, %error, "leaving {} alone until it answers again: {error}", self.name);
            self.begin_probing(opening);
        }
    }

    /// Under the breaker's lock, so that the gauge never tells of an older change than the last.
    pub(super) fn is_back(&self, _closed: &Breaker) {
        self.metrics.upstream_available(&self.name, true);
        tracing::info!(upstream = %self.name, "{} answers again", self.name);
    }
}

/// How long to wait before the next round; `None` if there is none, or no time for it.
fn pause_after(error: &UpstreamError, effort: Effort, round: u32, left: Duration) -> Option<Duration> {
    let pause = match error {
        UpstreamError::RateLimited { retry_after: Some(after), .. } if round == 0 && *after <= SHORT_LIMIT => *after,
        error if error.is_outage() && round + 1 < ROUNDS => {
            let grown = FIRST_PAUSE.mul_f64(f64::from(2_u32.saturating_pow(round)) * (0.5 + fastrand::f64()));
            grown.max(error.retry_after().unwrap_or_default())
        }
        _ => return None,
    };
    (effort == Effort::Rounds && pause < left).then_some(pause)
}

#[cfg(test)]
mod tests {
    use http::StatusCode;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn status(status: u16, retry_after: Option<Duration>) -> UpstreamError {
        UpstreamError::Status { upstream: "r".into(), status: StatusCode::from_u16(status).unwrap(), retry_after }
    }

    #[test]
    fn pauses_grow_and_there_are_few() {
        let bad = status(502, None);
        let pause = |round| pause_after(&bad, Effort::Rounds, round, 20 * SECOND);
        for (round, least, most) in [(0, 75, 225), (1, 150, 450), (2, 300, 900)] {
            let pause = pause(round).unwrap().as_millis();
            assert!((least..=most).contains(&pause), "{round}: {pause} ms");
        }
        assert_eq!(pause(3), None);
    }

    #[test]
    fn only_what_may_go_well_a_moment_later_is_asked_again() {
        let name = || std::sync::Arc::from("r");
        let cause = || std::sync::Arc::from("cause");
        for (error, again) in [
            (UpstreamError::Connect { upstream: name(), cause: cause() }, true),
            (UpstreamError::Interrupted { upstream: name(), cause: cause() }, true),
            (UpstreamError::timeout(&name(), "x"), true),
            (status(500, None), true),
            (status(503, Some(3 * SECOND)), true),
            (status(503, Some(30 * SECOND)), false),
            (status(501, None), false),
            (status(508, None), false),
            (status(418, None), false),
            (UpstreamError::NotFound { upstream: name() }, false),
            (UpstreamError::Denied { upstream: name(), status: StatusCode::FORBIDDEN }, false),
            (UpstreamError::Certificate { upstream: name(), cause: cause() }, false),
            (UpstreamError::LeftAlone { upstream: name(), retry_after: SECOND }, false),
            (UpstreamError::bad(&name(), "x"), false),
            (UpstreamError::RateLimited { upstream: name(), retry_after: None }, false),
            (UpstreamError::RateLimited { upstream: name(), retry_after: Some(SECOND) }, false),
            (UpstreamError::RateLimited { upstream: name(), retry_after: Some(SHORT_LIMIT) }, true),
        ] {
            assert_eq!(pause_after(&error, Effort::Rounds, 0, 20 * SECOND).is_some(), again, "{error}");
            assert_eq!(pause_after(&error, Effort::Once, 0, 20 * SECOND), None, "{error}");
            assert_eq!(pause_after(&error, Effort::Rounds, 0, Duration::ZERO), None, "{error}");
        }
        let soon = pause_after(&status(503, Some(3 * SECOND)), Effort::Rounds, 0, 20 * SECOND);
        assert_eq!(soon, Some(3 * SECOND));
        let limited = UpstreamError::RateLimited { upstream: name(), retry_after: Some(SHORT_LIMIT) };
        assert_eq!(pause_after(&limited, Effort::Rounds, 1, 20 * SECOND), None, "once");
    }
}

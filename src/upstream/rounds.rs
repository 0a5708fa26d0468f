//! Retries of a request: rounds over the URLs, pauses between them, and failures that are not retried.
//!
//! All retries happen before the first byte of a response, and end by the caller's deadline, so that the caller can
//! still report the failure in time. If a transfer breaks later, its reader resumes it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use http::Method;
use tokio::time::{Instant, sleep};

use super::breaker::{AfterFailure, Breaker, FailureScope, Opening};
use super::error::UpstreamError;
use super::in_flight::InFlightRequest;
use super::limits::LimitedAccount;
use super::remote::Remote;
use super::response::UpstreamResponse;
use super::send::RequestAttempt;
use super::{CredentialId, Effort, Kind, Upstream, UpstreamRequest};
use crate::oci::RepoName;

/// Rounds over all URLs, at most.
const MAX_ROUNDS: u32 = 4;
/// Pause before the second round. Each further pause is twice as long. All pauses are multiplied by a random factor
/// between 0.5 and 1.5, so that requests that failed together are not retried together.
const FIRST_PAUSE: Duration = Duration::from_millis(150);
/// A rate limit that ends within this time is waited for, once: GHCR sends `retry-after: 1.16ms`.
const MAX_LIMIT_WAIT: Duration = Duration::from_millis(500);

impl Upstream {
    /// Sends the request, and returns when the response headers have arrived, at `deadline` at the latest.
    ///
    /// The deadline includes tokens, redirects, all URLs, all rounds and the pauses between them. Each single HTTP
    /// request has at most `header_timeout`. Reading the body is not included.
    ///
    /// # Errors
    /// For everything but a usable 200, 206 or 304; see [`UpstreamError`].
    pub async fn send(&self, request: UpstreamRequest, deadline: Instant) -> Result<UpstreamResponse, UpstreamError> {
        let remote = &self.remote;
        let in_flight = remote.enter(&request)?;
        let connection = remote.connection().await?;
        // Limits apply to a login, which must be known.
        self.read_credentials(&request.repository, deadline).await;
        let mut failure = None;
        for round in 0.. {
            if let Err(refusal) = remote.admit(&request) {
                // The failure of an earlier round is more informative than a refusal to retry.
                return Err(failure.unwrap_or(refusal));
            }
            if Instant::now() >= deadline {
                break;
            }
            let upstream_responded = AtomicBool::new(false);
            let (method, range, hops) = (&request.method, request.range, &self.hops);
            let attempt = RequestAttempt {
                request: &request,
                method,
                range,
                head_failed: round > 0,
                hops,
                account: LimitedAccount { host: 0, credential: CredentialId::ANONYMOUS },
                deadline,
                upstream_responded: &upstream_responded,
            };
            let error = match remote.round(connection, attempt).await {
                Ok(mut response) => {
                    remote.record_success();
                    response.body.in_flight = in_flight;
                    return Ok(response);
                }
                Err(error) => error,
            };
            remote.record_failure(&error, &request.repository, upstream_responded.load(Ordering::Relaxed));
            match pause_after(&error, request.effort, round, deadline.saturating_duration_since(Instant::now())) {
                None => return Err(error),
                Some(pause) => {
                    tracing::debug!(upstream = %remote.name, %error, "retrying the upstream");
                    sleep(pause).await;
                }
            }
            failure = Some(error);
        }
        Err(failure.unwrap_or_else(|| UpstreamError::timeout(&remote.name, "no time left for a request")))
    }
}

impl Remote {
    /// Counts a request as in progress. `None` for a transfer of a blob: it has a slot. A request for the first byte
    /// of a blob only proves that the blob exists, and has none.
    fn enter(&self, request: &UpstreamRequest) -> Result<Option<InFlightRequest>, UpstreamError> {
        let is_first_byte = request.range == Some((0, 0));
        if request.kind == Kind::Blob && request.method == Method::GET && !is_first_byte {
            return Ok(None);
        }
        let in_flight = self.in_flight.enter(&request.repository);
        in_flight.map(Some).ok_or_else(|| UpstreamError::Overloaded { upstream: self.name.clone() })
    }

    /// Whether the request may be sent now: the circuit is closed, and at least one URL is not under a rate limit.
    fn admit(&self, request: &UpstreamRequest) -> Result<(), UpstreamError> {
        let limit_at = |url| self.admit_at(self.account_at(url, &request.repository), request).err();
        // `None` if one URL is not limited.
        let limits: Option<Vec<_>> = self.urls.iter().map(limit_at).collect();
        if let Some(limited) = limits.into_iter().flatten().reduce(|earlier, later| earlier.combined_with(later, true))
        {
            return Err(limited);
        }
        let upstream = self.name.clone();
        match self.breaker.lock().admit(Instant::now()) {
            Err(left) if request.effort != Effort::Resume => {
                Err(UpstreamError::CircuitOpen { upstream, retry_after: left.max(Duration::from_secs(1)) })
            }
            _ => Ok(()),
        }
    }

    /// Records a response of the upstream for the circuit breaker.
    fn record_success(&self) {
        let mut breaker = self.breaker.lock();
        if breaker.succeeded() {
            self.report_recovery(&breaker);
        }
    }

    /// Records a failure for the circuit breaker. `upstream_responded`: the upstream itself responded, and another host
    /// that it redirected to failed.
    fn record_failure(self: &Arc<Self>, error: &UpstreamError, repository: &RepoName, upstream_responded: bool) {
        if upstream_responded {
            return self.record_success();
        }
        let counts = match error {
            // A 503 with `Retry-After` comes from a mirror whose own upstream is down, and which may have other
            // content.
            UpstreamError::Status { retry_after: Some(_), .. } => false,
            UpstreamError::Certificate { .. } => true,
            // This server's own limit says nothing about the upstream.
            UpstreamError::LocalLimit { .. } => false,
            error => error.is_outage(),
        };
        if !counts {
            return;
        }
        let scope = match error {
            error if error.is_connection_failure() => FailureScope::Connection,
            UpstreamError::Status { .. } => FailureScope::Response,
            _ => FailureScope::NoResponse(repository),
        };
        let mut breaker = self.breaker.lock();
        match breaker.failed(Instant::now(), scope, matches!(error, UpstreamError::Timeout { .. })) {
            AfterFailure::Nothing => {}
            AfterFailure::Check => self.start_check(error.clone()),
            AfterFailure::Probe(opening) => self.report_outage(&breaker, opening, error),
        }
    }

    /// Reports that the circuit has opened because of `error`, and starts to probe. The caller holds the breaker's
    /// lock.
    pub(super) fn report_outage(self: &Arc<Self>, _open: &Breaker, opening: Opening, error: &UpstreamError) {
        self.metrics.upstream_available(&self.name, false);
        tracing::warn!(
            upstream = %self.name,
            %error,
            "upstream failed repeatedly; sending only probes until it responds",
        );
        self.start_probing(opening);
    }

    /// Reports that the circuit has closed. The caller holds the breaker's lock, so that the gauge always shows the
    /// latest change.
    pub(super) fn report_recovery(&self, _closed: &Breaker) {
        self.metrics.upstream_available(&self.name, true);
        tracing::info!(upstream = %self.name, "upstream responds again");
    }
}

/// The pause before the next round. `None`: there is no further round, or not enough time for it.
fn pause_after(error: &UpstreamError, effort: Effort, round: u32, left: Duration) -> Option<Duration> {
    let pause = match error {
        UpstreamError::RateLimited { retry_after: Some(after), .. } if round == 0 && *after <= MAX_LIMIT_WAIT => *after,
        error if error.is_outage() && round + 1 < MAX_ROUNDS => {
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
    use crate::config::UpstreamConfig;
    use crate::tasks::Tasks;
    use crate::telemetry::Metrics;
    use crate::upstream::BreakerState;

    const SECOND: Duration = Duration::from_secs(1);

    fn status(status: u16, retry_after: Option<Duration>) -> UpstreamError {
        UpstreamError::Status { upstream: "r".into(), status: StatusCode::from_u16(status).unwrap(), retry_after }
    }

    #[test]
    fn pauses_grow_and_are_limited() {
        let bad = status(502, None);
        let pause = |round| pause_after(&bad, Effort::Rounds, round, 20 * SECOND);
        for (round, least, most) in [(0, 75, 225), (1, 150, 450), (2, 300, 900)] {
            let pause = pause(round).unwrap().as_millis();
            assert!((least..=most).contains(&pause), "{round}: {pause} ms");
        }
        assert_eq!(pause(3), None);
    }

    #[tokio::test]
    async fn a_limit_of_this_server_does_not_open_the_circuit() {
        let config = UpstreamConfig::new("r", vec!["http://127.0.0.1:1".parse().unwrap()]);
        let remote = Remote::new(&config, "x", Arc::new(Metrics::new(&["r"])), Tasks::new()).map(Arc::new).unwrap();
        let repository: RepoName = "org/app".parse().unwrap();
        let failures = |error: &UpstreamError| {
            for _ in 0..10 {
                remote.record_failure(error, &repository, false);
            }
            match remote.breaker.lock().state(Instant::now()) {
                BreakerState::Closed { failures } => failures,
                open @ BreakerState::Open { .. } => panic!("{open:?}"),
            }
        };
        assert_eq!(failures(&UpstreamError::LocalLimit { upstream: "r".into(), cause: "x" }), 0);
        assert_eq!(failures(&status(500, None)), 10);
    }

    #[test]
    fn only_temporary_failures_are_retried() {
        let name = || std::sync::Arc::from("r");
        let cause = || std::sync::Arc::from("cause");
        for (error, again) in [
            (UpstreamError::Connect { upstream: name(), cause: cause() }, true),
            (UpstreamError::LocalLimit { upstream: name(), cause: "x" }, true),
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
            (UpstreamError::CircuitOpen { upstream: name(), retry_after: SECOND }, false),
            (UpstreamError::bad(&name(), "x"), false),
            (UpstreamError::RateLimited { upstream: name(), retry_after: None }, false),
            (UpstreamError::RateLimited { upstream: name(), retry_after: Some(SECOND) }, false),
            (UpstreamError::RateLimited { upstream: name(), retry_after: Some(MAX_LIMIT_WAIT) }, true),
        ] {
            assert_eq!(pause_after(&error, Effort::Rounds, 0, 20 * SECOND).is_some(), again, "{error}");
            assert_eq!(pause_after(&error, Effort::Once, 0, 20 * SECOND), None, "{error}");
            assert_eq!(pause_after(&error, Effort::Rounds, 0, Duration::ZERO), None, "{error}");
        }
        let soon = pause_after(&status(503, Some(3 * SECOND)), Effort::Rounds, 0, 20 * SECOND);
        assert_eq!(soon, Some(3 * SECOND));
        let limited = UpstreamError::RateLimited { upstream: name(), retry_after: Some(MAX_LIMIT_WAIT) };
        assert_eq!(pause_after(&limited, Effort::Rounds, 1, 20 * SECOND), None, "a limit is waited for once");
    }
}

//! Probes: checks whether an upstream responds, before its circuit opens and while it is open.

use std::sync::Arc;
use std::time::Duration;

use http::Method;
use tokio::time::{Instant, sleep_until};

use super::breaker::Opening;
use super::client::ClientKind;
use super::error::{UpstreamError, is_outage};
use super::remote::Remote;

/// Time limit for the response headers of a probe.
const PROBE_TIMEOUT: Duration = Duration::from_secs(3);

impl Remote {
    /// Starts a task that probes until this opening of the circuit is over, because of a probe or of a request.
    pub(super) fn start_probing(self: &Arc<Self>, opening: Opening) {
        let remote = self.clone();
        self.tasks.spawn(async move {
            while let Some(at) = remote.next_probe(opening) {
                sleep_until(at).await;
                if remote.next_probe(opening).is_none() {
                    return;
                }
                let alive = remote.is_alive().await;
                let mut breaker = remote.breaker.lock();
                if alive != Some(true) {
                    breaker.probe_failed(opening, Instant::now());
                } else if breaker.probe_succeeded(Instant::now()) {
                    remote.report_recovery(&breaker);
                }
            }
        });
    }

    /// Starts a task that sends one probe, because requests failed that may concern single repositories, the last one
    /// with `error`. The circuit opens if the probe fails as well.
    pub(super) fn start_check(self: &Arc<Self>, error: UpstreamError) {
        let remote = self.clone();
        self.tasks.spawn(async move {
            let alive = remote.is_alive().await;
            let mut breaker = remote.breaker.lock();
            if let Some(opening) = breaker.checked(Instant::now(), alive != Some(false)) {
                remote.report_outage(&breaker, opening, &error);
            }
        });
    }

    fn next_probe(&self, opening: Opening) -> Option<Instant> {
        self.breaker.lock().next_probe(opening)
    }

    /// Whether one of the URLs answers `GET /v2/`, and the status is not an outage (`is_outage`). `None`: a probe could
    /// not be sent because of a limit of this server, and none was answered.
    async fn is_alive(&self) -> Option<bool> {
        let Ok(connection) = self.connection().await else { return Some(false) };
        let mut was_sent = true;
        for base in &self.urls {
            let Ok(url) = format!("{}/v2/", base.as_str().trim_end_matches('/')).parse() else { continue };
            let deadline = Instant::now() + self.header_timeout.min(PROBE_TIMEOUT);
            let answer = connection
                .clients
                .send(ClientKind::Control, "probe", reqwest::Request::new(Method::GET, url), deadline)
                .await;
            match answer {
                Ok(response) => {
                    let alive = !is_outage(response.status());
                    self.discard(response, deadline).await;
                    if alive {
                        return Some(true);
                    }
                }
                Err(UpstreamError::LocalLimit { .. }) => was_sent = false,
                Err(_) => {}
            }
        }
        was_sent.then_some(false)
    }
}

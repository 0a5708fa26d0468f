//! Asking an upstream that is left alone whether it is back.

use std::sync::Arc;
use std::time::Duration;

use http::Method;
use tokio::time::{Instant, sleep_until};

use super::breaker::Opening;
use super::client::Lane;
use super::error::is_outage;
use super::remote::Remote;

/// For the head of the answer: what is slower is not back.
const PATIENCE: Duration = Duration::from_secs(3);

impl Remote {
    /// Probes until this opening of the breaker is over, by a probe's answer or by anybody's.
    pub(super) fn begin_probing(self: &Arc<Self>, opening: Opening) {
        let remote = self.clone();
        self.tasks.spawn(async move {
            while let Some(at) = remote.next_probe(opening) {
                sleep_until(at).await;
                if remote.next_probe(opening).is_none() {
                    return;
                }
                let alive = remote.is_alive().await;
                let mut breaker = remote.breaker.lock();
                if !alive {
                    breaker.probe_failed(opening, Instant::now());
                } else if breaker.probe_succeeded(Instant::now()) {
                    remote.is_back(&breaker);
                }
            }
        });
    }

    fn next_probe(&self, opening: Opening) -> Option<Instant> {
        self.breaker.lock().next_probe(opening)
    }

    /// Whether one of the URLs answers `GET /v2/` with anything but a failure of its own.
    async fn is_alive(&self) -> bool {
        let Ok(live) = self.live().await else { return false };
        for base in &self.urls {
            let Ok(url) = format!("{}/v2/", base.as_str().trim_end_matches('/')).parse() else { continue };
            let deadline = Instant::now() + self.header_timeout.min(PATIENCE);
            let answer =
                live.wire.send(Lane::Control, "probe", reqwest::Request::new(Method::GET, url), deadline).await;
            if let Ok(response) = answer {
                let alive = !is_outage(response.status());
                self.discard(response, deadline).await;
                if alive {
                    return true;
                }
            }
        }
        false
    }
}

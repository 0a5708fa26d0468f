//! How a client's GET of mirrored content was answered, counted exactly once.

use std::time::Instant;

use super::App;
use super::body::Counter;
use super::call::Call;
use crate::oci::{RepoId, Scope};
use crate::pull::PullError;
use crate::telemetry::{CacheResult, ContentKind};

/// Counts one GET of mirrored content when it is dropped, however the request ends. A HEAD, and local content, is not
/// counted.
pub(super) struct Outcome {
    counted: Counter,
    kind: ContentKind,
    result: CacheResult,
    started: Instant,
    answered: bool,
}

impl Outcome {
    /// An error, until the result is known.
    pub(super) fn of(app: &App, call: &Call<'_>, repo: &RepoId, kind: ContentKind) -> Self {
        let counted = match &repo.scope {
            Scope::Upstream(upstream) if !call.is_head() => Some((app.metrics.clone(), upstream.clone())),
            _ => None,
        };
        Self { counted: Counter(counted), kind, result: CacheResult::Error, started: call.started(), answered: false }
    }

    /// The response begins now.
    pub(super) fn answered(&mut self, result: CacheResult) {
        self.result = result;
        self.answered = true;
    }

    pub(super) fn failed(&mut self, error: &PullError) {
        if error.is_not_found() {
            self.result = CacheResult::Negative;
        }
    }

    /// For the bytes that go to the client.
    pub(super) fn counter(&self) -> Counter {
        self.counted.clone()
    }
}

impl Drop for Outcome {
    fn drop(&mut self) {
        if let Counter(Some((metrics, upstream))) = &self.counted {
            metrics.mirrored_get(self.kind, upstream, self.result);
            if self.answered {
                metrics.first_byte(self.kind, self.result, self.started.elapsed().as_secs_f64());
            }
        }
    }
}

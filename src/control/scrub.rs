//! `scrub`: reads all content and names once, as fast as the disk allows.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::lines::Event;
use crate::oci::Digest;
use crate::store::{Class, Finding, ScrubPart, ScrubWatch, Store, StoreError};
use crate::telemetry::Metrics;

/// How often progress is reported.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(200);

/// The request of `POST /v1/scrub`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ScrubRequest {
    /// Move corrupt files to `quarantine/`.
    pub repair: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum ScrubEvent {
    Progress(ScrubProgress),
    Found(Finding),
    Done(ScrubSummary),
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScrubProgress {
    /// Tags and links that were checked.
    pub names: u64,
    /// Blobs that were read.
    pub blobs: u64,
    /// The bytes of these blobs.
    pub bytes: u64,
    /// The part of the blobs that was read, in thousandths. Blobs are read in the order of their digests, which are distributed
    /// evenly.
    pub per_mille: u16,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScrubSummary {
    pub names: u64,
    pub blobs: u64,
    pub bytes: u64,
    /// Cached content that is corrupt or missing.
    pub damaged_cached: u64,
    /// Pushed content that is corrupt or missing.
    pub damaged_pushed: u64,
    /// References to content that was deleted. They do not count as damage.
    pub incomplete: u64,
    pub quarantined: u64,
    /// Whether the scrub reached its end.
    pub complete: bool,
}

impl ScrubSummary {
    pub fn damaged(&self) -> u64 {
        self.damaged_cached + self.damaged_pushed
    }
}

impl Event for ScrubEvent {
    fn is_progress(&self) -> bool {
        matches!(self, Self::Progress(_))
    }
}

/// Reads all content and names. Calls `sink` with progress and findings, on a blocking thread. If `sink` returns false, the
/// scrub ends.
pub async fn scrub(
    store: Store,
    repair: bool,
    metrics: Option<Arc<Metrics>>,
    sink: impl FnMut(ScrubEvent) -> bool + Send + 'static,
) -> Result<ScrubSummary, StoreError> {
    let reporter = Reporter {
        sink,
        metrics,
        progress: ScrubProgress::default(),
        summary: ScrubSummary::default(),
        last_progress: Instant::now(),
        continues: true,
    };
    let (mut complete, mut reporter) = store.scrub(ScrubPart::Names, repair, reporter).await?;
    if complete {
        (complete, reporter) = store.scrub(ScrubPart::Blobs { after: None }, repair, reporter).await?;
    }
    let ScrubProgress { names, blobs, bytes, .. } = reporter.progress;
    Ok(ScrubSummary { names, blobs, bytes, complete, ..reporter.summary })
}

struct Reporter<S> {
    sink: S,
    metrics: Option<Arc<Metrics>>,
    progress: ScrubProgress,
    summary: ScrubSummary,
    last_progress: Instant,
    /// False if `sink` has returned false.
    continues: bool,
}

impl<S: FnMut(ScrubEvent) -> bool> ScrubWatch for Reporter<S> {
    fn may_read(&mut self, _bytes: u64) -> bool {
        if self.last_progress.elapsed() >= PROGRESS_INTERVAL {
            self.last_progress = Instant::now();
            self.continues &= (self.sink)(ScrubEvent::Progress(self.progress));
        }
        self.continues
    }

    fn name_checked(&mut self) {
        self.progress.names += 1;
    }

    fn blob_checked(&mut self, digest: &Digest, bytes: u64) {
        self.progress.blobs += 1;
        self.progress.bytes += bytes;
        self.progress.per_mille = per_mille(digest);
        if let Some(metrics) = &self.metrics {
            metrics.scrubbed(bytes);
        }
    }

    fn found(&mut self, finding: Finding) {
        let counted = match (finding.problem.is_damage(), finding.class) {
            (false, _) => &mut self.summary.incomplete,
            (true, Class::Cached) => &mut self.summary.damaged_cached,
            (true, Class::Pushed) => &mut self.summary.damaged_pushed,
        };
        *counted += 1;
        self.summary.quarantined += u64::from(finding.quarantined);
        if let Some(metrics) = self.metrics.as_ref().filter(|_| finding.problem.is_damage()) {
            metrics.damage_found(finding.class.as_str());
        }
        self.continues &= (self.sink)(ScrubEvent::Found(finding));
    }
}

/// Returns the position of a digest among all blobs, in thousandths. SHA-512 digests follow all SHA-256 digests, and are rare.
fn per_mille(digest: &Digest) -> u16 {
    match digest {
        Digest::Sha256([first, second, ..]) => {
            let place = u32::from(u16::from_be_bytes([*first, *second]));
            u16::try_from(place * 1000 / 65536).unwrap_or(1000)
        }
        Digest::Sha512(_) => 1000,
    }
}

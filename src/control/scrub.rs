//! `scrub`: everything is read once, as fast as the disk allows.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::lines::Event;
use crate::oci::Digest;
use crate::store::{Class, Finding, ScrubPart, ScrubWatch, Store, StoreError};
use crate::telemetry::Metrics;

const PROGRESS_EVERY: Duration = Duration::from_millis(200);

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Question {
    /// Move what is damaged to `quarantine/`.
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
    /// Tags and links that were looked at.
    pub names: u64,
    /// Blobs that were read, and bytes of them.
    pub blobs: u64,
    pub bytes: u64,
    /// How much of the blobs lies behind: they are read in the order of their digests, which are spread evenly.
    pub per_mille: u16,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScrubSummary {
    pub names: u64,
    pub blobs: u64,
    pub bytes: u64,
    /// Findings that are damage, to cached and to pushed content.
    pub damaged_cached: u64,
    pub damaged_pushed: u64,
    /// Findings that are none.
    pub incomplete: u64,
    pub quarantined: u64,
    /// Whether everything was looked at.
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

/// Looks at everything and tells `sink`, on a blocking thread, what it finds, until it returns false.
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
        reported: Instant::now(),
        wanted: true,
    };
    let (mut ended, mut reporter) = store.scrub(ScrubPart::Names, repair, reporter).await?;
    if ended {
        (ended, reporter) = store.scrub(ScrubPart::Blobs { after: None }, repair, reporter).await?;
    }
    let ScrubProgress { names, blobs, bytes, .. } = reporter.progress;
    Ok(ScrubSummary { names, blobs, bytes, complete: ended, ..reporter.summary })
}

struct Reporter<S> {
    sink: S,
    metrics: Option<Arc<Metrics>>,
    progress: ScrubProgress,
    summary: ScrubSummary,
    reported: Instant,
    wanted: bool,
}

impl<S: FnMut(ScrubEvent) -> bool> ScrubWatch for Reporter<S> {
    fn may_read(&mut self, _bytes: u64) -> bool {
        if self.reported.elapsed() >= PROGRESS_EVERY {
            self.reported = Instant::now();
            self.wanted &= (self.sink)(ScrubEvent::Progress(self.progress));
        }
        self.wanted
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
        self.wanted &= (self.sink)(ScrubEvent::Found(finding));
    }
}

/// sha512 comes after all of sha256, and is seldom.
fn per_mille(digest: &Digest) -> u16 {
    match digest {
        Digest::Sha256([first, second, ..]) => {
            let place = u32::from(u16::from_be_bytes([*first, *second]));
            u16::try_from(place * 1000 / 65536).unwrap_or(1000)
        }
        Digest::Sha512(_) => 1000,
    }
}

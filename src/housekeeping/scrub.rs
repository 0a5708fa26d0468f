//! The background scrub: reads all content and names once per `scrub.interval`, at most `scrub.rate` bytes per second.
//!
//! It pauses while content is transferred or a backup lease is held. After half of its interval it no longer pauses, so that a
//! store that is never idle is scrubbed, too. Its position survives a restart. Corrupt files are moved to `quarantine/`.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::config::ScrubConfig;
use crate::oci::Digest;
use crate::store::{Class, Finding, ScrubPart, ScrubPlace, ScrubWatch, Store, StoreError, WeakStore};
use crate::telemetry::Metrics;

/// Maximum delay of the scrub after a start. With a short interval the delay is a part of the interval.
const MAX_START_DELAY: Duration = Duration::from_secs(10 * 60);
const INTERVAL_PARTS_OF_START_DELAY: u32 = 100;
/// How often the position of the scrub is written to the disk.
const PLACE_SAVE_INTERVAL: Duration = Duration::from_secs(30);
/// How often a paused scrub checks for a request to stop and for the end of transfers.
const PAUSE_CHECK_INTERVAL: Duration = Duration::from_millis(50);
/// The pause after a pass that failed.
const RETRY_PAUSE: Duration = Duration::from_secs(60 * 60);

/// Stops the pass when the task that waits for it is dropped.
struct StopOnDrop(Arc<AtomicBool>);

/// One pass, on its blocking thread.
struct Pass {
    /// Weak, because a strong handle could keep the data folder locked after the server has stopped.
    store: WeakStore,
    metrics: Arc<Metrics>,
    config: ScrubConfig,
    stop: Arc<AtomicBool>,
    place: ScrubPlace,
    place_saved: Option<Instant>,
    /// The time at which `scrub.rate` allows the next read.
    next_read: Instant,
}

/// Scrubs until the future is dropped. Returns at once if the interval is zero.
pub(super) async fn run(store: Store, metrics: Arc<Metrics>, config: ScrubConfig) {
    if config.interval.is_zero() {
        return;
    }
    tokio::time::sleep(MAX_START_DELAY.min(config.interval / INTERVAL_PARTS_OF_START_DELAY)).await;
    loop {
        let wait = match scrub_if_due(&store, &metrics, &config).await {
            Ok(wait) => wait,
            Err(error) => {
                tracing::error!(%error, retry_seconds = RETRY_PAUSE.as_secs(), "the background scrub failed");
                RETRY_PAUSE
            }
        };
        tokio::time::sleep(wait).await;
    }
}

/// Makes or continues a pass if one is due. Returns the time until the next one.
async fn scrub_if_due(store: &Store, metrics: &Arc<Metrics>, config: &ScrubConfig) -> Result<Duration, StoreError> {
    let last = store.scrub_place().await?;
    let completed = last.as_ref().and_then(|last| last.completed);
    if let Some(completed) = completed {
        metrics.scrub_completed(unix_seconds(completed));
    }
    let now = SystemTime::now();
    let new = ScrubPlace { started: now, after: None, completed };
    let place = match last {
        Some(last) if !last.is_completed() => last,
        Some(last) => {
            // If the clock was set back, the next pass counts from now.
            let since = now.duration_since(last.started).unwrap_or_default();
            match config.interval.checked_sub(since) {
                Some(wait) if !wait.is_zero() => return Ok(wait),
                _ => new,
            }
        }
        None => new,
    };
    let stop = StopOnDrop(Arc::default());
    let pass = Pass {
        store: store.downgrade(),
        metrics: metrics.clone(),
        config: config.clone(),
        stop: stop.0.clone(),
        place,
        place_saved: None,
        next_read: Instant::now(),
    };
    let started = pass.place.started;
    pass.run(store).await?;
    // Do not use the saved position: if it cannot be written, one pass would follow another without a pause.
    Ok(config.interval.saturating_sub(started.elapsed().unwrap_or_default()))
}

impl Pass {
    async fn run(mut self, store: &Store) -> Result<(), StoreError> {
        let started = Instant::now();
        let mut complete = true;
        if self.place.after.is_none() {
            (complete, self) = store.scrub(ScrubPart::Names, true, self).await?;
        }
        if complete {
            let after = self.place.after.clone();
            (complete, self) = store.scrub(ScrubPart::Blobs { after }, true, self).await?;
        }
        if complete {
            let now = SystemTime::now().max(self.place.started);
            self.place.completed = Some(now);
            self.place.after = None;
            let seconds = started.elapsed().as_secs();
            tracing::info!(seconds, "the background scrub has completed a pass");
            store.end_scrub(self.place).await?;
            self.metrics.scrub_completed(unix_seconds(now));
        }
        Ok(())
    }

    fn save_place(&mut self) {
        self.place_saved = Some(Instant::now());
        let Some(store) = self.store.upgrade() else { return };
        if let Err(error) = store.keep_scrub_place(&self.place) {
            tracing::warn!(%error, "cannot save the position of the background scrub; a restart repeats a part of it");
        }
    }

    fn must_pause(&self) -> bool {
        let is_late = self.place.started.elapsed().is_ok_and(|since| since > self.config.interval / 2);
        let is_backed_up = || self.store.upgrade().is_some_and(|store| store.deletions_held());
        let is_busy = self.metrics.transfers_in_flight() > 0 || is_backed_up();
        Instant::now() < self.next_read || (is_busy && !is_late)
    }
}

impl ScrubWatch for Pass {
    fn may_read(&mut self, bytes: u64) -> bool {
        if self.place_saved.is_none() {
            self.save_place();
        }
        while !self.stop.load(Ordering::Relaxed) && self.must_pause() {
            let left = self.next_read.saturating_duration_since(Instant::now());
            thread::sleep(if left.is_zero() { PAUSE_CHECK_INTERVAL } else { left.min(PAUSE_CHECK_INTERVAL) });
        }
        if self.stop.load(Ordering::Relaxed) {
            self.save_place();
            return false;
        }
        let time = Duration::from_secs_f64(bytes as f64 / self.config.rate as f64);
        self.next_read = self.next_read.max(Instant::now()) + time;
        true
    }

    fn name_checked(&mut self) {}

    fn blob_checked(&mut self, digest: &Digest, bytes: u64) {
        self.metrics.scrubbed(bytes);
        self.place.after = Some(digest.clone());
        if self.place_saved.is_none_or(|saved| saved.elapsed() >= PLACE_SAVE_INTERVAL) {
            self.save_place();
        }
    }

    fn found(&mut self, finding: Finding) {
        if !finding.problem.is_damage() {
            return;
        }
        self.metrics.damage_found(finding.class.as_str());
        let problem = finding.problem;
        let (digest, tag) = (finding.digest.unwrap_or_default(), finding.tag.unwrap_or_default());
        let repositories = finding.repositories.join(", ");
        match finding.class {
            Class::Pushed => tracing::error!(
                digest,
                tag,
                repositories,
                ?problem,
                "the scrub found corrupt or missing pushed content; it is lost unless it is pushed again"
            ),
            Class::Cached => tracing::warn!(
                digest,
                tag,
                repositories,
                ?problem,
                "the scrub found corrupt or missing cached content; the next pull fetches it again"
            ),
        }
    }
}

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn unix_seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

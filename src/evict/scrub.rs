//! The slow scrub of a running server: everything is read once in `scrub.interval`, at most `scrub.rate` bytes a second.
//!
//! It waits while content is being transferred or a backup runs, but not beyond half of its interval: a store that is never
//! idle is scrubbed, too. Where it is survives a restart. What is damaged goes to `quarantine/`.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::config::ScrubConfig;
use crate::oci::Digest;
use crate::store::{Class, Finding, ScrubPart, ScrubPlace, ScrubWatch, Store, StoreError, WeakStore};
use crate::telemetry::Metrics;

/// A start has better things to do.
const AFTER_START: Duration = Duration::from_secs(10 * 60);
/// How soon after a start it begins with an interval that is short, as a part of it.
const PART_OF_INTERVAL: u32 = 100;
const KEEP_PLACE: Duration = Duration::from_secs(30);
/// How long a stop or the end of a transfer may go unnoticed.
const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// After a pass that could not be made.
const TRY_AGAIN: Duration = Duration::from_secs(60 * 60);

/// Ends the pass with the task that waits for it.
struct StopOnDrop(Arc<AtomicBool>);

/// One pass, on its blocking thread.
struct Pass {
    /// It must not keep the store, and so its folder, longer than the operation that it is part of.
    store: WeakStore,
    metrics: Arc<Metrics>,
    config: ScrubConfig,
    stop: Arc<AtomicBool>,
    place: ScrubPlace,
    place_kept: Option<Instant>,
    /// When the next bytes may be read.
    ready: Instant,
}

/// Scrubs as long as the server runs; returns at once if the interval is zero.
pub async fn run(store: Store, metrics: Arc<Metrics>, config: ScrubConfig) {
    if config.interval.is_zero() {
        return;
    }
    tokio::time::sleep(AFTER_START.min(config.interval / PART_OF_INTERVAL)).await;
    loop {
        let wait = match turn(&store, &metrics, &config).await {
            Ok(wait) => wait,
            Err(error) => {
                tracing::error!(%error, "the scrub could not go on: {error}");
                TRY_AGAIN
            }
        };
        tokio::time::sleep(wait).await;
    }
}

/// Makes a pass, or goes on with one, if one is due; how long until the next.
async fn turn(store: &Store, metrics: &Arc<Metrics>, config: &ScrubConfig) -> Result<Duration, StoreError> {
    let last = store.scrub_place().await?;
    let completed = last.as_ref().and_then(|last| last.completed);
    if let Some(completed) = completed {
        metrics.scrub_completed(seconds(completed));
    }
    let now = SystemTime::now();
    let new = ScrubPlace { started: now, after: None, completed };
    let place = match last {
        Some(last) if !last.is_completed() => last,
        Some(last) => {
            // A clock that was set back makes no pass late.
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
        place_kept: None,
        ready: Instant::now(),
    };
    let started = pass.place.started;
    pass.make(store).await?;
    // Not from the place that was kept: where it could not be, passes would follow each other without end.
    Ok(config.interval.saturating_sub(started.elapsed().unwrap_or_default()))
}

impl Pass {
    async fn make(mut self, store: &Store) -> Result<(), StoreError> {
        let started = Instant::now();
        let mut ended = true;
        if self.place.after.is_none() {
            (ended, self) = store.scrub(ScrubPart::Names, true, self).await?;
        }
        if ended {
            let after = self.place.after.clone();
            (ended, self) = store.scrub(ScrubPart::Blobs { after }, true, self).await?;
        }
        if ended {
            let now = SystemTime::now().max(self.place.started);
            self.place.completed = Some(now);
            self.place.after = None;
            let took = started.elapsed().as_secs();
            tracing::info!(seconds = took, "the scrub has read everything once");
            store.end_scrub(self.place).await?;
            self.metrics.scrub_completed(seconds(now));
        }
        Ok(())
    }

    fn keep_place(&mut self) {
        self.place_kept = Some(Instant::now());
        let Some(store) = self.store.upgrade() else { return };
        if let Err(error) = store.keep_scrub_place(&self.place) {
            tracing::warn!(%error, "how far the scrub is cannot be kept: {error}");
        }
    }

    fn must_wait(&self) -> bool {
        let is_late = self.place.started.elapsed().is_ok_and(|since| since > self.config.interval / 2);
        let backed_up = || self.store.upgrade().is_some_and(|store| store.deletions_held());
        let is_busy = self.metrics.transfers_in_flight() > 0 || backed_up();
        Instant::now() < self.ready || (is_busy && !is_late)
    }
}

impl ScrubWatch for Pass {
    fn may_read(&mut self, bytes: u64) -> bool {
        if self.place_kept.is_none() {
            self.keep_place();
        }
        while !self.stop.load(Ordering::Relaxed) && self.must_wait() {
            let left = self.ready.saturating_duration_since(Instant::now());
            thread::sleep(if left.is_zero() { LOOK_AGAIN } else { left.min(LOOK_AGAIN) });
        }
        if self.stop.load(Ordering::Relaxed) {
            self.keep_place();
            return false;
        }
        let time = Duration::from_secs_f64(bytes as f64 / self.config.rate as f64);
        self.ready = self.ready.max(Instant::now()) + time;
        true
    }

    fn name_checked(&mut self) {}

    fn blob_checked(&mut self, digest: &Digest, bytes: u64) {
        self.metrics.scrubbed(bytes);
        self.place.after = Some(digest.clone());
        if self.place_kept.is_none_or(|kept| kept.elapsed() >= KEEP_PLACE) {
            self.keep_place();
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
                "the scrub found pushed content damaged: {digest}{tag} of {repositories} is lost unless it is pushed again"
            ),
            Class::Cached => tracing::warn!(
                digest,
                tag,
                repositories,
                ?problem,
                "the scrub found cached content damaged: {digest}{tag}; the next pull fetches it again"
            ),
        }
    }
}

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

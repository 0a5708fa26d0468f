//! Recovery of the index beside requests: brings it into step with the files where that is needed, and restores the order of
//! last use. Nothing is evicted before.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::store::Store;
use crate::telemetry::Metrics;

/// Where the disk has no room for an index, the next attempt follows after this time, or after [`RETRY_REST_FACTOR`] times as
/// long as the attempt took, whichever is longer.
const MIN_RETRY_PAUSE: Duration = Duration::from_secs(1);
const RETRY_REST_FACTOR: u32 = 20;
/// How long a request to stop may go unnoticed.
const STOP_CHECK_INTERVAL: Duration = Duration::from_millis(50);

/// The recovery of a store's index, on a thread of the blocking pool.
pub struct IndexRecovery {
    stop: Arc<AtomicBool>,
    walk: JoinHandle<()>,
}

// === impl IndexRecovery ===

impl IndexRecovery {
    /// Starts the recovery. A read-only store has no index, and nothing to recover.
    pub fn start(store: &Store, metrics: &Metrics) -> Self {
        if let Some(reason) = store.index_corruption() {
            metrics.index_rebuilt();
            tracing::warn!(reason, "the index is corrupt; it was moved aside and is rebuilt from the files");
        }
        let stop = Arc::new(AtomicBool::new(false));
        let walk = tokio::task::spawn_blocking({
            let (store, stop) = (store.clone(), stop.clone());
            move || recover(&store, &stop)
        });
        Self { stop, walk }
    }

    /// Ends the recovery, complete or not. The next start continues it.
    pub async fn stop(self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = self.walk.await;
    }
}

fn recover(store: &Store, stop: &AtomicBool) {
    if store.is_read_only() {
        return;
    }
    while store.needs_reconcile() {
        let started = Instant::now();
        store.reconcile(stop);
        let pause = (started.elapsed() * RETRY_REST_FACTOR).max(MIN_RETRY_PAUSE);
        if !store.lacks_index() || !rest(pause, stop) {
            break;
        }
    }
    // While the index is not in step with the files, nothing may be evicted.
    if !store.needs_reconcile() {
        store.restore_recency();
    }
}

/// Blocks for `time`. False if `stop` was set in the meantime.
fn rest(time: Duration, stop: &AtomicBool) -> bool {
    let end = Instant::now() + time;
    while Instant::now() < end && !stop.load(Ordering::Relaxed) {
        thread::sleep(STOP_CHECK_INTERVAL);
    }
    !stop.load(Ordering::Relaxed)
}

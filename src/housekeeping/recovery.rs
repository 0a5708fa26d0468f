//! Recovery of the index in the background: reconciles it with the files if needed, and restores the order of last use.
//! Nothing is evicted before it is complete. It is repeated if the index fails while the server runs, for example on a
//! full disk.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::store::Store;
use crate::telemetry::Metrics;

/// Minimum pause between two attempts if the disk has no room for an index. The pause is longer if an attempt took long: it is
/// at least [`RETRY_REST_FACTOR`] times the duration of the attempt.
const MIN_RETRY_PAUSE: Duration = Duration::from_secs(1);
const RETRY_REST_FACTOR: u32 = 20;
/// How often the thread checks for a request to stop.
const STOP_CHECK_INTERVAL: Duration = Duration::from_millis(50);
/// How often the server checks whether the index has failed.
const FAILURE_CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// The recovery of a store's index. Its walks run on a thread of the blocking pool.
pub struct IndexRecovery {
    stop: Arc<Stop>,
    recovery: JoinHandle<()>,
}

/// A request to stop. The walk reads the flag, and the task that starts walks waits for the token.
#[derive(Default)]
struct Stop {
    walk: AtomicBool,
    task: CancellationToken,
}

// === impl IndexRecovery ===

impl IndexRecovery {
    /// Starts the recovery. A read-only store has no index, and nothing to recover.
    pub fn start(store: &Store, metrics: &Metrics) -> Self {
        if let Some(reason) = store.index_corruption() {
            metrics.index_rebuilt();
            tracing::warn!(reason, "the index is corrupt; it was moved aside and is rebuilt from the files");
        }
        let stop = Arc::new(Stop::default());
        let recovery = tokio::spawn(recover_always(store.clone(), stop.clone()));
        Self { stop, recovery }
    }

    /// Ends the recovery, complete or not. The next start continues it.
    pub async fn stop(self) {
        self.stop.walk.store(true, Ordering::Relaxed);
        self.stop.task.cancel();
        let _ = self.recovery.await;
    }
}

/// Recovers the index now and whenever it has failed.
async fn recover_always(store: Store, stop: Arc<Stop>) {
    if store.is_read_only() {
        return;
    }
    let mut due = true;
    while !stop.task.is_cancelled() {
        let started = Instant::now();
        if due {
            let (store, stop) = (store.clone(), stop.clone());
            let _ = tokio::task::spawn_blocking(move || recover(&store, &stop.walk)).await;
        }
        let pause = (started.elapsed() * RETRY_REST_FACTOR).max(FAILURE_CHECK_INTERVAL);
        if stop.task.run_until_cancelled(tokio::time::sleep(pause)).await.is_none() {
            return;
        }
        due = store.needs_reconcile();
    }
}

fn recover(store: &Store, stop: &AtomicBool) {
    while store.needs_reconcile() {
        let started = Instant::now();
        store.reconcile(stop);
        let pause = (started.elapsed() * RETRY_REST_FACTOR).max(MIN_RETRY_PAUSE);
        if !store.lacks_index() || !rest(pause, stop) {
            break;
        }
    }
    // While the index differs from the files, nothing may be evicted.
    if !store.needs_reconcile() {
        store.restore_recency();
    }
}

/// Blocks for `time`. Returns false if `stop` was set in the meantime.
fn rest(time: Duration, stop: &AtomicBool) -> bool {
    let end = Instant::now() + time;
    while Instant::now() < end && !stop.load(Ordering::Relaxed) {
        thread::sleep(STOP_CHECK_INTERVAL);
    }
    !stop.load(Ordering::Relaxed)
}

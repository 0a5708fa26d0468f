//! Detached work with an owner: every task that outlives its request belongs to one of these and ends with it.

use std::future::Future;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Bytes that a worker may hash or parse itself: some ten microseconds.
const INLINE: usize = 64 << 10;

/// Works on `bytes` here if they are few, else on the blocking pool; `None` if that was stopped or panicked.
pub async fn on_bytes<T: Send + 'static>(bytes: Bytes, work: impl FnOnce(&[u8]) -> T + Send + 'static) -> Option<T> {
    if bytes.len() <= INLINE {
        return Some(work(&bytes));
    }
    tokio::task::spawn_blocking(move || work(&bytes)).await.ok()
}

/// Does something at intervals, now first, until it is dropped; what goes wrong is logged.
pub async fn every<F, E>(period: Duration, what: &'static str, work: impl Fn() -> F)
where
    F: Future<Output = Result<(), E>>,
    E: std::fmt::Display,
{
    let mut turns = tokio::time::interval(period);
    turns.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        turns.tick().await;
        if let Err(error) = work().await {
            tracing::error!(%error, "cannot {what}: {error}");
        }
    }
}

/// A group of tasks. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Tasks {
    tracker: TaskTracker,
    cancel: CancellationToken,
}

impl Tasks {
    pub fn new() -> Self {
        Self::default()
    }

    /// Runs `work` until it ends or the group is stopped.
    pub fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        let cancel = self.cancel.clone();
        self.tracker.spawn(async move {
            cancel.run_until_cancelled(work).await;
        });
    }

    /// Resolves when the group is asked to stop.
    pub fn stopping(&self) -> impl Future<Output = ()> + Send + 'static {
        self.cancel.clone().cancelled_owned()
    }

    /// Asks every task to end, and waits until all have.
    pub async fn stop(&self) {
        self.cancel.cancel();
        self.tracker.close();
        self.tracker.wait().await;
    }
}

//! Background tasks with an owner: every task that outlives its request belongs to a [`Tasks`] and ends with it.

use std::future::Future;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::Semaphore;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Largest input in bytes that an async worker hashes or parses itself, in about ten microseconds.
const MAX_INLINE_BYTES: usize = 64 << 10;

/// Largest number of large inputs that are processed at the same time. Each may take several times its size in memory.
const MAX_LARGE_INPUTS: usize = 4;
static LARGE_INPUTS: Semaphore = Semaphore::const_new(MAX_LARGE_INPUTS);

/// Runs `work` on `bytes`, inline if they are few, otherwise on the blocking pool, a few at a time. `None` if the pool
/// was stopped or `work` panicked.
pub async fn on_bytes<T: Send + 'static>(bytes: Bytes, work: impl FnOnce(&[u8]) -> T + Send + 'static) -> Option<T> {
    if bytes.len() <= MAX_INLINE_BYTES {
        return Some(work(&bytes));
    }
    let turn = LARGE_INPUTS.acquire().await.ok()?;
    let done = move || {
        let _turn = turn;
        work(&bytes)
    };
    tokio::task::spawn_blocking(done).await.ok()
}

/// Runs `work` at once and then every `period`, until the future is dropped. Errors are logged with `task` as the name.
pub async fn every<F, E>(period: Duration, task: &'static str, work: impl Fn() -> F)
where
    F: Future<Output = Result<(), E>>,
    E: std::fmt::Display,
{
    let mut turns = tokio::time::interval(period);
    turns.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        turns.tick().await;
        if let Err(error) = work().await {
            tracing::error!(task, %error, "periodic task failed");
        }
    }
}

/// A group of tasks. Clones share the group.
#[derive(Clone, Debug, Default)]
pub struct Tasks {
    tracker: TaskTracker,
    cancel: CancellationToken,
}

impl Tasks {
    /// An empty group.
    pub fn new() -> Self {
        Self::default()
    }

    /// Runs `work` in the background until it ends or the group is stopped.
    pub fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        let cancel = self.cancel.clone();
        self.tracker.spawn(async move {
            cancel.run_until_cancelled(work).await;
        });
    }

    /// Resolves when [`Tasks::stop`] was called.
    pub fn stopping(&self) -> impl Future<Output = ()> + Send + 'static {
        self.cancel.clone().cancelled_owned()
    }

    /// Cancels all tasks and waits until they have ended.
    pub async fn stop(&self) {
        self.cancel.cancel();
        self.tracker.close();
        self.tracker.wait().await;
    }
}

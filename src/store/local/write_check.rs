//! Whether the data folder can be written. A caller's question causes a test write, at most once a second, and at once
//! after a failed write.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::Local;
use super::layout::Temporary;
use crate::store::error::{At, StoreError};
use crate::store::fs;

/// How long the result of a check is used again.
const RESULT_LIFETIME: Duration = Duration::from_secs(1);

/// The last check, and whether the next one is due.
#[derive(Debug, Default)]
pub(super) struct WriteCheck {
    /// Held while a check runs: a disk that does not answer takes one thread, however often it is checked.
    turn: Arc<tokio::sync::Mutex<()>>,
    last: Mutex<Option<Checked>>,
    /// A write has failed since the last check began.
    write_failed: AtomicBool,
}

#[derive(Clone, Debug)]
struct Checked {
    at: Instant,
    failure: Option<StoreError>,
}

// === impl WriteCheck ===

impl WriteCheck {
    /// The last result, while it may be used again.
    fn recent(&self) -> Option<Result<(), StoreError>> {
        let last = self.last.lock();
        let usable =
            |last: &&Checked| last.at.elapsed() < RESULT_LIFETIME && !self.write_failed.load(Ordering::Acquire);
        last.as_ref().filter(usable).map(|last| last.failure.clone().map_or(Ok(()), Err))
    }

    fn failure(&self) -> Option<StoreError> {
        self.last.lock().as_ref()?.failure.clone()
    }

    /// Stores a result. Logs a change.
    fn record(&self, written: &Result<(), StoreError>) {
        let failure = written.as_ref().err().cloned();
        let before = self.last.lock().replace(Checked { at: Instant::now(), failure: failure.clone() });
        let failed_before = before.is_some_and(|before| before.failure.is_some());
        match failure {
            Some(error) if !failed_before => {
                let obstacle = error.obstacle().map(|obstacle| obstacle.to_string()).unwrap_or_default();
                tracing::warn!(
                    %error, obstacle,
                    "the data folder cannot be written; pulled content is served but not stored, and pushes are refused"
                );
            }
            None if failed_before => tracing::info!("the data folder can be written again"),
            _ => {}
        }
    }
}

// === on the blocking pool ===

impl Local {
    /// Whether a file can be written. Tries to write one, unless the last result may be used again.
    pub(in crate::store) async fn check_writable(self: &Arc<Self>) -> Result<(), StoreError> {
        let turn = self.write_check.turn.clone().lock_owned().await;
        if let Some(recent) = self.write_check.recent() {
            return recent;
        }
        let local = self.clone();
        let check = self.operations.spawn_blocking(move || {
            let _turn = turn;
            local.write_check.write_failed.store(false, Ordering::Release);
            let written = local.try_write();
            local.write_check.record(&written);
            written
        });
        check.await.map_err(|_| StoreError::Task)?
    }

    /// Checks again if the last check or a later write failed.
    pub(in crate::store) async fn recheck_writable(self: &Arc<Self>) {
        if self.write_check.write_failed.load(Ordering::Acquire) || self.write_check.failure().is_some() {
            // The check itself logs a change.
            let _ = self.check_writable().await;
        }
    }

    /// Why the last check failed.
    pub(in crate::store) fn write_failure(&self) -> Option<StoreError> {
        self.write_check.failure()
    }

    /// Records the failure of an operation that may have been a write. The next check is then due at once.
    pub(super) fn note_failure(&self, error: &StoreError) {
        if matches!(error, StoreError::Io { .. }) && error.obstacle().is_some() {
            self.write_check.write_failed.store(true, Ordering::Release);
        }
    }

    fn try_write(&self) -> Result<(), StoreError> {
        let temporary = Temporary::new(self.layout.temporary());
        self.layout.with_folder(temporary.path(), |path| fs::write(path, b"ok")).at("write", temporary.path())
    }
}

//! `gc`: what nobody can reach is removed now instead of at the collector's next turn, and names that stand for nothing
//! with it. What was marked lately waits all the same.

use std::sync::atomic::{AtomicBool, Ordering};

use serde::{Deserialize, Serialize};

use super::lines::Event;
use crate::config::Config;
use crate::housekeeping::collect_rules;
use crate::store::{Collected, Store, StoreError, Swept};

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Question {
    /// Remove nothing, and say what would be.
    pub dry_run: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum GcEvent {
    /// Local repositories that were looked at.
    Progress {
        repositories: u64,
    },
    Done(GcSummary),
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GcSummary {
    /// Pushed content, and what of it belongs where.
    pub collected: Collected,
    /// Names of mirrored repositories.
    pub swept: Swept,
    /// Whether anything was removed: not in a dry run, nor in the first hour of a server (`gc.after_start`).
    pub removed: bool,
    /// Whether everything was looked at.
    pub complete: bool,
}

impl Event for GcEvent {
    fn is_progress(&self) -> bool {
        matches!(self, Self::Progress { .. })
    }
}

/// Collects and sweeps, and tells `sink`, on a blocking thread, how far it is, until that returns false.
///
/// # Errors
/// [`StoreError::ReadOnly`] for a folder that is only read: without an index nothing is known of what may go.
pub async fn gc(
    store: Store,
    config: &Config,
    remove: bool,
    sink: impl Fn(GcEvent) -> bool + Send + 'static,
) -> Result<GcSummary, StoreError> {
    if store.is_read_only() {
        return Err(StoreError::ReadOnly);
    }
    let (rules, unused) = (collect_rules(&config.gc, remove), config.cache.stale_if_error);
    let work = move |store: &Store, stop: &AtomicBool| {
        let collected = store.collect(rules, stop, &|repositories| {
            if !sink(GcEvent::Progress { repositories }) {
                stop.store(true, Ordering::Relaxed);
            }
        })?;
        let swept = if remove { store.sweep(unused, stop)? } else { Swept::default() };
        Ok(GcSummary { collected, swept, removed: remove, complete: !stop.load(Ordering::Relaxed) })
    };
    store.walk(work).await
}

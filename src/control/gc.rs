//! `gc`: runs the collector and the sweep now. Content that became unreferenced recently still waits for its grace period.

use std::sync::atomic::{AtomicBool, Ordering};

use serde::{Deserialize, Serialize};

use super::lines::Event;
use crate::config::Config;
use crate::housekeeping::collect_rules;
use crate::store::{Collected, Store, StoreError, Swept};

/// The request of `POST /v1/gc`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GcRequest {
    /// Remove nothing, and report the content that would be removed.
    pub dry_run: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum GcEvent {
    /// The number of local repositories that were visited.
    Progress {
        repositories: u64,
    },
    Done(GcSummary),
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GcSummary {
    /// Pushed content, and links and manifests of local repositories.
    pub collected: Collected,
    /// Tags and links of mirrored repositories.
    pub swept: Swept,
    /// Whether unreferenced content was removed. False in a dry run, and before a server has run for `gc.after_start`.
    pub removed: bool,
    /// Whether the walk reached its end.
    pub complete: bool,
}

impl Event for GcEvent {
    fn is_progress(&self) -> bool {
        matches!(self, Self::Progress { .. })
    }
}

/// Runs the collector and, with `remove`, the sweep. Calls `sink` with the progress, on a blocking thread. If `sink` returns
/// false, the walk ends.
///
/// # Errors
/// [`StoreError::ReadOnly`] for a read-only folder, because unreferenced content cannot be found without an index.
pub async fn gc(
    store: Store,
    config: &Config,
    remove: bool,
    sink: impl Fn(GcEvent) -> bool + Send + 'static,
) -> Result<GcSummary, StoreError> {
    if store.is_read_only() {
        return Err(StoreError::ReadOnly);
    }
    let (rules, unconfirmed) = (collect_rules(&config.gc, remove), config.cache.stale_if_error);
    let work = move |store: &Store, stop: &AtomicBool| {
        let collected = store.collect(rules, stop, &|repositories| {
            if !sink(GcEvent::Progress { repositories }) {
                stop.store(true, Ordering::Relaxed);
            }
        })?;
        let swept = if remove { store.sweep(unconfirmed, stop)? } else { Swept::default() };
        Ok(GcSummary { collected, swept, removed: remove, complete: !stop.load(Ordering::Relaxed) })
    };
    store.walk(work).await
}

//! When the collector runs, and how careful it is.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::config::GcConfig;
use crate::store::{CollectRules, Collected, Store, StoreError};
use crate::tasks::every;

/// The rules that the configuration sets.
pub fn rules(gc: &GcConfig, remove: bool) -> CollectRules {
    CollectRules {
        grace: gc.grace,
        unreferenced_after: gc.unreferenced_after,
        untagged_after: (!gc.untagged_after.is_zero()).then_some(gc.untagged_after),
        remove,
    }
}

/// Runs the collector at its intervals until it is dropped.
pub(super) async fn run(store: Store, gc: GcConfig) {
    if gc.interval.is_zero() {
        return;
    }
    let started = Instant::now();
    sleep(gc.after_start.min(gc.interval)).await;
    every(gc.interval, "collect what is out of reach", || pass(&store, &gc, started.elapsed())).await;
}

/// What has been marked by an earlier run of the server waits until this one has seen who still uses what.
async fn pass(store: &Store, gc: &GcConfig, uptime: Duration) -> Result<(), StoreError> {
    let rules = rules(gc, uptime >= gc.after_start);
    let collected = store.walk(move |store, stop| store.collect(rules, stop, &|_| {})).await?;
    if rules.remove {
        report(&collected);
    }
    Ok(())
}

fn report(collected: &Collected) {
    let Collected { files, bytes, members, manifests, waiting } = *collected;
    if files + members + manifests > 0 {
        tracing::info!(files, bytes, members, manifests, waiting, "collected {files} files of {bytes} bytes");
    }
}

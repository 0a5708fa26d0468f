//! When the collector runs, and by which rules.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::config::GcConfig;
use crate::store::{CollectRules, Collected, Store, StoreError};
use crate::tasks::every;

/// The rules that the configuration sets. Without `remove`, a pass only marks what it finds.
pub fn collect_rules(gc: &GcConfig, remove: bool) -> CollectRules {
    CollectRules {
        grace: gc.grace,
        unreferenced_after: gc.unreferenced_after,
        untagged_after: (!gc.untagged_after.is_zero()).then_some(gc.untagged_after),
        remove,
    }
}

/// Runs the collector every `gc.interval` until it is dropped; not at all if that is zero.
pub(super) async fn run(store: Store, gc: GcConfig) {
    if gc.interval.is_zero() {
        return;
    }
    let started = Instant::now();
    sleep(gc.after_start.min(gc.interval)).await;
    every(gc.interval, "collect", || collect(&store, &gc, started.elapsed())).await;
}

/// Makes a pass. Nothing is removed in the first `gc.after_start` of a server: clients must have had the time to ask for what
/// an earlier run has marked.
async fn collect(store: &Store, gc: &GcConfig, uptime: Duration) -> Result<(), StoreError> {
    let rules = collect_rules(gc, uptime >= gc.after_start);
    let collected = store.walk(move |store, stop| store.collect(rules, stop, &|_| {})).await?;
    if rules.remove {
        report(&collected);
    }
    Ok(())
}

fn report(collected: &Collected) {
    let Collected { files, bytes, members, manifests, waiting } = *collected;
    if files + members + manifests > 0 {
        tracing::info!(files, bytes, members, manifests, waiting, "collected unreferenced content");
    }
}

//! The schedule and the rules of the collector.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::config::GcConfig;
use crate::store::{CollectRules, Collected, Store, StoreError};
use crate::tasks::every;

/// Returns the rules of the configuration. Without `remove`, a pass only records unreferenced content.
pub fn collect_rules(gc: &GcConfig, remove: bool) -> CollectRules {
    CollectRules {
        grace: gc.grace,
        unreferenced_after: gc.unreferenced_after,
        untagged_after: (!gc.untagged_after.is_zero()).then_some(gc.untagged_after),
        remove,
    }
}

/// Runs the collector every `gc.interval` until the future is dropped. Returns at once if the interval is zero.
pub(super) async fn run(store: Store, gc: GcConfig) {
    if gc.interval.is_zero() {
        return;
    }
    let started = Instant::now();
    sleep(gc.after_start.min(gc.interval)).await;
    every(gc.interval, "collect", || collect(&store, &gc, started.elapsed())).await;
}

/// Makes a pass. Removes nothing for `gc.after_start` after startup, so that clients have time to request content that an
/// earlier run has recorded as unreferenced.
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

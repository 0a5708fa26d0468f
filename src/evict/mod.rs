//! Keeping the store in order, beside requests: eviction, the collector, the slow scrub. What is done is in `store`; when, how
//! carefully, and what is never to go, here.

mod collector;
mod scrub;

use std::sync::Arc;
use std::time::Duration;

use crate::config::{CacheConfig, Config, Pin};
use crate::store::{Bounds, PinRule, Store, StoreError};
use crate::tasks::{Tasks, every};
use crate::telemetry::Metrics;

/// Bounds are looked at this often; who needs room meanwhile makes it.
const TEND: Duration = Duration::from_secs(1);
/// Names that stand for nothing are looked for this often.
const SWEEP: Duration = Duration::from_secs(60 * 60);

pub use collector::rules;

/// The bounds that the configuration sets.
pub fn bounds(cache: &CacheConfig) -> Bounds {
    Bounds { max_size: cache.max_size, min_free: cache.min_free }
}

/// The images that the configuration pins.
pub fn pin_rule(cache: &CacheConfig) -> Option<PinRule> {
    let pins: Vec<Pin> = cache.pin.clone();
    (!pins.is_empty()).then(|| -> PinRule {
        Box::new(move |repo, tag| {
            let name = format!("{}/{}", repo.scope.as_str(), repo.name);
            pins.iter().any(|pin| pin.matches(&name, tag.as_str()))
        })
    })
}

/// Starts what keeps the store in order for as long as `tasks` run.
pub fn start(store: &Store, config: &Config, metrics: &Arc<Metrics>, tasks: &Tasks) {
    let [tended, swept] = [store.clone(), store.clone()];
    tasks.spawn(collector::run(store.clone(), config.gc.clone()));
    tasks.spawn(scrub::run(store.clone(), metrics.clone(), config.scrub.clone()));
    tasks.spawn(async move { every(TEND, "keep the cache within its bounds", || tended.evict_in_background()).await });
    let unused = config.cache.stale_if_error;
    tasks.spawn(async move {
        tokio::time::sleep(SWEEP).await;
        every(SWEEP, "remove names that stand for nothing", || sweep(&swept, unused)).await;
    });
}

async fn sweep(store: &Store, unused: Duration) -> Result<(), StoreError> {
    let swept = store.walk(move |store, stop| store.sweep(unused, stop)).await?;
    if swept != Default::default() {
        let (tags, links, repositories) = (swept.tags, swept.links, swept.repositories);
        tracing::info!(tags, links, repositories, "removed names of mirrored repositories that stood for nothing");
    }
    Ok(())
}

//! Housekeeping: the periodic tasks that maintain the store.
//!
//! The work itself is done in `store`. This module has the schedules, the rules of the configuration, and the reports of these
//! tasks: recovery of the index, eviction, the collector, the sweep, the background scrub, and expiry of push sessions.

mod collector;
mod recovery;
mod scrub;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crate::config::{CacheConfig, Config, Pin, PushConfig};
use crate::store::{Bounds, PinRule, Store, StoreError, UploadBounds, disk_bytes};
use crate::tasks::{Tasks, every};
use crate::telemetry::Metrics;

pub use collector::collect_rules;
pub use recovery::IndexRecovery;

/// How often the cache is compared with its bounds. A write that needs room in the meantime evicts content itself.
const EVICTION_INTERVAL: Duration = Duration::from_secs(1);
/// How often the sweep removes unneeded names of mirrored repositories.
const SWEEP_INTERVAL: Duration = Duration::from_secs(60 * 60);
/// How often changes of the index are written to the disk.
const INDEX_FLUSH_INTERVAL: Duration = Duration::from_secs(5);
/// How often committed cached content is fsynced.
const CONTENT_SYNC_INTERVAL: Duration = Duration::from_secs(30);
/// How often the server checks whether responses can be stored again.
const ROOM_CHECK_INTERVAL: Duration = Duration::from_secs(10);
/// How often the data folder is checked again while it cannot be written.
const WRITE_RECHECK_INTERVAL: Duration = Duration::from_secs(1);
/// How often push sessions are checked for their age.
const UPLOAD_EXPIRY_INTERVAL: Duration = Duration::from_secs(60 * 60);
/// Maximum time without writes of a push session. Clients give up within an hour.
const MAX_UPLOAD_AGE: Duration = Duration::from_secs(24 * 60 * 60);

/// The default of `push.max_unfinished_size` is `cache.max_size` divided by this.
const UNFINISHED_SIZE_DIVISOR: u64 = 10;

/// Returns the bounds of the cache for a data folder, which may not exist yet. Blocks.
pub fn bounds(cache: &CacheConfig, folder: &Path) -> Bounds {
    let disk_bytes = disk_bytes(folder);
    Bounds { max_size: cache.max_size_on(disk_bytes), min_free: cache.min_free_on(disk_bytes) }
}

/// Returns the bounds of unfinished uploads beside a cache with these bounds.
pub fn upload_bounds(push: &PushConfig, cache: Bounds) -> UploadBounds {
    let max_bytes = push.max_unfinished_size.unwrap_or(cache.max_size / UNFINISHED_SIZE_DIVISOR);
    UploadBounds { max_bytes, max_count: push.max_unfinished }
}

/// Returns the rule for the pinned images; `None` if the configuration pins none.
pub fn pin_rule(cache: &CacheConfig) -> Option<PinRule> {
    let pins: Vec<Pin> = cache.pin.clone();
    (!pins.is_empty()).then(|| -> PinRule {
        Box::new(move |repo, tag| {
            let name = format!("{}/{}", repo.scope.as_str(), repo.name);
            pins.iter().any(|pin| pin.matches(&name, tag.as_str()))
        })
    })
}

/// Starts the periodic tasks of a store. They run until `tasks` stop. A read-only store has none.
pub fn start(store: &Store, config: &Config, metrics: &Arc<Metrics>, tasks: &Tasks) {
    if store.is_read_only() {
        return;
    }
    tasks.spawn(collector::run(store.clone(), config.gc.clone()));
    tasks.spawn(scrub::run(store.clone(), metrics.clone(), config.scrub.clone()));
    let evicting = store.clone();
    tasks.spawn(async move { every(EVICTION_INTERVAL, "evict", || evicting.evict_in_background()).await });
    let (sweeping, unconfirmed) = (store.clone(), config.cache.stale_if_error);
    tasks.spawn(async move {
        tokio::time::sleep(SWEEP_INTERVAL).await;
        every(SWEEP_INTERVAL, "sweep", || sweep(&sweeping, unconfirmed)).await;
    });
    let [uploads, index, content] = [store.clone(), store.clone(), store.clone()];
    tasks.spawn(async move { every(UPLOAD_EXPIRY_INTERVAL, "expire uploads", || expire_uploads(&uploads)).await });
    tasks.spawn(async move { every(INDEX_FLUSH_INTERVAL, "flush index", || index.flush_index()).await });
    tasks.spawn(async move { every(CONTENT_SYNC_INTERVAL, "sync content", || content.sync_committed()).await });
    let checking = store.clone();
    tasks.spawn(async move { every(WRITE_RECHECK_INTERVAL, "check storage", || checking.recheck_writable()).await });
    let metrics = metrics.clone();
    tasks.spawn(async move { every(ROOM_CHECK_INTERVAL, "check room", || report_room(&metrics)).await });
}

/// Removes unneeded names of mirrored repositories, including tags that no upstream has confirmed for `unconfirmed`.
async fn sweep(store: &Store, unconfirmed: Duration) -> Result<(), StoreError> {
    let swept = store.walk(move |store, stop| store.sweep(unconfirmed, stop)).await?;
    if swept != Default::default() {
        let (tags, links, repositories) = (swept.tags, swept.links, swept.repositories);
        tracing::info!(tags, links, repositories, "removed unneeded names of mirrored repositories");
    }
    Ok(())
}

async fn expire_uploads(store: &Store) -> Result<(), StoreError> {
    let expired = store.expire_uploads(MAX_UPLOAD_AGE).await?;
    if expired > 0 {
        tracing::info!(expired, "removed abandoned uploads");
    }
    Ok(())
}

/// Logs when responses can be stored again.
async fn report_room(metrics: &Metrics) -> Result<(), StoreError> {
    if metrics.has_room_again() {
        tracing::info!("the store has room again: every response of the last five minutes was stored");
    }
    Ok(())
}

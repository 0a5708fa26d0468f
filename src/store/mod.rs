//! The store: content by digest, names by repository, and push sessions. It knows no HTTP.
//!
//! [`Store`] is what the rest of the program sees. It stands on three contracts, each with its guarantees: [`Names`],
//! [`Content`] (with [`SpoolFile`]) and [`Uploads`] (with [`UploadSession`]). `local` implements them over the files of a data
//! folder. Another implementation plugs in at
//! `Store::assemble` in `facade.rs`, and gets a factory in the contract suite, `tests/it/contract`. Upkeep works on the local
//! folder, whatever implements the contracts.
//!
//! | module | what |
//! |---|---|
//! | `local` | files: layout, locks, open files, spool, names, uploads, durability, recovery |
//! | `index` | sled: what can be rebuilt from the files |
//! | `cache` | room, order of eviction, pins, evictor |
//! | `upkeep` | collector, sweep, scrub, usage, reconciling the index |
//!
//! Imports go downwards only: `upkeep` uses `local`; `local` uses `index` and `cache`; `cache` uses `index`.

mod cache;
mod clock;
mod content;
mod error;
mod facade;
#[cfg(test)]
mod faults;
mod file_range;
mod fs;
mod index;
mod local;
mod names;
mod pump;
mod records;
mod settings;
mod spool;
mod upkeep;
mod uploads;

use std::path::Path;

pub use cache::{Bounds, EvictionOrder, NAME_BYTES, PinRule};
pub use clock::Time;
pub use content::Content;
pub use error::{Lack, Obstacle, StoreError};
pub use facade::{Store, WeakStore};
pub use file_range::{FileRange, READ_BYTES};
pub use fs::DiskState;
pub use local::{LockError, OpenError, View};
pub use names::{MayRead, Names, NewManifest};
pub use pump::pump;
pub use records::{Class, LastUse, Member, Page, StoredManifest, TagRecord};
pub use settings::{StoreSettings, UploadBounds};
pub use spool::{Spool, SpoolFile};
pub use upkeep::{
    Amount, CollectRules, Collected, DiskUsage, Finding, Problem, RepositoryUsage, ScopeUsage, ScrubPart, ScrubPlace,
    ScrubWatch, StoredAmount, Swept, TotalUsage, UsageEvent,
};
pub use uploads::{Upload, UploadError, UploadSession, Uploads};

/// The size in bytes of the file system that holds `path`, or that will hold it when it is created. `None` if that
/// cannot be told. Blocks.
pub fn disk_bytes(path: &Path) -> Option<u64> {
    let disk = fs::future_disk_state(path).ok()?;
    Some(disk.bytes).filter(|bytes| *bytes > 0)
}

/// Runs `operation` on the blocking pool. It runs to its end even if the caller stops waiting.
async fn blocking<T: Send + 'static>(operation: impl FnOnce() -> T + Send + 'static) -> Result<T, StoreError> {
    tokio::task::spawn_blocking(operation).await.map_err(|_| StoreError::Task)
}

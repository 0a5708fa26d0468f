//! The store of one machine: content and names as files in a data folder, which are the truth.
//!
//! Content is `blobs/<alg>/ab/<hex>`, immutable, and appears by rename. Names are small files below `repositories/`,
//! which appear by rename as well. Whether something exists is decided by these files alone; the index and the memory
//! caches only stand for files that were read before.
//!
//! **Locks.** A repository's lock covers the files, index records and memory caches of its names: writers hold it
//! exclusively, and a reader that fills a memory cache holds it shared. A digest's lock excludes {evict, collect,
//! quarantine} against {commit, mount, adopt}. The order is repository before digest. No lock is held across an
//! await: all work runs on the blocking pool.

mod ages;
mod content;
mod durability;
mod evict;
mod file_mode;
mod folder;
mod format;
mod growing_file;
mod intervals;
mod layout;
mod lease;
mod lists;
mod locks;
mod manifests;
mod marks;
mod members;
mod name_cache;
mod name_files;
mod name_text;
mod names;
mod notes;
mod open;
mod open_files;
mod pending_links;
mod pinned;
mod recovery;
mod referrers;
mod remove_unreferenced;
mod sessions;
mod sparse_file;
mod spool;
mod state;
mod sweep;
mod tags;
mod uploads;
mod view;
mod write_check;

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use tokio::time::timeout;
use tokio_util::task::TaskTracker;
use uuid::Uuid;

use super::cache::Cache;
use super::error::StoreError;
use super::index::Index;
use crate::events::{Events, StoreEvent};
use ages::Ages;
use content::ContentState;
use folder::FolderFacts;
use sessions::Sessions;
use write_check::WriteCheck;

pub use folder::LockError;
pub use lease::Leases;
pub use open::OpenError;
pub use view::View;

pub(in crate::store) use content::LocalContent;
pub(in crate::store) use durability::QuarantineCause;
pub(in crate::store) use layout::{Layout, Temporary, digest_of_file};
pub(in crate::store) use marks::CollectorMarks;
pub(in crate::store) use name_files::Name;
pub(in crate::store) use name_text::manifest_link_media_type;
pub(in crate::store) use names::{LocalNames, NameState};
pub(in crate::store) use remove_unreferenced::Removed;
pub(in crate::store) use uploads::LocalUploads;

/// How long a stop waits for operations that were started before it.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// An open data folder.
#[derive(Debug)]
pub(in crate::store) struct Local {
    layout: Layout,
    folder: FolderFacts,
    index: Index,
    names: NameState,
    content: ContentState,
    uploads: Arc<Sessions>,
    ages: Ages,
    cache: Cache,
    marks: CollectorMarks,
    leases: Leases,
    write_check: WriteCheck,
    events: Events,
    /// False once the file system has refused to reserve blocks.
    can_reserve_blocks: AtomicBool,
    /// Work on the blocking pool. It goes on when the request that started it is gone, and the folder stays locked
    /// until all of it has ended.
    operations: TaskTracker,
}

impl Local {
    pub(in crate::store) fn layout(&self) -> &Layout {
        &self.layout
    }

    pub(in crate::store) fn index(&self) -> &Index {
        &self.index
    }

    pub(in crate::store) fn cache(&self) -> &Cache {
        &self.cache
    }

    pub(in crate::store) fn marks(&self) -> &CollectorMarks {
        &self.marks
    }

    /// The ages of files and records that are removed by age.
    pub(in crate::store) fn ages(&self) -> &Ages {
        &self.ages
    }

    pub(in crate::store) fn leases(&self) -> &Leases {
        &self.leases
    }

    pub(in crate::store) fn names(&self) -> &NameState {
        &self.names
    }

    pub(in crate::store) fn events(&self) -> &Events {
        &self.events
    }

    /// Tracks work on the blocking pool, so that a stop waits for it.
    pub(in crate::store) fn operations(&self) -> &TaskTracker {
        &self.operations
    }

    /// The identity of the data folder, created with it.
    pub(in crate::store) fn instance(&self) -> Uuid {
        self.folder.instance()
    }

    pub(in crate::store) fn is_read_only(&self) -> bool {
        self.folder.is_read_only()
    }

    /// Returns an error if the folder is read-only. Every operation that writes calls it first.
    pub(in crate::store) fn require_writable(&self) -> Result<(), StoreError> {
        if self.folder.is_read_only() { Err(StoreError::ReadOnly) } else { Ok(()) }
    }

    /// Writes changes of the index to the disk.
    pub(in crate::store) fn flush_index(&self) {
        self.cache.save_uses(&self.index);
        self.marks.save(&self.index);
        self.index.flush();
    }

    /// Runs `operation` on the blocking pool. It runs to its end even if the caller stops waiting.
    pub(in crate::store) async fn run<T: Send + 'static>(
        self: &Arc<Self>,
        operation: impl FnOnce(&Arc<Self>) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let local = self.clone();
        let done = self.operations.spawn_blocking(move || operation(&local)).await.map_err(|_| StoreError::Task)?;
        done.inspect_err(|error| self.note_failure(error))
    }

    /// Waits for the operations that were started, flushes the index, and marks a clean stop.
    pub(in crate::store) async fn close(self: &Arc<Self>) {
        self.operations.close();
        if timeout(CLOSE_TIMEOUT, self.operations.wait()).await.is_err() {
            tracing::warn!("operations of the store did not end in time; the next start checks the files");
            return;
        }
        let closed = self
            .run(|local| {
                // In this order: a clean mark says that all cached content is durable.
                local.sync_committed()?;
                if !local.is_read_only()
                    && let Err(error) = local.ages.save(&local.layout)
                {
                    tracing::warn!(%error, "cannot write the record of ages; things are younger after the next start");
                }
                local.cache.save_uses(&local.index);
                local.marks.save(&local.index);
                local.index.close(local.cache.space().names());
                Ok(())
            })
            .await;
        if let Err(error) = closed {
            tracing::error!(%error, "the store did not close cleanly");
        }
    }

    fn emit(&self, event: StoreEvent) {
        self.events.emit(event);
    }
}

//! The store: content and names on disk, an index of them, and a front in memory. It knows no HTTP.
//!
//! Files are the truth. Whether a blob is here, what a tag means and what may be read where is decided by files alone;
//! `index/` answers lists and sums and can be thrown away; the front stands for files that were read before. Outside this
//! module nobody sees a path: content comes in by [`Store::begin`] or [`Store::create_upload`] and goes out by
//! [`Store::blob`], names by the methods of `names`. All of it is async on the outside and runs on the blocking pool.
//!
//! Locks, in this order: a repository's, then a digest's. Neither is held across an await.

mod blobs;
mod clock;
mod collect;
mod coming;
mod error;
mod evict;
#[cfg(test)]
mod faults;
mod files;
mod front;
mod fs;
mod growing;
mod index;
mod layout;
mod lease;
mod lists;
mod lock;
mod names;
mod open_files;
mod pins;
mod pump;
mod read_only;
mod reader;
mod recency;
mod reconcile;
mod records;
mod referrers;
mod scrub;
mod segments;
mod settled;
mod space;
mod spool;
mod sweep;
mod take_up;
mod uploads;
mod usage;

use std::collections::HashSet;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use parking_lot::RwLock;
use tokio::time::timeout;
use tokio_util::task::TaskTracker;
use uuid::Uuid;

use crate::oci::{RepoName, Scope};
use collect::Marks;
use coming::Coming;
use error::{At, optional};
use evict::Evictions;
use front::Front;
use index::{Found, Index};
use layout::{Layout, Temporary};
use lease::Leases;
use lock::{DigestLocks, FolderLock, RepoLocks};
use open_files::OpenFiles;
use pins::Pins;
use recency::Recency;
use settled::Settling;
use space::Space;
use uploads::Uploads;

pub use blobs::Blob;
pub use collect::{CollectRules, Collected};
pub use error::StoreError;
pub use evict::{Evicted, EvictionReason};
pub use files::View;
pub use lock::LockError;
pub use names::NewManifest;
pub use pins::PinRule;
pub use pump::pump;
pub use reader::{BlobReader, FRAME};
pub use records::{Class, Member, Page, StoredManifest, TagRecord};
pub use scrub::{Finding, Problem, ScrubPart, ScrubPlace, ScrubWatch};
pub use segments::Segments;
pub use space::{Bounds, NAME_BYTES};
pub use spool::Spool;
pub use sweep::Swept;
pub use uploads::{Upload, UploadError};
pub use usage::{Amount, Content, RepositoryUsage, ScopeUsage, TotalUsage, UsageEvent};

/// A handle on the store; clones share it.
#[derive(Clone, Debug)]
pub struct Store {
    inner: Arc<Inner>,
}

/// A handle that does not keep the store.
#[derive(Clone, Debug)]
pub struct WeakStore(Weak<Inner>);

/// How long a stop waits for what was begun before it.
const CLOSE_PATIENCE: Duration = Duration::from_secs(5);

#[derive(Debug)]
struct Inner {
    layout: Layout,
    index: Index,
    front: Front,
    digests: DigestLocks,
    repositories: RepoLocks,
    uploads: Uploads,
    open_files: OpenFiles,
    space: Arc<Space>,
    recency: Recency,
    evictions: Evictions,
    pins: Pins,
    marks: Marks,
    coming: Coming,
    /// The data folder's file system keeps permissions.
    keeps_modes: bool,
    /// What runs on the blocking pool. It goes on when who asked for it has left, and the folder is ours until it ends.
    operations: TaskTracker,
    settling: Settling,
    leases: Leases,
    /// The local repositories. Read by every request without an upstream, written when a name becomes local.
    locals: RwLock<HashSet<RepoName>>,
    instance: Uuid,
    read_only: bool,
    /// Once the index has been taken up.
    index_found: OnceLock<Found>,
    _lock: Option<FolderLock>,
}

/// What a store is put together from.
struct Parts {
    layout: Layout,
    instance: Uuid,
    bounds: Bounds,
    pins: Option<PinRule>,
    keeps_modes: bool,
    lock: Option<FolderLock>,
    read_only: bool,
}

/// Why a data folder cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error(transparent)]
    Lock(#[from] LockError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("the data folder's file system takes names of different case for the same; it cannot hold tags")]
    CaseInsensitive,
    #[error("{0}; to read a folder that cannot be written, set storage.read_only (ROADSTEAD_STORAGE__READ_ONLY=true)")]
    NotWritable(StoreError),
    #[error("{0} is on another file system than the data folder; content is committed by rename")]
    OtherFileSystem(&'static str),
}

impl Store {
    /// Opens the data folder for writing, making it if it is not there. Blocks.
    ///
    /// # Errors
    /// When another process holds it, when it cannot be written, or when its file system cannot hold a store.
    pub fn open(root: &Path) -> Result<Self, OpenError> {
        Self::open_within(root, Bounds::NONE, None)
    }

    /// The same with bounds for what is cached, and a rule for what is kept whatever happens.
    pub fn open_within(root: &Path, bounds: Bounds, pins: Option<PinRule>) -> Result<Self, OpenError> {
        fs::create_dir_all(root).at("create", root)?;
        let layout = Layout::new(root);
        let lock = FolderLock::take(&layout.lock()).map_err(|error| match error {
            LockError::Store(error) if error.is_not_writable() => OpenError::NotWritable(error),
            error => error.into(),
        })?;
        // First, for it may be what fills the disk.
        empty_spool(&layout)?;
        layout.create()?;
        let keeps_modes = check_file_system(&layout)?;
        let instance = read_or_make_id(&layout)?;
        let parts = Parts { layout, instance, bounds, pins, keeps_modes, lock: Some(lock), read_only: false };
        let store = Self::assemble(parts)?;
        if !store.inner.take_up_index()? {
            tracing::warn!(
                "the disk is full, and nothing that is cached may go: no index, no eviction until there is room"
            );
        }
        if store.inner.index.is_ready() {
            // After an unclean stop nobody knows what was un-marked last, nor what the disk holds.
            store.inner.settling.all_clear();
            store.inner.restore_marks();
        }
        Ok(store)
    }

    fn assemble(parts: Parts) -> Result<Self, OpenError> {
        let Parts { layout, instance, bounds, pins, keeps_modes, lock, read_only } = parts;
        let settling = Settling::open(&layout)?;
        let inner = Inner {
            space: Arc::new(Space::new(bounds, layout.root())),
            recency: Recency::new(bounds.max_size),
            evictions: Evictions::default(),
            pins: Pins::new(pins),
            marks: Marks::default(),
            coming: Coming::default(),
            open_files: OpenFiles::default(),
            keeps_modes,
            layout,
            settling,
            leases: Leases::default(),
            index: Index::unopened(instance.into_bytes()),
            front: Front::default(),
            digests: DigestLocks::default(),
            repositories: RepoLocks::default(),
            uploads: Uploads::default(),
            operations: TaskTracker::new(),
            locals: RwLock::default(),
            instance,
            read_only,
            index_found: OnceLock::new(),
            _lock: lock,
        };
        let mut locals = HashSet::new();
        inner.walk_repositories(&Scope::Local, &mut |repo| {
            locals.insert(repo.name);
            Ok(true)
        })?;
        *inner.locals.write() = locals;
        Ok(Self { inner: Arc::new(inner) })
    }

    pub fn downgrade(&self) -> WeakStore {
        WeakStore(Arc::downgrade(&self.inner))
    }

    /// The identity of this data folder, made with it.
    pub fn instance(&self) -> Uuid {
        self.inner.instance
    }

    /// Whether a local repository of this name exists. Does no I/O.
    pub fn is_local(&self, name: &RepoName) -> bool {
        self.inner.locals.read().contains(name)
    }

    /// Bytes of content of a class, as far as the index knows.
    pub fn bytes(&self, class: Class) -> u64 {
        self.inner.index.bytes(class)
    }

    /// Bytes that count towards the bounds of the cache: cached content, names of mirrored repositories, and fills.
    pub fn used(&self) -> u64 {
        self.inner.space.used()
    }

    /// Why the index was set aside at the start, if it was.
    pub fn index_set_aside(&self) -> Option<&str> {
        match self.inner.index_found.get() {
            Some(Found::SetAside(reason)) => Some(reason),
            Some(Found::Clean | Found::Unclean | Found::New) | None => None,
        }
    }

    /// Whether a file can be written and read back.
    pub async fn check_writable(&self) -> Result<(), StoreError> {
        self.run(|inner| {
            let temporary = Temporary::new(inner.layout.temporary());
            inner.layout.within(temporary.path(), |path| fs::write(path, b"ok")).at("write", temporary.path())
        })
        .await
    }

    /// Writes what has changed in the index to the disk.
    pub async fn flush_index(&self) -> Result<(), StoreError> {
        self.run(|inner| {
            inner.save_recency();
            inner.save_marks();
            inner.index.flush();
            Ok(())
        })
        .await
    }

    /// Flushes the index and leaves the mark of a clean stop, once what was begun has ended.
    pub async fn close(&self) {
        self.inner.operations.close();
        if timeout(CLOSE_PATIENCE, self.inner.operations.wait()).await.is_err() {
            // Without the mark the next start looks at everything again.
            tracing::warn!("the store still works on what was asked of it before the stop; no clean mark is left");
            return;
        }
        let closed = self
            .run(|inner| {
                // In this order: a clean mark says that nothing is left to settle.
                inner.settle()?;
                inner.save_recency();
                inner.save_marks();
                inner.index.close(inner.space.names());
                Ok(())
            })
            .await;
        if let Err(error) = closed {
            tracing::error!(%error, "the store did not close cleanly");
        }
    }

    /// Runs a walk on the blocking pool. It is told to stop when nobody waits for it any more, and a stop of the store waits
    /// until it has.
    pub async fn walk<T: Send + 'static>(
        &self,
        walk: impl FnOnce(&Self, &AtomicBool) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let stop = Arc::new(AtomicBool::new(false));
        let _stopped_with_us = StopOnDrop(stop.clone());
        let store = self.clone();
        let walk = self.inner.operations.spawn_blocking(move || walk(&store, &stop));
        walk.await.map_err(|_| StoreError::Task)?
    }

    async fn run<T: Send + 'static>(
        &self,
        operation: impl FnOnce(&Arc<Inner>) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let inner = self.inner.clone();
        self.inner.operations.spawn_blocking(move || operation(&inner)).await.map_err(|_| StoreError::Task)?
    }
}

impl WeakStore {
    pub fn upgrade(&self) -> Option<Store> {
        Some(Store { inner: self.0.upgrade()? })
    }
}

struct StopOnDrop(Arc<AtomicBool>);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Runs on the blocking pool. What was started goes on to its end when the caller stops waiting.
async fn blocking<T: Send + 'static>(operation: impl FnOnce() -> T + Send + 'static) -> Result<T, StoreError> {
    tokio::task::spawn_blocking(operation).await.map_err(|_| StoreError::Task)
}

fn empty_spool(layout: &Layout) -> Result<(), StoreError> {
    let spool = layout.spool();
    let Some(entries) = optional(fs::read_dir(&spool)).at("read", &spool)? else { return Ok(()) };
    for entry in entries {
        let path = entry.at("read", &spool)?.path();
        optional(fs::remove_file(&path)).at("remove", &path)?;
    }
    Ok(())
}

fn read_or_make_id(layout: &Layout) -> Result<Uuid, StoreError> {
    let path = layout.id();
    let text = optional(fs::read_to_string(&path)).at("read", &path)?;
    if let Some(id) = text.and_then(|text| Uuid::parse_str(text.trim()).ok()) {
        return Ok(id);
    }
    let id = Uuid::new_v4();
    match fs::write(&path, format!("{id}\n")).at("write", &path) {
        // The next start makes another one.
        Err(error) if error.is_full() => Ok(id),
        written => written.map(|()| id),
    }
}

/// Whether it keeps permissions.
fn check_file_system(layout: &Layout) -> Result<bool, OpenError> {
    match try_file_system(layout) {
        // Not even a name has room. What can be found out only by writing was found out by an earlier start; as to
        // permissions, the other sign of pushed content, a local name, is asked besides.
        Err(OpenError::Store(error)) if error.is_full() => Ok(true),
        found => found,
    }
}

fn try_file_system(layout: &Layout) -> Result<bool, OpenError> {
    let temporary = layout.temporary();
    let file = fs::create_new(&temporary).at("create", &temporary)?;
    let keeps_modes = blobs::mark_pushed(&file)
        .and_then(|()| Ok(blobs::is_marked_pushed(&file.metadata()?)))
        .inspect_err(|error| tracing::debug!(%error, "the data folder keeps no permissions"));
    fs::remove_file(&temporary).at("remove", &temporary)?;
    let upper = temporary.with_extension("CASE");
    fs::write(&upper, b"").at("write", &upper)?;
    let insensitive = temporary.with_extension("case").exists();
    fs::remove_file(&upper).at("remove", &upper)?;
    if insensitive {
        return Err(OpenError::CaseInsensitive);
    }
    for (name, folder) in [
        ("blobs/", layout.root().join("blobs")),
        ("repositories/", layout.repositories()),
        ("uploads/", layout.uploads()),
    ] {
        let target = folder.join(".roadstead-check");
        fs::write(&temporary, b"").at("write", &temporary)?;
        let renamed = fs::rename(&temporary, &target);
        let _ = fs::remove_file(&target);
        let _ = fs::remove_file(&temporary);
        match renamed {
            Err(error) if error.kind() == io::ErrorKind::CrossesDevices => {
                return Err(OpenError::OtherFileSystem(name));
            }
            renamed => renamed.at("rename", &target)?,
        }
    }
    Ok(keeps_modes.unwrap_or(false))
}

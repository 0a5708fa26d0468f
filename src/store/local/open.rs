//! Opening a data folder: the lock first, then checks of the file system, then recovery.

use std::collections::HashSet;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use tokio_util::task::TaskTracker;
use uuid::Uuid;

use super::Local;
use super::ages::Ages;
use super::content::ContentState;
use super::durability::Durability;
use super::file_mode::{is_marked_pushed, mark_pushed};
use super::folder::{FolderFacts, FolderLock, LockError};
use super::format;
use super::layout::Layout;
use super::lease::Leases;
use super::marks::CollectorMarks;
use super::names::NameState;
use super::sessions::Sessions;
use super::write_check::WriteCheck;
use crate::events::Events;
use crate::oci::{RepoName, Scope};
use crate::store::cache::Cache;
use crate::store::error::{At, StoreError, optional};
use crate::store::fs;
use crate::store::index::Index;
use crate::store::settings::StoreSettings;

/// Why a data folder cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error(transparent)]
    Lock(#[from] LockError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("the data folder's file system does not distinguish upper and lower case, so it cannot hold tags")]
    CaseInsensitive,
    #[error("{0}; to serve a folder that cannot be written, set storage.read_only (ROADSTEAD_STORAGE__READ_ONLY=true)")]
    NotWritable(StoreError),
    #[error(
        "{error}; this process is user {uid}: run `chown -R {uid}:{gid} {}` (if it is mounted into a container, on the folder of \
         the host), start it as the owner of the folder, or set storage.read_only",
        folder.display()
    )]
    Denied { error: StoreError, folder: PathBuf, uid: u32, gid: u32 },
    #[error(
        "the data folder has format {found}, written by roadstead {version}, and this program reads formats up to {known}; start that \
         version or a later one, or restore a backup"
    )]
    NewerFormat { found: u32, version: String, known: u32 },
    #[error("the file {} does not name a format; restore it from a backup, or remove it if the folder is of this version", .0.display())]
    UnknownFormat(PathBuf),
    #[error("{0} is on another file system than the data folder; content is committed by rename, so it cannot be")]
    OtherFileSystem(&'static str),
}

// === impl OpenError ===

impl OpenError {
    /// Names the remedy for a folder that cannot be written.
    fn of_folder(folder: &Path, error: StoreError) -> Self {
        match error.io_kind() {
            Some(ErrorKind::PermissionDenied) => Self::Denied {
                error,
                folder: folder.to_owned(),
                uid: rustix::process::geteuid().as_raw(),
                gid: rustix::process::getegid().as_raw(),
            },
            Some(ErrorKind::ReadOnlyFilesystem) => Self::NotWritable(error),
            _ => Self::Store(error),
        }
    }
}

// === impl Local ===

impl Local {
    /// Opens a data folder for writing, and creates it if it does not exist. Blocks.
    pub(in crate::store) fn open(root: &Path, settings: StoreSettings) -> Result<Arc<Self>, OpenError> {
        fs::create_dir_all(root).at("create", root).map_err(|error| OpenError::of_folder(root, error))?;
        let layout = Layout::new(root);
        let lock = FolderLock::exclusive(&layout.lock()).map_err(|error| match error {
            LockError::Store(error) => OpenError::of_folder(root, error),
            error => error.into(),
        })?;
        // Before anything but the lock is written.
        let lacks_format = format::check(&layout)?;
        let is_new = !fs::exists(&layout.id());
        // Before anything is written, because it may be what fills the disk.
        empty_spool(&layout)?;
        layout.create()?;
        let keeps_modes = check_file_system(&layout)?;
        if lacks_format {
            format::write(&layout)?;
        }
        let folder = FolderFacts::writable(read_or_create_id(&layout)?, keeps_modes, lock);
        let ages = Ages::load(&layout, is_new);
        let local = Self::assemble(layout, folder, settings, ages)?;
        local.count_uploads()?;
        if !local.recover_index()? {
            tracing::warn!(
                "the disk is full and no cached content can be evicted; until there is room there is no index"
            );
        }
        if local.index.is_ready() {
            // After an unclean stop, removed marks may have been lost, and content may not be durable.
            local.set_content_verified();
            local.marks.restore(&local.index);
        }
        Ok(local)
    }

    /// Opens a data folder that must not be changed, such as a snapshot or a mount without write access. Blocks.
    ///
    /// Nothing below the folder is written, not even a lock file, so several processes may read it. There is no
    /// index: lists come from the folders. Operations that would write fail with [`StoreError::ReadOnly`].
    pub(in crate::store) fn open_read_only(root: &Path, events: Events) -> Result<Arc<Self>, OpenError> {
        let layout = Layout::new(root);
        let lock = FolderLock::shared(&layout.lock())?;
        format::check(&layout)?;
        let path = layout.id();
        let id = optional(fs::read_to_string(&path)).at("read", &path)?;
        // Without a stored id, one for this process alone is enough to recognize a request that comes back.
        let instance = id.and_then(|id| Uuid::parse_str(id.trim()).ok()).unwrap_or_else(Uuid::new_v4);
        let path = layout.repositories();
        fs::read_dir(&path).at("read", &path)?;
        let folder = FolderFacts::read_only(instance, lock);
        // Nothing is removed, so nothing has an age.
        let ages = Ages::load(&layout, false);
        Self::assemble(layout, folder, StoreSettings { events, ..StoreSettings::default() }, ages)
    }

    fn assemble(
        layout: Layout,
        folder: FolderFacts,
        settings: StoreSettings,
        ages: Ages,
    ) -> Result<Arc<Self>, OpenError> {
        let StoreSettings { bounds, uploads, pins, events } = settings;
        Ok(Arc::new(Self {
            index: Index::unopened(folder.instance().into_bytes()),
            names: NameState::with_locals(local_repositories(&layout)?),
            content: ContentState::new(Durability::load(&layout)?),
            uploads: Arc::new(Sessions::new(uploads)),
            ages,
            cache: Cache::new(bounds, pins, layout.root()),
            marks: CollectorMarks::default(),
            leases: Leases::default(),
            write_check: WriteCheck::default(),
            can_reserve_blocks: AtomicBool::new(true),
            events,
            operations: TaskTracker::new(),
            layout,
            folder,
        }))
    }
}

fn local_repositories(layout: &Layout) -> Result<HashSet<RepoName>, StoreError> {
    let mut locals = HashSet::new();
    layout.walk_repositories(&Scope::Local, &mut |repo| {
        locals.insert(repo.name);
        Ok(true)
    })?;
    Ok(locals)
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

fn read_or_create_id(layout: &Layout) -> Result<Uuid, StoreError> {
    let path = layout.id();
    let text = optional(fs::read_to_string(&path)).at("read", &path)?;
    if let Some(id) = text.and_then(|text| Uuid::parse_str(text.trim()).ok()) {
        return Ok(id);
    }
    let id = Uuid::new_v4();
    match fs::write(&path, format!("{id}\n")).at("write", &path) {
        // The next start creates another one.
        Err(error) if error.is_full() => Ok(id),
        written => written.map(|()| id),
    }
}

/// Whether the file system keeps permissions. Fails for one that cannot hold a store.
fn check_file_system(layout: &Layout) -> Result<bool, OpenError> {
    match try_file_system(layout) {
        // There is no room even for a name. An earlier start has made these checks. Permissions are taken to be kept;
        // the other sign of pushed content, a local link, is asked as well.
        Err(OpenError::Store(error)) if error.is_full() => Ok(true),
        found => found,
    }
}

fn try_file_system(layout: &Layout) -> Result<bool, OpenError> {
    let temporary = layout.temporary();
    let file = fs::create_new(&temporary).at("create", &temporary)?;
    let keeps_modes = mark_pushed(&file)
        .and_then(|()| Ok(is_marked_pushed(&file.metadata()?)))
        .inspect_err(|error| tracing::debug!(%error, "the data folder does not keep permissions"));
    fs::remove_file(&temporary).at("remove", &temporary)?;
    let upper = temporary.with_extension("CASE");
    fs::write(&upper, b"").at("write", &upper)?;
    let insensitive = fs::exists(&temporary.with_extension("case"));
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

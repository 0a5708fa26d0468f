//! Content by digest: `blobs/<alg>/ab/<hex>`, immutable, which appears by rename or not at all.

use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::MutexGuard;

use super::Local;
use super::durability::{Durability, QuarantineCause};
use super::file_mode::{is_marked_pushed, mark_pushed};
use super::layout::sync_folder;
use super::locks::DigestLocks;
use super::open_files::OpenFiles;
use super::pending_links::PendingLinks;
use super::spool::LocalSpool;
use crate::oci::{Algorithm, Digest, RepoId};
use crate::store::clock::now;
use crate::store::content::Content;
use crate::store::error::{At, StoreError, optional};
use crate::store::file_range::FileRange;
use crate::store::fs::{self, File, Metadata};
use crate::store::index::Change;
use crate::store::index::keys::BlobRecord;
use crate::store::records::{Class, Unreferenced};
use crate::store::spool::Spool;

/// Attempts to open content: an upload of the same content may replace the file that was just opened.
const MAX_OPEN_ATTEMPTS: usize = 2;

/// What a process keeps in memory about content.
#[derive(Debug)]
pub(super) struct ContentState {
    open_files: OpenFiles,
    locks: DigestLocks,
    durability: Durability,
    pending_links: PendingLinks,
}

impl ContentState {
    pub(super) fn new(durability: Durability) -> Self {
        Self {
            durability,
            open_files: OpenFiles::default(),
            locks: DigestLocks::default(),
            pending_links: PendingLinks::default(),
        }
    }

    /// Locks a digest. On the blocking pool only, and after the lock of a repository where both are needed.
    pub(super) fn lock(&self, digest: &Digest) -> MutexGuard<'_, ()> {
        self.locks.lock(digest)
    }

    pub(super) fn open_files(&self) -> &OpenFiles {
        &self.open_files
    }

    pub(super) fn durability(&self) -> &Durability {
        &self.durability
    }

    pub(super) fn pending_links(&self) -> &PendingLinks {
        &self.pending_links
    }
}

/// [`Content`] over the files of a data folder.
#[derive(Debug)]
pub(in crate::store) struct LocalContent(Arc<Local>);

impl LocalContent {
    pub(in crate::store) fn new(local: Arc<Local>) -> Self {
        Self(local)
    }
}

#[async_trait]
impl Content for LocalContent {
    fn try_open(&self, digest: &Digest) -> Option<FileRange> {
        let (file, length) = self.0.content.open_files.try_get(digest)?;
        self.0.cache.note_content(digest);
        Some(FileRange::new(file, 0..length))
    }

    async fn open(&self, digest: &Digest) -> Result<Option<FileRange>, StoreError> {
        let digest = digest.clone();
        self.0
            .run(move |local| {
                let opened = local.open_content(&digest)?;
                if opened.is_some() {
                    local.cache.note_content(&digest);
                }
                Ok(opened.map(|(file, length)| FileRange::new(file, 0..length)))
            })
            .await
    }

    async fn read_manifest(&self, digest: &Digest) -> Result<Option<Bytes>, StoreError> {
        let digest = digest.clone();
        self.0.run(move |local| local.read_manifest(&digest)).await
    }

    async fn begin(&self, algorithm: Algorithm, expected: Option<u64>) -> Result<Spool, StoreError> {
        self.0.run(move |local| Ok(Box::new(LocalSpool::create(local, algorithm, expected)?) as Spool)).await
    }

    async fn adopt(&self, repo: &RepoId, digest: &Digest) -> Result<bool, StoreError> {
        let (repo, digest) = (repo.clone(), digest.clone());
        self.0.run(move |local| local.adopt(&repo, &digest)).await
    }
}

// === on the blocking pool ===

impl Local {
    /// The open file of a digest and its length in bytes. A file that turns out to be corrupt is moved aside and counts as
    /// missing.
    pub(in crate::store) fn open_content(&self, digest: &Digest) -> Result<Option<(Arc<File>, u64)>, StoreError> {
        let path = self.layout.blob(digest);
        for _ in 0..MAX_OPEN_ATTEMPTS {
            if let Some(opened) = self.content.open_files.get(digest) {
                return Ok(Some(opened));
            }
            let opened = self.content.open_files.with_descriptor(|| fs::open(&path));
            let Some(file) = optional(opened).at("open", &path)?.map(Arc::new) else { return Ok(None) };
            let metadata = file.metadata().at("stat", &path)?;
            if !metadata.is_file() {
                return Ok(None);
            }
            let has_known_length = self.index.blob(digest).is_none_or(|blob| blob.size == metadata.len());
            if !has_known_length || !self.content.durability.verify(digest, &file).at("read", &path)? {
                self.quarantine(digest, &file, QuarantineCause::WrongContent)?;
                return Ok(None);
            }
            let length = metadata.len();
            if self.content.open_files.share(digest, &file, length, &path).at("stat", &path)? {
                return Ok(Some((file, length)));
            }
        }
        Ok(None)
    }

    fn adopt(&self, repo: &RepoId, digest: &Digest) -> Result<bool, StoreError> {
        let _pending = self.content.pending_links.announce(digest);
        // Opening finds corrupt content. Under the lock it must still be the same file.
        let Some((file, length)) = self.open_content(digest)? else { return Ok(false) };
        {
            let _locked = self.content.lock(digest);
            let path = self.layout.blob(digest);
            if !fs::is_still_at(&path, &file).at("stat", &path)? {
                return Ok(false);
            }
            self.marks.unmark(&[Unreferenced::Content(digest.clone())]);
            let was_pushed = self.index.blob(digest).is_some_and(|blob| blob.class == Class::Pushed);
            mark_pushed(&file).at("change", &path)?;
            self.record_stored(digest, length, Class::Pushed);
            if let Err(error) = fs::sync_all(&file) {
                // After a failed fsync the bytes may be lost, and the next fsync does not report that again. Content that was
                // pushed before was fsynced then, and other repositories have it.
                if !was_pushed {
                    self.set_content_aside(digest, &path, QuarantineCause::FsyncFailed)?;
                }
                return Err(error).at("sync", &path);
            }
            self.sync_content_folder(&path)?;
        }
        self.link_pushed_blob(repo, digest, length)?;
        Ok(true)
    }

    /// Records in the index and in the eviction order that content is stored. Under its lock.
    pub(in crate::store) fn record_stored(&self, digest: &Digest, size: u64, class: Class) {
        let added = now();
        self.index.apply(&[Change::Blob(digest, BlobRecord { size, class, added })]);
        match class {
            Class::Cached => self.cache.content_stored(digest, size, added),
            Class::Pushed => self.cache.content_removed(digest),
        }
    }

    /// Records in the index and in the eviction order that content is gone. Under its lock.
    pub(in crate::store) fn record_removed(&self, digest: &Digest) {
        self.index.apply(&[Change::NoBlob(digest)]);
        self.cache.content_removed(digest);
    }

    /// Closes open files that have had no reader for a while.
    pub(in crate::store) fn close_idle_files(&self) {
        self.content.open_files.close_idle();
    }

    /// Locks a digest for upkeep. On the blocking pool only.
    pub(in crate::store) fn lock_content(&self, digest: &Digest) -> MutexGuard<'_, ()> {
        self.content.lock(digest)
    }

    /// Whether a file holds pushed content: its mode says so, or a local repository links to it. A copy of the data folder or
    /// a changed mount may have lost the modes.
    pub(in crate::store) fn is_pushed(&self, digest: &Digest, metadata: &Metadata) -> Result<bool, StoreError> {
        Ok(self.has_pushed_mode(metadata) || self.is_linked_locally(digest)?)
    }

    /// Whether the mode of a content file says that it is pushed content.
    pub(in crate::store) fn has_pushed_mode(&self, metadata: &Metadata) -> bool {
        self.folder.keeps_modes() && is_marked_pushed(metadata)
    }

    /// Whether a local repository links to the content.
    pub(super) fn is_linked_locally(&self, digest: &Digest) -> Result<bool, StoreError> {
        for repo in self.names.locals().into_iter().map(RepoId::local) {
            for link in [self.layout.blob_link(&repo, digest), self.layout.manifest_link(&repo, digest)] {
                if optional(fs::metadata(&link)).at("stat", &link)?.is_some() {
                    return Ok(true);
                }
            }
        }
        Ok(false)
    }

    /// A local repository links to the content: if the index takes it for cached content, its mode and its record are
    /// corrected.
    pub(in crate::store) fn record_linked_locally(&self, digest: &Digest) -> Result<(), StoreError> {
        let _locked = self.content.lock(digest);
        let Some(BlobRecord { class: Class::Cached, size, .. }) = self.index.blob(digest) else { return Ok(()) };
        let path = self.layout.blob(digest);
        if let Some(file) = optional(fs::open(&path)).at("open", &path)? {
            mark_pushed(&file).and_then(|()| fs::sync_all(&file)).at("sync", &path)?;
            self.record_stored(digest, size, Class::Pushed);
        }
        Ok(())
    }

    /// Moves a finished file to its digest. Pushed content is durable before this returns, its name included.
    ///
    /// Cached content never replaces stored content, which may be pushed and synced. Pushed content always does, because
    /// stored content may be cached and not synced. A fill that brings back lost pushed content stores pushed content.
    pub(super) fn commit_file(
        &self,
        from: &Path,
        digest: &Digest,
        length: u64,
        class: Class,
    ) -> Result<(), StoreError> {
        let to = self.layout.blob(digest);
        let known = self.index.blob(digest).map(|blob| blob.class);
        let class = if known == Some(Class::Pushed) { Class::Pushed } else { class };
        if class == Class::Pushed {
            fs::open(from).and_then(|file| mark_pushed(&file).and_then(|()| fs::sync_all(&file))).at("sync", from)?;
        }
        let _locked = self.content.lock(digest);
        let stored = optional(fs::metadata(&to)).at("stat", &to)?.filter(|stored| stored.len() == length);
        match (class, stored) {
            (Class::Cached, Some(stored)) => {
                fs::remove_file(from).at("remove", from)?;
                // The index may not know the stored file yet.
                if self.index.blob(digest).is_none() {
                    let class = if self.is_pushed(digest, &stored)? { Class::Pushed } else { Class::Cached };
                    self.record_stored(digest, length, class);
                }
            }
            (Class::Cached, None) => {
                self.layout.with_folder(&to, |to| fs::rename(from, to)).at("rename", &to)?;
                self.content.durability.committed(digest);
                self.record_stored(digest, length, Class::Cached);
            }
            (Class::Pushed, _) => {
                self.marks.unmark(&[Unreferenced::Content(digest.clone())]);
                self.layout.with_folder(&to, |to| fs::rename(from, to)).at("rename", &to)?;
                // Present readers go on with the replaced file; later ones read the one that is synced.
                self.content.open_files.forget(digest);
                // Before the sync, which may fail: the file is in place, and the collector must know it if it is never linked.
                self.record_stored(digest, length, Class::Pushed);
                self.sync_content_folder(&to)?;
            }
        }
        Ok(())
    }

    fn sync_content_folder(&self, content: &Path) -> Result<(), StoreError> {
        let folder = content.parent().unwrap_or(self.layout.root());
        sync_folder(folder).at("sync", folder)
    }
}

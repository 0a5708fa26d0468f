//! Content by digest: `blobs/<alg>/ab/<hex>`, immutable, which appears by rename or not at all.

use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::MutexGuard;

use super::Local;
use super::durability::{Durability, QuarantineCause};
use super::file_mode::{is_marked_pushed, mark_pushed};
use super::growing_file::hash;
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
use crate::store::records::{Class, Member, Unreferenced};
use crate::store::spool::Spool;

/// Attempts to open content: an upload of the same content may replace the file that was just opened.
const MAX_OPEN_ATTEMPTS: usize = 2;

/// Largest number of manifests of a repository that are searched for a length.
const MAX_MANIFESTS_FOR_LENGTH: usize = 1000;

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

    async fn open_doubtful(&self, repo: &RepoId, digest: &Digest) -> Result<Option<FileRange>, StoreError> {
        let (repo, digest) = (repo.clone(), digest.clone());
        self.0
            .run(move |local| {
                let opened = local.open_doubtful(repo, &digest)?;
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
            if !self.may_have_length(digest, metadata.len())
                || !self.content.durability.verify(digest, &file).at("read", &path)?
            {
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

    /// Whether content can have this length, as far as the index and the digest tell.
    fn may_have_length(&self, digest: &Digest, length: u64) -> bool {
        let is_known = self.index.blob(digest).is_none_or(|blob| blob.size == length);
        is_known && (length > 0 || Digest::of(digest.algorithm(), b"") == *digest)
    }

    /// Opens content whose length is in doubt: it differs from the link of the repository, or there is no index to
    /// compare it with. If the manifests of the repository do not confirm the length, the content is hashed.
    fn open_doubtful(&self, repo: RepoId, digest: &Digest) -> Result<Option<(Arc<File>, u64)>, StoreError> {
        let Some((file, length)) = self.open_content(digest)? else { return Ok(None) };
        let linked = self.layout.read_member(&repo, digest)?.and_then(|member| member.size);
        let expected = match linked {
            Some(linked) => Some(linked),
            None => self.length_in_manifests(&repo, digest)?,
        };
        if expected.is_some_and(|expected| expected != length) && !self.verify_content(digest, &file)? {
            return Ok(None);
        }
        // A manifest may be wrong about the length. The result counts until the next start.
        let _locked = self.names.read(&repo);
        if let Some(member) = self.layout.read_member(&repo, digest)? {
            let member = Member { size: Some(length), ..member };
            self.names.cache().insert_member(repo, digest.clone(), member);
        }
        Ok(Some((file, length)))
    }

    /// The length in bytes that a manifest of the repository gives content.
    fn length_in_manifests(&self, repo: &RepoId, digest: &Digest) -> Result<Option<u64>, StoreError> {
        for manifest in self.layout.links_below(&self.layout.manifests(repo))?.iter().take(MAX_MANIFESTS_FOR_LENGTH) {
            let children = self.layout.parse_manifest(manifest)?.unwrap_or_default().children;
            let size = children.iter().find(|child| child.digest == *digest).and_then(|child| child.size);
            if size.is_some() {
                return Ok(size);
            }
        }
        Ok(None)
    }

    /// Hashes an open file, and moves a corrupt one aside. Returns whether it has the digest.
    pub(in crate::store) fn verify_content(&self, digest: &Digest, file: &File) -> Result<bool, StoreError> {
        let (hasher, _) = hash(file, digest.algorithm()).at("read", &self.layout.blob(digest))?;
        let is_right = hasher.finish() == *digest;
        if !is_right {
            self.quarantine(digest, file, QuarantineCause::WrongContent)?;
        }
        Ok(is_right)
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
                self.layout.with_folder(&to, |to| self.layout.replace(from, to)).at("rename", &to)?;
                self.content.durability.committed(digest);
                self.record_stored(digest, length, Class::Cached);
            }
            (Class::Pushed, _) => {
                self.marks.unmark(&[Unreferenced::Content(digest.clone())]);
                self.layout.with_folder(&to, |to| self.layout.replace(from, to)).at("rename", &to)?;
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

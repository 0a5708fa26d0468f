//! Names as small text files that appear by rename.
//!
//! This file has what all kinds of names share. Members, manifests, tags, referrers and lists have a file each.

use std::collections::HashSet;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::{RwLock, RwLockReadGuard, RwLockWriteGuard};

use super::Local;
use super::layout::{Temporary, create_folders, sync_folder};
use super::locks::RepoLocks;
use super::name_cache::NameCache;
use super::name_files::Name;
use crate::events::StoreEvent;
use crate::oci::{Digest, RepoId, RepoName, Scope, Tag};
use crate::store::error::{At, StoreError, optional};
use crate::store::fs;
use crate::store::index::Change;
use crate::store::names::{MayRead, Names, NewManifest};
use crate::store::records::{Member, Page, StoredManifest, TagRecord, Unreferenced};

/// What a process keeps in memory about names.
#[derive(Debug, Default)]
pub(in crate::store) struct NameState {
    cache: NameCache,
    locks: RepoLocks,
    /// The local repositories. Every request without an upstream reads it; it changes when a name becomes local.
    locals: RwLock<HashSet<RepoName>>,
}

impl NameState {
    pub(super) fn with_locals(locals: HashSet<RepoName>) -> Self {
        Self { locals: RwLock::new(locals), ..Self::default() }
    }

    pub(super) fn cache(&self) -> &NameCache {
        &self.cache
    }

    /// Locks a repository for reading. On the blocking pool only.
    pub(in crate::store) fn read(&self, repo: &RepoId) -> RwLockReadGuard<'_, ()> {
        self.locks.read(repo)
    }

    /// Locks a repository for changes. On the blocking pool only.
    pub(in crate::store) fn write(&self, repo: &RepoId) -> RwLockWriteGuard<'_, ()> {
        self.locks.write(repo)
    }

    pub(in crate::store) fn is_local(&self, name: &RepoName) -> bool {
        self.locals.read().contains(name)
    }

    /// The names of the local repositories, in no particular order.
    pub(in crate::store) fn locals(&self) -> Vec<RepoName> {
        self.locals.read().iter().cloned().collect()
    }

    fn remove_local(&self, name: &RepoName) {
        self.locals.write().remove(name);
    }

    fn add_local(&self, name: &RepoName) {
        self.locals.write().insert(name.clone());
    }
}

/// [`Names`] over the files of a data folder.
#[derive(Debug)]
pub(in crate::store) struct LocalNames(Arc<Local>);

impl LocalNames {
    pub(in crate::store) fn new(local: Arc<Local>) -> Self {
        Self(local)
    }

    /// Removes the collector marks of content that a requester needs. Call it before the content is looked up.
    fn rely_on(&self, repo: &RepoId, candidates: &[Unreferenced]) {
        if repo.scope.is_local() {
            self.0.marks.unmark(candidates);
        }
    }

    fn rely_on_member(&self, repo: &RepoId, digest: &Digest) {
        if repo.scope.is_local() && self.0.marks.any() {
            let candidates =
                [Unreferenced::Member(repo.clone(), digest.clone()), Unreferenced::Content(digest.clone())];
            self.rely_on(repo, &candidates);
        }
    }

    fn rely_on_manifest(&self, repo: &RepoId, digest: &Digest) {
        if repo.scope.is_local() && self.0.marks.any() {
            self.rely_on(repo, &[Unreferenced::Manifest(repo.clone(), digest.clone())]);
        }
    }
}

#[async_trait]
impl Names for LocalNames {
    fn is_local(&self, name: &RepoName) -> bool {
        self.0.names.is_local(name)
    }

    async fn repository_exists(&self, repo: &RepoId) -> Result<bool, StoreError> {
        if repo.scope.is_local() {
            return Ok(self.is_local(&repo.name));
        }
        if self.0.names.cache.has_repository(repo) {
            return Ok(true);
        }
        let repo = repo.clone();
        self.0
            .run(move |local| {
                let exists = fs::is_dir(&local.layout.blob_links(&repo));
                if exists {
                    local.names.cache.insert_repository(repo);
                }
                Ok(exists)
            })
            .await
    }

    fn cached_member(&self, repo: &RepoId, digest: &Digest) -> Option<Member> {
        self.rely_on_member(repo, digest);
        self.0.names.cache.member(repo, digest)
    }

    async fn member(&self, repo: &RepoId, digest: &Digest) -> Result<Option<Member>, StoreError> {
        self.rely_on_member(repo, digest);
        let (repo, digest) = (repo.clone(), digest.clone());
        self.0.run(move |local| local.load_member(repo, digest)).await
    }

    async fn link_blob(&self, repo: &RepoId, digest: &Digest, size: Option<u64>) -> Result<(), StoreError> {
        let (repo, digest) = (repo.clone(), digest.clone());
        self.0.run(move |local| local.link_blob(&repo, &digest, size)).await
    }

    async fn unlink_blob(&self, repo: &RepoId, digest: &Digest) -> Result<bool, StoreError> {
        let (repo, digest) = (repo.clone(), digest.clone());
        self.0
            .run(move |local| {
                let _locked = local.names.write(&repo);
                let existed = local.remove_member(&repo, &digest)?;
                local.remove_empty_local(&repo)?;
                Ok(existed)
            })
            .await
    }

    fn cached_manifest(&self, repo: &RepoId, digest: &Digest) -> Option<Arc<StoredManifest>> {
        self.rely_on_manifest(repo, digest);
        self.0.names.cache.manifest(repo, digest)
    }

    async fn manifest(&self, repo: &RepoId, digest: &Digest) -> Result<Option<Arc<StoredManifest>>, StoreError> {
        self.rely_on_manifest(repo, digest);
        let (repo, digest) = (repo.clone(), digest.clone());
        self.0.run(move |local| local.load_manifest(repo, &digest)).await
    }

    async fn has_manifest(&self, repo: &RepoId, digest: &Digest) -> Result<bool, StoreError> {
        self.rely_on_manifest(repo, digest);
        let (repo, digest) = (repo.clone(), digest.clone());
        self.0.run(move |local| Ok(local.layout.manifest_media_type(&repo, &digest)?.is_some())).await
    }

    async fn put_manifest(
        &self,
        repo: &RepoId,
        new: NewManifest,
        tags: Vec<Tag>,
    ) -> Result<Arc<StoredManifest>, StoreError> {
        let repo = repo.clone();
        self.0.run(move |local| local.put_manifest(&repo, new, &tags)).await
    }

    async fn delete_manifest(&self, repo: &RepoId, digest: &Digest) -> Result<bool, StoreError> {
        let (repo, digest) = (repo.clone(), digest.clone());
        self.0.run(move |local| local.delete_manifest(&repo, &digest)).await
    }

    fn cached_tag(&self, repo: &RepoId, tag: &Tag) -> Option<TagRecord> {
        self.0.names.cache.tag(repo, tag)
    }

    async fn tag(&self, repo: &RepoId, tag: &Tag) -> Result<Option<TagRecord>, StoreError> {
        let (repo, tag) = (repo.clone(), tag.clone());
        self.0.run(move |local| local.load_tag(repo, tag)).await
    }

    async fn compare_and_set_tag(
        &self,
        repo: &RepoId,
        tag: &Tag,
        old: Option<Digest>,
        new: TagRecord,
        rewrite: Duration,
    ) -> Result<bool, StoreError> {
        let (repo, tag) = (repo.clone(), tag.clone());
        self.0.run(move |local| local.compare_and_set_tag(repo, tag, old.as_ref(), new, rewrite)).await
    }

    async fn delete_tag(&self, repo: &RepoId, tag: &Tag) -> Result<bool, StoreError> {
        let (repo, tag) = (repo.clone(), tag.clone());
        self.0.run(move |local| local.delete_tag(&repo, &tag)).await
    }

    async fn tags(&self, repo: &RepoId, after: &str, limit: usize) -> Result<Page, StoreError> {
        let (repo, after) = (repo.clone(), after.to_owned());
        self.0.run(move |local| local.list_tags(&repo, &after, limit)).await
    }

    async fn local_repositories(&self, after: &str, limit: usize) -> Result<Page, StoreError> {
        let after = after.to_owned();
        self.0.run(move |local| local.list_local_repositories(&after, limit)).await
    }

    async fn referrers(&self, repo: &RepoId, subject: &Digest) -> Result<Vec<Digest>, StoreError> {
        let (repo, subject) = (repo.clone(), subject.clone());
        self.0.run(move |local| local.layout.read_referrers(&repo, &subject)).await
    }

    async fn find_pushed(&self, digest: &Digest, may_read: MayRead) -> Result<Option<RepoId>, StoreError> {
        let digest = digest.clone();
        self.0.run(move |local| local.find_pushed(&digest, &*may_read)).await
    }

    async fn find_proven(
        &self,
        scope: &Scope,
        digest: &Digest,
        may_share: MayRead,
    ) -> Result<Option<RepoId>, StoreError> {
        let (scope, digest) = (scope.clone(), digest.clone());
        self.0.run(move |local| local.find_proven(&scope, &digest, &*may_share)).await
    }
}

// === on the blocking pool ===

impl Local {
    /// With the repository's write lock held.
    pub(super) fn create_repository(&self, repo: &RepoId) -> Result<(), StoreError> {
        self.require_writable()?;
        let path = self.layout.blob_links(repo);
        create_folders(&path, repo.scope.is_local()).at("create", &path)?;
        self.index.apply(&[Change::Repository(repo)]);
        if repo.scope.is_local() {
            self.names.add_local(&repo.name);
        }
        Ok(())
    }

    /// Puts a name file in place by rename and creates the folders above it. With `durable`, it is durable before this
    /// returns.
    pub(super) fn write_name(&self, repo: &RepoId, path: &Path, text: &str, durable: bool) -> Result<(), StoreError> {
        self.require_writable()?;
        let temporary = Temporary::new(self.layout.temporary());
        let written = self.layout.with_folder(temporary.path(), fs::create_new).and_then(|mut file| {
            fs::write_all(&mut file, text.as_bytes())?;
            if durable && !text.is_empty() { fs::sync_all(&file) } else { Ok(()) }
        });
        written.at("write", temporary.path())?;
        let folder = path.parent().unwrap_or(self.layout.root());
        let is_new = !durable && optional(fs::metadata(path)).at("stat", path)?.is_none();
        let renamed = match self.layout.replace(temporary.path(), path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                create_folders(folder, durable).at("create", folder)?;
                self.layout.replace(temporary.path(), path)
            }
            renamed => renamed,
        };
        renamed.at("rename", path)?;
        if is_new {
            self.cache.space().add_names(repo, 1);
        }
        if durable { sync_folder(folder).at("sync", folder) } else { Ok(()) }
    }

    /// Makes an existing local name durable: the process that wrote it may have been stopped before its sync.
    pub(super) fn sync_name(&self, repo: &RepoId, path: &Path) -> Result<(), StoreError> {
        let folder = path.parent().unwrap_or(self.layout.root());
        if repo.scope.is_local() { sync_folder(folder).at("sync", folder) } else { Ok(()) }
    }

    /// Removes a name file; for a local repository, durably. Whether it existed.
    pub(super) fn remove_name(&self, repo: &RepoId, path: &Path) -> Result<bool, StoreError> {
        self.require_writable()?;
        if optional(fs::remove_file(path)).at("remove", path)?.is_none() {
            return Ok(false);
        }
        if repo.scope.is_local() {
            let folder = path.parent().unwrap_or(self.layout.root());
            sync_folder(folder).at("sync", folder)?;
        } else {
            self.cache.space().add_names(repo, -1);
        }
        Ok(true)
    }

    /// As [`Local::remove_name`], and emits `event` if the name is gone by this call. It is emitted after a failed sync as well,
    /// because a second attempt would find nothing to remove.
    pub(super) fn remove_reported_name(
        &self,
        repo: &RepoId,
        path: &Path,
        event: StoreEvent,
    ) -> Result<bool, StoreError> {
        let existed = fs::exists(path);
        let removed = self.remove_name(repo, path);
        if existed && !fs::exists(path) {
            self.emit(event);
        }
        removed
    }

    /// Moves a corrupt name file to `quarantine/`, for an analysis. With the repository's write lock held.
    pub(in crate::store) fn quarantine_name(&self, repo: &RepoId, name: &Name<'_>) -> Result<(), StoreError> {
        let (path, aside) = (self.layout.name_path(repo, name), self.layout.quarantined_name());
        self.layout.with_folder(&aside, |aside| fs::rename(&path, aside)).at("rename", &path)?;
        match name {
            Name::Tag(tag) => {
                self.index.apply(&[Change::NoTag(repo, tag)]);
                self.names.cache.remove_tag(repo, tag);
                self.emit(StoreEvent::TagRemoved { repo: repo.clone(), tag: (*tag).clone() });
            }
            Name::Manifest(digest) => {
                self.names.cache.remove_manifest(repo, digest);
                self.emit(StoreEvent::ManifestRemoved { repo: repo.clone(), digest: (*digest).clone() });
            }
            Name::Blob(digest) => {
                self.names.cache.remove_member(repo, digest);
                if repo.scope.is_local() {
                    self.emit(StoreEvent::BlobRemoved { repo: repo.clone(), digest: (*digest).clone() });
                }
            }
        }
        let (path, aside) = (path.display(), aside.display());
        tracing::error!(%repo, %path, %aside, "a name file is corrupt; it is moved to quarantine/");
        Ok(())
    }

    /// Removes the folders of a repository without names, and the empty folders above them. False if it has names. With
    /// the repository's write lock held.
    pub(in crate::store) fn remove_empty_repository(&self, repo: &RepoId) -> Result<bool, StoreError> {
        let empty = self.layout.remove_empty(repo);
        if empty {
            self.index.apply(&[Change::NoRepository(repo)]);
            if repo.scope.is_local() {
                self.names.remove_local(&repo.name);
            }
        }
        Ok(empty)
    }

    /// Removes a local repository if it has no names left. A mirrored one is left to the sweep, because it is likely to
    /// be requested again. With the repository's write lock held.
    pub(super) fn remove_empty_local(&self, repo: &RepoId) -> Result<(), StoreError> {
        if repo.scope.is_local() { self.remove_empty_repository(repo).map(drop) } else { Ok(()) }
    }

    /// Removes a local repository that a crash or an earlier version has left without names.
    pub(in crate::store) fn remove_if_empty(&self, repo: &RepoId) -> Result<(), StoreError> {
        let _locked = self.names.write(repo);
        self.remove_empty_local(repo)
    }
}

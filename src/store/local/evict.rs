//! Evicting one piece of content and the names that lead to it.

use std::collections::HashSet;

use super::Local;
use super::layout::Temporary;
use crate::events::{EvictionReason, StoreEvent};
use crate::oci::{Digest, Manifest, RepoId};
use crate::store::cache::Evict;
use crate::store::error::{At, StoreError, optional};
use crate::store::fs;
use crate::store::records::Class;

/// Manifests of one repository that are read when one of them is evicted. In larger ones the sweep removes links.
const MAX_SIBLING_MANIFESTS: usize = 100;

impl Evict for Local {
    fn may_evict(&self) -> bool {
        self.index.is_ready() && !self.leases.are_held()
    }

    fn refresh_pins(&self) -> Result<(), StoreError> {
        self.update_pins()
    }

    fn evict(&self, digest: &Digest, reason: EvictionReason) -> Result<bool, StoreError> {
        let Some(_may_unlink) = self.leases.may_unlink() else { return Ok(false) };
        // Asked again below, where no reader can start.
        if self.content.open_files().is_read(digest) {
            return Ok(false);
        }
        // The index takes it for cached content, and its mode is checked below. Both may have been lost in a copy. A request
        // that links the content after this check marks the file first.
        if self.is_linked_locally(digest)? {
            self.restore_pushed_class(digest)?;
            return Ok(false);
        }
        self.remove_manifest_everywhere(digest)?;
        match self.remove_cached_file(digest)? {
            FileRemoval::Kept => return Ok(false),
            FileRemoval::AlreadyGone => {}
            FileRemoval::Removed { bytes } => {
                tracing::debug!(%digest, bytes, reason = reason.as_str(), "evicted content");
                self.emit(StoreEvent::Evicted { digest: digest.clone(), bytes, reason });
            }
        }
        Ok(true)
    }
}

/// What became of the file of content that was to be evicted.
enum FileRemoval {
    /// It has a reader, or is pushed content.
    Kept,
    AlreadyGone,
    Removed {
        bytes: u64,
    },
}

impl Local {
    fn remove_cached_file(&self, digest: &Digest) -> Result<FileRemoval, StoreError> {
        let aside = Temporary::new(self.layout.temporary());
        let _locked = self.content.lock(digest);
        let path = self.layout.blob(digest);
        let Some(metadata) = optional(fs::metadata(&path)).at("stat", &path)? else {
            self.record_removed(digest);
            return Ok(FileRemoval::AlreadyGone);
        };
        let known = self.index.blob(digest).map(|blob| blob.class);
        if known == Some(Class::Pushed) || self.has_pushed_mode(&metadata) {
            self.record_stored(digest, metadata.len(), Class::Pushed);
            return Ok(FileRemoval::Kept);
        }
        // Without an index, a request that has linked the content since the first check is not known to it.
        let without_index = !self.index.is_open();
        if without_index && (self.content.pending_links().contains(digest) || self.is_linked_locally(digest)?) {
            return Ok(FileRemoval::Kept);
        }
        // Renamed first and removed after the locks are released: removing a large file takes a while.
        let rename = || self.layout.with_folder(aside.path(), |aside| fs::rename(&path, aside));
        let Some(moved) = self.content.open_files().unless_read(digest, rename) else { return Ok(FileRemoval::Kept) };
        moved.at("rename", &path)?;
        self.record_removed(digest);
        Ok(FileRemoval::Removed { bytes: metadata.len() })
    }

    /// Marks content as pushed that was taken for cached content although a local repository links to it.
    fn restore_pushed_class(&self, digest: &Digest) -> Result<(), StoreError> {
        self.record_linked_locally(digest)?;
        tracing::warn!(%digest, "content was taken for cached, but a local repository has it; it stays");
        Ok(())
    }

    /// Removes a cached manifest from the mirrored repositories that it belongs to. Without effect for other content.
    fn remove_manifest_everywhere(&self, digest: &Digest) -> Result<(), StoreError> {
        let repositories = self.index.linked_in(digest);
        if repositories.is_empty() {
            return Ok(());
        }
        let manifest = self.layout.parse_manifest(digest)?.unwrap_or_default();
        for repo in repositories.iter().filter(|repo| !repo.scope.is_local()) {
            self.remove_manifest_and_members(repo, digest, &manifest)?;
        }
        Ok(())
    }

    /// Removes a manifest's link and tags, and the links of its children that no other manifest needs. In a repository with
    /// very many manifests, links to stored children are left to the sweep.
    fn remove_manifest_and_members(
        &self,
        repo: &RepoId,
        digest: &Digest,
        manifest: &Manifest,
    ) -> Result<(), StoreError> {
        let _locked = self.names.write(repo);
        self.remove_manifest(repo, digest, manifest.subject.as_ref())?;
        let needed = self.needed_by_manifests(repo)?;
        for child in &manifest.children {
            let is_unneeded = needed.as_ref().is_some_and(|needed| !needed.contains(&child.digest));
            if is_unneeded || !self.layout.has_content(&child.digest)? {
                self.remove_member(repo, &child.digest)?;
            }
        }
        self.remove_empty_repository(repo).map(drop)
    }

    /// The children of all manifests of a repository; `None` if there are too many manifests to read.
    fn needed_by_manifests(&self, repo: &RepoId) -> Result<Option<HashSet<Digest>>, StoreError> {
        let manifests = self.layout.links_below(&self.layout.manifests(repo))?;
        if manifests.len() > MAX_SIBLING_MANIFESTS {
            return Ok(None);
        }
        let mut needed = HashSet::new();
        for digest in manifests {
            let children = self.layout.parse_manifest(&digest)?.unwrap_or_default().children;
            needed.extend(children.into_iter().map(|child| child.digest));
        }
        Ok(Some(needed))
    }
}

//! Removing what the collector found unreferenced, unless a requester has come to rely on it since.

use std::path::Path;

use super::Local;
use super::layout::{Temporary, sync_folder};
use crate::events::StoreEvent;
use crate::oci::{Digest, RepoId};
use crate::store::error::{At, StoreError, optional};
use crate::store::fs;
use crate::store::records::Unreferenced;

/// What was removed, or would be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::store) enum Removed {
    /// Nothing: it is referenced again, or a lease holds back removals.
    Nothing,
    /// Content of so many bytes.
    Content(u64),
    Member,
    Manifest,
}

impl Local {
    /// Removes a candidate that is still marked. With `dry_run`, only says what would be removed.
    pub(in crate::store) fn remove_unreferenced(
        &self,
        candidate: &Unreferenced,
        dry_run: bool,
    ) -> Result<Removed, StoreError> {
        match candidate {
            Unreferenced::Content(digest) => {
                let bytes = self.remove_unreferenced_content(digest, candidate, dry_run)?;
                Ok(bytes.map_or(Removed::Nothing, Removed::Content))
            }
            Unreferenced::Member(repo, digest) => self.remove_unreferenced_member(repo, digest, candidate, dry_run),
            Unreferenced::Manifest(repo, digest) => self.remove_untagged_manifest(repo, digest, candidate, dry_run),
        }
    }

    fn remove_unreferenced_content(
        &self,
        digest: &Digest,
        candidate: &Unreferenced,
        dry_run: bool,
    ) -> Result<Option<u64>, StoreError> {
        let Some(_may_unlink) = self.leases.may_unlink() else { return Ok(None) };
        let aside = Temporary::new(self.layout.temporary());
        let _locked = self.content.lock(digest);
        let path = self.layout.blob(digest);
        let Some(metadata) = optional(fs::metadata(&path)).at("stat", &path)? else { return Ok(None) };
        // In this order: a link is written before its announcement ends.
        if self.content.pending_links().contains(digest) || self.is_linked_locally(digest)? {
            return Ok(None);
        }
        let moved = self.marks.if_marked(candidate, || {
            if dry_run {
                return Ok(());
            }
            self.layout.with_folder(aside.path(), |aside| fs::rename(&path, aside))
        });
        let removed = moved.transpose().at("rename", &path)?.is_some();
        if removed && !dry_run {
            self.content.open_files().forget(digest);
            self.record_removed(digest);
            self.emit(StoreEvent::Collected { digest: digest.clone(), bytes: metadata.len() });
        }
        Ok(removed.then_some(metadata.len()))
    }

    fn remove_unreferenced_member(
        &self,
        repo: &RepoId,
        digest: &Digest,
        candidate: &Unreferenced,
        dry_run: bool,
    ) -> Result<Removed, StoreError> {
        let _locked = self.names.write(repo);
        let link = self.layout.blob_link(repo, digest);
        let invalidate = || self.names.cache().remove_member(repo, digest);
        let event = StoreEvent::BlobRemoved { repo: repo.clone(), digest: digest.clone() };
        let removed = self.unlink_if_marked(candidate, &link, dry_run, invalidate, event)?;
        if removed && !dry_run {
            self.remove_empty_local(repo)?;
        }
        Ok(if removed { Removed::Member } else { Removed::Nothing })
    }

    fn remove_untagged_manifest(
        &self,
        repo: &RepoId,
        digest: &Digest,
        candidate: &Unreferenced,
        dry_run: bool,
    ) -> Result<Removed, StoreError> {
        let _locked = self.names.write(repo);
        let link = self.layout.manifest_link(repo, digest);
        let invalidate = || self.names.cache().remove_manifest(repo, digest);
        let event = StoreEvent::ManifestRemoved { repo: repo.clone(), digest: digest.clone() };
        if !self.unlink_if_marked(candidate, &link, dry_run, invalidate, event)? {
            return Ok(Removed::Nothing);
        }
        if !dry_run {
            // The rest of it: its entry among the referrers of its subject.
            self.remove_manifest(repo, digest, self.subject_of(digest)?.as_ref())?;
            self.remove_empty_local(repo)?;
        }
        Ok(Removed::Manifest)
    }

    /// Removes a link of a local repository, durably, with the repository's write lock held, and emits `event`. False if it is
    /// not marked any more, or a client has deleted it since it was found.
    fn unlink_if_marked(
        &self,
        candidate: &Unreferenced,
        link: &Path,
        dry_run: bool,
        invalidate: impl FnOnce(),
        event: StoreEvent,
    ) -> Result<bool, StoreError> {
        let removed = self.marks.if_marked(candidate, || {
            if dry_run {
                return Ok(fs::exists(link));
            }
            let removed = optional(fs::remove_file(link))?.is_some();
            invalidate();
            Ok(removed)
        });
        let removed = removed.transpose().at("remove", link)?.unwrap_or(false);
        if removed && !dry_run {
            // Before the sync, which may fail: the next pass would find nothing to remove.
            self.emit(event);
            let folder = link.parent().unwrap_or(self.layout.root());
            sync_folder(folder).at("sync", folder)?;
        }
        Ok(removed)
    }
}

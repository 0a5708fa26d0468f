//! Removing names of mirrored repositories that have become useless. Which ones are looked at is up to `upkeep::sweep`.

use std::time::Duration;

use super::Local;
use crate::oci::{Digest, RepoId, Tag};
use crate::store::error::{At, StoreError, optional};
use crate::store::fs;

/// A younger link to a blob that is not stored may be needed soon: its manifest was just served, or its fill has started.
const MIN_LINK_AGE: Duration = Duration::from_secs(60 * 60);

impl Local {
    /// Removes a tag that its upstream has not confirmed for `unconfirmed`, or whose manifest is gone. Whether it was removed.
    pub(in crate::store) fn sweep_tag(
        &self,
        repo: &RepoId,
        tag: &Tag,
        unconfirmed: Duration,
    ) -> Result<bool, StoreError> {
        let _locked = self.names.write(repo);
        let on_disk = self.layout.read_tag(repo, tag)?.map(|record| record.confirmed);
        // The memory cache may know of a later confirmation than the file.
        let confirmed = on_disk.map(|on_disk| match self.names.cache().tag(repo, tag) {
            Some(record) => record.confirmed.max(on_disk),
            None => on_disk,
        });
        let expired = confirmed.is_none_or(|at| self.ages.age(at) > unconfirmed);
        if !expired || (confirmed.is_some() && self.cache.pins().covers(repo, tag)) {
            return Ok(false);
        }
        self.remove_tag(repo, tag)?;
        Ok(true)
    }

    /// Removes the link of a manifest whose content is gone. Whether it still was.
    pub(in crate::store) fn sweep_manifest(&self, repo: &RepoId, digest: &Digest) -> Result<bool, StoreError> {
        let _locked = self.names.write(repo);
        let gone = !self.layout.has_content(digest)?;
        if gone {
            self.remove_manifest(repo, digest, None)?;
        }
        Ok(gone)
    }

    /// Removes an old link to a blob that is not stored. Whether it was removed.
    pub(in crate::store) fn sweep_member(&self, repo: &RepoId, digest: &Digest) -> Result<bool, StoreError> {
        let _locked = self.names.write(repo);
        let path = self.layout.blob_link(repo, digest);
        let Some(metadata) = optional(fs::metadata(&path)).at("stat", &path)? else { return Ok(false) };
        let is_young = metadata.modified().is_ok_and(|at| self.ages.age(at) < MIN_LINK_AGE);
        if is_young || self.layout.has_content(digest)? {
            return Ok(false);
        }
        self.remove_member(repo, digest)
    }

    /// Removes referrers of manifests that are gone, and the repository itself if it is empty. How many links were removed,
    /// and whether the repository was.
    pub(in crate::store) fn sweep_rest(&self, repo: &RepoId) -> Result<(u64, bool), StoreError> {
        let _locked = self.names.write(repo);
        let links = self.sweep_referrers(repo)?;
        Ok((links, self.remove_empty_repository(repo)?))
    }
}

//! Which manifests name another one as their subject: `_referrers/<alg>/<subject>/<alg>-<hex>`, empty files.
//!
//! The link is written before the manifest's own and removed after it, so a listing believes only links whose manifest
//! belongs to the repository.

use super::error::{At, StoreError, optional};
use super::fs;
use super::layout::Layout;
use super::{Inner, Store};
use crate::oci::{Digest, Manifest, RepoId};

impl Store {
    /// The manifests of the repository whose subject is `subject`, in the order of their digests.
    pub async fn referrers(&self, repo: &RepoId, subject: &Digest) -> Result<Vec<Digest>, StoreError> {
        let (repo, subject) = (repo.clone(), subject.clone());
        self.run(move |inner| inner.layout.read_referrers(&repo, &subject)).await
    }
}

impl Layout {
    pub(super) fn read_referrers(&self, repo: &RepoId, subject: &Digest) -> Result<Vec<Digest>, StoreError> {
        let path = self.referrers(repo, subject);
        let Some(entries) = optional(fs::read_dir(&path)).at("read", &path)? else { return Ok(Vec::new()) };
        let mut referrers = Vec::new();
        for entry in entries {
            let name = entry.at("read", &path)?.file_name();
            let digest = name.to_str().and_then(|name| name.replacen('-', ":", 1).parse().ok());
            referrers.extend(digest);
        }
        referrers.sort_unstable();
        Ok(referrers)
    }
}

impl Inner {
    /// Removes the places of manifests that do not belong to the repository any more; how many. With its write lock held.
    pub(super) fn sweep_referrers(&self, repo: &RepoId) -> Result<u64, StoreError> {
        let mut removed = 0;
        for subject in self.layout.links_below(&self.layout.referrer_folders(repo))? {
            for digest in self.layout.read_referrers(repo, &subject)? {
                if self.layout.manifest_media_type(repo, &digest)?.is_none() {
                    removed += u64::from(self.remove_name(repo, &self.layout.referrer_link(repo, &subject, &digest))?);
                }
            }
        }
        Ok(removed)
    }

    /// With the repository's write lock held.
    pub(super) fn link_referrer(&self, repo: &RepoId, digest: &Digest, manifest: &Manifest) -> Result<(), StoreError> {
        match &manifest.subject {
            Some(subject) => {
                let path = self.layout.referrer_link(repo, subject, digest);
                self.write_name(repo, &path, "", repo.scope.is_local())
            }
            None => Ok(()),
        }
    }
}

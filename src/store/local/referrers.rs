//! Referrers: `_referrers/<alg>/<subject>/<alg>-<hex>`, an empty file for each manifest that names another as its subject.
//!
//! The entry is written before the manifest's own link and removed after it, so a listing may hold entries of manifests that
//! do not belong to the repository. Its reader looks each of them up.

use super::Local;
use super::layout::Layout;
use crate::oci::{Digest, Manifest, RepoId};
use crate::store::error::{At, StoreError, optional};
use crate::store::fs;

impl Layout {
    /// The entries of a subject, in the order of their digests.
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

impl Local {
    /// Removes the entries of manifests that no longer belong to the repository. How many. With its write lock held.
    pub(super) fn sweep_referrers(&self, repo: &RepoId) -> Result<u64, StoreError> {
        let mut removed = 0;
        for subject in self.layout.subjects(repo)? {
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
        let Some(subject) = &manifest.subject else { return Ok(()) };
        let path = self.layout.referrer_link(repo, subject, digest);
        self.write_name(repo, &path, "", repo.scope.is_local())
    }
}

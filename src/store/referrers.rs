//! Which manifests name another one as their subject: `_referrers/<alg>/<subject>/<alg>-<hex>`, empty files.
//!
//! The link is written before the manifest's own and removed after it, so a listing believes only links whose manifest
//! belongs to the repository.

use std::fs;

use super::error::{At, StoreError, optional};
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
    fn read_referrers(&self, repo: &RepoId, subject: &Digest) -> Result<Vec<Digest>, StoreError> {
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
    /// With the repository's write lock held.
    pub(super) fn link_referrer(&self, repo: &RepoId, digest: &Digest, manifest: &Manifest) -> Result<(), StoreError> {
        match &manifest.subject {
            Some(subject) => {
                let path = self.layout.referrer_link(repo, subject, digest);
                self.write_name(&path, "", repo.scope.is_local())
            }
            None => Ok(()),
        }
    }

    /// With the repository's write lock held.
    pub(super) fn unlink_referrer(&self, repo: &RepoId, digest: &Digest) -> Result<(), StoreError> {
        let content = self.layout.read_content(digest, Manifest::MAX_LENGTH)?;
        let manifest = content.and_then(|bytes| Manifest::parse(&bytes).ok());
        match manifest.and_then(|manifest| manifest.subject) {
            Some(subject) => self.remove_name(&self.layout.referrer_link(repo, &subject, digest)).map(drop),
            None => Ok(()),
        }
    }
}

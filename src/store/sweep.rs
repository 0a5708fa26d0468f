//! The names of mirrored repositories, gone over from time to time: those that stand for nothing any more go, so that names
//! do not grow for ever.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use super::error::{At, StoreError, optional};
use super::fs;
use super::{Inner, Store};
use crate::oci::{Digest, Manifest, RepoId, Scope, Tag};

/// A link to a blob that is not here may be about to be needed: its manifest was just served, or its fill has begun.
const YOUNG: Duration = Duration::from_secs(60 * 60);

/// What a sweep removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Swept {
    pub tags: u64,
    pub links: u64,
    pub repositories: u64,
}

impl Store {
    /// Removes from mirrored repositories the tags that no upstream has confirmed for `unused`, those whose manifest is
    /// gone, the links of manifests that are gone, and links of blobs that nothing refers to. Blocks, for as long as a
    /// walk of all names takes or until `stop` is set.
    pub fn sweep(&self, unused: Duration, stop: &AtomicBool) -> Result<Swept, StoreError> {
        let mut swept = Swept::default();
        let inner = &self.inner;
        for scope in inner.scopes()?.into_iter().filter(|scope| *scope != Scope::Local) {
            let mut repositories = Vec::new();
            inner.walk_repositories(&scope, &mut |repo| {
                repositories.push(repo);
                Ok(!stop.load(Ordering::Relaxed))
            })?;
            for repo in repositories {
                if stop.load(Ordering::Relaxed) {
                    return Ok(swept);
                }
                inner.sweep_repository(&repo, unused, &mut swept)?;
            }
        }
        Ok(swept)
    }
}

impl Inner {
    fn sweep_repository(&self, repo: &RepoId, unused: Duration, swept: &mut Swept) -> Result<(), StoreError> {
        for tag in self.layout.tags_on_disk(repo)? {
            swept.tags += u64::from(self.sweep_tag(repo, &tag, unused)?);
        }
        let mut needed = HashSet::new();
        for digest in self.layout.links_below(&self.layout.manifests(repo))? {
            match self.layout.read_content(&digest, Manifest::MAX_LENGTH)? {
                Some(bytes) => {
                    let children = Manifest::parse(&bytes).unwrap_or_default().children;
                    needed.extend(children.into_iter().map(|child| child.digest));
                }
                None => swept.links += u64::from(self.sweep_manifest(repo, &digest)?),
            }
        }
        let members = self.layout.links_below(&self.layout.blob_links(repo))?;
        for digest in members.into_iter().filter(|digest| !needed.contains(digest)) {
            swept.links += u64::from(self.sweep_member(repo, &digest)?);
        }
        let _locked = self.repositories.write(repo);
        swept.links += self.sweep_referrers(repo)?;
        swept.repositories += u64::from(self.remove_empty(repo)?);
        Ok(())
    }

    fn sweep_tag(&self, repo: &RepoId, tag: &Tag, unused: Duration) -> Result<bool, StoreError> {
        let _locked = self.repositories.write(repo);
        let confirmed = self.layout.read_tag(repo, tag)?.map(|record| record.confirmed);
        // The front may know of a later confirmation than the file.
        let confirmed = confirmed.map(|on_disk| match self.front.tags.get(&(repo.clone(), tag.clone())) {
            Some(record) => record.confirmed.max(on_disk),
            None => on_disk,
        });
        let over = confirmed.is_none_or(|at| SystemTime::now().duration_since(at).is_ok_and(|age| age > unused));
        if !over || (confirmed.is_some() && self.pins.covers(repo, tag)) {
            return Ok(false);
        }
        self.remove_tag(repo, tag)?;
        Ok(true)
    }

    /// The link of a manifest whose content is not here. It may have come back meanwhile.
    fn sweep_manifest(&self, repo: &RepoId, digest: &Digest) -> Result<bool, StoreError> {
        let _locked = self.repositories.write(repo);
        let gone = !self.is_file(digest)?;
        if gone {
            self.remove_manifest(repo, digest, None)?;
        }
        Ok(gone)
    }

    fn sweep_member(&self, repo: &RepoId, digest: &Digest) -> Result<bool, StoreError> {
        let _locked = self.repositories.write(repo);
        let path = self.layout.blob_link(repo, digest);
        let Some(metadata) = optional(fs::metadata(&path)).at("stat", &path)? else { return Ok(false) };
        let young = metadata.modified().is_ok_and(|at| at.elapsed().is_ok_and(|age| age < YOUNG));
        if young || self.is_file(digest)? {
            return Ok(false);
        }
        self.remove_member(repo, digest)
    }

    /// Whether there is content under a digest.
    pub(super) fn is_file(&self, digest: &Digest) -> Result<bool, StoreError> {
        let path = self.layout.blob(digest);
        Ok(optional(fs::metadata(&path)).at("stat", &path)?.is_some())
    }
}

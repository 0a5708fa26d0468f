//! Which content is pinned: everything that the tags of pinned images reach.

use std::collections::HashSet;

use super::Local;
use crate::oci::{Digest, RepoId, Scope, Tag};
use crate::store::error::StoreError;

impl Local {
    /// A tag points to something else from now on, or to nothing.
    pub(super) fn pins_may_change(&self, repo: &RepoId, tag: &Tag) {
        if self.cache.pins().covers(repo, tag) {
            self.cache.pins().set_outdated();
        }
    }

    /// A manifest was stored. If it is pinned, its children are from now on.
    pub(super) fn pins_may_grow(&self, manifest: &Digest) {
        if self.cache.pins().are_configured() && self.cache.is_pinned(manifest) {
            self.cache.pins().set_outdated();
        }
    }

    /// Finds what is pinned, if that may have changed.
    pub(super) fn update_pins(&self) -> Result<(), StoreError> {
        if !self.cache.pins().take_outdated() {
            return Ok(());
        }
        let pinned = self.find_pinned().inspect_err(|_| self.cache.pins().set_outdated())?;
        self.cache.set_pinned(pinned);
        Ok(())
    }

    fn find_pinned(&self) -> Result<HashSet<Digest>, StoreError> {
        let mut pinned = HashSet::new();
        for scope in self.scopes()?.into_iter().filter(|scope| *scope != Scope::Local) {
            self.walk_repositories(&scope, &mut |repo| {
                for tag in self.layout.tags_on_disk(&repo)?.iter().filter(|tag| self.cache.pins().covers(&repo, tag)) {
                    if let Some(record) = self.layout.read_tag(&repo, tag)? {
                        self.add_reachable(record.digest, &mut pinned)?;
                    }
                }
                Ok(true)
            })?;
        }
        Ok(pinned)
    }

    /// Adds a manifest and everything below it.
    fn add_reachable(&self, root: Digest, pinned: &mut HashSet<Digest>) -> Result<(), StoreError> {
        let mut manifests = vec![root];
        while let Some(digest) = manifests.pop() {
            if !pinned.insert(digest.clone()) {
                continue;
            }
            for child in self.layout.parse_manifest(&digest)?.unwrap_or_default().children {
                if child.is_manifest {
                    manifests.push(child.digest);
                } else {
                    pinned.insert(child.digest);
                }
            }
        }
        Ok(())
    }
}

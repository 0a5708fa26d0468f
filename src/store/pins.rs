//! Pinned images: content that tags of certain names lead to is kept whatever happens.

use std::collections::HashSet;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};

use super::Inner;
use super::error::StoreError;
use crate::oci::{Digest, Manifest, RepoId, Scope, Tag};

/// Says of an image of a mirrored repository whether it is kept whatever happens.
pub type PinRule = Box<dyn Fn(&RepoId, &Tag) -> bool + Send + Sync>;

/// What is pinned is found out from the files when something has changed that may matter, and kept as digests.
pub(super) struct Pins {
    rule: Option<PinRule>,
    stale: AtomicBool,
}

impl Pins {
    pub(super) fn new(rule: Option<PinRule>) -> Self {
        Self { stale: AtomicBool::new(rule.is_some()), rule }
    }

    pub(super) fn covers(&self, repo: &RepoId, tag: &Tag) -> bool {
        !repo.scope.is_local() && self.rule.as_ref().is_some_and(|rule| rule(repo, tag))
    }

    fn outdate(&self) {
        self.stale.store(true, Ordering::Release);
    }
}

impl Inner {
    /// A tag means something else from now on, or nothing.
    pub(super) fn tag_changed(&self, repo: &RepoId, tag: &Tag) {
        if self.pins.covers(repo, tag) {
            self.pins.outdate();
        }
    }

    /// A manifest has come: what it refers to may be pinned with it.
    pub(super) fn manifest_came(&self, digest: &Digest) {
        if self.pins.rule.is_some() && self.recency.segments.lock().is_pinned(digest) {
            self.pins.outdate();
        }
    }

    /// Finds out what is pinned, if that may have changed.
    pub(super) fn refresh_pins(&self) -> Result<(), StoreError> {
        if !self.pins.stale.swap(false, Ordering::AcqRel) {
            return Ok(());
        }
        match self.find_pinned() {
            Ok(pinned) => {
                self.recency.segments.lock().pin(pinned);
                Ok(())
            }
            Err(error) => {
                self.pins.outdate();
                Err(error)
            }
        }
    }

    fn find_pinned(&self) -> Result<HashSet<Digest>, StoreError> {
        let mut pinned = HashSet::new();
        for scope in self.scopes()?.into_iter().filter(|scope| *scope != Scope::Local) {
            self.walk_repositories(&scope, &mut |repo| {
                for tag in self.layout.tags_on_disk(&repo)?.iter().filter(|tag| self.pins.covers(&repo, tag)) {
                    if let Some(record) = self.layout.read_tag(&repo, tag)? {
                        self.pin_all_below(record.digest, &mut pinned)?;
                    }
                }
                Ok(true)
            })?;
        }
        Ok(pinned)
    }

    fn pin_all_below(&self, root: Digest, pinned: &mut HashSet<Digest>) -> Result<(), StoreError> {
        let mut manifests = vec![root];
        while let Some(digest) = manifests.pop() {
            if !pinned.insert(digest.clone()) {
                continue;
            }
            let Some(bytes) = self.layout.read_content(&digest, Manifest::MAX_LENGTH)? else { continue };
            for child in Manifest::parse(&bytes).unwrap_or_default().children {
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

impl fmt::Debug for Pins {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pins").field("any", &self.rule.is_some()).finish_non_exhaustive()
    }
}

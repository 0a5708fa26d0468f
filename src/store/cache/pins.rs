//! Pins: the rule that says which images are never evicted, and whether the set of pinned content is up to date.
//!
//! The set itself is part of the eviction order. The store finds it by a walk of the names when a change may matter.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::oci::{RepoId, Tag};

/// Whether an image of a mirrored repository, named by its tag, is pinned.
pub type PinRule = Box<dyn Fn(&RepoId, &Tag) -> bool + Send + Sync>;

pub(in crate::store) struct Pins {
    rule: Option<PinRule>,
    outdated: AtomicBool,
}

impl Pins {
    pub(super) fn new(rule: Option<PinRule>) -> Self {
        Self { outdated: AtomicBool::new(rule.is_some()), rule }
    }

    /// Whether there is a rule at all.
    pub(in crate::store) fn are_configured(&self) -> bool {
        self.rule.is_some()
    }

    pub(in crate::store) fn covers(&self, repo: &RepoId, tag: &Tag) -> bool {
        !repo.scope.is_local() && self.rule.as_ref().is_some_and(|rule| rule(repo, tag))
    }

    /// A change may have made the set of pinned content outdated.
    pub(in crate::store) fn set_outdated(&self) {
        self.outdated.store(true, Ordering::Release);
    }

    /// Whether the set is outdated; it counts as up to date from now on.
    pub(in crate::store) fn take_outdated(&self) -> bool {
        self.outdated.swap(false, Ordering::AcqRel)
    }
}

impl fmt::Debug for Pins {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pins").field("configured", &self.rule.is_some()).finish_non_exhaustive()
    }
}

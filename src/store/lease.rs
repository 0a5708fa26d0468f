//! Backup leases: while one is held no file of a blob is removed, so that a copy of the names, made first, finds all it
//! names when the blobs are copied after them.
//!
//! Names go on changing; only what would unlink content waits. A lease ends by itself, so that a backup that died does not
//! fill the disk. It is not kept over a restart: whoever renews it is told that it is gone.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use parking_lot::{RwLock, RwLockReadGuard};

use super::{Inner, Store};

#[derive(Debug, Default)]
pub(super) struct Leases(RwLock<HashMap<String, Instant>>);

/// The right to unlink content, held while that is done: no lease begins meanwhile.
#[must_use = "it is the right only while it is held"]
pub(super) struct MayUnlink<'a>(
    #[expect(dead_code, reason = "holds the lock")] RwLockReadGuard<'a, HashMap<String, Instant>>,
);

impl Store {
    /// From now on no content is unlinked, for at most `time`. Waits for an unlink that is under way. Taking a lease that
    /// is held renews it; whether it was.
    pub fn hold_deletions(&self, name: &str, time: Duration) -> bool {
        let now = Instant::now();
        let mut leases = self.inner.leases.0.write();
        leases.retain(|_, until| *until > now);
        leases.insert(name.to_owned(), now + time).is_some()
    }

    /// Ends a lease; whether it was held.
    pub fn release_deletions(&self, name: &str) -> bool {
        self.inner.leases.0.write().remove(name).is_some_and(|until| until > Instant::now())
    }

    /// Whether a lease forbids to unlink content. For what can be put off; an unlink itself asks [`Inner::may_unlink`].
    pub fn deletions_held(&self) -> bool {
        self.inner.leases.are_held()
    }
}

impl Inner {
    /// To be asked, and held, by everything that unlinks the file of a blob. `None`: a lease forbids it.
    #[expect(dead_code, reason = "asked by what evicts and collects")]
    pub(super) fn may_unlink(&self) -> Option<MayUnlink<'_>> {
        self.leases.may_unlink()
    }
}

impl Leases {
    fn are_held(&self) -> bool {
        let now = Instant::now();
        self.0.read().values().any(|until| *until > now)
    }

    fn may_unlink(&self) -> Option<MayUnlink<'_>> {
        let leases = self.0.read();
        let now = Instant::now();
        leases.values().all(|until| *until <= now).then(|| MayUnlink(leases))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_ends_with_its_time_and_each_by_itself() {
        let leases = Leases::default();
        assert!(!leases.are_held() && leases.may_unlink().is_some());
        let now = Instant::now();
        leases.0.write().insert("past".to_owned(), now);
        assert!(!leases.are_held() && leases.may_unlink().is_some());
        leases.0.write().insert("held".to_owned(), now + Duration::from_secs(60));
        assert!(leases.are_held() && leases.may_unlink().is_none());
    }

    #[test]
    fn no_lease_begins_in_the_middle_of_an_unlink() {
        let leases = Leases::default();
        let unlinking = leases.may_unlink();
        assert!(leases.0.try_write().is_none());
        drop(unlinking);
        assert!(leases.0.try_write().is_some());
    }
}

//! Backup leases: while one is held no file of a blob is removed, so that a copy of the names, made first, finds all it
//! names when the blobs are copied after them.
//!
//! Names go on changing; only what would unlink content waits. A lease ends by itself, so that a backup that died does not
//! fill the disk. It is not kept over a restart: whoever renews it is told that it is gone.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use parking_lot::{Mutex, RwLock, RwLockReadGuard};

use super::{Inner, Store};

#[derive(Debug, Default)]
pub(super) struct Leases {
    /// By name, until when. Held for a moment only.
    until: Mutex<HashMap<String, Instant>>,
    /// Read while content is unlinked.
    unlinking: RwLock<()>,
}

/// The right to unlink content, held while that is done: a lease that is taken meanwhile waits for its end.
#[must_use = "it is the right only while it is held"]
pub(super) struct MayUnlink<'a>(#[expect(dead_code, reason = "holds the lock")] RwLockReadGuard<'a, ()>);

impl Store {
    /// No content is unlinked from when this returns, for at most `time`. Taking a lease that is held renews it; whether it
    /// was. Blocks while an unlink is under way.
    pub fn hold_deletions(&self, name: &str, time: Duration) -> bool {
        self.inner.leases.hold(name, time)
    }

    /// Ends a lease; whether it was held.
    pub fn release_deletions(&self, name: &str) -> bool {
        self.inner.leases.until.lock().remove(name).is_some_and(|until| until > Instant::now())
    }

    /// Whether a lease forbids to unlink content.
    pub fn deletions_held(&self) -> bool {
        self.inner.deletions_held()
    }
}

impl Inner {
    /// For what can be put off; an unlink itself asks [`Inner::may_unlink`].
    pub(super) fn deletions_held(&self) -> bool {
        self.leases.are_held()
    }

    /// To be asked, once, and held by everything that unlinks the file of a blob. `None`: a lease forbids it.
    pub(super) fn may_unlink(&self) -> Option<MayUnlink<'_>> {
        self.leases.may_unlink()
    }
}

impl Leases {
    fn hold(&self, name: &str, time: Duration) -> bool {
        let now = Instant::now();
        let was_held = {
            let mut until = self.until.lock();
            until.retain(|_, until| *until > now);
            until.insert(name.to_owned(), now + time).is_some()
        };
        // Who got the right before has used it when this is passed; who asks now is refused.
        drop(self.unlinking.write());
        was_held
    }

    fn are_held(&self) -> bool {
        let now = Instant::now();
        self.until.lock().values().any(|until| *until > now)
    }

    fn may_unlink(&self) -> Option<MayUnlink<'_>> {
        let unlinking = self.unlinking.read();
        (!self.are_held()).then_some(MayUnlink(unlinking))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_ends_with_its_time_and_each_by_itself() {
        let leases = Leases::default();
        assert!(!leases.are_held() && leases.may_unlink().is_some());
        assert!(!leases.hold("past", Duration::ZERO));
        assert!(!leases.are_held() && leases.may_unlink().is_some());
        assert!(!leases.hold("held", Duration::from_secs(60)));
        assert!(leases.hold("held", Duration::from_secs(60)), "renewed");
        assert!(!leases.hold("past", Duration::ZERO));
        assert!(leases.are_held() && leases.may_unlink().is_none());
    }

    #[test]
    fn a_lease_waits_for_the_unlink_that_is_under_way() {
        let leases = Leases::default();
        std::thread::scope(|scope| {
            let unlinking = leases.may_unlink();
            let taken = scope.spawn(|| leases.hold("backup", Duration::from_secs(60)));
            while !leases.are_held() {
                std::thread::yield_now();
            }
            assert!(unlinking.is_some() && !taken.is_finished());
            drop(unlinking);
            assert!(!taken.join().unwrap());
        });
        assert!(leases.may_unlink().is_none());
    }
}

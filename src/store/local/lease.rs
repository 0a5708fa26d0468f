//! Backup leases: while a lease is held, no content is unlinked. So a backup that copies the names first finds all content
//! that they name when it copies the content afterwards.
//!
//! Names may change in the meantime; only removals of content wait. A lease expires by itself, so that a backup that died does
//! not fill the disk. A lease does not survive a restart; the renewal then says that it was not held.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use parking_lot::{Mutex, RwLock, RwLockReadGuard};

#[derive(Debug, Default)]
pub struct Leases {
    /// When each lease expires, by its name.
    until: Mutex<HashMap<String, Instant>>,
    /// Held shared while content is unlinked.
    unlinking: RwLock<()>,
}

/// Permission to unlink content, held while that is done. A lease that is taken in the meantime waits for its end.
#[must_use = "the permission lasts only while it is held"]
pub(in crate::store) struct MayUnlink<'a>(#[expect(dead_code, reason = "holds the lock")] RwLockReadGuard<'a, ()>);

impl Leases {
    /// Takes or renews a lease: from when this returns, and for `time`, no content is unlinked. Whether it was held before.
    /// Blocks while an unlink is in progress.
    pub fn hold(&self, name: &str, time: Duration) -> bool {
        let now = Instant::now();
        let was_held = {
            let mut until = self.until.lock();
            until.retain(|_, until| *until > now);
            until.insert(name.to_owned(), now + time).is_some()
        };
        // Every permission given before has been used once this lock is taken; none is given from now on.
        drop(self.unlinking.write());
        was_held
    }

    /// Ends a lease. Whether it was held.
    pub fn release(&self, name: &str) -> bool {
        self.until.lock().remove(name).is_some_and(|until| until > Instant::now())
    }

    /// Whether any lease is held. An unlink must ask [`Leases::may_unlink`] instead.
    pub fn are_held(&self) -> bool {
        let now = Instant::now();
        self.until.lock().values().any(|until| *until > now)
    }

    /// To be asked once by everything that unlinks content, and held until it is done. `None` while a lease is held.
    pub(in crate::store) fn may_unlink(&self) -> Option<MayUnlink<'_>> {
        let unlinking = self.unlinking.read();
        (!self.are_held()).then_some(MayUnlink(unlinking))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_lease_expires_on_its_own() {
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
    fn a_lease_waits_for_an_unlink_in_progress() {
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

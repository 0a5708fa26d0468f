//! The evictor: makes room if new content does not fit, and in the background if the bounds are exceeded.
//!
//! `eviction_order` decides what is evicted first. Nothing is evicted before the index agrees with the
//! files and the order of last use is complete. How content is removed is up to [`Evict`].

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustix::process::setpriority_process;

use super::Cache;
use super::space::{Reservation, Shortage};
use crate::events::EvictionReason;
use crate::oci::Digest;
use crate::store::clock::now;
use crate::store::error::StoreError;

/// Name of the thread that evicts in the background.
pub(in crate::store) const EVICTOR_THREAD: &str = "evictor";
/// Content that one turn evicts before other threads may look at the order.
const MAX_TURN_VICTIMS: usize = 25;
/// In the background, the evictor rests for this many times as long as a turn took.
const REST_FACTOR: u32 = 24;
/// How long a request to stop may go unnoticed.
const STOP_CHECK_INTERVAL: Duration = Duration::from_millis(50);
/// Nice value of the background thread.
const EVICTOR_NICE: i32 = 10;
/// A reservation may find that another one took the room that was made for it.
const MAX_RESERVE_ATTEMPTS: usize = 16;
/// Turns in which all victims were in use, after which the evictor gives up.
const MAX_FRUITLESS_TURNS: usize = 64;

/// What the evictor needs of the store whose cache it bounds.
pub(in crate::store) trait Evict {
    /// Whether anything may be evicted now: the index agrees with the files, and no lease holds back deletions.
    fn may_evict(&self) -> bool;

    /// Brings the set of pinned content up to date.
    fn refresh_pins(&self) -> Result<(), StoreError>;

    /// Evicts one piece of content and the names that lead to it. False if it is in use, pinned or pushed; it stays then.
    fn evict(&self, digest: &Digest, reason: EvictionReason) -> Result<bool, StoreError>;
}

#[derive(Debug, Default)]
pub(super) struct EvictorState {
    /// Held for a turn: two evictors would pick the same victims.
    turn: Mutex<()>,
    /// Room was short since the last run in the background, so some more is made ahead of the next reservation.
    short: AtomicBool,
}

/// How a turn ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Turn {
    /// Nothing is short any more.
    Enough,
    /// Something was evicted, and more has to be.
    More,
    /// All victims were in use. The next turn picks others.
    AllInUse,
    /// There is nothing to evict.
    Nothing,
}

/// Lowers the priority of this thread alone: threads that serve requests go first.
pub(in crate::store) fn lower_priority() {
    if let Err(error) = setpriority_process(None, EVICTOR_NICE) {
        tracing::debug!(%error, "cannot lower the priority of the evictor");
    }
}

impl Cache {
    /// Reserves room for `bytes` of cached content in `files` new files, and evicts for it if necessary.
    ///
    /// # Errors
    /// [`StoreError::NoRoom`] when not enough can be evicted.
    pub(in crate::store) fn reserve(
        &self,
        bytes: u64,
        files: u64,
        store: &dyn Evict,
    ) -> Result<Reservation, StoreError> {
        let short = || self.space.short_of(bytes, files);
        for _ in 0..MAX_RESERVE_ATTEMPTS {
            if let Some(reservation) = self.space.reserve(bytes, files) {
                return Ok(reservation);
            }
            self.evictor.short.store(true, Ordering::Relaxed);
            if !self.make_room(store, &short)? {
                break;
            }
        }
        Err(short().error(bytes))
    }

    /// Makes sure that the disk has room for `bytes` of a push in `files` new files, beside `min_free` and the inodes
    /// that stay free. Evicts for it, and reserves nothing.
    ///
    /// # Errors
    /// [`StoreError::NoRoom`] when not enough can be evicted.
    pub(in crate::store) fn require_disk_room(
        &self,
        bytes: u64,
        files: u64,
        store: &dyn Evict,
    ) -> Result<(), StoreError> {
        let short = || self.space.disk_short_of(bytes, files);
        if short().is_none() || self.make_room(store, &short)? { Ok(()) } else { Err(short().error(bytes)) }
    }

    /// Makes sure that the disk has inodes for `files` new files, beside those that stay free. Evicts for it.
    ///
    /// # Errors
    /// [`StoreError::NoRoom`] when not enough can be evicted.
    pub(in crate::store) fn require_inodes(&self, files: u64, store: &dyn Evict) -> Result<(), StoreError> {
        let short = || self.space.inodes_short_of(files);
        if short().is_none() || self.make_room(store, &short)? { Ok(()) } else { Err(short().error(0)) }
    }

    /// Puts noted uses in order. Whether something is to be evicted in the background.
    pub(in crate::store) fn is_short(&self, store: &dyn Evict) -> Result<bool, StoreError> {
        self.recency.apply_noted();
        store.refresh_pins()?;
        if self.space.is_exceeded() {
            self.evictor.short.store(true, Ordering::Relaxed);
        }
        Ok(self.evictor.short.load(Ordering::Relaxed))
    }

    /// Evicts in turns, with rests between them, until the low mark is reached, nothing can be evicted, or `stop` is set.
    pub(in crate::store) fn evict_in_background(&self, store: &dyn Evict, stop: &AtomicBool) -> Result<(), StoreError> {
        while !stop.load(Ordering::Relaxed) && self.is_short(store)? {
            let started = Instant::now();
            if self.evict_turn(store, &|| self.space.above_low_mark())? != Turn::More {
                self.evictor.short.store(false, Ordering::Relaxed);
                break;
            }
            let rested = Instant::now() + started.elapsed() * REST_FACTOR;
            while Instant::now() < rested && !stop.load(Ordering::Relaxed) {
                thread::sleep(STOP_CHECK_INTERVAL.min(rested.saturating_duration_since(Instant::now())));
            }
        }
        Ok(())
    }

    /// Evicts until nothing is `short` any more. False if that is impossible; nothing is evicted where that is known.
    fn make_room(&self, store: &dyn Evict, short: &dyn Fn() -> Shortage) -> Result<bool, StoreError> {
        self.recency.apply_noted();
        store.refresh_pins()?;
        if short().bytes > self.recency.order().evictable(now()) {
            return Ok(false);
        }
        let mut fruitless = 0;
        while fruitless < MAX_FRUITLESS_TURNS {
            match self.evict_turn(store, short)? {
                Turn::Enough => return Ok(true),
                Turn::More => fruitless = 0,
                Turn::AllInUse => fruitless += 1,
                Turn::Nothing => break,
            }
        }
        Ok(short().is_none())
    }

    /// Evicts the next few victims while anything is `short`.
    fn evict_turn(&self, store: &dyn Evict, short: &dyn Fn() -> Shortage) -> Result<Turn, StoreError> {
        if !self.is_order_complete() || !store.may_evict() {
            return Ok(Turn::Nothing);
        }
        let _turn = self.evictor.turn.lock();
        let shortage = short();
        let reason = if shortage.of_disk { EvictionReason::Disk } else { EvictionReason::Size };
        if shortage.is_none() {
            return Ok(Turn::Enough);
        }
        let victims = self.victims(shortage);
        let mut turn = if victims.is_empty() { Turn::Nothing } else { Turn::AllInUse };
        for digest in victims {
            if short().is_none() {
                return Ok(Turn::Enough);
            }
            let evicted = store.evict(&digest, reason).unwrap_or_else(|error| {
                tracing::error!(%digest, %error, "cannot evict content");
                false
            });
            if evicted {
                turn = Turn::More;
            } else {
                // In use, or cannot be removed: the next turn tries others first.
                self.recency.order().touch(&digest, now());
            }
        }
        Ok(if short().is_none() { Turn::Enough } else { turn })
    }

    /// The next content to evict. The number of inodes that this frees is not known in advance, because the names of a
    /// manifest are removed with it.
    fn victims(&self, shortage: Shortage) -> Vec<Digest> {
        let mut order = self.recency.order();
        let bytes = if shortage.inodes > 0 { u64::MAX } else { shortage.bytes };
        let victims = order.victims(bytes, MAX_TURN_VICTIMS, now());
        if !victims.is_empty() || shortage.inodes == 0 {
            return victims;
        }
        // Shields end when they cover too many bytes. Small content can use up the inodes long before that.
        order.end_oldest_shields(MAX_TURN_VICTIMS);
        order.victims(bytes, MAX_TURN_VICTIMS, now())
    }
}

#[cfg(test)]
mod tests {
    use rustix::process::getpriority_process;

    use super::*;

    #[test]
    fn lower_priority_affects_the_calling_thread_only() {
        let before = getpriority_process(None).unwrap();
        let lowered = thread::spawn(|| {
            lower_priority();
            getpriority_process(None).unwrap()
        });
        assert_eq!((lowered.join().unwrap(), getpriority_process(None).unwrap()), (EVICTOR_NICE.max(before), before));
    }
}

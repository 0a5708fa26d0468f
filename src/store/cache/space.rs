//! How much room there is: what is stored, what is reserved, and what the bounds leave of it.
//!
//! Everything that is fetched from an upstream reserves its room first. If it does not fit, [`Shortage`] says how much has to
//! be evicted.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use parking_lot::Mutex;

use crate::oci::RepoId;

/// Bytes that a name file takes on the disk: an inode and usually a block.
pub const NAME_BYTES: u64 = 4 << 10;
/// With this much free space beyond all reservations, a disk does not become full within moments.
pub(in crate::store) const AMPLE_FREE_BYTES: u64 = 1 << 30;
/// The evictor goes on until a twentieth of the bound is free, but no more than this.
const MAX_SLACK_BYTES: u64 = 5 << 30;

/// The bounds of the cache, in bytes.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// For cached content, the names of mirrored repositories, and fills.
    pub max_size: u64,
    /// Free space that is left on the disk for other uses.
    pub min_free: u64,
}

#[derive(Debug)]
pub(in crate::store) struct Space {
    bounds: Bounds,
    /// A folder on the disk.
    root: PathBuf,
    /// Bytes of cached content.
    cached: AtomicI64,
    names: Mutex<NameCount>,
    reserved: Mutex<Reserved>,
}

/// How many name files mirrored repositories have.
#[derive(Debug, Default)]
struct NameCount {
    count: i64,
    /// While a walk counts them: the changes of each repository since the start of the walk, which the walk will find there.
    changed: Option<HashMap<RepoId, i64>>,
}

#[derive(Debug, Default)]
struct Reserved {
    bytes: u64,
    /// The part of it whose blocks are not allocated on the disk yet.
    unallocated: u64,
}

/// Reserved room. It is released when this is dropped.
#[derive(Debug)]
pub(in crate::store) struct Reservation {
    space: Arc<Space>,
    bytes: u64,
    unallocated: u64,
}

/// How much has to be evicted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::store) struct Shortage {
    pub(in crate::store) bytes: u64,
    /// Whether it is the disk that is short, rather than the cache that is too large.
    pub(in crate::store) of_disk: bool,
}

impl Shortage {
    fn new(over: u64, lacking: u64) -> Self {
        Self { bytes: over.max(lacking), of_disk: lacking > over }
    }
}

impl Bounds {
    pub const NONE: Self = Self { max_size: u64::MAX, min_free: 0 };
}

impl Space {
    pub(in crate::store) fn new(bounds: Bounds, root: &Path) -> Self {
        Self {
            bounds,
            root: root.to_owned(),
            cached: AtomicI64::new(0),
            names: Mutex::default(),
            reserved: Mutex::default(),
        }
    }

    pub(in crate::store) fn set_cached(&self, bytes: u64) {
        self.cached.store(bytes as i64, Ordering::Relaxed);
    }

    pub(in crate::store) fn add_cached(&self, delta: i64) {
        self.cached.fetch_add(delta, Ordering::Relaxed);
    }

    pub(in crate::store) fn set_names(&self, names: u64) {
        *self.names.lock() = NameCount { count: names as i64, changed: None };
    }

    /// The count is unknown: a walk of all repositories is going to count.
    pub(in crate::store) fn count_names_anew(&self) {
        *self.names.lock() = NameCount { count: 0, changed: Some(HashMap::new()) };
    }

    /// The walk has counted every repository.
    pub(in crate::store) fn names_are_counted(&self) {
        self.names.lock().changed = None;
    }

    /// Names were added to a repository, or removed. With its lock held.
    pub(in crate::store) fn add_names(&self, repo: &RepoId, delta: i64) {
        let mut names = self.names.lock();
        names.count += delta;
        if let Some(changed) = &mut names.changed {
            *changed.entry(repo.clone()).or_default() += delta;
        }
    }

    /// The count that the walk found in a repository, with its lock held. It includes changes that were counted already.
    pub(in crate::store) fn found_names(&self, repo: &RepoId, found: i64) {
        let mut names = self.names.lock();
        let counted = names.changed.as_mut().and_then(|changed| changed.remove(repo)).unwrap_or_default();
        names.count += found - counted;
    }

    /// The count of name files of mirrored repositories.
    pub(in crate::store) fn names(&self) -> u64 {
        self.names.lock().count.max(0) as u64
    }

    /// Everything that counts towards `max_size`, in bytes.
    pub(in crate::store) fn used(&self) -> u64 {
        self.kept().saturating_add(self.reserved.lock().bytes)
    }

    fn kept(&self) -> u64 {
        let cached = self.cached.load(Ordering::Relaxed).max(0) as u64;
        cached.saturating_add(self.names().saturating_mul(NAME_BYTES))
    }

    /// Reserves room for `bytes`; `None` if there is not enough.
    pub(in crate::store) fn reserve(self: &Arc<Self>, bytes: u64) -> Option<Reservation> {
        let mut reserved = self.reserved.lock();
        (self.missing(&reserved, bytes).bytes == 0).then(|| {
            reserved.bytes += bytes;
            reserved.unallocated += bytes;
            Reservation { space: self.clone(), bytes, unallocated: bytes }
        })
    }

    /// How much has to be evicted for a reservation of `bytes` to fit.
    pub(in crate::store) fn short_of(&self, bytes: u64) -> Shortage {
        self.missing(&self.reserved.lock(), bytes)
    }

    fn missing(&self, reserved: &Reserved, bytes: u64) -> Shortage {
        let used = self.kept().saturating_add(reserved.bytes);
        let over = used.saturating_add(bytes).saturating_sub(self.bounds.max_size);
        Shortage::new(over, self.lacking(bytes.saturating_add(reserved.unallocated)))
    }

    /// How much has to be evicted for the disk to have room for `bytes` of a push beside `min_free`.
    pub(in crate::store) fn disk_short_of(&self, bytes: u64) -> Shortage {
        Shortage::new(0, self.lacking(bytes))
    }

    /// Bytes that the disk lacks to store `bytes` beside `min_free`; 0 where the disk cannot be asked.
    fn lacking(&self, bytes: u64) -> u64 {
        match self.free() {
            Some(free) => self.bounds.min_free.saturating_add(bytes).saturating_sub(free),
            None => 0,
        }
    }

    /// Bytes of the disk that are free for this process; `None` where the disk cannot be asked.
    pub(in crate::store) fn free(&self) -> Option<u64> {
        let disk = rustix::fs::statvfs(&self.root).ok()?;
        Some(disk.f_bavail.saturating_mul(disk.f_frsize))
    }

    /// Bytes by which the cache exceeds its bounds.
    pub(in crate::store) fn excess(&self) -> u64 {
        self.used().saturating_sub(self.bounds.max_size).max(self.lacking(0))
    }

    /// Whether there are bounds: a server has some, a command that only looks at the folder has none.
    pub(in crate::store) fn is_bounded(&self) -> bool {
        self.bounds.max_size != Bounds::NONE.max_size
    }

    /// What the evictor frees beyond the bound, so that it does not start again at once.
    pub(in crate::store) fn slack(&self) -> u64 {
        (self.bounds.max_size / 20).min(MAX_SLACK_BYTES)
    }

    /// How much has to be evicted to reach the low mark.
    pub(in crate::store) fn above_low_mark(&self) -> Shortage {
        let low = self.bounds.max_size - self.slack();
        Shortage::new(self.used().saturating_sub(low), self.lacking(0))
    }
}

impl Reservation {
    pub(in crate::store) fn bytes(&self) -> u64 {
        self.bytes
    }

    #[cfg(test)]
    pub(in crate::store) fn unallocated(&self) -> u64 {
        self.unallocated
    }

    /// Whether the disk is unlikely to become full before the blocks of this are allocated.
    pub(in crate::store) fn is_ample(&self) -> bool {
        let unallocated = self.space.reserved.lock().unallocated;
        self.space.free().is_some_and(|free| free >= unallocated.saturating_add(AMPLE_FREE_BYTES))
    }

    /// The blocks are allocated on the disk now.
    pub(in crate::store) fn allocated(&mut self) {
        self.space.reserved.lock().unallocated -= std::mem::take(&mut self.unallocated);
    }

    /// Releases everything.
    pub(in crate::store) fn release(&mut self) {
        let mut reserved = self.space.reserved.lock();
        reserved.bytes -= std::mem::take(&mut self.bytes);
        reserved.unallocated -= std::mem::take(&mut self.unallocated);
    }

    /// Merges another reservation into this one.
    pub(in crate::store) fn add(&mut self, mut other: Self) {
        self.bytes += std::mem::take(&mut other.bytes);
        self.unallocated += std::mem::take(&mut other.unallocated);
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.release();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn space(max_size: u64, min_free: u64) -> Arc<Space> {
        Arc::new(Space::new(Bounds { max_size, min_free }, &std::env::temp_dir()))
    }

    #[test]
    fn content_names_and_reservations_count() {
        let space = space(100 << 10, 0);
        space.set_cached(50 << 10);
        space.add_names(&RepoId::local("a".parse().unwrap()), 2);
        let mut first = space.reserve(30 << 10).unwrap();
        assert_eq!(space.used(), 88 << 10);
        assert!(space.reserve(20 << 10).is_none());
        assert_eq!(space.short_of(20 << 10), Shortage { bytes: 8 << 10, of_disk: false });
        first.add(space.reserve(12 << 10).unwrap());
        assert_eq!((first.bytes(), space.used(), space.excess()), (42 << 10, 100 << 10, 0));
        assert_eq!(space.above_low_mark().bytes, 5 << 10);
        drop(first);
        assert_eq!((space.used(), space.above_low_mark().bytes), (58 << 10, 0));
    }

    #[test]
    fn a_name_added_during_the_count_counts_once() {
        let space = space(u64::MAX, 0);
        let [before, after, new] = ["a", "b", "c"].map(|name| RepoId::local(name.parse().unwrap()));
        space.set_names(7);
        space.count_names_anew();
        space.add_names(&before, 2);
        space.found_names(&before, 10);
        space.add_names(&before, -1);
        space.found_names(&after, 5);
        space.add_names(&after, 1);
        space.add_names(&new, 1);
        space.names_are_counted();
        assert_eq!(space.names(), 9 + 6 + 1);
    }

    #[test]
    fn room_is_ample_with_a_gibibyte_beyond_all_reservations() {
        let space = space(u64::MAX, 0);
        let free = space.free().unwrap();
        let mut most = space.reserve(free.saturating_sub(AMPLE_FREE_BYTES / 2)).unwrap();
        assert!(!most.is_ample() && !space.reserve(1).unwrap().is_ample());
        most.release();
        assert_eq!(space.reserve(1).unwrap().is_ample(), free > AMPLE_FREE_BYTES);
    }

    #[test]
    fn min_free_is_left_on_the_disk() {
        let free = space(u64::MAX, 0).free().unwrap();
        let greedy = space(u64::MAX, free.saturating_mul(2));
        assert!(greedy.reserve(0).is_none() && greedy.short_of(0).of_disk && greedy.excess() > 0);
        assert!(space(u64::MAX, 0).reserve(1).is_some());
    }
}

//! How much room there is: what is kept, what is on its way, and what the bounds leave of it.
//!
//! Everything that comes from upstreams reserves its room first. A reservation that does not fit says how much has to go.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use parking_lot::Mutex;

use crate::oci::RepoId;

/// What a name costs on the disk: an inode and, as a rule, a block.
pub const NAME_BYTES: u64 = 4 << 10;
/// What a disk that has so much to spare beside all that is on its way does not run out of in a moment.
pub(super) const AMPLE: u64 = 1 << 30;
/// Eviction that has begun goes on until a twentieth of the bound is free, but no more than this.
const MOST_SLACK: u64 = 5 << 30;

/// The bounds of the cache, in bytes.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Of cached content, the names of mirrored repositories, and fills.
    pub max_size: u64,
    /// Of the disk, to be left to others.
    pub min_free: u64,
}

#[derive(Debug)]
pub(super) struct Space {
    bounds: Bounds,
    /// A folder on the disk.
    root: PathBuf,
    cached: AtomicI64,
    names: Mutex<Names>,
    reserved: Mutex<Reserved>,
}

#[derive(Debug, Default)]
struct Names {
    count: i64,
    /// While a walk counts them: what came to a repository since the walk was announced, which it will find there.
    since: Option<HashMap<RepoId, i64>>,
}

#[derive(Debug, Default)]
struct Reserved {
    bytes: u64,
    /// Of these, what the disk does not know of yet.
    unallocated: u64,
}

/// Room that nobody else gets until this is dropped.
#[derive(Debug)]
pub(super) struct Reservation {
    space: Arc<Space>,
    bytes: u64,
    unallocated: u64,
}

/// What has to go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Shortage {
    pub(super) bytes: u64,
    /// It is the disk that lacks most, and not the cache that is too large.
    pub(super) of_disk: bool,
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
    pub(super) fn new(bounds: Bounds, root: &Path) -> Self {
        Self {
            bounds,
            root: root.to_owned(),
            cached: AtomicI64::new(0),
            names: Mutex::default(),
            reserved: Mutex::default(),
        }
    }

    pub(super) fn set_cached(&self, bytes: u64) {
        self.cached.store(bytes as i64, Ordering::Relaxed);
    }

    pub(super) fn add_cached(&self, delta: i64) {
        self.cached.fetch_add(delta, Ordering::Relaxed);
    }

    pub(super) fn set_names(&self, names: u64) {
        *self.names.lock() = Names { count: names as i64, since: None };
    }

    /// Nobody knows how many there are: a walk of all repositories will tell.
    pub(super) fn count_names_anew(&self) {
        *self.names.lock() = Names { count: 0, since: Some(HashMap::new()) };
    }

    /// The walk has been everywhere.
    pub(super) fn names_are_counted(&self) {
        self.names.lock().since = None;
    }

    /// Names come to a repository, or go. With its lock held.
    pub(super) fn add_names(&self, repo: &RepoId, delta: i64) {
        let mut names = self.names.lock();
        names.count += delta;
        if let Some(since) = &mut names.since {
            *since.entry(repo.clone()).or_default() += delta;
        }
    }

    /// What the walk found in a repository, with its lock held: what came since is among it, and was counted.
    pub(super) fn found_names(&self, repo: &RepoId, found: i64) {
        let mut names = self.names.lock();
        let counted = names.since.as_mut().and_then(|since| since.remove(repo)).unwrap_or_default();
        names.count += found - counted;
    }

    /// Name files of mirrored repositories.
    pub(super) fn names(&self) -> u64 {
        self.names.lock().count.max(0) as u64
    }

    /// Everything that counts towards `max_size`, in bytes.
    pub(super) fn used(&self) -> u64 {
        self.kept().saturating_add(self.reserved.lock().bytes)
    }

    fn kept(&self) -> u64 {
        let cached = self.cached.load(Ordering::Relaxed).max(0) as u64;
        cached.saturating_add(self.names().saturating_mul(NAME_BYTES))
    }

    /// Sets room for `bytes` aside, if it is there.
    pub(super) fn reserve(self: &Arc<Self>, bytes: u64) -> Option<Reservation> {
        let mut reserved = self.reserved.lock();
        (self.missing(&reserved, bytes).bytes == 0).then(|| {
            reserved.bytes += bytes;
            reserved.unallocated += bytes;
            Reservation { space: self.clone(), bytes, unallocated: bytes }
        })
    }

    /// What has to go for a reservation of `bytes` to fit.
    pub(super) fn short_of(&self, bytes: u64) -> Shortage {
        self.missing(&self.reserved.lock(), bytes)
    }

    fn missing(&self, reserved: &Reserved, bytes: u64) -> Shortage {
        let used = self.kept().saturating_add(reserved.bytes);
        let over = used.saturating_add(bytes).saturating_sub(self.bounds.max_size);
        Shortage::new(over, self.lacking(bytes.saturating_add(reserved.unallocated)))
    }

    /// What has to go for the disk to have room for `bytes` of a push beside `min_free`.
    pub(super) fn disk_short_of(&self, bytes: u64) -> Shortage {
        Shortage::new(0, self.lacking(bytes))
    }

    /// Bytes that the disk lacks for `bytes` more beside `min_free`. What cannot be asked lacks nothing.
    fn lacking(&self, bytes: u64) -> u64 {
        match self.free() {
            Some(free) => self.bounds.min_free.saturating_add(bytes).saturating_sub(free),
            None => 0,
        }
    }

    /// Bytes of the disk that are free for us.
    pub(super) fn free(&self) -> Option<u64> {
        let disk = rustix::fs::statvfs(&self.root).ok()?;
        Some(disk.f_bavail.saturating_mul(disk.f_frsize))
    }

    /// Bytes that have to go for the cache to be within its bounds.
    pub(super) fn excess(&self) -> u64 {
        self.used().saturating_sub(self.bounds.max_size).max(self.lacking(0))
    }

    /// Whether this is a cache that is served, and not a folder that is looked at.
    pub(super) fn is_bounded(&self) -> bool {
        self.bounds.max_size != Bounds::NONE.max_size
    }

    /// What eviction frees beyond what was asked for, so that it does not begin again at once.
    pub(super) fn slack(&self) -> u64 {
        (self.bounds.max_size / 20).min(MOST_SLACK)
    }

    /// What has to go until there is slack again.
    pub(super) fn above_low_mark(&self) -> Shortage {
        let low = self.bounds.max_size - self.slack();
        Shortage::new(self.used().saturating_sub(low), self.lacking(0))
    }
}

impl Reservation {
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    #[cfg(test)]
    pub(super) fn unallocated(&self) -> u64 {
        self.unallocated
    }

    /// Whether the disk is unlikely to be full before it knows of this.
    pub(super) fn is_ample(&self) -> bool {
        let unallocated = self.space.reserved.lock().unallocated;
        self.space.free().is_some_and(|free| free >= unallocated.saturating_add(AMPLE))
    }

    /// The disk knows of it now.
    pub(super) fn allocated(&mut self) {
        self.space.reserved.lock().unallocated -= std::mem::take(&mut self.unallocated);
    }

    /// Gives everything back.
    pub(super) fn release(&mut self) {
        let mut reserved = self.space.reserved.lock();
        reserved.bytes -= std::mem::take(&mut self.bytes);
        reserved.unallocated -= std::mem::take(&mut self.unallocated);
    }

    /// Takes in another one.
    pub(super) fn add(&mut self, mut other: Self) {
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
    fn what_is_kept_named_and_reserved_counts() {
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
    fn a_name_that_comes_while_names_are_counted_counts_once() {
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
    fn room_is_ample_while_the_disk_has_a_gibibyte_beside_all_that_is_on_its_way() {
        let space = space(u64::MAX, 0);
        let free = space.free().unwrap();
        let mut most = space.reserve(free.saturating_sub(AMPLE / 2)).unwrap();
        assert!(!most.is_ample() && !space.reserve(1).unwrap().is_ample());
        most.release();
        assert_eq!(space.reserve(1).unwrap().is_ample(), free > AMPLE);
    }

    #[test]
    fn the_disk_is_left_its_share() {
        let free = space(u64::MAX, 0).free().unwrap();
        let greedy = space(u64::MAX, free.saturating_mul(2));
        assert!(greedy.reserve(0).is_none() && greedy.short_of(0).of_disk && greedy.excess() > 0);
        assert!(space(u64::MAX, 0).reserve(1).is_some());
    }
}

//! How much room there is: stored content, reservations, and the bounds.
//!
//! Everything that is fetched from an upstream reserves its room first. If it does not fit, [`Shortage`] says how much has to
//! be evicted.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use parking_lot::Mutex;

use crate::oci::RepoId;
use crate::store::error::{Lack, StoreError};
use crate::store::fs::{self, DiskState};

/// Bytes that a name file takes on the disk: an inode and usually a block.
pub const NAME_BYTES: u64 = 4 << 10;
/// With this much free space beyond all reservations, a disk does not become full within moments.
pub(in crate::store) const AMPLE_FREE_BYTES: u64 = 1 << 30;
/// The evictor goes on until a twentieth of the bound is free, but no more than this.
const MAX_SLACK_BYTES: u64 = 5 << 30;
/// Largest number of inodes that stay free. On a small file system, a tenth of all inodes stays free.
const MAX_FREE_INODES: u64 = 10_000;
/// If inodes were short, the evictor frees more than necessary: the inodes that stay free, divided by this.
const INODE_SLACK_DIVISOR: u64 = 10;
/// The largest reservation for content of unknown length, and the part of `max_size` that bounds it on a small disk.
const MAX_UNKNOWN_LENGTH_STEP_BYTES: u64 = 64 << 20;
const MIN_UNKNOWN_LENGTH_STEP_BYTES: u64 = 1 << 20;
const UNKNOWN_LENGTH_STEP_DIVISOR: u64 = 16;

/// The bounds of the cache, in bytes. The bound of inodes depends on the file system: a tenth of them, at most 10,000,
/// stays free.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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

/// What has to be evicted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::store) struct Shortage {
    pub(in crate::store) bytes: u64,
    pub(in crate::store) inodes: u64,
    /// Whether it is the disk that is short, rather than the cache that is too large.
    pub(in crate::store) of_disk: bool,
}

impl Shortage {
    fn new(over: u64, lacking: u64, inodes: u64) -> Self {
        Self { bytes: over.max(lacking), inodes, of_disk: lacking > over || (inodes > 0 && over == 0) }
    }

    pub(in crate::store) fn is_none(self) -> bool {
        self.bytes == 0 && self.inodes == 0
    }

    /// The error for `bytes` that cannot be stored because of this shortage.
    pub(in crate::store) fn error(self, bytes: u64) -> StoreError {
        let lack = match self {
            Self { bytes: 0, inodes: 1.., .. } => Lack::Inodes,
            Self { of_disk: true, .. } => Lack::FreeBytes,
            Self { .. } => Lack::CacheBytes,
        };
        StoreError::NoRoom { bytes, lack }
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

    /// Reserves room for `bytes` in `files` new files; `None` if there is not enough.
    pub(in crate::store) fn reserve(self: &Arc<Self>, bytes: u64, files: u64) -> Option<Reservation> {
        let mut reserved = self.reserved.lock();
        self.missing(&reserved, bytes, files).is_none().then(|| {
            reserved.bytes += bytes;
            reserved.unallocated += bytes;
            Reservation { space: self.clone(), bytes, unallocated: bytes }
        })
    }

    /// What has to be evicted for a reservation of `bytes` in `files` new files to fit.
    pub(in crate::store) fn short_of(&self, bytes: u64, files: u64) -> Shortage {
        self.missing(&self.reserved.lock(), bytes, files)
    }

    fn missing(&self, reserved: &Reserved, bytes: u64, files: u64) -> Shortage {
        let used = self.kept().saturating_add(reserved.bytes);
        let over = used.saturating_add(bytes).saturating_sub(self.bounds.max_size);
        self.shortage(over, bytes.saturating_add(reserved.unallocated), files)
    }

    /// What has to be evicted for the disk to have room for `bytes` of a push in `files` new files.
    pub(in crate::store) fn disk_short_of(&self, bytes: u64, files: u64) -> Shortage {
        self.shortage(0, bytes, files)
    }

    /// What has to be evicted for the disk to have inodes for `files` new files.
    pub(in crate::store) fn inodes_short_of(&self, files: u64) -> Shortage {
        let lacking = self.disk().map_or(0, |disk| self.lacking_inodes(&disk, files));
        Shortage::new(0, 0, lacking)
    }

    /// The shortage of a cache that exceeds `max_size` by `over` bytes, on a disk that must take `bytes` in `files` new
    /// files. If the state of the disk is unknown, nothing is short.
    fn shortage(&self, over: u64, bytes: u64, files: u64) -> Shortage {
        let Some(disk) = self.disk() else { return Shortage::new(over, 0, 0) };
        let lacking = self.bounds.min_free.saturating_add(bytes).saturating_sub(disk.free_bytes);
        Shortage::new(over, lacking, self.lacking_inodes(&disk, files))
    }

    /// Inodes that the disk lacks for `files` new files beside those that stay free.
    fn lacking_inodes(&self, disk: &DiskState, files: u64) -> u64 {
        // A command without a server writes little, and evicts nothing.
        let kept = if self.is_bounded() { disk.kept_free_inodes() } else { 0 };
        if disk.inodes == 0 { 0 } else { kept.saturating_add(files).saturating_sub(disk.free_inodes) }
    }

    /// Bytes of the disk that are free for this process; `None` where the disk cannot be asked.
    pub(in crate::store) fn free(&self) -> Option<u64> {
        Some(self.disk()?.free_bytes)
    }

    /// Free inodes of the disk; `None` if they are unknown, or the file system does not count inodes.
    pub(in crate::store) fn free_inodes(&self) -> Option<u64> {
        self.disk().filter(|disk| disk.inodes > 0).map(|disk| disk.free_inodes)
    }

    /// The state of the disk; `None` if it is unknown, or the file system reports no size.
    pub(in crate::store) fn disk(&self) -> Option<DiskState> {
        fs::disk_state(&self.root).ok().filter(|disk| disk.bytes > 0)
    }

    pub(in crate::store) fn bounds(&self) -> Bounds {
        self.bounds
    }

    /// Whether the cache exceeds its bounds.
    pub(in crate::store) fn is_exceeded(&self) -> bool {
        let over = self.used().saturating_sub(self.bounds.max_size);
        !self.shortage(over, 0, 0).is_none()
    }

    /// Whether there are bounds: a server has some, a command that only looks at the folder has none.
    pub(in crate::store) fn is_bounded(&self) -> bool {
        self.bounds.max_size != Bounds::NONE.max_size
    }

    /// What the evictor frees beyond the bound, so that it does not start again at once.
    pub(in crate::store) fn slack(&self) -> u64 {
        (self.bounds.max_size / 20).min(MAX_SLACK_BYTES)
    }

    /// Bytes that are reserved at a time for content of unknown length.
    pub(in crate::store) fn unknown_length_step(&self) -> u64 {
        let part = self.bounds.max_size / UNKNOWN_LENGTH_STEP_DIVISOR;
        part.clamp(MIN_UNKNOWN_LENGTH_STEP_BYTES, MAX_UNKNOWN_LENGTH_STEP_BYTES)
    }

    /// What has to be evicted to reach the low mark.
    pub(in crate::store) fn above_low_mark(&self) -> Shortage {
        let low = self.bounds.max_size - self.slack();
        let slack = self.disk().map_or(0, |disk| disk.kept_free_inodes() / INODE_SLACK_DIVISOR);
        self.shortage(self.used().saturating_sub(low), 0, slack)
    }
}

impl DiskState {
    /// Inodes that stay free for names and other uses.
    pub fn kept_free_inodes(&self) -> u64 {
        (self.inodes / 10).min(MAX_FREE_INODES)
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
    use crate::store::faults::{Plan, follow};

    fn space(max_size: u64, min_free: u64) -> Arc<Space> {
        Arc::new(Space::new(Bounds { max_size, min_free }, &std::env::temp_dir()))
    }

    #[test]
    fn content_names_and_reservations_count() {
        let space = space(100 << 10, 0);
        space.set_cached(50 << 10);
        space.add_names(&RepoId::local("a".parse().unwrap()), 2);
        let mut first = space.reserve(30 << 10, 1).unwrap();
        assert_eq!(space.used(), 88 << 10);
        assert!(space.reserve(20 << 10, 1).is_none());
        assert_eq!(space.short_of(20 << 10, 1), Shortage { bytes: 8 << 10, ..Shortage::default() });
        first.add(space.reserve(12 << 10, 1).unwrap());
        assert_eq!((first.bytes(), space.used(), space.is_exceeded()), (42 << 10, 100 << 10, false));
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
        let mut most = space.reserve(free.saturating_sub(AMPLE_FREE_BYTES / 2), 1).unwrap();
        assert!(!most.is_ample() && !space.reserve(1, 1).unwrap().is_ample());
        most.release();
        assert_eq!(space.reserve(1, 1).unwrap().is_ample(), free > AMPLE_FREE_BYTES);
    }

    #[test]
    fn min_free_is_left_on_the_disk() {
        let free = space(u64::MAX, 0).free().unwrap();
        let greedy = space(u64::MAX, free.saturating_mul(2));
        assert!(greedy.reserve(0, 0).is_none() && greedy.short_of(0, 0).of_disk && greedy.is_exceeded());
        assert!(space(u64::MAX, 0).reserve(1, 1).is_some());
    }

    /// The shortage of `files` new files on a disk with plenty of bytes.
    fn short_of_inodes(inodes: u64, free_inodes: u64, files: u64) -> Shortage {
        let plan = Arc::new(Plan::default());
        follow(&plan);
        plan.set_disk(move |disk| DiskState { inodes, free_inodes, ..disk });
        let short = space(1 << 40, 0).short_of(0, files);
        plan.set_disk(|disk| disk);
        short
    }

    #[test]
    fn a_tenth_of_the_inodes_and_at_most_ten_thousand_stay_free() {
        let cases = [
            (4000, 401, 1, 0),
            (4000, 400, 1, 1),
            (4000, 0, 3, 403),
            (50_000_000, 10_000, 0, 0),
            (50_000_000, 9_000, 0, 1000),
            (5, 1, 1, 0),
        ];
        for (inodes, free, files, lacking) in cases {
            let expected = Shortage { bytes: 0, inodes: lacking, of_disk: lacking > 0 };
            assert_eq!(short_of_inodes(inodes, free, files), expected, "{free} of {inodes} for {files}");
        }
    }

    #[test]
    fn a_file_system_without_a_count_of_inodes_or_bytes_is_not_judged() {
        assert_eq!(short_of_inodes(0, 0, 1000), Shortage::default());
        let plan = Arc::new(Plan::default());
        follow(&plan);
        plan.set_disk(|_| DiskState::default());
        assert_eq!(space(u64::MAX - 1, 1 << 30).short_of(1 << 40, 5), Shortage::default());
        plan.set_disk(|disk| disk);
    }

    #[test]
    fn content_of_unknown_length_takes_a_part_of_a_small_cache() {
        for (max_size, step) in [(u64::MAX, 64 << 20), (20 << 30, 64 << 20), (160 << 20, 10 << 20), (2 << 20, 1 << 20)]
        {
            assert_eq!(space(max_size, 0).unknown_length_step(), step);
        }
    }
}

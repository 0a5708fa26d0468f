//! When content was last used: noted without a lock by the requests that serve it, put in order in the background, saved
//! in small batches, and restored at the start.

use std::cmp::Reverse;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::mpsc;

use super::eviction_order::EvictionOrder;
use crate::oci::Digest;
use crate::store::clock::{Time, now};
use crate::store::index::{BATCH_RECORDS, Change, Index};
use crate::store::records::{LastUse, StoredManifest};

/// Noted uses that wait to be put in order. Further ones are dropped: what is used so often is used again soon.
const MAX_WAITING_USES: usize = 16 << 10;
/// Last uses that one save writes, in batches of [`BATCH_RECORDS`].
const MAX_SAVED_USES: usize = 20 * BATCH_RECORDS;
/// Records that a restore puts in order before it lets another thread take the lock.
const RESTORE_BATCH_RECORDS: usize = 4096;

#[derive(Debug)]
pub(super) struct Recency {
    order: Mutex<EvictionOrder>,
    uses: mpsc::Sender<Use>,
    waiting: Mutex<mpsc::Receiver<Use>>,
    /// Everything that is cached is in the order.
    complete: AtomicBool,
}

#[derive(Debug)]
enum Use {
    Content(Digest),
    Manifest(Arc<StoredManifest>),
}

impl Recency {
    /// For a cache of `capacity` bytes.
    pub(super) fn new(capacity: u64) -> Self {
        let (uses, waiting) = mpsc::channel(MAX_WAITING_USES);
        let order = Mutex::new(EvictionOrder::new(capacity));
        Self { order, uses, waiting: Mutex::new(waiting), complete: AtomicBool::new(false) }
    }

    pub(super) fn order(&self) -> MutexGuard<'_, EvictionOrder> {
        self.order.lock()
    }

    pub(super) fn is_complete(&self) -> bool {
        self.complete.load(Ordering::Acquire)
    }

    pub(super) fn set_complete(&self) {
        self.complete.store(true, Ordering::Release);
    }

    pub(super) fn note_content(&self, digest: &Digest) {
        self.note(Use::Content(digest.clone()));
    }

    pub(super) fn note_manifest(&self, manifest: &Arc<StoredManifest>) {
        self.note(Use::Manifest(manifest.clone()));
    }

    fn note(&self, used: Use) {
        let _ = self.uses.try_send(used);
    }

    /// Puts the uses that were noted until now in order.
    pub(super) fn apply_noted(&self) {
        let mut waiting = self.waiting.lock();
        let now = now();
        for _ in 0..MAX_WAITING_USES {
            let Ok(used) = waiting.try_recv() else { return };
            let mut order = self.order.lock();
            match used {
                Use::Content(digest) => order.touch(&digest, now),
                Use::Manifest(manifest) => {
                    for child in manifest.children() {
                        order.touch(child, now);
                        order.shield(child, now);
                    }
                    // Last, so that the manifest is evicted after its children.
                    order.touch(&manifest.digest, now);
                    order.shield(&manifest.digest, now);
                }
            }
        }
    }

    pub(super) fn save(&self, index: &Index) {
        self.apply_noted();
        for _ in 0..MAX_SAVED_USES / BATCH_RECORDS {
            let moved = self.order.lock().take_unsaved(BATCH_RECORDS);
            if moved.is_empty() {
                return;
            }
            let changes: Vec<Change<'_>> = moved.iter().map(Change::Used).collect();
            index.apply(&changes);
        }
    }

    pub(super) fn restore(&self, index: &Index) {
        let mut known: Vec<(LastUse, u64, Time)> = Vec::with_capacity(index.count());
        index.for_each_cached(&mut |last, size, added| known.push((last, size, added)));
        known.sort_unstable_by_key(|(last, ..)| Reverse(last.at));
        self.order.lock().reserve(known.len());
        let mut known = known.into_iter().peekable();
        while known.peek().is_some() {
            let mut order = self.order.lock();
            for (last, size, added) in known.by_ref().take(RESTORE_BATCH_RECORDS) {
                order.restore(size, added, last);
            }
        }
    }
}

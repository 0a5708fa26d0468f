//! When content was last used: gathered without a lock from those who serve it, put in order behind them, written down in
//! small batches, and read back at the start.

use std::cmp::Reverse;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use tokio::sync::mpsc;

use super::clock::now;
use super::index::{BATCH, Change};
use super::records::StoredManifest;
use super::segments::{LastUse, Segments, Time};
use super::{Inner, Store};
use crate::oci::Digest;

/// Uses that wait to be put in order. Beyond that one is forgotten: what is used so often is used again.
const WAITING: usize = 16 << 10;
/// Last uses written down at once, in batches of [`BATCH`].
const SAVED_AT_ONCE: usize = 20 * BATCH;
/// Records put in order without letting anybody else in.
const RESTORED_AT_ONCE: usize = 4096;

#[derive(Debug)]
pub(super) struct Recency {
    pub(super) segments: Mutex<Segments>,
    uses: mpsc::Sender<Use>,
    waiting: Mutex<mpsc::Receiver<Use>>,
    /// Everything that is cached is in the segments.
    complete: AtomicBool,
}

#[derive(Debug)]
enum Use {
    Content(Digest),
    Manifest(Arc<StoredManifest>),
}

impl Store {
    /// Notes that a manifest of a mirrored repository was served: what it refers to will be asked for next.
    pub fn served(&self, manifest: &Arc<StoredManifest>) {
        if manifest.noted.is_due() {
            self.inner.recency.note(Use::Manifest(manifest.clone()));
        }
    }

    /// Brings back the order of last use of an earlier run. Blocks for as long as that takes; nothing is evicted before.
    pub fn restore_recency(&self) {
        self.inner.restore_recency();
    }
}

impl Recency {
    pub(super) fn new(capacity: u64) -> Self {
        let (uses, waiting) = mpsc::channel(WAITING);
        let segments = Mutex::new(Segments::new(capacity));
        Self { segments, uses, waiting: Mutex::new(waiting), complete: AtomicBool::new(false) }
    }

    pub(super) fn is_complete(&self) -> bool {
        self.complete.load(Ordering::Acquire)
    }

    /// Takes no lock and never waits.
    pub(super) fn note_content(&self, digest: &Digest) {
        self.note(Use::Content(digest.clone()));
    }

    fn note(&self, used: Use) {
        let _ = self.uses.try_send(used);
    }

    /// Puts in order what was noted until now.
    pub(super) fn settle(&self) {
        let mut waiting = self.waiting.lock();
        let now = now();
        for _ in 0..WAITING {
            let Ok(used) = waiting.try_recv() else { return };
            let mut segments = self.segments.lock();
            match used {
                Use::Content(digest) => segments.touch(&digest, now),
                Use::Manifest(manifest) => {
                    for child in &manifest.children {
                        segments.touch(child, now);
                        segments.shield(child, now);
                    }
                    // Last, so that it goes after what it refers to.
                    segments.touch(&manifest.digest, now);
                    segments.shield(&manifest.digest, now);
                }
            }
        }
    }
}

impl Inner {
    /// Writes down the last uses that have moved; a crash loses some minutes of them.
    pub(super) fn save_recency(&self) {
        self.recency.settle();
        for _ in 0..SAVED_AT_ONCE / BATCH {
            let moved = self.recency.segments.lock().take_unsaved(BATCH);
            if moved.is_empty() {
                return;
            }
            let changes: Vec<Change<'_>> = moved.iter().map(Change::Used).collect();
            self.index.apply(&changes);
        }
    }

    fn restore_recency(&self) {
        let mut known: Vec<(LastUse, u64, Time)> = Vec::with_capacity(self.index.count());
        self.index.for_each_cached(&mut |last, size, added| known.push((last, size, added)));
        known.sort_unstable_by_key(|(last, ..)| Reverse(last.at));
        self.recency.segments.lock().reserve(known.len());
        let mut known = known.into_iter().peekable();
        while known.peek().is_some() {
            let mut segments = self.recency.segments.lock();
            for (last, size, added) in known.by_ref().take(RESTORED_AT_ONCE) {
                segments.restore(size, added, last);
            }
        }
        // It may have been removed between the look and now.
        self.space.set_cached(self.recency.segments.lock().bytes());
        self.recency.complete.store(true, Ordering::Release);
    }
}

//! The marks of the collector: what a pass found unreferenced, and since when.
//!
//! A requester that relies on content removes its mark before it looks whether the content is stored. A removal checks the
//! mark while no mark can be removed. So either the removal sees that the content is needed, or the requester sees that it
//! is gone.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;

use crate::store::clock::Time;
use crate::store::index::{BATCH_RECORDS, Change, Index};
use crate::store::records::Unreferenced;

#[derive(Debug, Default)]
pub(in crate::store) struct CollectorMarks {
    since: Mutex<HashMap<Unreferenced, Time>>,
    /// The number of marks, to be read without the lock.
    count: AtomicUsize,
    /// Marks that were removed and are still in the index.
    unsaved_removals: Mutex<Vec<Unreferenced>>,
}

impl CollectorMarks {
    /// Whether anything is marked. Takes no lock.
    pub(super) fn any(&self) -> bool {
        self.count.load(Ordering::Acquire) > 0
    }

    /// Removes the collector marks of content that a requester needs. Call it before the content is looked up.
    pub(super) fn unmark(&self, candidates: &[Unreferenced]) {
        if !self.any() {
            return;
        }
        let mut since = self.since.lock();
        for candidate in candidates {
            if since.remove(candidate).is_some() {
                self.unsaved_removals.lock().push(candidate.clone());
            }
        }
        self.count.store(since.len(), Ordering::Release);
    }

    pub(in crate::store) fn since(&self, candidate: &Unreferenced) -> Option<Time> {
        self.since.lock().get(candidate).copied()
    }

    /// Marks what a pass found and is not marked yet, and removes the marks of what is referenced again.
    pub(in crate::store) fn update(&self, index: &Index, found: &HashSet<Unreferenced>, now: Time) {
        let mut since = self.since.lock();
        let referenced: Vec<Unreferenced> = since.keys().filter(|&marked| !found.contains(marked)).cloned().collect();
        for candidate in &referenced {
            since.remove(candidate);
        }
        let new: Vec<&Unreferenced> = found.iter().filter(|&candidate| !since.contains_key(candidate)).collect();
        since.extend(new.iter().map(|&candidate| (candidate.clone(), now)));
        self.count.store(since.len(), Ordering::Release);
        drop(since);
        for batch in referenced.chunks(BATCH_RECORDS) {
            index.apply(&batch.iter().map(Change::NoMark).collect::<Vec<_>>());
        }
        for batch in new.chunks(BATCH_RECORDS) {
            index.apply(&batch.iter().map(|candidate| Change::Mark(candidate, now)).collect::<Vec<_>>());
        }
    }

    /// Runs `remove`, which must be quick, while no mark can be removed. `None` without a call if the candidate has no mark.
    pub(super) fn if_marked<T>(&self, candidate: &Unreferenced, remove: impl FnOnce() -> T) -> Option<T> {
        let since = self.since.lock();
        since.contains_key(candidate).then(remove)
    }

    /// Writes removed marks to the index. After a crash no mark counts, so what this has not saved does no harm.
    pub(super) fn save(&self, index: &Index) {
        let removed = std::mem::take(&mut *self.unsaved_removals.lock());
        for batch in removed.chunks(BATCH_RECORDS) {
            index.apply(&batch.iter().map(Change::NoMark).collect::<Vec<_>>());
        }
    }

    /// Restores the marks of an earlier run after a clean stop.
    pub(super) fn restore(&self, index: &Index) {
        let mut marks = Vec::new();
        index.for_each_mark(&mut |candidate, since| marks.push((candidate, since)));
        let mut since = self.since.lock();
        since.extend(marks);
        self.count.store(since.len(), Ordering::Release);
    }
}

//! The cache: how much room cached content may take, in which order it is evicted, and the evictor.
//!
//! Everything here is about accounts and decisions. The evictor removes content through [`Evict`], which the store
//! implements over its files.

mod eviction_order;
mod evictor;
mod pins;
mod recency;
mod space;

use std::path::Path;
use std::sync::Arc;

use crate::oci::Digest;
use crate::store::clock::Time;
use crate::store::index::Index;
use crate::store::records::StoredManifest;
use evictor::EvictorState;
use recency::Recency;

pub use eviction_order::EvictionOrder;
pub use pins::PinRule;
pub use space::{Bounds, NAME_BYTES};

pub(in crate::store) use evictor::{EVICTOR_THREAD, Evict, lower_priority};
pub(in crate::store) use pins::Pins;
#[cfg(test)]
pub(in crate::store) use space::AMPLE_FREE_BYTES;
pub(in crate::store) use space::{Reservation, Space};

/// What the store knows about its cached content as a whole.
#[derive(Debug)]
pub(in crate::store) struct Cache {
    space: Arc<Space>,
    recency: Recency,
    pins: Pins,
    evictor: EvictorState,
}

impl Cache {
    /// `root` is a folder on the disk whose free space counts.
    pub(in crate::store) fn new(bounds: Bounds, pins: Option<PinRule>, root: &Path) -> Self {
        Self {
            space: Arc::new(Space::new(bounds, root)),
            recency: Recency::new(bounds.max_size),
            pins: Pins::new(pins),
            evictor: EvictorState::default(),
        }
    }

    pub(in crate::store) fn space(&self) -> &Arc<Space> {
        &self.space
    }

    pub(in crate::store) fn pins(&self) -> &Pins {
        &self.pins
    }

    /// Cached content of `size` bytes was stored. Under the lock of its digest.
    pub(in crate::store) fn content_stored(&self, digest: &Digest, size: u64, at: Time) {
        let mut order = self.recency.order();
        let before = order.bytes();
        order.insert(digest, size, at);
        self.space.add_cached((order.bytes() - before) as i64);
    }

    /// Content is gone, or is pushed content from now on. Under the lock of its digest.
    pub(in crate::store) fn content_removed(&self, digest: &Digest) {
        if let Some(size) = self.recency.order().remove(digest) {
            self.space.add_cached(-(size as i64));
        }
    }

    /// Notes a use of content. Takes no lock and never waits.
    pub(in crate::store) fn note_content(&self, digest: &Digest) {
        self.recency.note_content(digest);
    }

    /// Notes that a manifest was served, and with it that its children will be asked for next. Never waits.
    pub(in crate::store) fn note_manifest(&self, manifest: &Arc<StoredManifest>) {
        self.recency.note_manifest(manifest);
    }

    pub(in crate::store) fn is_pinned(&self, digest: &Digest) -> bool {
        self.recency.order().is_pinned(digest)
    }

    /// Replaces the set of pinned content.
    pub(in crate::store) fn set_pinned(&self, pinned: std::collections::HashSet<Digest>) {
        self.recency.order().pin(pinned);
    }

    /// Whether the order of last use of an earlier run has been restored.
    pub(in crate::store) fn is_order_complete(&self) -> bool {
        self.recency.is_complete()
    }

    /// Writes the last uses that have moved to the index. A crash loses some minutes of them.
    pub(in crate::store) fn save_uses(&self, index: &Index) {
        self.recency.save(index);
    }

    /// Restores the order of last use from the index. Blocks for as long as that takes.
    pub(in crate::store) fn restore_uses(&self, index: &Index) {
        self.recency.restore(index);
        // Content may have been removed between the look at the index and now.
        self.space.set_cached(self.recency.order().bytes());
        self.recency.set_complete();
    }
}

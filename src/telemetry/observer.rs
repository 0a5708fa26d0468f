//! Counts the events of the store. The counters are exact because every event passes this observer.

use super::Metrics;
use crate::events::StoreEvent;

impl Metrics {
    /// Counts an event. The store calls it during the change: see [`crate::events`].
    pub fn observe(&self, event: &StoreEvent) {
        match event {
            StoreEvent::Evicted { bytes, reason, .. } => {
                self.families.evictions.with_label_values(&[reason.as_str()]).inc();
                self.families.evicted_bytes.inc_by(*bytes);
            }
            StoreEvent::ManifestStored { .. }
            | StoreEvent::ManifestRemoved { .. }
            | StoreEvent::TagMoved { .. }
            | StoreEvent::TagRemoved { .. }
            | StoreEvent::BlobPushed { .. }
            | StoreEvent::BlobRemoved { .. }
            | StoreEvent::BlobCached { .. }
            | StoreEvent::Collected { .. }
            | StoreEvent::Quarantined { .. } => {}
        }
    }
}

//! How a store is opened.

use super::cache::{Bounds, PinRule};
use crate::events::Events;

/// How a store is opened.
pub struct StoreSettings {
    pub bounds: Bounds,
    /// Which images are never evicted.
    pub pins: Option<PinRule>,
    /// Where changes are reported.
    pub events: Events,
}

impl Default for StoreSettings {
    /// No bounds, no pins, and events without observers.
    fn default() -> Self {
        Self { bounds: Bounds::NONE, pins: None, events: Events::default() }
    }
}

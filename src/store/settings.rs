//! How a store is opened.

use super::cache::{Bounds, PinRule};
use crate::events::Events;

/// How a store is opened.
pub struct StoreSettings {
    pub bounds: Bounds,
    /// For the push sessions that no request uses.
    pub uploads: UploadBounds,
    /// Which images are never evicted.
    pub pins: Option<PinRule>,
    /// Where changes are reported.
    pub events: Events,
}

/// The bounds of the push sessions that no request uses.
#[derive(Clone, Copy, Debug)]
pub struct UploadBounds {
    /// Largest size in bytes of these sessions together.
    pub max_bytes: u64,
    pub max_count: usize,
}

impl UploadBounds {
    pub const NONE: Self = Self { max_bytes: u64::MAX, max_count: usize::MAX };
}

impl Default for StoreSettings {
    /// No bounds, no pins, and events without observers.
    fn default() -> Self {
        Self { bounds: Bounds::NONE, uploads: UploadBounds::NONE, pins: None, events: Events::default() }
    }
}

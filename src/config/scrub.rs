//! `[scrub]`: how often all stored content is read and verified, to find damage on the disk.

use std::time::Duration;

/// `[scrub]`
#[derive(Clone, Debug, PartialEq)]
pub struct ScrubConfig {
    /// Time in which all content is verified once. Zero: never.
    pub interval: Duration,
    /// Largest read rate in bytes per second.
    pub rate: u64,
}

impl Default for ScrubConfig {
    fn default() -> Self {
        Self { interval: Duration::from_secs(30 * 24 * 60 * 60), rate: 20 << 20 }
    }
}

//! `[scrub]`: how often everything is read, to find what a disk has spoilt.

use std::time::Duration;

#[derive(Clone, Debug, PartialEq)]
pub struct ScrubConfig {
    /// Everything is read once in this time; zero: never.
    pub interval: Duration,
    /// Bytes a second at most.
    pub rate: u64,
}

impl Default for ScrubConfig {
    fn default() -> Self {
        Self { interval: Duration::from_secs(30 * 24 * 60 * 60), rate: 20 << 20 }
    }
}

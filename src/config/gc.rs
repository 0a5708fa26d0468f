//! `[gc]`: when unreachable pushed content is removed.

use std::time::Duration;

const HOUR: Duration = Duration::from_secs(60 * 60);

/// `[gc]`
#[derive(Clone, Debug, PartialEq)]
pub struct GcConfig {
    /// Time between two runs of the collector. Zero: never.
    pub interval: Duration,
    /// Time after the start before anything is removed.
    pub after_start: Duration,
    /// How long content must have been unreachable before it is removed.
    pub grace: Duration,
    /// How long an uploaded blob must have been without a manifest that refers to it before it is removed.
    pub unreferenced_after: Duration,
    /// Age at which a manifest that no tag reaches is removed. Zero: never.
    pub untagged_after: Duration,
}

impl Default for GcConfig {
    fn default() -> Self {
        Self {
            interval: 6 * HOUR,
            after_start: HOUR,
            grace: 24 * HOUR,
            unreferenced_after: 7 * 24 * HOUR,
            untagged_after: Duration::ZERO,
        }
    }
}

//! `[gc]`: when pushed content that nobody can reach is removed.

use std::time::Duration;

const HOUR: Duration = Duration::from_secs(60 * 60);

#[derive(Clone, Debug, PartialEq)]
pub struct GcConfig {
    /// How often what is out of reach is looked for; zero never.
    pub interval: Duration,
    /// How long the server runs before it removes anything.
    pub after_start: Duration,
    /// For how long something was found out of reach before it goes.
    pub grace: Duration,
    /// For how long no manifest referred to an uploaded blob before it goes.
    pub unreferenced_after: Duration,
    /// The age at which a manifest goes that no tag leads to; zero never.
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

//! The time of uses: whole seconds, which is all that eviction needs.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use super::segments::Time;

/// What is served all the time is used once in this many seconds.
const STEP: u32 = 60;

/// When something was last noted as used.
#[derive(Debug, Default)]
pub(super) struct LastNoted(AtomicU32);

impl LastNoted {
    /// Whether its use is worth a note; it counts as noted then.
    pub(super) fn is_due(&self) -> bool {
        let (now, noted) = (now(), self.0.load(Ordering::Relaxed));
        let due = now.saturating_sub(noted) >= STEP;
        if due {
            self.0.store(now, Ordering::Relaxed);
        }
        due
    }
}

/// Seconds since 1970.
pub(super) fn now() -> Time {
    to_time(SystemTime::now())
}

pub(super) fn to_time(at: SystemTime) -> Time {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    since.as_secs().try_into().unwrap_or(Time::MAX)
}

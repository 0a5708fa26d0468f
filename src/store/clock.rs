//! Times of uses: whole seconds, which is all that eviction needs.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Seconds since 1970.
pub type Time = u32;

/// The use of content that is served continuously is noted once in this many seconds.
const NOTE_INTERVAL_SECONDS: u32 = 60;

/// When a use was last noted.
#[derive(Debug, Default)]
pub(in crate::store) struct LastNoted(AtomicU32);

impl LastNoted {
    /// Whether a use is to be noted now. If so, it counts as noted.
    pub(in crate::store) fn is_due(&self) -> bool {
        let (now, noted) = (now(), self.0.load(Ordering::Relaxed));
        let due = now.saturating_sub(noted) >= NOTE_INTERVAL_SECONDS;
        if due {
            self.0.store(now, Ordering::Relaxed);
        }
        due
    }
}

/// The present time.
pub(in crate::store) fn now() -> Time {
    to_time(SystemTime::now())
}

/// The inverse of [`to_time`].
pub(in crate::store) fn from_time(time: Time) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(time.into())
}

/// A time before 1970 becomes 0.
pub(in crate::store) fn to_time(at: SystemTime) -> Time {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    since.as_secs().try_into().unwrap_or(Time::MAX)
}

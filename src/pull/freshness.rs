//! The maximum age of a cached tag that is served without a request, during a refresh in the background, or in an outage.
//!
//! These are pure functions; the time is a parameter. The miss engine and `explain` use the same rules.

use std::time::{Duration, SystemTime};

use crate::config::CacheConfig;

/// Factor of `tag_ttl` while few pulls are left at an upstream.
const SCARCE_TTL_FACTOR: u32 = 10;
/// Maximum `tag_ttl` that the factor can cause.
pub const MAX_SCARCE_TTL: Duration = Duration::from_secs(60 * 60);

/// The current age limits of the tags of one upstream.
#[derive(Clone, Copy, Debug)]
pub struct TagFreshness {
    ttl: Duration,
    stale_while_revalidate: Duration,
    stale_if_error: Duration,
}

impl TagFreshness {
    /// Returns the age limits. `few_pulls_left`: the upstream's rate limit leaves few pulls, which are needed for content that is
    /// not cached. A HEAD that confirms a tag costs no pull, but a tag that has moved costs one. So tags are confirmed less often.
    pub fn new(cache: &CacheConfig, few_pulls_left: bool) -> Self {
        let configured = cache.tag_ttl;
        let ttl = if few_pulls_left {
            configured.max(configured.saturating_mul(SCARCE_TTL_FACTOR).min(MAX_SCARCE_TTL))
        } else {
            configured
        };
        let CacheConfig { stale_while_revalidate, stale_if_error, .. } = *cache;
        Self { ttl, stale_while_revalidate, stale_if_error }
    }

    /// Whether a tag that was last confirmed at `confirmed` is served without a request to its upstream.
    pub fn is_fresh(&self, confirmed: SystemTime, now: SystemTime) -> bool {
        age(confirmed, now).is_some_and(|age| age < self.ttl)
    }

    /// Whether such a tag is served at once while a task confirms it in the background. With a `tag_ttl` of zero every request
    /// waits for its upstream.
    pub fn is_usable_during_refresh(&self, confirmed: SystemTime, now: SystemTime) -> bool {
        let limit = self.ttl.saturating_add(self.stale_while_revalidate);
        !self.ttl.is_zero() && age(confirmed, now).is_some_and(|age| age < limit)
    }

    /// Whether such a tag is served when its upstream fails.
    pub fn is_usable_in_outage(&self, confirmed: SystemTime, now: SystemTime) -> bool {
        age(confirmed, now).is_none_or(|age| age < self.stale_if_error)
    }
}

/// Returns the age; `None` if the clock was set back since.
fn age(confirmed: SystemTime, now: SystemTime) -> Option<Duration> {
    now.duration_since(confirmed).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    fn freshness(ttl: Duration, few_pulls_left: bool) -> TagFreshness {
        let cache = CacheConfig {
            tag_ttl: ttl,
            stale_while_revalidate: 5 * MINUTE,
            stale_if_error: 100 * MINUTE,
            ..CacheConfig::default()
        };
        TagFreshness::new(&cache, few_pulls_left)
    }

    /// Fresh, usable during a refresh, usable in an outage.
    fn at(freshness: TagFreshness, age: Duration) -> (bool, bool, bool) {
        let (confirmed, now) = (SystemTime::UNIX_EPOCH, SystemTime::UNIX_EPOCH + age);
        (
            freshness.is_fresh(confirmed, now),
            freshness.is_usable_during_refresh(confirmed, now),
            freshness.is_usable_in_outage(confirmed, now),
        )
    }

    #[test]
    fn a_tag_ages_from_fresh_to_refreshable_to_usable_in_an_outage() {
        let freshness = freshness(MINUTE, false);
        for (age, expected) in [
            (Duration::ZERO, (true, true, true)),
            (MINUTE, (false, true, true)),
            (6 * MINUTE, (false, false, true)),
            (100 * MINUTE, (false, false, false)),
        ] {
            assert_eq!(at(freshness, age), expected, "{age:?}");
        }
    }

    #[test]
    fn a_ttl_of_zero_confirms_every_time_also_when_few_pulls_are_left() {
        for few_pulls_left in [false, true] {
            assert_eq!(at(freshness(Duration::ZERO, few_pulls_left), Duration::ZERO), (false, false, true));
        }
    }

    #[test]
    fn few_pulls_left_stretch_the_ttl_up_to_an_hour_and_never_shorten_it() {
        for (configured, effective) in [(1, 10), (5, 50), (30, 60), (90, 90)] {
            let freshness = freshness(configured * MINUTE, true);
            assert_eq!(freshness.ttl, effective * MINUTE, "{configured} minutes");
        }
    }

    #[test]
    fn a_clock_that_was_set_back_makes_a_tag_neither_fresh_nor_unusable_in_an_outage() {
        let freshness = freshness(MINUTE, false);
        let (confirmed, now) = (SystemTime::UNIX_EPOCH + MINUTE, SystemTime::UNIX_EPOCH);
        assert!(!freshness.is_fresh(confirmed, now) && !freshness.is_usable_during_refresh(confirmed, now));
        assert!(freshness.is_usable_in_outage(confirmed, now));
    }
}

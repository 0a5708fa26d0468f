//! `[cache]`: how much mirrored content is stored, and how long tags are served without asking their upstream.

use std::time::Duration;

use super::Pin;

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// The default of `max_size`: the smaller of 20 GiB and 80 % of the file system.
const DEFAULT_MAX_SIZE: Share = Share { at_most: 20 * GIB, percent: 80 };
/// The default of `min_free`: the smaller of 2 GiB and 10 % of the file system.
const DEFAULT_MIN_FREE: Share = Share { at_most: 2 * GIB, percent: 10 };

/// A part of a file system, with an upper limit in bytes.
struct Share {
    at_most: u64,
    percent: u64,
}

/// `[cache]`
#[derive(Clone, Debug, PartialEq)]
pub struct CacheConfig {
    /// Largest size in bytes of cached content, its names and the spool. Pushed content is not counted. `None`: depends
    /// on the file system, see [`CacheConfig::max_size_on`].
    pub max_size: Option<u64>,
    /// Bytes of the file system that stay free. `None`: depends on its size, see [`CacheConfig::min_free_on`].
    pub min_free: Option<u64>,
    /// Patterns of images that are never evicted.
    pub pin: Vec<Pin>,
    /// How long a tag or a list of referrers is served without asking its upstream again. Zero: ask for every request.
    pub tag_ttl: Duration,
    /// How much longer than `tag_ttl` a tag is served from the cache while its upstream is asked in the background.
    /// Zero: not at all.
    pub stale_while_revalidate: Duration,
    /// How long after its last confirmation a tag is served while its upstream fails.
    pub stale_if_error: Duration,
    /// How long an upstream's "not found" is cached.
    pub negative_ttl: Duration,
    /// Time limit for the response headers to a client, whatever the upstreams do.
    pub answer_within: Duration,
    /// Largest number of concurrent fills, from all upstreams together. Further fills wait.
    pub max_fills: usize,
    /// Largest number of concurrent bypasses: transfers past the store, one per client. Further bypasses wait.
    pub max_bypasses: usize,
}

// === impl CacheConfig ===

impl CacheConfig {
    /// `max_size` on a file system of `disk_bytes`, if that is known.
    pub fn max_size_on(&self, disk_bytes: Option<u64>) -> u64 {
        self.max_size.unwrap_or_else(|| DEFAULT_MAX_SIZE.of(disk_bytes))
    }

    /// `min_free` on a file system of `disk_bytes`, if that is known.
    pub fn min_free_on(&self, disk_bytes: Option<u64>) -> u64 {
        self.min_free.unwrap_or_else(|| DEFAULT_MIN_FREE.of(disk_bytes))
    }
}

impl Share {
    /// In whole MiB, which are easy to read.
    fn of(&self, disk_bytes: Option<u64>) -> u64 {
        let Some(disk_bytes) = disk_bytes else { return self.at_most };
        let part = disk_bytes / 100 * self.percent;
        let rounded = if part > MIB { part - part % MIB } else { part };
        rounded.min(self.at_most)
    }
}

impl Default for CacheConfig {
    fn default() -> Self {
        Self {
            max_size: None,
            min_free: None,
            pin: Vec::new(),
            tag_ttl: Duration::from_secs(60),
            stale_while_revalidate: Duration::ZERO,
            stale_if_error: Duration::from_secs(30 * 24 * 60 * 60),
            negative_ttl: Duration::from_secs(30),
            answer_within: Duration::from_secs(20),
            max_fills: 64,
            max_bypasses: 128,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn default_sizes_follow_the_file_system() {
        let default = CacheConfig::default();
        for (disk, max_size, min_free) in [
            (None, 20 * GIB, 2 * GIB),
            (Some(500 * GIB), 20 * GIB, 2 * GIB),
            (Some(25 * GIB), 20 * GIB, 2 * GIB),
            (Some(20 * GIB), 16 * GIB - MIB, 2 * GIB - MIB),
            (Some(GIB), 819 * MIB, 102 * MIB),
            (Some(64 * MIB), 51 * MIB, 6 * MIB),
            (Some(MIB), 838_800, 104_850),
        ] {
            assert_eq!((default.max_size_on(disk), default.min_free_on(disk)), (max_size, min_free), "{disk:?}");
        }
    }

    #[test]
    fn configured_sizes_do_not_depend_on_the_file_system() {
        let config = CacheConfig { max_size: Some(30 * GIB), min_free: Some(0), ..CacheConfig::default() };
        assert_eq!((config.max_size_on(Some(GIB)), config.min_free_on(Some(GIB))), (30 * GIB, 0));
    }
}

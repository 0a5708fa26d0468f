//! `[cache]`: how much mirrored content is stored, and how long tags are served without asking their upstream.

use std::time::Duration;

use super::Pin;

const GIB: u64 = 1 << 30;

/// `[cache]`
#[derive(Clone, Debug, PartialEq)]
pub struct CacheConfig {
    /// Largest size in bytes of cached content, its names and the spool. Pushed content is not counted.
    pub max_size: u64,
    /// Bytes of the file system that stay free.
    pub min_free: u64,
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

impl Default for CacheConfig {
    fn default() -> Self {
        Self {
            max_size: 20 * GIB,
            min_free: 2 * GIB,
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

//! `[cache]`: how much is kept, and for how long a name is believed.

use std::time::Duration;

use super::Pin;

const GIB: u64 = 1 << 30;

#[derive(Clone, Debug, PartialEq)]
pub struct CacheConfig {
    /// Bytes of cached content, names and spool; pushed content is not counted.
    pub max_size: u64,
    /// Bytes of the disk that stay free.
    pub min_free: u64,
    /// Images that are never evicted.
    pub pin: Vec<Pin>,
    /// How long a tag or a list of referrers is served without asking its upstream again; zero asks every time.
    pub tag_ttl: Duration,
    /// For how much longer than `tag_ttl` a tag is answered at once, while its upstream is asked behind; zero: not at all.
    pub stale_while_revalidate: Duration,
    /// For how long after its last confirmation a tag is served while its upstream is in trouble.
    pub stale_if_error: Duration,
    /// How long an upstream's "not found" is believed.
    pub negative_ttl: Duration,
    /// Within what time a client gets the head of its answer, whatever upstreams do.
    pub answer_within: Duration,
    /// Blobs that are fetched at once, from all upstreams together; more wait for their turn.
    pub max_fills: usize,
    /// Transfers at once that pass by the store, each for one client; more wait for their turn.
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

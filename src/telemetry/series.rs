//! Series looked up once, so that counting on the hot path is an atomic addition and no hashing of labels.

use prometheus::{Histogram, IntCounter, IntGauge};

use super::families::Families;
use super::{CacheResult, ContentKind};

/// Everything that is counted under one upstream.
pub(super) struct UpstreamSeries {
    kinds: [KindSeries; ContentKind::ALL.len()],
    pub(super) first_byte: Histogram,
    pub(super) fill_resumes: IntCounter,
    pub(super) digest_mismatches: IntCounter,
    pub(super) available: IntGauge,
}

/// Everything that is counted under one upstream and one kind of content.
pub(super) struct KindSeries {
    requests: IntCounter,
    hits: IntCounter,
    misses: IntCounter,
    results: [IntCounter; CacheResult::ALL.len()],
    pub(super) pulled_bytes: IntCounter,
    pub(super) pushed_bytes: IntCounter,
}

// === impl UpstreamSeries ===

impl UpstreamSeries {
    pub(super) fn new(families: &Families, upstream: &str) -> Self {
        Self {
            kinds: ContentKind::ALL.map(|kind| KindSeries::new(families, upstream, kind)),
            first_byte: families.upstream_first_byte.with_label_values(&[upstream]),
            fill_resumes: families.fill_resumes.with_label_values(&[upstream]),
            digest_mismatches: families.digest_mismatches.with_label_values(&[upstream]),
            available: families.upstream_available.with_label_values(&[upstream]),
        }
    }

    pub(super) fn kind(&self, kind: ContentKind) -> &KindSeries {
        &self.kinds[kind as usize]
    }
}

// === impl KindSeries ===

impl KindSeries {
    fn new(families: &Families, upstream: &str, kind: ContentKind) -> Self {
        let labels = [kind.as_str(), upstream];
        Self {
            requests: families.proxy_requests.with_label_values(&labels),
            hits: families.proxy_hits.with_label_values(&labels),
            misses: families.proxy_misses.with_label_values(&labels),
            results: CacheResult::ALL
                .map(|result| families.cache_results.with_label_values(&[kind.as_str(), upstream, result.as_str()])),
            pulled_bytes: families.proxy_pulled_bytes.with_label_values(&labels),
            pushed_bytes: families.proxy_pushed_bytes.with_label_values(&labels),
        }
    }

    /// One request, one hit or miss, one result: the identity holds because nothing else adds to any of them.
    pub(super) fn mirrored_get(&self, result: CacheResult) {
        self.requests.inc();
        if result.is_hit() {
            self.hits.inc()
        } else {
            self.misses.inc()
        }
        self.results[result as usize].inc();
    }
}

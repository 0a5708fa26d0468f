//! Series that are looked up once, so that counting on the hot path is an atomic addition without hashing of labels.

use std::sync::OnceLock;

use http::{Method, StatusCode};
use prometheus::{Histogram, IntCounter, IntGauge};

use super::families::Families;
use super::{CacheResult, ContentKind};

/// The series of one upstream.
pub(super) struct UpstreamSeries {
    kinds: [KindSeries; ContentKind::ALL.len()],
    pub(super) first_byte: Histogram,
    pub(super) fill_resumes: IntCounter,
    pub(super) fill_segments: IntCounter,
    pub(super) fill_speed: Histogram,
    pub(super) digest_mismatches: IntCounter,
    pub(super) available: IntGauge,
}

/// The series of one upstream and one kind of content.
pub(super) struct KindSeries {
    requests: IntCounter,
    hits: IntCounter,
    misses: IntCounter,
    results: [IntCounter; CacheResult::ALL.len()],
    pub(super) pulled_bytes: IntCounter,
    pub(super) pushed_bytes: IntCounter,
}

/// The most frequent statuses. The series of other statuses are looked up for each request.
const HOT_CODES: [StatusCode; 4] =
    [StatusCode::OK, StatusCode::PARTIAL_CONTENT, StatusCode::NOT_MODIFIED, StatusCode::NOT_FOUND];
/// The most frequent methods, with their labels.
const HOT_METHODS: [(Method, &str); 2] = [(Method::GET, "get"), (Method::HEAD, "head")];

/// The series of one handler. Each is created when it first counts something.
pub(super) struct HandlerSeries {
    handler: &'static str,
    pub(super) in_flight: IntGauge,
    methods: [(OnceLock<Histogram>, [OnceLock<IntCounter>; HOT_CODES.len()]); HOT_METHODS.len()],
}

// === impl HandlerSeries ===

impl HandlerSeries {
    pub(super) fn new(families: &Families, handler: &'static str) -> Self {
        let in_flight = families.http_in_flight.with_label_values(&[handler]);
        Self { handler, in_flight, methods: Default::default() }
    }

    /// Counts a request. If its method or status is not a frequent one, does nothing and returns false.
    pub(super) fn finished(&self, families: &Families, method: &Method, code: StatusCode, seconds: f64) -> bool {
        let Some(at_method) = HOT_METHODS.iter().position(|(known, _)| known == method) else { return false };
        let Some(at_code) = HOT_CODES.iter().position(|known| *known == code) else { return false };
        let (handler, method) = (self.handler, HOT_METHODS[at_method].1);
        let (duration, codes) = &self.methods[at_method];
        let counter = || families.http_requests.with_label_values(&[handler, code.as_str(), method]);
        let histogram = || families.http_request_duration.with_label_values(&[handler, method]);
        codes[at_code].get_or_init(counter).inc();
        duration.get_or_init(histogram).observe(seconds);
        true
    }
}

// === impl UpstreamSeries ===

impl UpstreamSeries {
    pub(super) fn new(families: &Families, upstream: &str) -> Self {
        Self {
            kinds: ContentKind::ALL.map(|kind| KindSeries::new(families, upstream, kind)),
            first_byte: families.upstream_first_byte.with_label_values(&[upstream]),
            fill_resumes: families.fill_resumes.with_label_values(&[upstream]),
            fill_segments: families.fill_segments.with_label_values(&[upstream]),
            fill_speed: families.fill_speed.with_label_values(&[upstream]),
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

    /// Counts one request, one hit or miss, and one result. Only this method changes these families, so their sums
    /// agree.
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

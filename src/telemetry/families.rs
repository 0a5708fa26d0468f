//! Every metric, by name and labels; the doc comment of a field is its help text.
//!
//! The names are a contract with dashboards (`registry_…` is what `registry:2` already exposes), so nothing here
//! is renamed. No label ever carries the name of an image.

use prometheus::core::Collector;
use prometheus::{GaugeVec, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts};
use prometheus::{Registry, Result};

/// From a hit in memory to a transfer of a minute, as `registry:2` has them.
const REQUEST_SECONDS: &[f64] = &[0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 60.0];
/// From a hit in memory to the longest that a client waits for a first byte.
const FIRST_BYTE_SECONDS: &[f64] =
    &[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];

/// How a family is made from what its field's declaration says; only a histogram has buckets.
trait Family: Collector + Clone + Sized + 'static {
    fn declare(name: &str, help: &str, labels: &[&str], buckets: &[&[f64]]) -> Result<Self>;
}

macro_rules! family {
    ($($kind:ident: |$opts:ident, $labels:ident| $make:expr;)*) => {$(
        impl Family for $kind {
            fn declare(name: &str, help: &str, $labels: &[&str], _: &[&[f64]]) -> Result<Self> {
                let $opts = Opts::new(name, help);
                $make
            }
        }
    )*};
}

family! {
    IntCounter: |opts, _labels| IntCounter::with_opts(opts);
    IntCounterVec: |opts, labels| IntCounterVec::new(opts, labels);
    IntGauge: |opts, _labels| IntGauge::with_opts(opts);
    IntGaugeVec: |opts, labels| IntGaugeVec::new(opts, labels);
    GaugeVec: |opts, labels| GaugeVec::new(opts, labels);
}

impl Family for HistogramVec {
    fn declare(name: &str, help: &str, labels: &[&str], buckets: &[&[f64]]) -> Result<Self> {
        HistogramVec::new(HistogramOpts::new(name, help).buckets(buckets.concat()), labels)
    }
}

macro_rules! families {
    ($($(#[doc = $help:literal])+ $field:ident: $kind:ident = $name:literal [$($label:literal),*] $(in $buckets:ident)?;)*) => {
        pub(super) struct Families {
            $($(#[doc = $help])+ pub(super) $field: $kind,)*
        }

        impl Families {
            /// The error is a name or label that the format forbids, or a name that is declared twice.
            pub(super) fn register(registry: &Registry) -> Result<Self> {
                $(
                    let $field = $kind::declare($name, concat!($($help),+).trim(), &[$($label),*], &[$($buckets)?])?;
                    registry.register(Box::new($field.clone()))?;
                )*
                Ok(Self { $($field),* })
            }
        }
    };
}

families! {
    /// Client GETs of mirrored content.
    proxy_requests: IntCounterVec = "registry_proxy_requests_total" ["type", "upstream"];
    /// Client GETs of mirrored content that were answered from the cache.
    proxy_hits: IntCounterVec = "registry_proxy_hits_total" ["type", "upstream"];
    /// Client GETs of mirrored content that were not answered from the cache.
    proxy_misses: IntCounterVec = "registry_proxy_misses_total" ["type", "upstream"];
    /// Bytes of content received from upstreams.
    proxy_pulled_bytes: IntCounterVec = "registry_proxy_pulled_bytes_total" ["type", "upstream"];
    /// Bytes of mirrored content sent to clients.
    proxy_pushed_bytes: IntCounterVec = "registry_proxy_pushed_bytes_total" ["type", "upstream"];

    /// Requests answered.
    http_requests: IntCounterVec = "registry_http_requests_total" ["handler", "code", "method"];
    /// From a request's head to the end of its answer.
    http_request_duration: HistogramVec = "registry_http_request_duration_seconds" ["handler", "method"] in REQUEST_SECONDS;
    /// Requests being answered.
    http_in_flight: IntGaugeVec = "registry_http_in_flight_requests" ["handler"];

    /// How client GETs of mirrored content were answered.
    cache_results: IntCounterVec = "roadstead_cache_results_total" ["type", "upstream", "result"];
    /// Requests sent to upstreams; a code that is no number says why there was no answer.
    upstream_requests: IntCounterVec = "roadstead_upstream_requests_total" ["upstream", "kind", "code"];
    /// From a request to an upstream to the head of its answer.
    upstream_first_byte: HistogramVec = "roadstead_upstream_first_byte_seconds" ["upstream"] in FIRST_BYTE_SECONDS;
    /// From a client's GET of mirrored content to the first byte of its answer.
    first_byte: HistogramVec = "roadstead_first_byte_seconds" ["type", "result"] in FIRST_BYTE_SECONDS;
    /// Downloads from upstreams under way.
    fills_in_flight: IntGauge = "roadstead_fills_in_flight" [];
    /// Downloads from upstreams that wait for their turn.
    fills_waiting: IntGauge = "roadstead_fills_waiting" [];
    /// Transfers past the store, each for one client, under way.
    bypasses_in_flight: IntGauge = "roadstead_bypasses_in_flight" [];
    /// Transfers past the store that wait for their turn.
    bypasses_waiting: IntGauge = "roadstead_bypasses_waiting" [];
    /// Downloads from upstreams that broke and went on where they had stopped.
    fill_resumes: IntCounterVec = "roadstead_fill_resumes_total" ["upstream"];
    /// Content from upstreams that was not what its digest says, and was not kept.
    digest_mismatches: IntCounterVec = "roadstead_digest_mismatches_total" ["upstream"];
    /// Pulls that an upstream allows in its window, as it said last.
    upstream_ratelimit_limit: GaugeVec = "roadstead_upstream_ratelimit_limit" ["upstream"];
    /// Pulls that an upstream still allows in its window, as it said last.
    upstream_ratelimit_remaining: GaugeVec = "roadstead_upstream_ratelimit_remaining" ["upstream"];
    /// 1 while an upstream is being asked, 0 while it is left alone after failures.
    upstream_available: IntGaugeVec = "roadstead_upstream_available" ["upstream"];

    /// Bytes of content on disk; only the cached class is ever evicted.
    storage_bytes: IntGaugeVec = "roadstead_storage_bytes" ["class"];
    /// Bytes that the cached class may take.
    storage_capacity: IntGauge = "roadstead_storage_capacity_bytes" [];
    /// 1 when the index is in step with the files and the order of last use is known; nothing is evicted before.
    index_ready: IntGauge = "roadstead_index_ready" [];
    /// Blobs and manifests evicted.
    evictions: IntCounterVec = "roadstead_evictions_total" ["reason"];
    /// Bytes evicted.
    evicted_bytes: IntCounter = "roadstead_evicted_bytes_total" [];
    /// Times that the index was found unusable and built anew.
    index_rebuilds: IntCounter = "roadstead_index_rebuilds_total" [];
    /// Blobs that were read from the disk and compared with their digests.
    scrub_blobs: IntCounter = "roadstead_scrub_blobs_total" [];
    /// Bytes of those.
    scrub_bytes: IntCounter = "roadstead_scrub_bytes_total" [];
    /// Blobs and names that were found damaged or missing; pushed content is lost until it is pushed again.
    scrub_damaged: IntCounterVec = "roadstead_scrub_damaged_total" ["class"];
    /// When everything had last been read once in the background, in seconds since 1970; 0 before.
    scrub_completed: IntGauge = "roadstead_scrub_completed_timestamp_seconds" [];
    /// Answers that were not kept because there was no room within the bounds of the cache or on the disk.
    no_room: IntCounter = "roadstead_no_room_total" [];
}

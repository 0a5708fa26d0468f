//! Every metric family, with its name and labels. The doc comment of a field is its help text. Changes of the store are
//! counted in `observer`, for each `StoreEvent`; everything else is counted in `metrics`.
//!
//! Dashboards depend on the names (`registry:2` exposes the `registry_…` names), so no name ever changes. No label
//! has the name of an image as its value. `docs/reference/metrics.md` lists all families; a test keeps it up to date.

use prometheus::Result;
use prometheus::core::Collector;
use prometheus::{GaugeVec, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts};

/// The buckets of `registry:2`: from a hit in memory to a transfer of a minute.
const REQUEST_SECONDS: &[f64] = &[0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 60.0];
/// Buckets from a hit in memory to the longest time that a client waits for a first byte.
const FIRST_BYTE_SECONDS: &[f64] =
    &[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];

/// Buckets from a slow line to a disk: 64 KiB/s to 1 GiB/s.
const BYTES_PER_SECOND: &[f64] = &[
    65536.0,
    262144.0,
    1048576.0,
    2097152.0,
    4194304.0,
    8388608.0,
    16777216.0,
    33554432.0,
    67108864.0,
    134217728.0,
    268435456.0,
    1073741824.0,
];

/// Creates a family from the declaration of its field. Only a histogram has buckets.
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
    ($(#[$attribute:meta])* $set:ident: $($(#[doc = $help:literal])+ $field:ident: $kind:ident = $name:literal [$($label:literal),*] $(in $buckets:ident)?;)*) => {
        $(#[$attribute])*
        #[derive(Clone)]
        pub(super) struct $set {
            $($(#[doc = $help])+ pub(super) $field: $kind,)*
        }

        impl $set {
            /// Name, type, labels and help text of each family, for the reference page.
            #[cfg(test)]
            pub(super) const REFERENCE: &[Reference] = &[
                $(Reference { name: $name, kind: stringify!($kind), labels: &[$($label),*], help: concat!($($help),+) },)*
            ];

            /// Creates the families. The error is a name or a label that the format forbids.
            pub(super) fn declare() -> Result<Self> {
                Ok(Self {
                    $($field: $kind::declare($name, concat!($($help),+).trim(), &[$($label),*], &[$($buckets)?])?,)*
                })
            }

            /// Returns every family, for a registry.
            pub(super) fn collectors(&self) -> Vec<Box<dyn Collector>> {
                vec![$(Box::new(self.$field.clone()),)*]
            }
        }
    };
}

/// The entry of a family on the reference page.
#[cfg(test)]
pub(super) struct Reference {
    pub(super) name: &'static str,
    /// The name of the Rust type.
    pub(super) kind: &'static str,
    pub(super) labels: &'static [&'static str],
    pub(super) help: &'static str,
}

families! {
    /// Families that the program updates when events happen.
    Families:
    /// 1, with the version of the program and the commit it was built from.
    build_info: IntGaugeVec = "roadstead_build_info" ["version", "revision"];
    /// 1 if `/readyz` is 200: the storage can be written, or is read-only on purpose.
    ready: IntGauge = "roadstead_ready" [];
    /// Time at which the certificate of [server.tls] expires, in seconds since 1970; 0 if there is none.
    certificate_expiry: IntGauge = "roadstead_certificate_expiry_timestamp_seconds" [];

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

    /// Answered requests.
    http_requests: IntCounterVec = "registry_http_requests_total" ["handler", "code", "method"];
    /// Seconds from a request's headers to the end of its response.
    http_request_duration: HistogramVec = "registry_http_request_duration_seconds" ["handler", "method"] in REQUEST_SECONDS;
    /// Requests in progress.
    http_in_flight: IntGaugeVec = "registry_http_in_flight_requests" ["handler"];

    /// Logins, by the kind of the credentials and their result. Passwords and tokens that are sent with each request count
    /// only when they are verified or refused anew.
    auth_attempts: IntCounterVec = "roadstead_auth_attempts_total" ["how", "result"];
    /// Requests of users that no rule allows.
    auth_denied: IntCounterVec = "roadstead_auth_denied_total" ["action"];
    /// Records that are not in the audit log: beyond the limit for floods, or because its file was too
    /// slow or could not be written.
    audit_dropped: IntCounter = "roadstead_audit_dropped_total" [];

    /// Client GETs of mirrored content, by how they were answered.
    cache_results: IntCounterVec = "roadstead_cache_results_total" ["type", "upstream", "result"];
    /// Requests to upstreams. A code that is not a number is the reason why there was no response.
    upstream_requests: IntCounterVec = "roadstead_upstream_requests_total" ["upstream", "kind", "code"];
    /// Seconds from a request to an upstream to the headers of its response.
    upstream_first_byte: HistogramVec = "roadstead_upstream_first_byte_seconds" ["upstream"] in FIRST_BYTE_SECONDS;
    /// Seconds from a client's GET of mirrored content to the first byte of its response.
    first_byte: HistogramVec = "roadstead_first_byte_seconds" ["type", "result"] in FIRST_BYTE_SECONDS;
    /// Fills (downloads from upstreams) in progress.
    fills_in_flight: IntGauge = "roadstead_fills_in_flight" [];
    /// Fills that wait for a slot.
    fills_waiting: IntGauge = "roadstead_fills_waiting" [];
    /// Transfers past the store, each for one client, in progress.
    bypasses_in_flight: IntGauge = "roadstead_bypasses_in_flight" [];
    /// Transfers past the store that wait for a slot.
    bypasses_waiting: IntGauge = "roadstead_bypasses_waiting" [];
    /// Fills that were interrupted and resumed.
    fill_resumes: IntCounterVec = "roadstead_fill_resumes_total" ["upstream"];
    /// Requests for a part of a blob beside the first transfer of its fill.
    fill_segments: IntCounterVec = "roadstead_fill_segments_total" ["upstream"];
    /// Bytes per second of fills of 1 MiB or more, from the request to the verified end.
    fill_speed: HistogramVec = "roadstead_fill_bytes_per_second" ["upstream"] in BYTES_PER_SECOND;
    /// Content from upstreams with a wrong digest. It was not stored.
    digest_mismatches: IntCounterVec = "roadstead_digest_mismatches_total" ["upstream"];
    /// Pulls that an upstream allows in its window, as it last reported.
    upstream_ratelimit_limit: GaugeVec = "roadstead_upstream_ratelimit_limit" ["upstream"];
    /// Pulls that an upstream still allows in its window, as it last reported.
    upstream_ratelimit_remaining: GaugeVec = "roadstead_upstream_ratelimit_remaining" ["upstream"];
    /// 1 while requests are sent to an upstream, 0 while its circuit is open after failures.
    upstream_available: IntGaugeVec = "roadstead_upstream_available" ["upstream"];

    /// Blobs and manifests that were evicted.
    evictions: IntCounterVec = "roadstead_evictions_total" ["reason"];
    /// Bytes of evicted content.
    evicted_bytes: IntCounter = "roadstead_evicted_bytes_total" [];
    /// Rebuilds of the index because it was corrupt.
    index_rebuilds: IntCounter = "roadstead_index_rebuilds_total" [];
    /// Blobs that the scrub has read from the disk and compared with their digests.
    scrub_blobs: IntCounter = "roadstead_scrub_blobs_total" [];
    /// Bytes of blobs that the scrub has read.
    scrub_bytes: IntCounter = "roadstead_scrub_bytes_total" [];
    /// Blobs and names that the scrub found corrupt or missing. Pushed content is lost until it is pushed again.
    scrub_damaged: IntCounterVec = "roadstead_scrub_damaged_total" ["class"];
    /// Time at which the background scrub last completed, in seconds since 1970; 0 before the first time.
    scrub_completed: IntGauge = "roadstead_scrub_completed_timestamp_seconds" [];
    /// Responses that were not stored because there was no room within the bounds of the cache or on the disk, or
    /// because the disk could not be written.
    no_room: IntCounter = "roadstead_no_room_total" [];
    /// Repositories that are private at their upstream and of which clients got content although there are no users
    /// (`[auth]`). Each is counted once until the next start.
    private_served_openly: IntCounterVec = "roadstead_private_served_openly_total" ["upstream"];
}

families! {
    /// Gauges that are read from the store when metrics are gathered.
    StorageFamilies:
    /// Bytes of content on disk. Only the cached class is ever evicted.
    storage_bytes: IntGaugeVec = "roadstead_storage_bytes" ["class"];
    /// Bytes that cached content may take (cache.max_size).
    storage_capacity: IntGauge = "roadstead_storage_capacity_bytes" [];
    /// Bytes of the file system that stay free (cache.min_free).
    storage_min_free: IntGauge = "roadstead_storage_min_free_bytes" [];
    /// Free bytes of the file system of the data folder. -1 if they are unknown.
    storage_free: IntGauge = "roadstead_storage_free_bytes" [];
    /// Free inodes of the file system of the data folder. -1 if they are unknown.
    storage_free_inodes: IntGauge = "roadstead_storage_free_inodes" [];
    /// 1 when the index agrees with the files and the order of last use is complete. Nothing is evicted before.
    index_ready: IntGauge = "roadstead_index_ready" [];
}

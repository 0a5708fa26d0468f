//! What is counted, as verbs: the only way for the rest of the program to reach a metric.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::{Method, StatusCode};
use parking_lot::Mutex;
use prometheus::core::Collector;
use prometheus::process_collector::ProcessCollector;
use prometheus::{Histogram, IntGauge, Registry, TextEncoder};

use super::families::Families;
use super::series::{HandlerSeries, UpstreamSeries};
use super::storage::{StorageCollector, StorageReading};
use super::{CacheResult, ContentKind, StorageClass};

pub struct Metrics {
    registry: Registry,
    pub(super) families: Families,
    storage: StorageCollector,
    upstreams: HashMap<Arc<str>, UpstreamSeries>,
    handlers: [HandlerSeries; HANDLERS.len()],
    last_no_room: Mutex<Option<Instant>>,
    first_byte: [[Histogram; CacheResult::ALL.len()]; ContentKind::ALL.len()],
}

/// What is read most.
const HANDLERS: [&str; 2] = ["manifest", "blob"];
/// How long an answer that found no room is news.
const NO_ROOM_LATELY: Duration = Duration::from_secs(5 * 60);

/// Counts as in flight until it is dropped.
#[derive(Debug)]
#[must_use = "dropping it ends the count"]
pub struct InFlight(IntGauge);

// === impl Metrics ===

impl Metrics {
    /// With a series at zero for each of these upstreams, so that a rate over the first event is right.
    #[expect(clippy::expect_used, reason = "names are constants: every start registers them, or none does")]
    pub fn new(upstreams: &[&str]) -> Self {
        let registry = Registry::new();
        let families = Families::declare().expect("names and labels are well formed");
        let storage = StorageCollector::new().expect("names and labels are well formed");
        let ours = families.collectors().into_iter().chain([Box::new(storage.clone()) as Box<dyn Collector>]);
        for collector in ours.chain([Box::new(ProcessCollector::for_self()) as Box<dyn Collector>]) {
            registry.register(collector).expect("each name is declared once");
        }
        for class in StorageClass::ALL {
            families.scrub_damaged.with_label_values(&[class.as_str()]);
        }
        let first_byte = ContentKind::ALL.map(|kind| {
            CacheResult::ALL.map(|result| families.first_byte.with_label_values(&[kind.as_str(), result.as_str()]))
        });
        let upstreams: HashMap<_, _> =
            upstreams.iter().map(|&name| (Arc::from(name), UpstreamSeries::new(&families, name))).collect();
        upstreams.values().for_each(|series| series.available.set(1));
        let handlers = HANDLERS.map(|handler| HandlerSeries::new(&families, handler));
        Self { registry, families, storage, upstreams, handlers, last_no_room: Mutex::default(), first_byte }
    }

    /// Every metric in the text exposition format 0.0.4.
    pub fn render(&self) -> String {
        // Nothing that is gathered is empty, and a string takes everything; a comment is valid text if one did not.
        let text = TextEncoder::new().encode_to_string(&self.registry.gather());
        text.unwrap_or_else(|error| format!("# {error}\n"))
    }

    /// One client GET of mirrored content, once its result is known; a HEAD is not counted.
    pub fn mirrored_get(&self, kind: ContentKind, upstream: &str, result: CacheResult) {
        self.of(upstream, |series| series.kind(kind).mirrored_get(result));
    }

    /// `seconds` from a client's GET of mirrored content to the first byte of its answer.
    pub fn first_byte(&self, kind: ContentKind, result: CacheResult, seconds: f64) {
        self.first_byte[kind as usize][result as usize].observe(seconds);
    }

    /// `bytes` came from an upstream.
    pub fn pulled_bytes(&self, kind: ContentKind, upstream: &str, bytes: u64) {
        self.of(upstream, |series| series.kind(kind).pulled_bytes.inc_by(bytes));
    }

    /// `bytes` of mirrored content went to a client.
    pub fn pushed_bytes(&self, kind: ContentKind, upstream: &str, bytes: u64) {
        self.of(upstream, |series| series.kind(kind).pushed_bytes.inc_by(bytes));
    }

    /// One request to an upstream; `code` is its status, or one word for why there was none.
    pub fn upstream_request(&self, upstream: &str, kind: &str, code: &str) {
        self.families.upstream_requests.with_label_values(&[upstream, kind, code]).inc();
    }

    /// `seconds` from a request to an upstream to the head of its answer.
    pub fn upstream_first_byte(&self, upstream: &str, seconds: f64) {
        self.of(upstream, |series| series.first_byte.observe(seconds));
    }

    /// What an upstream said about its limit. A series appears with the first answer that names one: zero would be
    /// an alarm.
    pub fn upstream_ratelimit(&self, upstream: &str, limit: Option<f64>, remaining: Option<f64>) {
        if let Some(limit) = limit {
            self.families.upstream_ratelimit_limit.with_label_values(&[upstream]).set(limit);
        }
        if let Some(remaining) = remaining {
            self.families.upstream_ratelimit_remaining.with_label_values(&[upstream]).set(remaining);
        }
    }

    pub fn upstream_available(&self, upstream: &str, up: bool) {
        self.of(upstream, |series| series.available.set(up.into()));
    }

    /// A fill runs until the guard is dropped.
    pub fn fill_started(&self) -> InFlight {
        InFlight::new(self.families.fills_in_flight.clone())
    }

    /// A fill waits for its turn until the guard is dropped.
    pub fn fill_waiting(&self) -> InFlight {
        InFlight::new(self.families.fills_waiting.clone())
    }

    pub fn fill_resumed(&self, upstream: &str) {
        self.of(upstream, |series| series.fill_resumes.inc());
    }

    pub fn digest_mismatch(&self, upstream: &str) {
        self.of(upstream, |series| series.digest_mismatches.inc());
    }

    /// A request to `handler` is being answered until the guard is dropped.
    pub fn http_started(&self, handler: &str) -> InFlight {
        InFlight::new(match self.handler(handler) {
            Some(series) => series.in_flight.clone(),
            None => self.families.http_in_flight.with_label_values(&[handler]),
        })
    }

    fn handler(&self, handler: &str) -> Option<&HandlerSeries> {
        self.handlers.iter().zip(HANDLERS).find_map(|(series, name)| (name == handler).then_some(series))
    }

    /// A request was answered to its end, `seconds` after its head.
    pub fn http_finished(&self, handler: &str, method: &Method, code: StatusCode, seconds: f64) {
        if let Some(series) = self.handler(handler)
            && series.finished(&self.families, method, code, seconds)
        {
            return;
        }
        let method = method_label(method);
        self.families.http_requests.with_label_values(&[handler, code.as_str(), method]).inc();
        self.families.http_request_duration.with_label_values(&[handler, method]).observe(seconds);
    }

    /// Where the gauges of the store are read when metrics are gathered. The first source counts.
    pub fn set_storage_source(&self, read: impl Fn() -> Option<StorageReading> + Send + Sync + 'static) {
        self.storage.set_source(Box::new(read));
    }

    /// Bytes that cached content may take.
    pub fn storage_capacity(&self, bytes: u64) {
        self.families.storage_capacity.set(gauge(bytes));
    }

    /// The index was found corrupt and is rebuilt.
    pub fn index_rebuilt(&self) {
        self.families.index_rebuilds.inc();
    }

    /// One blob of `bytes` was read and compared with its digest.
    pub fn scrubbed(&self, bytes: u64) {
        self.families.scrub_blobs.inc();
        self.families.scrub_bytes.inc_by(bytes);
    }

    /// A scrub found content of this class damaged or missing.
    pub fn damage_found(&self, class: &str) {
        self.families.scrub_damaged.with_label_values(&[class]).inc();
    }

    /// Everything had been read once at `time`, in seconds since 1970.
    pub fn scrub_completed(&self, time: u64) {
        self.families.scrub_completed.set(gauge(time));
    }

    /// An answer was not kept, for there was no room. Whether that is news.
    pub fn no_room(&self) -> bool {
        self.families.no_room.inc();
        self.last_no_room.lock().replace(Instant::now()).is_none()
    }

    /// Whether there was no room to keep an answer lately.
    pub fn is_bypassing(&self) -> bool {
        self.last_no_room.lock().is_some_and(|last| last.elapsed() < NO_ROOM_LATELY)
    }

    /// Whether that has ended since the last call.
    pub fn has_room_again(&self) -> bool {
        let mut last = self.last_no_room.lock();
        let ended = last.is_some_and(|last| last.elapsed() >= NO_ROOM_LATELY);
        if ended {
            *last = None;
        }
        ended
    }

    /// A transfer past the store runs until the guard is dropped.
    pub fn bypass_started(&self) -> InFlight {
        InFlight::new(self.families.bypasses_in_flight.clone())
    }

    /// The same waits for its turn until the guard is dropped.
    pub fn bypass_waiting(&self) -> InFlight {
        InFlight::new(self.families.bypasses_waiting.clone())
    }

    /// Transfers of content under way: fills, and requests for blobs and uploads.
    pub fn transfers_in_flight(&self) -> i64 {
        let handlers = ["blob", "blob_upload", "blob_upload_chunk"];
        let requests = handlers.map(|handler| self.families.http_in_flight.with_label_values(&[handler]).get());
        self.families.fills_in_flight.get() + requests.iter().sum::<i64>()
    }

    /// The series of one upstream; those of a name that was not announced are looked up by label.
    fn of(&self, upstream: &str, count: impl FnOnce(&UpstreamSeries)) {
        match self.upstreams.get(upstream) {
            Some(series) => count(series),
            None => count(&UpstreamSeries::new(&self.families, upstream)),
        }
    }
}

// === impl InFlight ===

impl InFlight {
    fn new(gauge: IntGauge) -> Self {
        gauge.inc();
        Self(gauge)
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// In lower case, as `registry:2` has them, and of a bounded number whatever clients send.
fn method_label(method: &Method) -> &'static str {
    match *method {
        Method::GET => "get",
        Method::HEAD => "head",
        Method::POST => "post",
        Method::PUT => "put",
        Method::PATCH => "patch",
        Method::DELETE => "delete",
        Method::OPTIONS => "options",
        _ => "other",
    }
}

fn gauge(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::events::{EvictionReason, StoreEvent};
    use crate::oci::{Algorithm, Digest};

    /// The value of a series, or the sum over all series of a family.
    fn total(text: &str, series: &str) -> f64 {
        let of_series = |line: &&str| line.starts_with(series) && line[series.len()..].starts_with([' ', '{']);
        text.lines().filter(of_series).filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok()).sum()
    }

    #[test]
    fn each_mirrored_get_is_one_request_one_hit_or_miss_and_one_result() {
        let metrics = Metrics::new(&["docker.io"]);
        let mut hits = 0.0;
        let mut requests = 0.0;
        for kind in ContentKind::ALL {
            for (times, result) in CacheResult::ALL.into_iter().enumerate() {
                for upstream in ["docker.io", "docker.io", "not-announced.example.com"].iter().cycle().take(times + 1) {
                    metrics.mirrored_get(kind, upstream, result);
                    requests += 1.0;
                    hits += if result.is_hit() { 1.0 } else { 0.0 };
                }
            }
        }
        let text = metrics.render();
        assert_eq!(total(&text, "registry_proxy_requests_total"), requests);
        assert_eq!(total(&text, "registry_proxy_hits_total"), hits);
        assert_eq!(total(&text, "registry_proxy_misses_total"), requests - hits);
        assert_eq!(total(&text, "roadstead_cache_results_total"), requests);
    }

    #[test]
    fn known_upstreams_are_at_zero_from_the_start_and_rate_limits_are_absent() {
        let text = Metrics::new(&["ghcr.io"]).render();
        for line in [
            "registry_proxy_requests_total{type=\"blob\",upstream=\"ghcr.io\"} 0",
            "registry_proxy_hits_total{type=\"manifest\",upstream=\"ghcr.io\"} 0",
            "roadstead_cache_results_total{result=\"joined_committed\",type=\"blob\",upstream=\"ghcr.io\"} 0",
            "roadstead_digest_mismatches_total{upstream=\"ghcr.io\"} 0",
            "roadstead_upstream_available{upstream=\"ghcr.io\"} 1",
            "roadstead_storage_bytes{class=\"pushed\"} 0",
            "roadstead_fills_in_flight 0",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
        }
        assert!(!text.contains("ratelimit"));
    }

    #[test]
    fn every_name_of_the_contract_is_exposed_and_no_other() {
        let metrics = Metrics::new(&["docker.io"]);
        metrics.upstream_request("docker.io", "manifest", "200");
        metrics.upstream_ratelimit("docker.io", Some(100.0), Some(99.0));
        let evicted = Digest::of(Algorithm::Sha256, b"evicted");
        metrics.observe(&StoreEvent::Evicted { digest: evicted, bytes: 1, reason: EvictionReason::Size });
        drop(metrics.http_started("manifest"));
        metrics.http_finished("manifest", &Method::GET, StatusCode::OK, 0.1);
        let text = metrics.render();
        let exposed: BTreeSet<_> =
            text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()).collect();
        let (process, ours): (BTreeSet<_>, BTreeSet<_>) =
            exposed.into_iter().partition(|name| name.starts_with("process_"));
        let contract = [
            "registry_proxy_requests_total",
            "registry_proxy_hits_total",
            "registry_proxy_misses_total",
            "registry_proxy_pulled_bytes_total",
            "registry_proxy_pushed_bytes_total",
            "registry_http_requests_total",
            "registry_http_request_duration_seconds",
            "registry_http_in_flight_requests",
            "roadstead_cache_results_total",
            "roadstead_upstream_requests_total",
            "roadstead_upstream_first_byte_seconds",
            "roadstead_first_byte_seconds",
            "roadstead_fills_in_flight",
            "roadstead_fills_waiting",
            "roadstead_bypasses_in_flight",
            "roadstead_bypasses_waiting",
            "roadstead_fill_resumes_total",
            "roadstead_digest_mismatches_total",
            "roadstead_upstream_ratelimit_limit",
            "roadstead_upstream_ratelimit_remaining",
            "roadstead_upstream_available",
            "roadstead_storage_bytes",
            "roadstead_storage_capacity_bytes",
            "roadstead_evictions_total",
            "roadstead_evicted_bytes_total",
            "roadstead_index_ready",
            "roadstead_index_rebuilds_total",
            "roadstead_scrub_blobs_total",
            "roadstead_scrub_bytes_total",
            "roadstead_scrub_damaged_total",
            "roadstead_scrub_completed_timestamp_seconds",
            "roadstead_no_room_total",
        ];
        assert_eq!(ours, contract.into());
        assert!(process.contains("process_resident_memory_bytes") && process.contains("process_open_fds"));
    }

    #[test]
    fn what_is_in_flight_ends_with_its_guard() {
        let metrics = Metrics::new(&[]);
        let fills = [metrics.fill_started(), metrics.fill_started()];
        assert_eq!(total(&metrics.render(), "roadstead_fills_in_flight"), 2.0);
        drop(fills);
        assert_eq!(total(&metrics.render(), "roadstead_fills_in_flight"), 0.0);
    }

    #[test]
    fn labels_are_as_registry_2_has_them() {
        let metrics = Metrics::new(&[]);
        metrics.http_finished("blob", &Method::HEAD, StatusCode::NOT_FOUND, 0.004);
        let invented = Method::from_bytes(b"FROBNICATE").unwrap();
        metrics.http_finished("blob", &invented, StatusCode::METHOD_NOT_ALLOWED, 61.0);
        let text = metrics.render();
        for line in [
            "registry_http_requests_total{code=\"404\",handler=\"blob\",method=\"head\"} 1",
            "registry_http_requests_total{code=\"405\",handler=\"blob\",method=\"other\"} 1",
            "registry_http_request_duration_seconds_bucket{handler=\"blob\",method=\"head\",le=\"0.005\"} 1",
            "registry_http_request_duration_seconds_bucket{handler=\"blob\",method=\"other\",le=\"60\"} 0",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
        }
    }
}

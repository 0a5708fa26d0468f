//! [`Metrics`] has one method for each counter, gauge and histogram. No module outside of `telemetry` names a metric.
//!
//! The families are declared in `families`. Events of the store are counted in `observer`, and all other values here.

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
use crate::events::EvictionReason;

/// All metrics of the process.
pub struct Metrics {
    registry: Registry,
    pub(super) families: Families,
    storage: StorageCollector,
    upstreams: HashMap<Arc<str>, UpstreamSeries>,
    handlers: [HandlerSeries; HOT_HANDLERS.len()],
    /// The last time that a response could not be stored; `None` if that was more than [`BYPASS_MEMORY`] ago.
    last_no_room: Mutex<Option<Instant>>,
    first_byte: [[Histogram; CacheResult::ALL.len()]; ContentKind::ALL.len()],
}

/// The handlers with the most requests. Their series are looked up once.
const HOT_HANDLERS: [&str; 2] = ["manifest", "blob"];
/// The statuses of requests that dashboards and alerts ask for. Their series start at zero, because `increase` of Prometheus
/// does not see the first event of a series.
const EXPECTED_REQUESTS: [(&[&str], &[&str], &[&str]); 2] = [
    (&["manifest", "blob"], &["get", "head"], &["200", "404", "429", "500", "502", "503", "504"]),
    (&["manifest", "blob_upload", "blob_upload_chunk"], &["post", "patch", "put"], &["201", "202", "500", "507"]),
];
/// The commit that the program was built from, if its build said so.
const REVISION: &str = match option_env!("ROADSTEAD_REVISION") {
    Some(revision) => revision,
    None => "unknown",
};
/// Fills of fewer bytes say little about the speed of a line.
const MIN_MEASURED_FILL_BYTES: u64 = 1 << 20;
/// How long the server reports that it bypasses the store after a response that could not be stored.
const BYPASS_MEMORY: Duration = Duration::from_secs(5 * 60);

/// Counts a request or transfer as in flight until it is dropped.
#[derive(Debug)]
#[must_use = "dropping it ends the count"]
pub struct InFlight(IntGauge);

// === impl Metrics ===

impl Metrics {
    /// Creates all metrics. The series of these upstreams start at zero, so that a rate over the first event is
    /// correct.
    #[expect(clippy::expect_used, reason = "names and labels are constants, so every start succeeds or none does")]
    pub fn new(upstreams: &[&str]) -> Self {
        let registry = Registry::new();
        let families = Families::declare().expect("names and labels are well formed");
        let storage = StorageCollector::new().expect("names and labels are well formed");
        let own = families.collectors().into_iter().chain([Box::new(storage.clone()) as Box<dyn Collector>]);
        for collector in own.chain([Box::new(ProcessCollector::for_self()) as Box<dyn Collector>]) {
            registry.register(collector).expect("each name is declared once");
        }
        families.build_info.with_label_values(&[env!("CARGO_PKG_VERSION"), REVISION]).set(1);
        for reason in EvictionReason::ALL {
            families.evictions.with_label_values(&[reason.as_str()]);
        }
        for class in StorageClass::ALL {
            families.scrub_damaged.with_label_values(&[class.as_str()]);
        }
        for (handlers, methods, codes) in EXPECTED_REQUESTS {
            for (handler, method) in
                handlers.iter().flat_map(|handler| methods.iter().map(move |method| (handler, method)))
            {
                for code in codes {
                    families.http_requests.with_label_values(&[*handler, *code, *method]);
                }
                families.http_request_duration.with_label_values(&[*handler, *method]);
            }
        }
        let first_byte = ContentKind::ALL.map(|kind| {
            CacheResult::ALL.map(|result| families.first_byte.with_label_values(&[kind.as_str(), result.as_str()]))
        });
        let upstreams: HashMap<_, _> =
            upstreams.iter().map(|&name| (Arc::from(name), UpstreamSeries::new(&families, name))).collect();
        for (name, series) in &upstreams {
            series.available.set(1);
            families.private_served_openly.with_label_values(&[name]);
        }
        let handlers = HOT_HANDLERS.map(|handler| HandlerSeries::new(&families, handler));
        Self { registry, families, storage, upstreams, handlers, last_no_room: Mutex::default(), first_byte }
    }

    /// Returns every metric in the text exposition format 0.0.4.
    pub fn render(&self) -> String {
        // Writing to a string does not fail. If encoding does, a comment keeps the response valid.
        let text = TextEncoder::new().encode_to_string(&self.registry.gather());
        text.unwrap_or_else(|error| format!("# {error}\n"))
    }

    /// Counts a client's GET of mirrored content, once its result is known. A HEAD is not counted.
    pub fn mirrored_get(&self, kind: ContentKind, upstream: &str, result: CacheResult) {
        self.with_upstream(upstream, |series| series.kind(kind).mirrored_get(result));
    }

    /// Records the seconds from a client's GET of mirrored content to the first byte of its response.
    pub fn first_byte(&self, kind: ContentKind, result: CacheResult, seconds: f64) {
        self.first_byte[kind as usize][result as usize].observe(seconds);
    }

    /// Counts a client's GET of a mirrored manifest that is answered from memory, `seconds` after its headers were
    /// received, and the `bytes` of its body: as the methods above and [`Metrics::pushed_bytes`], with one look-up.
    pub fn manifest_hit(&self, upstream: &str, bytes: u64, seconds: f64) {
        let (kind, result) = (ContentKind::Manifest, CacheResult::Hit);
        self.with_upstream(upstream, |series| {
            series.kind(kind).mirrored_get(result);
            series.kind(kind).pushed_bytes.inc_by(bytes);
        });
        self.first_byte(kind, result, seconds);
    }

    /// Counts bytes that were received from an upstream.
    pub fn pulled_bytes(&self, kind: ContentKind, upstream: &str, bytes: u64) {
        self.with_upstream(upstream, |series| series.kind(kind).pulled_bytes.inc_by(bytes));
    }

    /// Counts bytes of mirrored content that were sent to a client.
    pub fn pushed_bytes(&self, kind: ContentKind, upstream: &str, bytes: u64) {
        self.with_upstream(upstream, |series| series.kind(kind).pushed_bytes.inc_by(bytes));
    }

    /// Counts a request to an upstream. `code` is the response's status, or a word for the reason why there was no
    /// response.
    pub fn upstream_request(&self, upstream: &str, kind: &str, code: &str) {
        self.families.upstream_requests.with_label_values(&[upstream, kind, code]).inc();
    }

    /// Records the seconds from a request to an upstream to the headers of its response.
    pub fn upstream_first_byte(&self, upstream: &str, seconds: f64) {
        self.with_upstream(upstream, |series| series.first_byte.observe(seconds));
    }

    /// Records the rate limit in an upstream's response. The series appear with the first such response, because a
    /// remaining number of zero would raise an alarm.
    pub fn upstream_ratelimit(&self, upstream: &str, limit: Option<f64>, remaining: Option<f64>) {
        if let Some(limit) = limit {
            self.families.upstream_ratelimit_limit.with_label_values(&[upstream]).set(limit);
        }
        if let Some(remaining) = remaining {
            self.families.upstream_ratelimit_remaining.with_label_values(&[upstream]).set(remaining);
        }
    }

    /// Records whether requests are sent to an upstream. `up` is false while its circuit is open.
    pub fn upstream_available(&self, upstream: &str, up: bool) {
        self.with_upstream(upstream, |series| series.available.set(up.into()));
    }

    /// Counts a fill as in progress until the guard is dropped.
    pub fn fill_started(&self) -> InFlight {
        InFlight::new(self.families.fills_in_flight.clone())
    }

    /// Counts a fill as waiting for a slot until the guard is dropped.
    pub fn fill_waiting(&self) -> InFlight {
        InFlight::new(self.families.fills_waiting.clone())
    }

    /// Records the speed of a fill of so many bytes that took so many seconds. Small fills are left out.
    pub fn fill_verified(&self, upstream: &str, bytes: u64, seconds: f64) {
        if bytes >= MIN_MEASURED_FILL_BYTES && seconds > 0.0 {
            self.with_upstream(upstream, |series| series.fill_speed.observe(bytes as f64 / seconds));
        }
    }

    /// Records whether the server is ready, as `/readyz` answers.
    pub fn set_ready(&self, ready: bool) {
        self.families.ready.set(ready.into());
    }

    /// Records when the certificate of the listening port expires, in seconds since 1970.
    pub fn certificate_expiry(&self, seconds: i64) {
        self.families.certificate_expiry.set(seconds);
    }

    /// Counts a fill that was interrupted and resumed.
    pub fn fill_resumed(&self, upstream: &str) {
        self.with_upstream(upstream, |series| series.fill_resumes.inc());
    }

    /// Counts a request for a part of a blob beside the first transfer of its fill.
    pub fn fill_segment(&self, upstream: &str) {
        self.with_upstream(upstream, |series| series.fill_segments.inc());
    }

    /// Counts content of an upstream with a wrong digest.
    pub fn digest_mismatch(&self, upstream: &str) {
        self.with_upstream(upstream, |series| series.digest_mismatches.inc());
    }

    /// Counts a request to `handler` as in progress until the guard is dropped.
    pub fn http_started(&self, handler: &str) -> InFlight {
        InFlight::new(match self.handler(handler) {
            Some(series) => series.in_flight.clone(),
            None => self.families.http_in_flight.with_label_values(&[handler]),
        })
    }

    fn handler(&self, handler: &str) -> Option<&HandlerSeries> {
        self.handlers.iter().zip(HOT_HANDLERS).find_map(|(series, name)| (name == handler).then_some(series))
    }

    /// Counts a request whose response has ended, `seconds` after its headers were received.
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

    /// Creates the series of logins, at zero. Without users there are none.
    pub fn expect_logins(&self, kinds: &[&str], results: &[&str], actions: &[&str]) {
        for kind in kinds {
            for result in results {
                self.families.auth_attempts.with_label_values(&[*kind, *result]);
            }
        }
        for action in actions {
            self.families.auth_denied.with_label_values(&[*action]);
        }
    }

    /// Counts a login, by the kind of its credentials and its result.
    pub fn auth_attempt(&self, how: &str, result: &str) {
        self.families.auth_attempts.with_label_values(&[how, result]).inc();
    }

    /// Counts a request of a user that no rule allows.
    pub fn auth_denied(&self, action: &str) {
        self.families.auth_denied.with_label_values(&[action]).inc();
    }

    /// Counts records that are not in the audit log.
    pub fn audit_dropped(&self, records: u64) {
        self.families.audit_dropped.inc_by(records);
    }

    /// Sets the source of the store's gauges, which are read when metrics are gathered. Later calls have no effect.
    pub fn set_storage_source(&self, read: impl Fn() -> Option<StorageReading> + Send + Sync + 'static) {
        self.storage.set_source(Box::new(read));
    }

    /// Counts an index that was found corrupt and is rebuilt.
    pub fn index_rebuilt(&self) {
        self.families.index_rebuilds.inc();
    }

    /// Counts a blob of `bytes` bytes that a scrub has read and compared with its digest.
    pub fn scrubbed(&self, bytes: u64) {
        self.families.scrub_blobs.inc();
        self.families.scrub_bytes.inc_by(bytes);
    }

    /// Counts content of a class that a scrub found corrupt or missing.
    pub fn damage_found(&self, class: &str) {
        self.families.scrub_damaged.with_label_values(&[class]).inc();
    }

    /// Records when the background scrub last completed a pass, in seconds since 1970.
    pub fn scrub_completed(&self, time: u64) {
        self.families.scrub_completed.set(gauge(time));
    }

    /// Counts a response that was not stored because there was no room. Returns true if it is the first one since
    /// [`Metrics::has_room_again`] last returned true.
    pub fn no_room(&self) -> bool {
        self.families.no_room.inc();
        self.last_no_room.lock().replace(Instant::now()).is_none()
    }

    /// Counts a private repository of which clients got content although there are no users.
    pub fn private_served_openly(&self, upstream: &str) {
        self.families.private_served_openly.with_label_values(&[upstream]).inc();
    }

    /// Whether a response of the last five minutes was not stored because there was no room.
    pub fn is_bypassing(&self) -> bool {
        self.last_no_room.lock().is_some_and(|last| last.elapsed() < BYPASS_MEMORY)
    }

    /// Whether [`Metrics::is_bypassing`] has become false since the last call.
    pub fn has_room_again(&self) -> bool {
        let mut last = self.last_no_room.lock();
        let ended = last.is_some_and(|last| last.elapsed() >= BYPASS_MEMORY);
        if ended {
            *last = None;
        }
        ended
    }

    /// Counts a transfer past the store as in progress until the guard is dropped.
    pub fn bypass_started(&self) -> InFlight {
        InFlight::new(self.families.bypasses_in_flight.clone())
    }

    /// Counts a transfer past the store as waiting for a slot until the guard is dropped.
    pub fn bypass_waiting(&self) -> InFlight {
        InFlight::new(self.families.bypasses_waiting.clone())
    }

    /// Returns the number of transfers in progress: fills, and requests for blobs and uploads.
    pub fn transfers_in_flight(&self) -> i64 {
        let handlers = ["blob", "blob_upload", "blob_upload_chunk"];
        let requests = handlers.map(|handler| self.families.http_in_flight.with_label_values(&[handler]).get());
        self.families.fills_in_flight.get() + requests.iter().sum::<i64>()
    }

    /// Calls `count` with the series of an upstream. Looks them up if the upstream was not passed to [`Metrics::new`].
    fn with_upstream(&self, upstream: &str, count: impl FnOnce(&UpstreamSeries)) {
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

/// Returns the value of the `method` label, in lower case as in `registry:2`. Unknown methods share a value, so that
/// the number of series is bounded.
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
    use crate::telemetry::families::StorageFamilies;

    /// The value of a series, or the sum over all series of a family.
    fn total(text: &str, series: &str) -> f64 {
        let of_series = |line: &&str| line.starts_with(series) && line[series.len()..].starts_with([' ', '{']);
        text.lines().filter(of_series).filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok()).sum()
    }

    #[test]
    fn each_mirrored_get_counts_once_in_each_family() {
        let metrics = Metrics::new(&["docker.io"]);
        let mut hits = 0.0;
        let mut requests = 0.0;
        for kind in ContentKind::ALL {
            for (times, result) in CacheResult::ALL.into_iter().enumerate() {
                for upstream in ["docker.io", "docker.io", "unknown.example.com"].iter().cycle().take(times + 1) {
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
    fn known_upstreams_start_at_zero_and_without_rate_limits() {
        let text = Metrics::new(&["ghcr.io"]).render();
        for line in [
            "registry_proxy_requests_total{type=\"blob\",upstream=\"ghcr.io\"} 0",
            "registry_proxy_hits_total{type=\"manifest\",upstream=\"ghcr.io\"} 0",
            "roadstead_cache_results_total{result=\"joined_committed\",type=\"blob\",upstream=\"ghcr.io\"} 0",
            "roadstead_digest_mismatches_total{upstream=\"ghcr.io\"} 0",
            "roadstead_upstream_available{upstream=\"ghcr.io\"} 1",
            "roadstead_storage_bytes{class=\"pushed\"} 0",
            "roadstead_fills_in_flight 0",
            "roadstead_evictions_total{reason=\"size\"} 0",
            "roadstead_fill_bytes_per_second_count{upstream=\"ghcr.io\"} 0",
            concat!("roadstead_build_info{revision=\"unknown\",version=\"", env!("CARGO_PKG_VERSION"), "\"} 1"),
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
        }
        assert!(!text.contains("ratelimit"));
    }

    #[test]
    fn exactly_the_declared_families_are_exposed() {
        let metrics = Metrics::new(&["docker.io"]);
        metrics.upstream_request("docker.io", "manifest", "200");
        metrics.upstream_ratelimit("docker.io", Some(100.0), Some(99.0));
        metrics.expect_logins(&["password"], &["accepted"], &["pull"]);
        let evicted = Digest::of(Algorithm::Sha256, b"evicted");
        metrics.observe(&StoreEvent::Evicted { digest: evicted, bytes: 1, reason: EvictionReason::Size });
        drop(metrics.http_started("manifest"));
        metrics.http_finished("manifest", &Method::GET, StatusCode::OK, 0.1);
        let text = metrics.render();
        let exposed: BTreeSet<_> =
            text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()).collect();
        let (process, own): (BTreeSet<_>, BTreeSet<_>) =
            exposed.into_iter().partition(|name| name.starts_with("process_"));
        let declared = Families::REFERENCE.iter().chain(StorageFamilies::REFERENCE).map(|family| family.name).collect();
        assert_eq!(own, declared);
        assert!(process.contains("process_resident_memory_bytes") && process.contains("process_open_fds"));
    }

    #[test]
    fn a_guard_counts_until_it_is_dropped() {
        let metrics = Metrics::new(&[]);
        let fills = [metrics.fill_started(), metrics.fill_started()];
        assert_eq!(total(&metrics.render(), "roadstead_fills_in_flight"), 2.0);
        drop(fills);
        assert_eq!(total(&metrics.render(), "roadstead_fills_in_flight"), 0.0);
    }

    #[test]
    fn labels_match_registry_2() {
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

//! Accuracy of the counters: a random run, compared with the counts of clients and upstreams.

use std::sync::Arc;

use serde_json::json;

use crate::scene::until;
use crate::support::metrics::Metrics;
use crate::support::{Bearer, Image, Reply, TestServer, Upstream};

const CLIENTS: u64 = 8;
const PULLS: u64 = 500;
const HITS: [&str; 4] = ["hit", "revalidated", "stale", "joined_committed"];

/// One upstream, its name and the images in it.
struct Origin {
    name: &'static str,
    upstream: Upstream,
    images: Vec<(String, Image)>,
}

impl Origin {
    async fn start(name: &'static str, seed: u64) -> Self {
        let upstream = Upstream::start().await;
        let mut images = Vec::new();
        for n in 0..4 {
            let repo = format!("org/app{n}");
            let image = Image::new(seed + 10 * n, &[20_000, 90_000 * n as usize, 5]);
            upstream.add_image(&repo, "v1", &image);
            images.push((repo, image));
        }
        Self { name, upstream, images }
    }

    /// A random path, of existing or missing content, and the `type` label that it is counted under.
    fn any(&self, rng: &mut fastrand::Rng) -> (String, &'static str) {
        let (repo, image) = &self.images[rng.usize(..self.images.len())];
        let unknown = Image::new(rng.u64(900..910), &[]).manifest.digest;
        let blob = &image.layers[rng.usize(..image.layers.len())].digest;
        let (kind, rest) = match rng.u32(..10) {
            0..3 => ("manifest", "manifests/v1".to_owned()),
            3..5 => ("manifest", format!("manifests/{}", image.digest())),
            5 => ("manifest", format!("manifests/none{}", rng.u32(..3))),
            6 if rng.bool() => ("manifest", format!("manifests/{unknown}")),
            6 => ("blob", format!("blobs/{unknown}")),
            _ => ("blob", format!("blobs/{blob}")),
        };
        (format!("/v2/{repo}/{rest}?ns={}", self.name), kind)
    }
}

/// The requests of one client, by upstream and type.
#[derive(Default)]
struct Counted {
    gets: Vec<(&'static str, &'static str)>,
    heads: usize,
}

async fn pull(url: String, origins: Arc<Vec<Origin>>, seed: u64) -> Counted {
    let (mut rng, mut counted) = (fastrand::Rng::with_seed(seed), Counted::default());
    let client = crate::support::Client::new();
    for _ in 0..PULLS / CLIENTS + 1 {
        let origin = &origins[rng.usize(..origins.len())];
        let (path, kind) = origin.any(&mut rng);
        let url = format!("{url}{path}");
        let from = format!("bytes={}-{}", rng.u32(..100_000), rng.u32(100_000..200_000));
        let headers: &[(&str, &str)] = match rng.u32(..6) {
            0 => &[("Range", from.as_str())],
            1 => &[("If-None-Match", "*")],
            _ => &[],
        };
        let method = if rng.u32(..4) == 0 { "HEAD" } else { "GET" };
        match method {
            "GET" => counted.gets.push((origin.name, kind)),
            _ => counted.heads += 1,
        }
        // Failures in the middle of a body do not matter here, only the counters do.
        let answer = client.send(method, &url, headers, "").await;
        let expected = [200, 206, 304, 404, 416, 429, 502, 503, 504];
        assert!(expected.contains(&answer.status), "{method} {path}: {} {}", answer.status, answer.text());
    }
    counted
}

#[tokio::test(flavor = "multi_thread")]
async fn every_pull_and_every_upstream_request_is_counted_once() {
    let origins = vec![Origin::start("docker.io", 1000).await, Origin::start("quay.io", 2000).await];
    origins[0].upstream.require_bearer(Bearer::new());
    for (n, origin) in origins.iter().enumerate() {
        let mut rng = fastrand::Rng::with_seed(n as u64);
        let replies = (0..600).map(|_| match rng.u32(..20) {
            0 => Reply::error(503, "UNAVAILABLE"),
            1 => Reply::error(500, "UNKNOWN"),
            2 => Reply::error(429, "TOOMANYREQUESTS").header("Retry-After", "0"),
            _ => Reply::normal(),
        });
        origin.upstream.script("*", "/v2/*", replies);
    }
    let builder = TestServer::builder().upstream("docker.io", &origins[0].upstream);
    let builder = builder.upstream("quay.io", &origins[1].upstream).default_upstream("docker.io");
    let server = builder.config("[cache]\ntag_ttl = \"0s\"\nnegative_ttl = \"200ms\"").start().await;
    let origins = Arc::new(origins);
    let clients = (0..CLIENTS).map(|seed| tokio::spawn(pull(server.url(""), Arc::clone(&origins), seed)));
    let clients: Vec<_> = clients.collect();
    let (mut gets, mut heads) = (Vec::new(), 0);
    for client in clients {
        let counted = client.await.unwrap();
        gets.extend(counted.gets);
        heads += counted.heads;
    }
    assert!(gets.len() + heads >= PULLS as usize && heads > 50);
    until("nothing is in flight", async || {
        let metrics = server.metrics().await;
        let ours = metrics.sum("registry_http_in_flight_requests", &[]);
        metrics.sum("roadstead_fills_in_flight", &[]) + ours == 0.0
    })
    .await;

    let metrics = server.metrics().await;
    for origin in origins.iter() {
        let name = origin.name;
        for kind in ["manifest", "blob"] {
            let labels = [("type", kind), ("upstream", name)];
            let sum = |metric| metrics.sum(metric, &labels);
            let results = |results: &[&str]| -> f64 {
                let with = |result| [labels[0], labels[1], ("result", result)];
                results.iter().map(|result| metrics.sum("roadstead_cache_results_total", &with(result))).sum()
            };
            let requested = gets.iter().filter(|get| **get == (name, kind)).count() as f64;
            assert!(requested > 50.0, "{name} {kind}");
            assert_eq!(sum("registry_proxy_requests_total"), requested, "{name} {kind}");
            assert_eq!(sum("roadstead_cache_results_total"), requested, "{name} {kind}");
            let (hits, misses) = (sum("registry_proxy_hits_total"), sum("registry_proxy_misses_total"));
            assert_eq!(hits + misses, requested, "{name} {kind}");
            assert_eq!(hits, results(&HITS), "{name} {kind}");
            assert_eq!(misses, results(&["miss", "joined", "bypass", "negative", "error"]), "{name} {kind}");
            assert!(hits > 0.0 && results(&["miss"]) > 0.0, "{name} {kind}");
            assert!(sum("registry_proxy_pulled_bytes_total") > 0.0 && sum("registry_proxy_pushed_bytes_total") > 0.0);
        }
        let counted = metrics.sum("roadstead_upstream_requests_total", &[("upstream", name)]);
        assert_eq!(counted, origin.upstream.total() as f64, "{name}");
        for code in [401, 403, 404, 429, 500, 503] {
            let code = code.to_string();
            let labels = [("upstream", name), ("code", code.as_str())];
            let ours = metrics.sum("roadstead_upstream_requests_total", &labels);
            assert!(ours > 0.0 || code == "403" || (code == "401" && name == "quay.io"), "{name} {code}");
        }
    }
    assert_no_image_name(&metrics);
}

fn assert_no_image_name(metrics: &Metrics) {
    for value in metrics.label_values() {
        let harmless = !value.contains("app") && !value.contains("org/") && !value.contains("sha256") && value != "v1";
        assert!(harmless, "{value:?} is the value of a label");
    }
}

#[tokio::test]
async fn traffic_appears_under_the_metric_names_of_dashboards() {
    let upstream = Upstream::start().await;
    let image = Image::new(1, &[500]);
    upstream.add_image("org/app", "v1", &image);
    let server = TestServer::mirror_of(&upstream).await;
    server.client().push_image(&server.url(""), "team/app", "v1", &image).await;
    server.get("/v2/org/app/manifests/v1").await;
    server.get("/v2/org/app/manifests/v1").await;
    server.head("/v2/org/app/manifests/v1").await;
    server.get("/v2/nothing/here").await;
    let metrics = server.metrics().await;
    // The unit tests of `telemetry::metrics` have the list of all names. These need traffic or the process collector.
    for name in [
        "registry_http_request_duration_seconds_bucket",
        "registry_http_request_duration_seconds_count",
        "registry_http_in_flight_requests",
        "roadstead_upstream_requests_total",
        "roadstead_upstream_first_byte_seconds_count",
        "roadstead_first_byte_seconds_count",
        "process_resident_memory_bytes",
    ] {
        assert!(metrics.has(name), "{name}");
    }
    let http = |handler, code, method| {
        metrics.sum("registry_http_requests_total", &[("handler", handler), ("code", code), ("method", method)])
    };
    assert_eq!(http("manifest", "200", "get"), 2.0);
    assert_eq!(http("manifest", "200", "head"), 1.0);
    assert_eq!(http("manifest", "201", "put"), 1.0);
    assert_eq!((http("blob_upload", "202", "post"), http("blob_upload_chunk", "201", "put")), (2.0, 2.0));
    assert_eq!(metrics.sum("registry_http_requests_total", &[("code", "404")]), 1.0);
    // Pushed content counts neither as a hit nor as a miss.
    server.get("/v2/team/app/manifests/v1").await;
    assert_eq!(server.metric("registry_proxy_requests_total", &[]).await, 2.0);
    let bytes = image.manifest.bytes.len() as f64;
    let manifests = [("type", "manifest"), ("upstream", "docker.io")];
    assert_eq!(metrics.sum("registry_proxy_pulled_bytes_total", &manifests), bytes);
    assert_eq!(metrics.sum("registry_proxy_pushed_bytes_total", &manifests), 2.0 * bytes);
    assert_no_image_name(&metrics);
}

#[tokio::test]
async fn healthz_reports_the_process_and_readyz_the_storage() {
    let upstream = Upstream::start().await;
    upstream.add_image("org/app", "v1", &Image::new(1, &[500]));
    let server = TestServer::mirror_of(&upstream).await;
    upstream.go_down().await;
    let answer = server.get("/healthz").await;
    assert_eq!((answer.status, answer.text()), (200, "ok\n"));
    until("the index is in step with the files", async || {
        server.get("/readyz").await.json()["index_rebuilding"] == false
    })
    .await;
    let ready = server.get("/readyz").await;
    let healthy = json!({"ready": true, "storage": "writable", "index_rebuilding": false,
                          "index_without_room": false, "bypassing": false,
                             "deletions_held": false});
    assert_eq!((ready.status, ready.json()), (200, healthy));
    let page = include_str!("../../docs/operating.md");
    assert!(page.contains(&format!("```json\n{}```", ready.text())), "{} is not in docs/operating.md", ready.text());
    let spool = server.data_dir().join("spool");
    std::fs::remove_dir_all(&spool).unwrap();
    std::fs::write(&spool, "").unwrap();
    // A failed write makes the next check due at once. Without one, the last result is used for a second.
    upstream.come_back().await;
    assert_eq!(server.get("/v2/org/app/manifests/v1").await.status, 200, "it is served and not stored");
    assert_eq!((server.get("/healthz").await.status, server.get("/readyz").await.status), (200, 503));
    let unready = server.get("/readyz").await.json();
    assert_eq!((&unready["ready"], &unready["storage"]), (&json!(false), &json!("cannot_be_written")));
    let obstacle = unready["obstacle"].as_str().unwrap();
    assert!(obstacle.contains("storage failed") && !obstacle.contains("spool"), "{obstacle}");
    std::fs::remove_file(&spool).unwrap();
    until("a missing folder is created again", async || server.get("/readyz").await.status == 200).await;
    assert!(spool.is_dir());
}

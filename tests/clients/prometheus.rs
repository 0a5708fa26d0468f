//! Prometheus scrapes Roadstead: every query of the dashboards has an answer, and the alerts are tested.

use std::path::Path;

use serde_json::Value;

use super::folder::Folder;
use super::program::{find, run};
use crate::monitoring::queries_of;
use crate::scene::until;
use crate::support::daemon::{Daemon, free_port};
use crate::support::process::ServerProcess;
use crate::support::settings::Settings;
use crate::support::{Client, Image, Reply, Upstream};

const SOURCES: &str = env!("CARGO_MANIFEST_DIR");

struct Prometheus {
    _daemon: Daemon,
    port: u16,
    _folder: Folder,
}

impl Prometheus {
    /// Scrapes the server once a second, and evaluates our rules.
    fn start(server: &ServerProcess) -> Self {
        let (folder, port) = (Folder::new(), free_port());
        let config = format!(
            "global: {{scrape_interval: 1s, evaluation_interval: 1s}}\nrule_files: [{SOURCES}/deploy/prometheus/rules.yaml]\n\
             scrape_configs: [{{job_name: roadstead, static_configs: [{{targets: ['{}']}}]}}]\n",
            server.host()
        );
        let config = folder.write("prometheus.yml", &config);
        let args = [
            format!("--config.file={}", config.display()),
            format!("--storage.tsdb.path={}", folder.at("data")),
            format!("--web.listen-address=127.0.0.1:{port}"),
        ];
        let args = args.each_ref().map(String::as_str);
        let mut daemon = Daemon::spawn("prometheus", folder.path(), &find("prometheus", "prometheus"), &args);
        daemon.wait_until(|| std::net::TcpStream::connect(("127.0.0.1", port)).is_ok());
        Self { _daemon: daemon, port, _folder: folder }
    }

    /// The series that a query returns now, and the value of each.
    async fn query(&self, query: &str) -> Vec<(Value, f64)> {
        let mut url = url::Url::parse(&format!("http://127.0.0.1:{}/api/v1/query", self.port)).unwrap();
        url.query_pairs_mut().append_pair("query", query);
        let answer = Client::new().get(url.as_str()).await;
        assert_eq!(answer.status, 200, "{query}: {}", answer.text());
        let json = answer.json();
        let series = json["data"]["result"].as_array().unwrap();
        let value = |one: &Value| one["value"][1].as_str().unwrap().parse().unwrap();
        series.iter().map(|one| (one["metric"].clone(), value(one))).collect()
    }
}

/// Pulls an image, whose manifest the upstream sends with its rate limit, twice, and pushes one.
async fn use_server(server: &ServerProcess, upstream: &Upstream, image: &Image) {
    let client = Client::new();
    let tag = "/v2/library/app/manifests/v1";
    let limited = Reply::normal().header("ratelimit-limit", "100;w=21600").header("ratelimit-remaining", "64;w=21600");
    upstream.script("GET", tag, [limited]);
    for _ in 0..2 {
        assert_eq!(client.get(&server.url(tag)).await.status, 200);
        for blob in image.blobs() {
            let answer = client.get(&server.url(&format!("/v2/library/app/blobs/{}", blob.digest))).await;
            assert_eq!((answer.status, answer.body.len()), (200, blob.bytes.len()));
        }
    }
    client.push_image(&server.url(""), "team/app", "v1", image).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_panel_has_an_answer_and_the_verdict_is_right() {
    let upstream = Upstream::start().await;
    let image = Image::new(1, &[3_000_000, 200_000]);
    upstream.add_image("library/app", "v1", &image);
    let server = ServerProcess::start(Settings::new().upstream("docker.io", &upstream).default_upstream("docker.io"));
    let prometheus = Prometheus::start(&server);
    // `increase` does not see what happened before the first scrape.
    let ready = format!("http://127.0.0.1:{}/-/ready", prometheus.port);
    until("Prometheus is ready", async || Client::new().get(&ready).await.status == 200).await;
    until("the first scrape", async || !prometheus.query("up == 1").await.is_empty()).await;
    let before = prometheus.query("vector(time())").await[0].1;
    until("a second scrape", async || prometheus.query("vector(time())").await[0].1 > before + 2.0).await;
    use_server(&server, &upstream, &image).await;
    let blobs = image.blobs().count() as f64;
    let requests = format!("sum(registry_proxy_requests_total) == {}", 2.0 * (blobs + 1.0));
    until("the last scrape", async || !prometheus.query(&requests).await.is_empty()).await;
    let pushed = "sum(registry_http_requests_total{method=\"put\",code=\"201\"}) > 1";
    until("the scrape of the push", async || !prometheus.query(pushed).await.is_empty()).await;

    for name in ["roadstead", "registry-compatible"] {
        for (title, query) in queries_of(name, "1m", "5m") {
            // A rate needs two scrapes of a series.
            let what = format!("{name}, {title}: {query}");
            until(&what, async || !prometheus.query(&query).await.is_empty()).await;
        }
    }
    // The counters themselves are exact; `increase` extrapolates.
    let ratio = prometheus.query("sum(registry_proxy_hits_total) / sum(registry_proxy_requests_total)").await;
    assert_eq!(ratio[0].1, 0.5);
    let bytes: usize = image.blobs().map(|blob| blob.bytes.len()).sum::<usize>() + image.manifest.bytes.len();
    let saved = "sum(registry_proxy_pushed_bytes_total) - sum(registry_proxy_pulled_bytes_total)";
    assert_eq!(prometheus.query(saved).await[0].1, bytes as f64);
    let firing = prometheus.query("ALERTS{alertstate=\"firing\"}").await;
    assert!(firing.is_empty(), "a server that works raises no alert: {firing:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn promtool_accepts_rules_metrics_and_their_tests() {
    let promtool = find("promtool", "prometheus");
    let folder = Path::new(SOURCES).join("deploy/prometheus");
    run(&promtool, &["check", "rules", folder.join("rules.yaml").to_str().unwrap()], &[]);
    run(&promtool, &["test", "rules", folder.join("rules_test.yaml").to_str().unwrap()], &[]);

    let server = ServerProcess::start(Settings::new());
    let (metrics, file) = (Client::new().get(&server.url("/metrics")).await, Folder::new());
    let file = file.write("metrics", metrics.text());
    run(Path::new("sh"), &["-c", "exec promtool check metrics <\"$0\"", file.to_str().unwrap()], &[]);
}

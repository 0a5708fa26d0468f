//! The circuit breaker: no request waits for an upstream that is down, and probes notice its return.

use futures_util::future::join_all;

use crate::freshness::{ALWAYS_REVALIDATE, REPO, TAG, mirror, upstream_with};
use crate::scene::{blob, blob_path, until};
use crate::support::{Gate, Image, Reply, TestServer, Upstream};

const QUICK: &str = "tag_ttl = \"0s\"\n[upstream.\"docker.io\"]\nheader_timeout = \"300ms\"";

async fn available(server: &TestServer) -> bool {
    server.metric("roadstead_upstream_available", &[("upstream", "docker.io")]).await == 1.0
}

/// Requests uncached content until the circuit is open.
async fn until_circuit_open(server: &TestServer) {
    until("the circuit is open", async || {
        server.get(&format!("/v2/{REPO}/manifests/cold")).await;
        !available(server).await
    })
    .await;
}

async fn take_down(upstream: &Upstream, how: &str) {
    match how {
        "refused" => upstream.go_down().await,
        "silent" => upstream.always("*", "*", Reply::never()),
        _ => upstream.always("*", "*", Reply::error(503, "UNAVAILABLE")),
    }
}

async fn bring_back(upstream: &Upstream, how: &str) {
    upstream.end_scripts();
    if how == "refused" {
        upstream.come_back().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outage_serves_the_cache_fails_fast_and_ends_by_itself() {
    let cases = ["refused", "silent", "503"].map(|how| async move {
        let image = Image::new(1, &[5000, 10]);
        let upstream = upstream_with(&image).await;
        let server = mirror(&upstream, QUICK).await;
        let digest = format!("/v2/{REPO}/manifests/{}", image.digest());
        let referrers = format!("/v2/docker.io/{REPO}/referrers/{}", image.digest());
        let list = format!("/v2/docker.io/{REPO}/tags/list");
        let [config, layer] = [&image.config, &image.layers[0]].map(|blob| blob_path(REPO, blob));
        let uncached = blob_path(REPO, &image.layers[1]);
        for path in [TAG, &config, &layer, &referrers] {
            assert_eq!(server.get(path).await.status, 200, "{how}: {path}");
        }
        take_down(&upstream, how).await;
        until_circuit_open(&server).await;
        // Counts of probes and of all other requests.
        let sent = async || {
            let (metrics, name) = (server.metrics().await, "roadstead_upstream_requests_total");
            let probes = metrics.sum(name, &[("kind", "probe")]);
            (probes, metrics.sum(name, &[]) - probes)
        };
        let (_, before) = sent().await;
        for _ in 0..10 {
            for (path, warns) in [(TAG, true), (&digest, false), (&config, false), (&layer, false)] {
                let answer = server.get(path).await;
                assert_eq!((answer.status, !answer.header("warning").is_empty()), (200, warns), "{how}: {path}");
            }
            for path in [&list, &referrers] {
                let answer = server.get(path).await;
                assert_eq!((answer.status, answer.header("warning").is_empty()), (200, false), "{how}: {path}");
            }
            assert_eq!(
                server.head(&uncached).await.header("content-length"),
                "10",
                "{how}: the manifest has the length"
            );
            for path in [&format!("/v2/{REPO}/manifests/other"), &blob_path(REPO, &blob(7, 7)), &uncached] {
                let answer = server.get(path).await;
                assert_eq!((answer.status, answer.error_code().as_str()), (503, "UNAVAILABLE"), "{how}: {path}");
                assert!((1..=5).contains(&answer.header("retry-after").parse().unwrap_or(0)), "{how}: {path}");
                assert!(answer.text().contains("docker.io"), "{how}: {}", answer.text());
            }
        }
        assert_eq!(sent().await.1, before, "{how}: no request was sent to the upstream");
        bring_back(&upstream, how).await;
        until("a probe notices the return", async || available(&server).await).await;
        assert_eq!(server.get(&uncached).await.body, image.layers[1].bytes, "{how}");
        assert_eq!(server.get(TAG).await.header("warning"), "", "{how}");
        let (probes, requested) = sent().await;
        assert!(probes > 0.0);
        assert_eq!(requested + probes, upstream.total() as f64, "{how}");
        server.stop().await;
    });
    futures_util::future::join_all(cases).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_does_not_wait_for_probes() {
    let image = Image::new(1, &[10]);
    let upstream = upstream_with(&image).await;
    let mut server = mirror(&upstream, QUICK).await;
    server.get(TAG).await;
    take_down(&upstream, "silent").await;
    until_circuit_open(&server).await;
    server.restart().await;
    assert!(available(&server).await);
    let stale = server.get(TAG).await;
    assert_eq!((stale.status, &stale.body), (200, &image.manifest.bytes));
    assert!(stale.header("warning").starts_with("299"));
}

#[tokio::test(flavor = "multi_thread")]
async fn one_broken_image_does_not_open_the_circuit() {
    let image = Image::new(1, &[10]);
    let upstream = upstream_with(&image).await;
    let server = mirror(&upstream, ALWAYS_REVALIDATE).await;
    upstream.always("*", &format!("/v2/{REPO}/manifests/broken"), Reply::error(500, "UNKNOWN"));
    for _ in 0..4 {
        assert!(server.get(&format!("/v2/{REPO}/manifests/broken")).await.status >= 502);
        server.until_available("docker.io").await;
        let answer = server.get(TAG).await;
        assert_eq!((answer.status, answer.header("warning")), (200, ""));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_upstream_has_its_own_breaker() {
    let (dead, well) = (Upstream::start().await, upstream_with(&Image::new(1, &[10])).await);
    dead.go_down().await;
    let builder = TestServer::builder().upstream("docker.io", &dead).upstream("quay.io", &well);
    let server = builder.default_upstream("docker.io").start().await;
    until_circuit_open(&server).await;
    assert_eq!(server.get(&format!("{TAG}?ns=quay.io")).await.status, 200);
    assert_eq!(server.metric("roadstead_upstream_available", &[("upstream", "quay.io")]).await, 1.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn broken_images_of_many_repositories_do_not_open_the_circuit() {
    let image = Image::new(1, &[10]);
    let upstream = upstream_with(&image).await;
    let server = mirror(&upstream, ALWAYS_REVALIDATE).await;
    upstream.always("*", "/v2/bad/*", Reply::error(500, "UNKNOWN"));
    // While a probe is in flight, an open circuit would refuse requests.
    let gate = Gate::new();
    upstream.always("GET", "/v2/", Reply::normal().wait_before_head(&gate));
    let failing = async {
        loop {
            let paths: Vec<String> = (0..8).map(|n| format!("/v2/bad/app{n}/manifests/1")).collect();
            join_all(paths.iter().map(|path| server.get(path))).await;
        }
    };
    let good = async {
        gate.reached(1).await;
        server.get(TAG).await
    };
    tokio::select! {
        answer = good => assert_eq!((answer.status, answer.header("warning")), (200, "")),
        () = failing => {}
    }
    assert!(available(&server).await);
    gate.open();
}

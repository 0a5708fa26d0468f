//! Roadstead behind Roadstead: responses stay true over several hops, and loops are detected.

use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::timeout;

use crate::freshness::{ALWAYS_REVALIDATE, REPO, TAG, mirror, upstream_with};
use crate::scene::{MIB, blob_path};
use crate::support::daemon::free_port;
use crate::support::{Conn, Ended, Image, Reply, TestServer, Upstream};

/// A mirror of the mirror `inner`, with `cache` as the lines of `[cache]`.
async fn outer_of(inner: &TestServer, cache: &str) -> TestServer {
    let builder = TestServer::builder().upstream_url("docker.io", &inner.url("")).default_upstream("docker.io");
    builder.config(&format!("[cache]\n{cache}")).start().await
}

async fn chain(image: &Image, cache: &str) -> (Upstream, TestServer, TestServer) {
    let upstream = upstream_with(image).await;
    let inner = mirror(&upstream, cache).await;
    let outer = outer_of(&inner, cache).await;
    (upstream, inner, outer)
}

async fn upstream_requests(server: &TestServer) -> f64 {
    server.metric("roadstead_upstream_requests_total", &[]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cold_pull_passes_each_mirror_once() {
    let image = Image::new(1, &[3 * MIB, 10]);
    let (upstream, inner, outer) = chain(&image, "").await;
    let pull = async || {
        assert_eq!(outer.get(TAG).await.body, image.manifest.bytes);
        for blob in image.blobs() {
            let mut client = Conn::get(outer.addr(), &blob_path(REPO, blob)).await;
            assert!(client.rest().await == (blob.bytes.clone(), Ended::Complete));
        }
    };
    join_all((0..10).map(|_| pull())).await;
    let contents = 1 + image.blobs().count();
    assert_eq!(upstream.total(), contents);
    assert_eq!((upstream_requests(&inner).await, upstream_requests(&outer).await), (contents as f64, contents as f64));
    pull().await;
    assert_eq!(upstream_requests(&outer).await, contents as f64, "a warm pull sends nothing upstream");
    let names: Vec<_> = upstream.requests()[0].header("via").split(", ").map(str::to_owned).collect();
    let id = |server: &TestServer| {
        let id = std::fs::read_to_string(server.data_dir().join("id")).unwrap();
        format!("1.1 roadstead-{}", id.trim().replace('-', ""))
    };
    assert_eq!(names, [id(&outer), id(&inner)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn either_mirror_serves_its_cache_in_an_outage() {
    let image = Image::new(1, &[1000]);
    let (upstream, inner, outer) = chain(&image, ALWAYS_REVALIDATE).await;
    outer.get(TAG).await;
    // Only the inner mirror has this blob.
    inner.get(&blob_path(REPO, &image.layers[0])).await;
    upstream.go_down().await;
    for _ in 0..5 {
        let stale = outer.get(TAG).await;
        assert_eq!((stale.status, &stale.body), (200, &image.manifest.bytes));
        assert!(stale.header("warning").starts_with("299"), "the warning of the inner mirror is passed on");
    }
    let list = outer.get(&format!("/v2/docker.io/{REPO}/tags/list")).await;
    assert_eq!((list.status, list.header("warning").is_empty()), (200, false));
    let stale = [("type", "manifest"), ("result", "stale")];
    for server in [&inner, &outer] {
        let count = server.metric("roadstead_cache_results_total", &stale).await;
        // The inner mirror gets HEAD requests, which are not counted.
        assert_eq!(count, if std::ptr::eq(server, &outer) { 5.0 } else { 0.0 });
    }
    assert_eq!(outer.get(&blob_path(REPO, &image.layers[0])).await.body, image.layers[0].bytes);
    let cold = outer.get(&format!("/v2/{REPO}/manifests/cold")).await;
    assert_eq!((cold.status, cold.error_code().as_str()), (503, "UNAVAILABLE"));
    upstream.come_back().await;
    inner.until_available("docker.io").await;
    outer.until_available("docker.io").await;
    assert_eq!(outer.get(TAG).await.header("warning"), "");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_outer_mirror_serves_stale_when_the_inner_is_down() {
    let image = Image::new(1, &[1000]);
    let (_upstream, inner, outer) = chain(&image, ALWAYS_REVALIDATE).await;
    outer.get(TAG).await;
    inner.stop().await;
    let stale = outer.get(TAG).await;
    assert_eq!((stale.status, stale.header("warning").is_empty()), (200, false));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upstream_rate_limit_reaches_the_client_with_retry_after() {
    let image = Image::new(1, &[10]);
    let (upstream, inner, outer) = chain(&image, "").await;
    upstream.always("*", "/v2/*", Reply::error(429, "TOOMANYREQUESTS").header("Retry-After", "50"));
    for _ in 0..3 {
        let answer = outer.get(TAG).await;
        assert_eq!(answer.status, 429);
        assert!((30..=50).contains(&answer.header("retry-after").parse().unwrap()));
    }
    assert_eq!((upstream_requests(&inner).await, upstream_requests(&outer).await), (1.0, 1.0));
}

/// Two servers that mirror each other.
async fn ring() -> [TestServer; 2] {
    let ports = [free_port(), free_port()];
    let server = |own: u16, other: u16| {
        let listen = format!("[server]\nlisten = \"127.0.0.1:{own}\"\n[cache]\nanswer_within = \"120s\"");
        let other = format!("http://127.0.0.1:{other}");
        let patient = "[upstream.\"docker.io\"]\nheader_timeout = \"120s\"";
        let builder = TestServer::builder().upstream_url("docker.io", &other).default_upstream("docker.io");
        builder.config(&listen).config(patient).start()
    };
    [server(ports[0], ports[1]).await, server(ports[1], ports[0]).await]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_loop_of_two_servers_is_detected_at_the_second_pass() {
    let [one, other] = ring().await;
    let digest = Image::new(1, &[10]).manifest.digest;
    let paths =
        ["manifests/1", &format!("manifests/{digest}"), &format!("blobs/{digest}"), &format!("referrers/{digest}")];
    for (n, path) in paths.iter().enumerate() {
        let path = format!("/v2/docker.io/{REPO}/{path}");
        // No configured deadline ends within this minute.
        let answer = timeout(Duration::from_secs(60), one.get(&path)).await.expect("an immediate response");
        assert_eq!((answer.status, answer.error_code().as_str()), (508, "UNAVAILABLE"), "{path}: {}", answer.text());
        let passed = n as f64 + 1.0;
        assert_eq!((upstream_requests(&one).await, upstream_requests(&other).await), (passed, passed), "{path}");
    }
    assert_eq!(one.metric("roadstead_upstream_available", &[]).await, 1.0, "a loop does not open the circuit");
}

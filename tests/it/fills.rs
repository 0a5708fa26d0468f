//! One fill, many followers: upstream requests, and failures of the upstream.

use std::time::Duration;

use crate::scene::{
    HELD_BACK_TAIL_BYTES, KIB, MIB, REPO, Scene, blob, blob_path, entry_count, is_stored, settle, until,
};
use crate::support::{Conn, Ended, Gate, Image, Reply, TestServer, Upstream};

#[tokio::test(flavor = "multi_thread")]
async fn many_clients_share_one_get_and_stream_before_it_ends() {
    const CLIENTS: usize = 24;
    let scene = Scene::with_blob(2 * MIB).await;
    let gate = Gate::new();
    scene.upstream.script("GET", &scene.path(), [Reply::normal().wait_after(128 * KIB as u64, &gate)]);
    let addr = scene.server.addr();
    let mut clients = Vec::new();
    for _ in 0..CLIENTS {
        let mut client = Conn::get(addr, &scene.path()).await;
        assert_eq!(client.status, 200);
        // The upstream waits for all clients to read: a client without bytes would block the test for ever.
        assert_eq!(client.take(1).await, scene.bytes()[..1]);
        clients.push(client);
    }
    gate.open();
    for mut client in clients {
        let (rest, ended) = client.rest().await;
        assert_eq!(ended, Ended::Complete);
        assert!(rest == scene.bytes()[1..]);
    }
    assert_eq!(scene.fetches(), 1);
    assert_eq!(scene.upstream.bytes_sent(), 2 * MIB as u64);
    scene.settle().await;
    let results = |result| [("type", "blob"), ("upstream", "docker.io"), ("result", result)];
    let metrics = scene.server.metrics().await;
    assert_eq!(metrics.sum("roadstead_cache_results_total", &results("miss")), 1.0);
    assert_eq!(metrics.sum("roadstead_cache_results_total", &results("joined")), (CLIENTS - 1) as f64);
    assert_eq!(metrics.sum("registry_proxy_pulled_bytes_total", &[("type", "blob")]), 2.0 * MIB as f64);
    assert_eq!(metrics.sum("registry_proxy_pushed_bytes_total", &[("type", "blob")]), (CLIENTS * 2 * MIB) as f64);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_byte_is_forwarded_as_soon_as_it_arrives() {
    let scene = Scene::with_blob(MIB).await;
    let gate = Gate::new();
    scene.upstream.script("GET", &scene.path(), [Reply::normal().wait_after(1, &gate)]);
    let mut client = Conn::get(scene.server.addr(), &scene.path()).await;
    assert_eq!(client.header("content-length"), MIB.to_string());
    assert_eq!(client.take(1).await, scene.bytes()[..1]);
    gate.open();
    assert_eq!(client.rest().await.1, Ended::Complete);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_warm_blob_needs_no_upstream_even_after_a_restart() {
    let mut scene = Scene::with_blob(300 * KIB).await;
    assert!(scene.server.get(&scene.path()).await.body == scene.bytes());
    scene.settle().await;
    scene.upstream.forget();
    scene.upstream.go_down().await;
    for _ in 0..2 {
        let again = scene.server.get(&scene.path()).await;
        assert!(again.body == scene.bytes());
        assert_eq!(again.header("docker-content-digest"), scene.blob.digest);
        scene.server.restart().await;
    }
    assert_eq!(scene.upstream.total(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_bytes_never_form_a_complete_response() {
    let sizes = [1, KIB, HELD_BACK_TAIL_BYTES, HELD_BACK_TAIL_BYTES + 1, MIB];
    futures_util::future::join_all(sizes.map(wrong_bytes_of)).await;
}

async fn wrong_bytes_of(size: usize) {
    let scene = Scene::with_blob(size).await;
    for (bad, what) in [
        (Reply::normal().flip(0), "the first byte"),
        (Reply::normal().flip(size as u64 - 1), "the last byte"),
        (Reply::normal().body(vec![7; size + 70_000]), "another blob"),
        (Reply::normal().chunked().flip(size as u64 / 2), "flipped without length"),
    ] {
        scene.upstream.always("GET", &scene.path(), bad);
        let mut client = Conn::get(scene.server.addr(), &scene.path()).await;
        let (body, ended) = client.rest().await;
        let whole = client.status == 200 && ended == Ended::Complete;
        assert!(!whole, "{what} of {size}: {} bytes as a complete body", body.len());
        // The response may have started only where the announced length exceeds the held-back tail.
        let announced = client.header("content-length").parse().unwrap_or(size);
        assert!(client.status == 502 || size.max(announced) > HELD_BACK_TAIL_BYTES, "{what} of {size}");
        scene.settle().await;
        assert!(!scene.is_stored(), "{what} of {size}");
        scene.upstream.end_scripts();
        // A failure is shared for one second; this request comes later.
        tokio::time::sleep(Duration::from_millis(1050)).await;
    }
    assert!(scene.server.get(&scene.path()).await.body == scene.bytes(), "{size}");
    let mismatches = scene.server.metric("roadstead_digest_mismatches_total", &[]).await;
    assert!(mismatches >= 4.0, "{mismatches} of {size}");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_follower_of_a_failed_fill_gets_an_error() {
    const CLIENTS: usize = 10;
    let scene = Scene::with_blob(MIB).await;
    let gate = Gate::new();
    let half = MIB as u64 / 2;
    let bad = Reply::normal().wait_after(half, &gate).flip(MIB as u64 - 1);
    scene.upstream.script("GET", &scene.path(), [bad]);
    let mut clients = Vec::new();
    for _ in 0..CLIENTS {
        let mut client = Conn::get(scene.server.addr(), &scene.path()).await;
        client.take(1).await;
        clients.push(client);
    }
    gate.open();
    for mut client in clients {
        assert_ne!(client.rest().await.1, Ended::Complete);
    }
    scene.settle().await;
    assert!(scene.fetches() <= 2, "the fill, and perhaps a second generation for a remaining follower");
}

#[tokio::test(flavor = "multi_thread")]
async fn failures_are_shared_briefly_and_absences_are_cached() {
    let scene = Scene::with_blob(MIB).await;
    let gate = Gate::new();
    let path = scene.path();
    scene.upstream.always("GET", &path, Reply::error(500, "UNKNOWN").wait_before_head(&gate));
    let clients: Vec<_> = (0..5).map(|_| scene.server.get(&path)).collect();
    let (answers, ()) = tokio::join!(futures_util::future::join_all(clients), async {
        gate.reached(1).await;
        gate.open();
    });
    for answer in answers {
        assert_eq!((answer.status, answer.error_code().as_str()), (502, "UNAVAILABLE"));
    }
    assert_eq!(scene.fetches(), 4, "the rounds of one request");
    assert_eq!(scene.server.get(&path).await.status, 502);
    assert_eq!(scene.fetches(), 4);

    let absent = blob_path(REPO, &blob(9, 10));
    for _ in 0..3 {
        let answer = scene.server.get(&absent).await;
        assert_eq!((answer.status, answer.error_code().as_str()), (404, "BLOB_UNKNOWN"));
    }
    assert_eq!(scene.server.head(&absent).await.status, 404);
    assert_eq!(scene.upstream.count("GET", &absent) + scene.upstream.count("HEAD", &absent), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blob_is_chunked_only_if_its_length_is_unknown() {
    let upstream = Upstream::start().await;
    let image = Image::new(3, &[300 * KIB]);
    upstream.add_image(REPO, "v1", &image);
    let server = TestServer::mirror_of(&upstream).await;
    let path = blob_path(REPO, &image.layers[0]);
    upstream.script("GET", &path, [Reply::normal().chunked()]);
    server.get(&format!("/v2/{REPO}/manifests/v1")).await;
    let answer = server.get(&path).await;
    assert_eq!(answer.header("content-length"), (300 * KIB).to_string());
    assert!(answer.body == image.layers[0].bytes);
    assert_eq!(upstream.count("HEAD", &path), 0);

    let other = blob(4, 300 * KIB);
    let path = blob_path(REPO, &other);
    upstream.add_blob(REPO, &other);
    let gate = Gate::new();
    let without_length = Reply::normal().chunked().ignore_range();
    upstream.script("GET", &path, [Reply::normal().chunked().wait_after(200 * KIB as u64, &gate), without_length]);
    upstream.script("HEAD", &path, [Reply::normal().without("Content-Length")]);
    let mut client = Conn::get(server.addr(), &path).await;
    assert_eq!(client.header("transfer-encoding"), "chunked");
    gate.open();
    let (body, ended) = client.rest().await;
    assert!(body == other.bytes && ended == Ended::Complete);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_http10_client_never_gets_a_truncated_body() {
    let scene = Scene::with_blob(300 * KIB).await;
    let path = scene.path();
    let blind = || Reply::normal().chunked();
    scene.upstream.always("HEAD", &path, Reply::normal().without("Content-Length"));
    scene.upstream.always("GET", &path, blind().flip(200 * KIB as u64));
    assert_eq!(Conn::get_http10(scene.server.addr(), &path).await.status, 502);
    tokio::time::sleep(Duration::from_millis(1050)).await;
    scene.upstream.end_scripts();
    scene.upstream.always("HEAD", &path, Reply::normal().without("Content-Length"));
    scene.upstream.script("GET", &path, [blind()]);
    let mut client = Conn::get_http10(scene.server.addr(), &path).await;
    assert_eq!(client.header("content-length"), (300 * KIB).to_string());
    assert!(client.rest().await.0 == scene.bytes());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_blob_is_served() {
    let scene = Scene::with_blob(0).await;
    for _ in 0..2 {
        let answer = scene.server.get(&scene.path()).await;
        assert_eq!((answer.status, answer.header("content-length")), (200, "0"));
        let range = scene.server.get_with(&scene.path(), &[("Range", "bytes=0-")]).await;
        assert_eq!((range.status, range.header("content-range")), (416, "bytes */0"));
        scene.settle().await;
    }
    assert_eq!(scene.fetches(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_leaves_does_not_end_the_fill() {
    let scene = Scene::with_blob(2 * MIB).await;
    let gate = Gate::new();
    scene.upstream.script("GET", &scene.path(), [Reply::normal().wait_after(128 * KIB as u64, &gate)]);
    let mut client = Conn::get(scene.server.addr(), &scene.path()).await;
    client.take(1).await;
    drop(client);
    gate.open();
    until("the blob is stored", async || scene.is_stored()).await;
    scene.settle().await;
    assert!(scene.server.get(&scene.path()).await.body == scene.bytes());
    assert_eq!(scene.fetches(), 1);
}

/// Starts fills of `count` blobs of `REPO`, each held half-way, and lets their clients leave.
async fn abandon(server: &TestServer, upstream: &Upstream, gate: &Gate, count: u64) -> Vec<crate::support::Content> {
    let blobs: Vec<_> = (0..count).map(|n| blob(100 + n, MIB)).collect();
    for (blob, n) in blobs.iter().zip(2..) {
        upstream.add_blob(REPO, blob);
        upstream.script("GET", &blob_path(REPO, blob), [Reply::normal().wait_after(n * 64 * KIB as u64, gate)]);
        let mut client = Conn::get(server.addr(), &blob_path(REPO, blob)).await;
        client.take((n as usize * 64 - 64) * KIB).await;
    }
    blobs
}

#[tokio::test(flavor = "multi_thread")]
async fn four_fills_without_followers_continue_the_others_stop() {
    let upstream = Upstream::start().await;
    upstream.add_image(REPO, "v1", &Image::new(5, &[10]));
    let server = TestServer::mirror_of(&upstream).await;
    server.get(&format!("/v2/{REPO}/manifests/v1")).await;
    let gate = Gate::new();
    let blobs = abandon(&server, &upstream, &gate, 6).await;
    until("two fills were stopped", async || server.metric("roadstead_fills_in_flight", &[]).await == 4.0).await;
    gate.open();
    settle(&server).await;
    let stored: Vec<_> = blobs.iter().map(|blob| is_stored(server.data_dir(), blob)).collect();
    assert_eq!(stored, [false, false, true, true, true, true]);
    // A stopped fill is not a failure: the next request gets the blob.
    assert!(server.get(&blob_path(REPO, &blobs[0])).await.body == blobs[0].bytes);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_repository_keeps_one_fill_without_followers() {
    let upstream = Upstream::start().await;
    let server = TestServer::mirror_of(&upstream).await;
    let gate = Gate::new();
    abandon(&server, &upstream, &gate, 3).await;
    until("two fills were stopped", async || server.metric("roadstead_fills_in_flight", &[]).await == 1.0).await;
    gate.open();
    settle(&server).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_ends_fills_and_empties_the_spool() {
    let scene = Scene::configured(MIB, "[server]\ndrain_timeout = \"1s\"").await;
    let gate = Gate::new();
    scene.upstream.script("GET", &scene.path(), [Reply::normal().wait_after(128 * KIB as u64, &gate)]);
    let mut client = Conn::get(scene.server.addr(), &scene.path()).await;
    client.take(1).await;
    let data = scene.server.stop_and_keep().await;
    assert_ne!(client.rest().await.1, Ended::Complete);
    assert_eq!(entry_count(&data.path().join("spool")), 0);
    assert!(!is_stored(data.path(), &scene.blob));
}

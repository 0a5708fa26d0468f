//! Failures before the first byte: short ones are hidden by retries, longer ones are reported in time.

use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::timeout;

use crate::freshness::{REPO, TAG, mirror, upstream_with};
use crate::scene::{HELD_BACK_TAIL_BYTES, KIB, MIB, Scene, blob, blob_path, settle, until};
use crate::support::{Image, Reply, TestServer, Upstream};

/// Failures that a retry overcomes, and the code that each is counted under.
fn transient_failures() -> [(&'static str, Reply); 5] {
    [
        ("500", Reply::error(500, "UNKNOWN")),
        ("502", Reply::status(502)),
        ("503", Reply::error(503, "UNAVAILABLE")),
        ("504", Reply::status(504)),
        ("error", Reply::hang_up()),
    ]
}

/// Checks that server and upstream count the same requests.
async fn assert_counts_agree(server: &TestServer, upstream: &Upstream) {
    assert_eq!(server.metric("roadstead_upstream_requests_total", &[]).await, upstream.total() as f64);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_single_upstream_failure_is_hidden_from_all_clients() {
    let cases = [(KIB, 0), (HELD_BACK_TAIL_BYTES, 1), (HELD_BACK_TAIL_BYTES + 1, 2), (16 * MIB, 3), (MIB, 4)];
    let cases = cases.map(|(size, trouble)| async move {
        let (code, reply) = transient_failures()[trouble].clone();
        for clients in [1, 50] {
            let scene = Scene::with_blob(size).await;
            scene.upstream.script("GET", &scene.path(), [reply.clone()]);
            let path = scene.path();
            for answer in join_all((0..clients).map(|_| scene.server.get(&path))).await {
                assert_eq!(answer.status, 200, "{code}, {size} bytes");
                assert!(answer.body == scene.bytes(), "{code}, {size} bytes");
            }
            scene.settle().await;
            assert_eq!(scene.fetches(), 2, "{code}, {size} bytes, {clients} clients");
            let counted = [("kind", "blob"), ("code", code)];
            assert_eq!(scene.server.metric("roadstead_upstream_requests_total", &counted).await, 1.0);
            assert_counts_agree(&scene.server, &scene.upstream).await;
            let misses = scene.server.metric("registry_proxy_misses_total", &[("type", "blob")]).await;
            let hits = scene.server.metric("registry_proxy_hits_total", &[("type", "blob")]).await;
            assert_eq!(misses + hits, f64::from(clients));
        }
    });
    join_all(cases).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_kind_of_request_is_retried() {
    let image = Image::new(1, &[1000]);
    let digest = format!("/v2/{REPO}/manifests/{}", image.digest());
    let layer = blob_path(REPO, &image.layers[0]);
    let list = format!("/v2/docker.io/{REPO}/tags/list");
    let questions = [("GET", TAG), ("HEAD", TAG), ("GET", &digest), ("GET", &layer), ("HEAD", &layer), ("GET", &list)];
    let cases = questions.map(|(method, path)| {
        let image = image.clone();
        async move {
            for (what, reply) in transient_failures() {
                let upstream = upstream_with(&image).await;
                let server = mirror(&upstream, "").await;
                let path = path.replace("/v2/library", "/v2/docker.io/library");
                upstream.script("*", "/v2/*", [reply.clone(), reply]);
                let answer = server.send(method, &path, &[], "").await;
                assert_eq!((answer.status, answer.header("warning")), (200, ""), "{what}: {method} {path}");
                assert_eq!(upstream.total(), 3, "{what}: {method} {path}");
                assert_counts_agree(&server, &upstream).await;
            }
        }
    });
    join_all(cases).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upstream_that_recovers_in_time_is_used() {
    let image = Image::new(1, &[10]);
    let upstream = upstream_with(&image).await;
    let server = mirror(&upstream, "").await;
    upstream.go_down().await;
    let (answer, ()) = tokio::join!(server.get(TAG), async {
        let manifests = [("handler", "manifest")];
        until("the request is in flight", async || {
            server.metric("registry_http_in_flight_requests", &manifests).await == 1.0
        })
        .await;
        upstream.come_back().await;
    });
    assert_eq!((answer.status, &answer.body), (200, &image.manifest.bytes));
    assert_eq!(upstream.total(), 1, "a refused connection carries no request");
    assert_counts_agree(&server, &upstream).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unreachable_upstream_is_named_within_answer_within() {
    let silent = Upstream::start().await;
    silent.always("*", "*", Reply::never());
    let plain = Upstream::start().await;
    let cases = [
        ("refused", "http://127.0.0.1:1".to_owned(), vec![503]),
        ("an unknown host", "http://nowhere.invalid".to_owned(), vec![503, 504]),
        ("no TLS", plain.url("").replace("http:", "https:"), vec![502, 503]),
        ("silence", silent.url(""), vec![504]),
    ];
    let cases = cases.map(|(what, url, statuses)| async move {
        let builder = TestServer::builder().upstream_url("docker.io", &url).default_upstream("docker.io");
        let server = builder.config("[cache]\nanswer_within = \"3s\"").start().await;
        let digest = blob(1, 10).digest;
        for path in [TAG.to_owned(), format!("/v2/{REPO}/manifests/{digest}"), format!("/v2/{REPO}/blobs/{digest}")] {
            // Only `answer_within` is shorter than this time-out.
            let answer = timeout(Duration::from_secs(30), server.get(&path)).await.expect("a response in time");
            let left_alone = answer.status == 503 && !answer.header("retry-after").is_empty();
            assert!(statuses.contains(&answer.status) || left_alone, "{what}: {} {}", answer.status, answer.text());
            assert_eq!(answer.error_code(), "UNAVAILABLE", "{what}");
            assert!(answer.text().contains("docker.io"), "{what}: {}", answer.text());
        }
        settle(&server).await;
    });
    join_all(cases).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_url_is_tried_in_the_same_round() {
    let (dead, well) = (Upstream::start().await, upstream_with(&Image::new(1, &[10])).await);
    dead.always("*", "*", Reply::error(503, "UNAVAILABLE"));
    let urls = format!("[upstream.\"docker.io\"]\nurl = [{:?}, {:?}]", dead.url(""), well.url(""));
    let server = TestServer::builder().default_upstream("docker.io").config(&urls).start().await;
    assert_eq!(server.get(TAG).await.status, 200);
    assert_eq!((dead.total(), well.total()), (1, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_first_push_does_not_wait_for_a_silent_default_upstream() {
    let upstream = Upstream::start().await;
    upstream.always("*", "*", Reply::never());
    let server = TestServer::builder().upstream("docker.io", &upstream).default_upstream("docker.io");
    let slow = "[cache]\nanswer_within = \"120s\"\n[upstream.\"docker.io\"]\nheader_timeout = \"120s\"";
    let server = server.config(slow).start().await;
    let digest = Image::new(1, &[10]).manifest.digest;
    for path in ["/v2/team/app/manifests/1".to_owned(), format!("/v2/team/app/manifests/{digest}")] {
        let head = timeout(Duration::from_secs(60), server.head(&path)).await.expect("a response without the upstream");
        assert_eq!(head.status, 404, "{path}");
    }
}

/// The first URL answers everything with status 200 and something unusable.
#[tokio::test(flavor = "multi_thread")]
async fn another_url_is_tried_after_unusable_content_of_the_first() {
    // Shorter than the held-back tail, so no client has received anything of a wrong blob.
    let (image, wrong) = (Image::new(1, &[50 * KIB]), Image::new(2, &[10]));
    let page = Reply::status(200).header("Content-Type", "text/html").body("<html>maintenance</html>");
    let other =
        Reply::status(200).header("Content-Type", &wrong.manifest.media_type).body(wrong.manifest.bytes.clone());
    let subject = format!("/v2/{REPO}/referrers/{}", image.digest());
    for (what, reply) in [
        ("a page", page),
        ("an empty body", Reply::status(200)),
        ("another manifest", other),
        ("a cut body", Reply::normal().cut_after(5)),
        ("a flipped bit", Reply::normal().flip(1)),
    ] {
        let (first, second) = (upstream_with(&image).await, upstream_with(&image).await);
        first.always("*", &format!("/v2/{REPO}/*"), reply);
        let urls = format!("[upstream.\"docker.io\"]\nurl = [{:?}, {:?}]", first.url(""), second.url(""));
        let server = TestServer::builder().default_upstream("docker.io").config(&urls).start().await;
        let by_digest = format!("/v2/{REPO}/manifests/{}", image.digest());
        assert_eq!(server.get(&by_digest).await.body, image.manifest.bytes, "{what}: by digest");
        // Another valid manifest without a digest is a valid answer for a tag.
        if what != "another manifest" {
            assert_eq!(server.get(TAG).await.body, image.manifest.bytes, "{what}: by tag");
        }
        let list = server.get(&format!("/v2/{REPO}/tags/list")).await;
        assert_eq!(list.status, 200, "{what}: list");
        assert!(!list.json()["tags"].as_array().unwrap().is_empty(), "{what}: {}", list.text());
        assert_eq!(server.get(&subject).await.status, 200, "{what}: referrers");
        for content in [&image.config, &image.layers[0]] {
            let answer = server.get(&format!("/v2/{REPO}/blobs/{}", content.digest)).await;
            assert_eq!(answer.body, content.bytes, "{what}: blob");
        }
        assert!(second.total() > 0, "{what}");
    }
}

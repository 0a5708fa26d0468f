//! Rate limits: no request goes to an upstream that would refuse it, and clients learn when to retry.

use std::time::Duration;

use crate::freshness::{ALWAYS_REVALIDATE, REPO, TAG, mirror, take_requests, upstream_with};
use crate::scene::{blob, blob_path, until};
use crate::support::{Image, Reply, TestServer, Upstream};

/// Docker Hub's response once the pulls of a window are used up.
fn out_of_pulls() -> Reply {
    let body = r#"{"errors":[{"code":"TOOMANYREQUESTS","message":"You have reached your pull rate limit."}]}"#;
    Reply::status(429).header("Content-Type", "application/json").header("Retry-After", "100").body(body)
}

/// Docker Hub's response to an address with too many requests.
fn too_many() -> Reply {
    Reply::status(429).header("Retry-After", "100").body("Too Many Requests")
}

async fn assert_limited(server: &TestServer, path: &str) {
    let answer = server.get(path).await;
    assert_eq!((answer.status, answer.error_code().as_str()), (429, "TOOMANYREQUESTS"), "{path}: {}", answer.text());
    let seconds: u64 = answer.header("retry-after").parse().unwrap();
    assert!((60..=100).contains(&seconds), "{path}: {seconds}");
    assert!(answer.text().contains("docker.io"), "{}", answer.text());
}

async fn assert_counts_agree(server: &TestServer, upstream: &Upstream) {
    assert_eq!(server.metric("roadstead_upstream_requests_total", &[]).await, upstream.total() as f64);
    assert_eq!(server.metric("roadstead_upstream_requests_total", &[("code", "429")]).await, 1.0);
    // A rate limit does not open the circuit.
    assert_eq!(server.metric("roadstead_upstream_available", &[]).await, 1.0);
}

#[tokio::test]
async fn a_pull_limit_does_not_stop_blobs_and_revalidation() {
    let image = Image::new(1, &[10, 20]);
    let upstream = upstream_with(&image).await;
    let server = mirror(&upstream, ALWAYS_REVALIDATE).await;
    server.get(TAG).await;
    upstream.always("GET", &format!("/v2/{REPO}/manifests/*"), out_of_pulls());
    let cold = format!("/v2/{REPO}/manifests/cold");
    for path in [&cold, &cold, &format!("/v2/{REPO}/manifests/{}", blob(7, 7).digest)] {
        assert_limited(&server, path).await;
    }
    // Revalidated by a HEAD, which Docker Hub does not count.
    assert_eq!((server.get(TAG).await.status, server.get(TAG).await.header("warning")), (200, ""));
    for blob in image.blobs() {
        assert_eq!(server.get(&blob_path(REPO, blob)).await.body, blob.bytes);
    }
    assert_counts_agree(&server, &upstream).await;
    // The tag moves, and its new manifest cannot be fetched.
    let moved = Image::new(2, &[10]);
    upstream.add_image(REPO, "1", &moved);
    let stale = server.get(TAG).await;
    assert_eq!((stale.status, stale.header("docker-content-digest")), (200, image.digest()));
    assert!(stale.header("warning").starts_with("299"));
    let results = [("type", "manifest"), ("result", "stale")];
    assert_eq!(server.metric("roadstead_cache_results_total", &results).await, 1.0);
    assert_counts_agree(&server, &upstream).await;
}

#[tokio::test]
async fn under_a_total_limit_only_the_cache_answers() {
    let image = Image::new(1, &[10, 20]);
    let upstream = upstream_with(&image).await;
    let server = mirror(&upstream, ALWAYS_REVALIDATE).await;
    server.get(TAG).await;
    server.get(&blob_path(REPO, &image.config)).await;
    upstream.always("*", "/v2/*", too_many());
    take_requests(&upstream);
    for _ in 0..5 {
        let stale = server.get(TAG).await;
        assert_eq!((stale.status, &stale.body), (200, &image.manifest.bytes));
        assert!(stale.header("warning").starts_with("299"));
    }
    assert_eq!(server.get(&blob_path(REPO, &image.config)).await.body, image.config.bytes);
    for path in [
        format!("/v2/{REPO}/manifests/cold"),
        blob_path(REPO, &image.layers[0]),
        blob_path(REPO, &blob(7, 7)),
        "/v2/docker.io/org/other/tags/list".to_owned(),
    ] {
        assert_limited(&server, &path).await;
    }
    assert_eq!(take_requests(&upstream), ["HEAD manifests/1"], "one request, and none until Retry-After");
    let results = [("type", "manifest"), ("result", "stale")];
    assert_eq!(server.metric("roadstead_cache_results_total", &results).await, 5.0);
    let errors = server.metric("roadstead_cache_results_total", &[("result", "error")]).await;
    assert_eq!(errors, 3.0, "the tag list is not counted");
}

#[tokio::test]
async fn a_rate_limit_ends_with_retry_after() {
    let image = Image::new(1, &[10]);
    let upstream = upstream_with(&image).await;
    let server = mirror(&upstream, "").await;
    upstream.script("*", "/v2/*", [Reply::error(429, "TOOMANYREQUESTS").header("Retry-After", "1")]);
    assert_eq!(server.get(TAG).await.status, 429);
    until("the upstream is asked again", async || server.get(TAG).await.status == 200).await;
    assert_eq!(take_requests(&upstream), ["GET manifests/1"; 2]);
}

#[tokio::test]
async fn few_remaining_pulls_extend_a_nonzero_tag_ttl() {
    let with_remaining =
        |left: &str| Reply::normal().header("RateLimit-Limit", "100;w=21600").header("RateLimit-Remaining", left);
    for (ttl, left, expected) in [
        ("1s", "50;w=21600", vec!["HEAD manifests/1"]),
        ("1s", "3;w=21600", vec![]),
        ("0s", "3;w=21600", vec!["HEAD manifests/1"]),
    ] {
        let upstream = upstream_with(&Image::new(1, &[10])).await;
        upstream.always("*", TAG, with_remaining(left));
        let server = mirror(&upstream, &format!("tag_ttl = {ttl:?}")).await;
        server.get(TAG).await;
        take_requests(&upstream);
        tokio::time::sleep(Duration::from_millis(1100)).await;
        assert_eq!(server.get(TAG).await.header("warning"), "");
        assert_eq!(take_requests(&upstream), expected, "{ttl}, {left}");
        let remaining = server.metric("roadstead_upstream_ratelimit_remaining", &[]).await;
        assert_eq!(remaining, if left.starts_with('3') { 3.0 } else { 50.0 });
    }
}

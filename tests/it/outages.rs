//! An outage is not a 404: responses while an upstream fails.

use std::time::Duration;

use tokio::time::timeout;

use crate::freshness::{ALWAYS_REVALIDATE, REPO, TAG, mirror, take_requests, upstream_with};
use crate::scene::until;
use crate::support::{Answer, Bearer, Image, Reply, TestServer, Upstream};

/// Deadlines so long that a test which depended on them would time out.
const LONG_DEADLINES: &str = "[cache]\nanswer_within = \"120s\"\n[upstream.\"docker.io\"]\nheader_timeout = \"120s\"";

fn assert_stale(answer: &Answer, image: &Image, what: &str) {
    assert_eq!((answer.status, answer.header("docker-content-digest")), (200, image.digest()), "{what}");
    assert!(answer.header("warning").starts_with("299 - \""), "{what}: {:?}", answer.headers);
    assert_eq!(answer.body, image.manifest.bytes, "{what}");
}

#[tokio::test]
async fn a_cached_tag_is_served_stale_in_every_failure() {
    let [image, moved] = [1, 2].map(|seed| Image::new(seed, &[10]));
    let upstream = upstream_with(&image).await;
    let server = mirror(&upstream, ALWAYS_REVALIDATE).await;
    assert_eq!(server.get(TAG).await.header("warning"), "");
    let elsewhere = Reply::normal().header("Docker-Content-Digest", moved.digest());
    for (what, reply) in [
        ("500", Reply::error(500, "UNKNOWN")),
        ("502", Reply::status(502)),
        ("503", Reply::error(503, "UNAVAILABLE")),
        ("429", Reply::error(429, "TOOMANYREQUESTS").header("Retry-After", "0")),
        ("a teapot", Reply::status(418)),
        ("a closed connection", Reply::hang_up()),
        ("a redirect to nowhere", Reply::redirect("http://")),
        ("a loop", Reply::status(508)),
    ] {
        upstream.always("*", TAG, reply);
        assert_stale(&server.get(TAG).await, &image, what);
        upstream.end_scripts();
        server.until_available("docker.io").await;
        assert_eq!(server.get(TAG).await.header("warning"), "", "after {what}");
    }
    // The tag has moved, and its new manifest cannot be fetched.
    upstream.add_manifest(REPO, &moved.manifest);
    let path = format!("/v2/{REPO}/manifests/{}", moved.digest());
    for trouble in [Reply::error(500, "UNKNOWN"), Reply::normal().flip(3), Reply::normal().cut_after(5)] {
        upstream.script("HEAD", TAG, [elsewhere.clone()]);
        upstream.always("GET", TAG, Reply::error(500, "UNKNOWN"));
        upstream.always("GET", &path, trouble);
        assert_stale(&server.get(TAG).await, &image, "moved");
        upstream.end_scripts();
    }
    upstream.go_down().await;
    assert_stale(&server.get(TAG).await, &image, "down");
    let head = server.head(TAG).await;
    assert!(head.status == 200 && head.header("warning").starts_with("299"));
    upstream.come_back().await;
    server.until_available("docker.io").await;
    assert_eq!(server.get(TAG).await.header("warning"), "");
    let stale = [("type", "manifest"), ("result", "stale")];
    assert_eq!(server.metric("roadstead_cache_results_total", &stale).await, 12.0);
}

#[tokio::test]
async fn a_silent_upstream_does_not_delay_a_cached_tag() {
    let image = Image::new(1, &[10]);
    let upstream = upstream_with(&image).await;
    let mut server = mirror(&upstream, ALWAYS_REVALIDATE).await;
    server.restart_with(LONG_DEADLINES).await;
    server.get(TAG).await;
    upstream.always("*", TAG, Reply::never());
    // Every other deadline is two minutes or longer.
    let answer = timeout(Duration::from_secs(60), server.get(TAG)).await.expect("a response without the upstream");
    assert_stale(&answer, &image, "silence");
}

#[tokio::test]
async fn a_tag_is_served_stale_only_for_stale_if_error() {
    let image = Image::new(1, &[10]);
    let upstream = upstream_with(&image).await;
    let server = mirror(&upstream, "tag_ttl = \"0s\"\nstale_if_error = \"0s\"").await;
    server.get(TAG).await;
    upstream.always("*", "/v2/*", Reply::error(500, "UNKNOWN"));
    assert_eq!(server.get(TAG).await.status, 502);
}

#[tokio::test]
async fn a_failure_without_cache_is_5xx_or_429_and_never_404() {
    let upstream = upstream_with(&Image::new(1, &[10])).await;
    let other = Image::new(2, &[10]).manifest;
    upstream.add_manifest(REPO, &other);
    upstream.tag("org/other", "1", &other.digest);
    let digest = format!("/v2/{REPO}/manifests/{}", other.digest);
    for path in [TAG, &digest, "/v2/docker.io/org/other/tags/list"] {
        // Only silence lasts until the deadline, so only that case has a short one. A `Retry-After` beyond the deadline
        // is passed on at once.
        for (reply, status, retry_after, within) in [
            (Reply::error(500, "UNKNOWN"), 502, "", "120s"),
            (Reply::error(503, "UNAVAILABLE").header("Retry-After", "700"), 503, "700", "120s"),
            (Reply::error(429, "TOOMANYREQUESTS").header("Retry-After", "800"), 429, "800", "120s"),
            (Reply::hang_up(), 502, "", "120s"),
            (Reply::never(), 504, "", "3s"),
        ] {
            let server = mirror(&upstream, &format!("answer_within = {within:?}")).await;
            upstream.always("*", "/v2/*", reply.clone());
            let answer = server.get(path).await;
            assert_eq!((answer.status, answer.header("retry-after")), (status, retry_after), "{path}: {reply:?}");
            let code = if status == 429 { "TOOMANYREQUESTS" } else { "UNAVAILABLE" };
            assert_eq!(answer.error_code(), code);
            assert!(answer.text().contains("docker.io"), "{}", answer.text());
            upstream.end_scripts();
            if status != 429 {
                until("nothing was remembered as absent", async || match server.get(path).await.status {
                    200 => true,
                    // The wait for the silence may have opened the circuit.
                    other => {
                        assert!(other >= 500, "{path}: {other}");
                        false
                    }
                })
                .await;
            }
        }
    }
}

#[tokio::test]
async fn a_denial_means_404_only_without_credentials() {
    let image = Image::new(1, &[10]);
    let with_credentials = "username = \"ann\"\npassword = \"secret\"";
    for (what, keys, warm_status, stale, cold_status) in [
        ("anonymous", "".to_owned(), 404, false, 404),
        ("anonymous, stale", "on_denied = \"stale\"".to_owned(), 200, true, 403),
        ("credentials", with_credentials.to_owned(), 200, true, 403),
        ("credentials, deny", format!("{with_credentials}\non_denied = \"deny\""), 403, false, 403),
    ] {
        let upstream = upstream_with(&image).await;
        upstream.tag(REPO, "401", image.digest());
        upstream.tag(REPO, "403", image.digest());
        let builder = TestServer::builder().upstream("docker.io", &upstream).default_upstream("docker.io");
        let builder = builder.config(&format!("[cache]\n{ALWAYS_REVALIDATE}\n[upstream.\"docker.io\"]\n{keys}"));
        let server = builder.start().await;
        for status in [401, 403] {
            let tag = format!("/v2/{REPO}/manifests/{status}");
            server.get(&tag).await;
            upstream.always(
                "*",
                "/v2/*",
                Reply::error(status, "DENIED").header("WWW-Authenticate", "Basic realm=\"x\""),
            );
            let warm = server.get(&tag).await;
            assert_eq!((warm.status, !warm.header("warning").is_empty()), (warm_status, stale), "{what}, {status}");
            let cold = server.get(&format!("/v2/{REPO}/manifests/cold-{status}")).await;
            assert_eq!(cold.status, cold_status, "{what}, {status}");
            for answer in [&warm, &cold] {
                assert_eq!(answer.header("www-authenticate"), "", "the challenge of the upstream is not passed on");
            }
            upstream.end_scripts();
        }
    }
}

#[tokio::test]
async fn a_denial_counts_only_after_a_fresh_token() {
    let image = Image::new(1, &[10]);
    let upstream = upstream_with(&image).await;
    upstream.require_bearer(Bearer::new());
    let server = mirror(&upstream, ALWAYS_REVALIDATE).await;
    server.get(TAG).await;
    upstream.script("HEAD", TAG, [Reply::error(403, "DENIED")]);
    let answer = server.get(TAG).await;
    assert_eq!((answer.status, answer.header("warning")), (200, ""));
    assert_eq!(upstream.tokens_given(), 2);
}

#[tokio::test]
async fn a_restart_in_an_outage_keeps_the_cache() {
    let image = Image::new(1, &[5000, 10]);
    let upstream = upstream_with(&image).await;
    let mut server = mirror(&upstream, "").await;
    let paths: Vec<_> = image.blobs().map(|blob| format!("/v2/{REPO}/blobs/{}", blob.digest)).collect();
    server.get(TAG).await;
    for path in &paths {
        server.get(path).await;
    }
    upstream.go_down().await;
    take_requests(&upstream);
    // Immediately: a manifest that a client has received is stored before the stop ends.
    server.restart().await;
    assert_eq!(server.get(TAG).await.header("warning"), "", "the tag is still fresh");
    assert_eq!(server.get(&format!("/v2/{REPO}/manifests/{}", image.digest())).await.body, image.manifest.bytes);
    for (path, blob) in paths.iter().zip(image.blobs()) {
        assert_eq!(server.get(path).await.body, blob.bytes);
        assert_eq!(server.head(path).await.header("content-length"), blob.bytes.len().to_string());
    }
    server.restart_with("[cache]\ntag_ttl = \"0s\"").await;
    assert_stale(&server.get(TAG).await, &image, "restarted");
    assert_eq!(server.get(&format!("/v2/{REPO}/manifests/2")).await.status, 503);
    assert_eq!(server.get("/readyz").await.status, 200);
}

#[tokio::test]
async fn the_server_starts_and_accepts_pushes_without_upstreams() {
    let upstream = Upstream::start().await;
    upstream.go_down().await;
    let server = TestServer::mirror_of(&upstream).await;
    assert_eq!(server.get(TAG).await.status, 503);
    let image = Image::new(5, &[100]);
    server.client().push_image(&server.url(""), "team/app", "1", &image).await;
    assert_eq!(server.get("/v2/team/app/manifests/1").await.body, image.manifest.bytes);
}

/// The first of two URLs fails, and the second one denies anonymous requests, as for content that does not exist.
#[tokio::test]
async fn a_denial_of_one_url_is_no_404_while_another_url_fails() {
    let image = Image::new(1, &[10]);
    let (upstream, denying) = (upstream_with(&image).await, Upstream::start().await);
    let urls = format!("[upstream.\"docker.io\"]\nurl = [{:?}, {:?}]", upstream.url(""), denying.url(""));
    let builder = TestServer::builder().default_upstream("docker.io");
    let server = builder.config(&format!("{urls}\n[cache]\n{ALWAYS_REVALIDATE}")).start().await;
    assert_eq!(server.get(TAG).await.status, 200);
    let refused = Reply::error(401, "UNAUTHORIZED").header("WWW-Authenticate", "Basic realm=\"x\"");
    let cold = [
        format!("/v2/{REPO}/manifests/cold"),
        format!("/v2/{REPO}/blobs/{}", image.layers[0].digest),
        format!("/v2/{REPO}/manifests/sha256:{}", "0".repeat(64)),
    ];
    for denial in [refused, Reply::error(403, "DENIED")] {
        denying.always("*", "/v2/*", denial);
        for (what, failure) in [
            ("500", Reply::error(500, "UNKNOWN")),
            ("a closed connection", Reply::hang_up()),
            ("the page of a firewall", Reply::status(403).header("Content-Type", "text/html").body("<html>")),
        ] {
            upstream.always("*", "/v2/*", failure);
            assert_stale(&server.get(TAG).await, &image, what);
            for path in &cold {
                let status = server.get(path).await.status;
                assert!([502, 503].contains(&status), "{what}: {path}: {status}");
            }
            upstream.end_scripts();
        }
        denying.end_scripts();
    }
    for both in [&upstream, &denying] {
        both.always("*", "/v2/*", Reply::error(403, "DENIED"));
    }
    assert_eq!(server.get(TAG).await.status, 404, "all URLs deny it");
}

//! When a mirrored tag is believed, and what its upstream is asked when it is not.

use crate::scene::until;
use crate::support::{Bearer, Gate, Image, Reply, TestServer, Upstream};

pub const REPO: &str = "library/busybox";
pub const TAG: &str = "/v2/library/busybox/manifests/1";
pub const EVERY_TIME: &str = "tag_ttl = \"0s\"";

/// docker.io with one image under the tag `1`.
pub async fn upstream_with(image: &Image) -> Upstream {
    let upstream = Upstream::start().await;
    upstream.add_image(REPO, "1", image);
    upstream
}

/// A mirror of it with these lines under `[cache]`.
pub async fn mirror(upstream: &Upstream, cache: &str) -> TestServer {
    let builder = TestServer::builder().upstream("docker.io", upstream).default_upstream("docker.io");
    builder.config(&format!("[cache]\n{cache}")).start().await
}

/// What the upstream was asked since the last look, without the repository.
pub fn asked(upstream: &Upstream) -> Vec<String> {
    let requests = upstream.requests();
    upstream.forget();
    let in_repo = format!("/v2/{REPO}/");
    requests.iter().map(|seen| format!("{} {}", seen.method, seen.path.replace(&in_repo, ""))).collect()
}

async fn digest_of_tag(server: &TestServer) -> String {
    let answer = server.get(TAG).await;
    assert_eq!((answer.status, answer.header("warning")), (200, ""), "{}", answer.text());
    answer.header("docker-content-digest").to_owned()
}

#[tokio::test]
async fn a_cold_tag_is_one_get_and_a_fresh_one_asks_nobody() {
    let image = Image::new(1, &[10]);
    let upstream = upstream_with(&image).await;
    let server = mirror(&upstream, "").await;
    assert_eq!(digest_of_tag(&server).await, image.digest());
    assert_eq!(asked(&upstream), ["GET manifests/1"]);
    assert_eq!(digest_of_tag(&server).await, image.digest());
    assert_eq!(server.head(TAG).await.status, 200);
    assert_eq!(server.get(&format!("/v2/{REPO}/manifests/{}", image.digest())).await.body, image.manifest.bytes);
    assert_eq!(asked(&upstream), [""; 0]);
}

#[tokio::test]
async fn a_tag_that_is_not_fresh_is_confirmed_by_a_head() {
    let image = Image::new(1, &[10]);
    let upstream = upstream_with(&image).await;
    let server = mirror(&upstream, EVERY_TIME).await;
    for expected in ["GET manifests/1", "HEAD manifests/1", "HEAD manifests/1"] {
        assert_eq!(digest_of_tag(&server).await, image.digest());
        assert_eq!(asked(&upstream), [expected]);
    }
    let results = [("type", "manifest"), ("result", "revalidated")];
    assert_eq!(server.metric("roadstead_cache_results_total", &results).await, 2.0);
}

#[tokio::test]
async fn head_and_get_name_the_same_full_accept_and_nothing_of_the_client() {
    let image = Image::new(1, &[10]);
    let upstream = upstream_with(&image).await;
    let server = mirror(&upstream, EVERY_TIME).await;
    let client = [
        ("Accept", "application/vnd.oci.image.manifest.v1+json"),
        ("Accept-Encoding", "gzip, zstd"),
        ("Authorization", "Basic c2VjcmV0"),
        ("Cookie", "a=b"),
    ];
    for _ in 0..2 {
        assert_eq!(server.get_with(TAG, &client).await.status, 200);
    }
    server.get_with(&format!("/v2/{REPO}/blobs/{}", image.config.digest), &client).await;
    let requests = upstream.requests();
    assert_eq!(requests.len(), 3);
    let accept = requests[0].header("accept");
    for kind in ["oci.image.index.v1", "oci.image.manifest.v1", "distribution.manifest.list.v2", "manifest.v2"] {
        assert!(accept.contains(kind), "{kind} is not in {accept}");
    }
    assert_eq!(requests[1].header("accept"), accept);
    let id = std::fs::read_to_string(server.data_dir().join("id")).unwrap().replace('-', "");
    for request in &requests {
        assert_eq!(request.header("via"), format!("1.1 roadstead-{}", id.trim()));
        for name in ["accept-encoding", "authorization", "cookie"] {
            assert_eq!(request.header(name), "", "{name} of {} {}", request.method, request.path);
        }
    }
}

#[tokio::test]
async fn a_tag_that_moved_is_fetched_by_its_digest() {
    let [old, new] = [1, 2].map(|seed| Image::new(seed, &[10]));
    let upstream = upstream_with(&old).await;
    let server = mirror(&upstream, EVERY_TIME).await;
    digest_of_tag(&server).await;
    upstream.add_image(REPO, "1", &new);
    asked(&upstream);
    assert_eq!(digest_of_tag(&server).await, new.digest());
    assert_eq!(asked(&upstream), ["HEAD manifests/1".to_owned(), format!("GET manifests/{}", new.digest())]);
    // And back: its content is here, so that it has moved is all there is to learn.
    upstream.tag(REPO, "1", old.digest());
    assert_eq!(digest_of_tag(&server).await, old.digest());
    assert_eq!(asked(&upstream), ["HEAD manifests/1"]);
}

#[tokio::test]
async fn an_upstream_that_tells_no_digest_is_asked_for_the_manifest_unless_unchanged() {
    let [old, new] = [1, 2].map(|seed| Image::new(seed, &[10]));
    let upstream = upstream_with(&old).await;
    let silent = Reply::normal().without_digest();
    upstream.always("*", TAG, silent);
    let server = mirror(&upstream, EVERY_TIME).await;
    assert_eq!(digest_of_tag(&server).await, old.digest());
    asked(&upstream);
    assert_eq!(digest_of_tag(&server).await, old.digest());
    assert_eq!(upstream.requests()[1].header("if-none-match"), format!("\"{}\"", old.digest()));
    assert_eq!(asked(&upstream), ["HEAD manifests/1", "GET manifests/1"]);
    assert_eq!(upstream.bytes_sent(), 0, "304 has no body");
    upstream.add_image(REPO, "1", &new);
    assert_eq!(digest_of_tag(&server).await, new.digest());
    assert_eq!(asked(&upstream), ["HEAD manifests/1", "GET manifests/1"]);
}

#[tokio::test]
async fn an_upstream_that_knows_no_head_is_asked_by_get() {
    let image = Image::new(1, &[10]);
    let upstream = upstream_with(&image).await;
    let server = mirror(&upstream, EVERY_TIME).await;
    for status in [405, 501] {
        digest_of_tag(&server).await;
        asked(&upstream);
        upstream.script("HEAD", TAG, [Reply::status(status)]);
        assert_eq!(digest_of_tag(&server).await, image.digest());
        assert_eq!(asked(&upstream), ["HEAD manifests/1", "GET manifests/1"]);
    }
}

#[tokio::test]
async fn many_who_ask_for_a_tag_at_once_are_one_question() {
    const CLIENTS: usize = 20;
    let image = Image::new(1, &[10]);
    let upstream = upstream_with(&image).await;
    let gate = Gate::new();
    upstream.script("GET", TAG, [Reply::normal().wait_before_head(&gate)]);
    let server = mirror(&upstream, "").await;
    let clients: Vec<_> = (0..CLIENTS)
        .map(|_| {
            let (client, url) = (server.client().clone(), server.url(TAG));
            tokio::spawn(async move { client.get(&url).await })
        })
        .collect();
    gate.reached(1).await;
    let waiting = [("handler", "manifest")];
    until("all clients wait", async || {
        server.metric("registry_http_in_flight_requests", &waiting).await == CLIENTS as f64
    })
    .await;
    gate.open();
    for client in clients {
        assert_eq!(client.await.unwrap().body, image.manifest.bytes);
    }
    assert_eq!(asked(&upstream), ["GET manifests/1"]);
    let results = async |result| server.metric("roadstead_cache_results_total", &[("result", result)]).await;
    assert_eq!((results("miss").await, results("joined").await), (1.0, (CLIENTS - 1) as f64));
}

#[tokio::test]
async fn a_client_that_leaves_does_not_end_the_question() {
    let image = Image::new(1, &[10]);
    let upstream = upstream_with(&image).await;
    let gate = Gate::new();
    upstream.script("GET", TAG, [Reply::normal().wait_before_head(&gate)]);
    let server = mirror(&upstream, "").await;
    let (client, url) = (server.client().clone(), server.url(TAG));
    let leaver = tokio::spawn(async move { client.get(&url).await });
    gate.reached(1).await;
    leaver.abort();
    gate.open();
    assert_eq!(digest_of_tag(&server).await, image.digest());
    assert_eq!((asked(&upstream).len(), upstream.abandoned()), (1, 0));
}

#[tokio::test]
async fn a_head_of_a_cold_tag_brings_the_manifest_for_the_get_that_follows() {
    let image = Image::new(1, &[10]);
    let upstream = upstream_with(&image).await;
    let server = mirror(&upstream, "").await;
    let head = server.head(TAG).await;
    assert_eq!((head.status, head.header("docker-content-digest")), (200, image.digest()));
    assert_eq!(head.header("content-length"), image.manifest.bytes.len().to_string());
    assert_eq!(head.header("content-type"), image.manifest.media_type);
    asked(&upstream);
    let get = server.get(&format!("/v2/{REPO}/manifests/{}", image.digest())).await;
    assert_eq!(get.body, image.manifest.bytes);
    assert_eq!(asked(&upstream), [""; 0]);
}

#[tokio::test]
async fn a_client_that_has_the_manifest_is_told_that_nothing_has_changed() {
    let image = Image::new(1, &[10]);
    let upstream = upstream_with(&image).await;
    let server = mirror(&upstream, "").await;
    let etag = server.get(TAG).await.header("etag").to_owned();
    assert_eq!(etag, format!("\"{}\"", image.digest()));
    for condition in [etag.as_str(), "*", &format!("\"x\", W/{etag}")] {
        let answer = server.get_with(TAG, &[("If-None-Match", condition)]).await;
        assert_eq!((answer.status, answer.body.len()), (304, 0), "{condition}");
        assert_eq!(answer.header("docker-content-digest"), image.digest());
    }
    assert_eq!(server.get_with(TAG, &[("If-None-Match", "\"sha256:00\"")]).await.status, 200);
}

#[tokio::test]
async fn what_the_upstream_does_not_have_is_not_asked_again_for_a_while() {
    let image = Image::new(1, &[10]);
    let upstream = upstream_with(&image).await;
    let server = mirror(&upstream, EVERY_TIME).await;
    digest_of_tag(&server).await;
    asked(&upstream);
    upstream.remove_tag(REPO, "1");
    for question in [vec!["HEAD manifests/1"], vec![]] {
        let answer = server.get(TAG).await;
        assert_eq!((answer.status, answer.error_code().as_str()), (404, "MANIFEST_UNKNOWN"));
        assert_eq!(asked(&upstream), question);
    }
    // The tag is gone, its content is not.
    assert_eq!(server.get(&format!("/v2/{REPO}/manifests/{}", image.digest())).await.status, 200);
    for (path, code) in [("manifests/none", "MANIFEST_UNKNOWN"), ("blobs", "BLOB_UNKNOWN")] {
        let unknown = Image::new(77, &[]).manifest.digest;
        let path = if path == "blobs" { format!("blobs/{unknown}") } else { path.to_owned() };
        for questions in [1, 0] {
            assert_eq!(server.get(&format!("/v2/{REPO}/{path}")).await.error_code(), code);
            assert_eq!(asked(&upstream).len(), questions, "{path}");
        }
    }
    let forgetful = mirror(&upstream, "negative_ttl = \"0s\"").await;
    for _ in 0..2 {
        assert_eq!(forgetful.get(TAG).await.status, 404);
        assert_eq!(asked(&upstream), ["GET manifests/1"]);
    }
}

#[tokio::test]
async fn a_token_is_fetched_once_and_a_revoked_one_is_replaced() {
    let image = Image::new(1, &[10]);
    let upstream = upstream_with(&image).await;
    upstream.require_bearer(Bearer::new());
    let server = mirror(&upstream, EVERY_TIME).await;
    for _ in 0..3 {
        assert_eq!(digest_of_tag(&server).await, image.digest());
    }
    assert_eq!(upstream.tokens_given(), 1);
    upstream.revoke_tokens();
    assert_eq!(digest_of_tag(&server).await, image.digest());
    assert_eq!(upstream.tokens_given(), 2);
}

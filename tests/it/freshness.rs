//! Freshness of mirrored tags, and the upstream requests that revalidate them.

use crate::scene::until;
use crate::support::{Bearer, Gate, Image, Reply, TestServer, Upstream};

pub const REPO: &str = "library/busybox";
pub const TAG: &str = "/v2/library/busybox/manifests/1";
pub const ALWAYS_REVALIDATE: &str = "tag_ttl = \"0s\"";

/// docker.io with one image under the tag `1`.
pub async fn upstream_with(image: &Image) -> Upstream {
    let upstream = Upstream::start().await;
    upstream.add_image(REPO, "1", image);
    upstream
}

/// A mirror of it with `cache` as the lines of `[cache]`.
pub async fn mirror(upstream: &Upstream, cache: &str) -> TestServer {
    let builder = TestServer::builder().upstream("docker.io", upstream).default_upstream("docker.io");
    builder.config(&format!("[cache]\n{cache}")).start().await
}

/// The upstream's requests since the last call, without the repository.
pub fn take_requests(upstream: &Upstream) -> Vec<String> {
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
async fn a_cold_tag_is_one_get_and_a_fresh_tag_none() {
    let image = Image::new(1, &[10]);
    let upstream = upstream_with(&image).await;
    let server = mirror(&upstream, "").await;
    assert_eq!(digest_of_tag(&server).await, image.digest());
    assert_eq!(take_requests(&upstream), ["GET manifests/1"]);
    assert_eq!(digest_of_tag(&server).await, image.digest());
    assert_eq!(server.head(TAG).await.status, 200);
    assert_eq!(server.get(&format!("/v2/{REPO}/manifests/{}", image.digest())).await.body, image.manifest.bytes);
    assert_eq!(take_requests(&upstream), [""; 0]);
}

#[tokio::test]
async fn an_expired_tag_is_revalidated_by_head() {
    let image = Image::new(1, &[10]);
    let upstream = upstream_with(&image).await;
    let server = mirror(&upstream, ALWAYS_REVALIDATE).await;
    for expected in ["GET manifests/1", "HEAD manifests/1", "HEAD manifests/1"] {
        assert_eq!(digest_of_tag(&server).await, image.digest());
        assert_eq!(take_requests(&upstream), [expected]);
    }
    let results = [("type", "manifest"), ("result", "revalidated")];
    assert_eq!(server.metric("roadstead_cache_results_total", &results).await, 2.0);
}

#[tokio::test]
async fn head_and_get_send_our_own_full_accept() {
    let image = Image::new(1, &[10]);
    let upstream = upstream_with(&image).await;
    let server = mirror(&upstream, ALWAYS_REVALIDATE).await;
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
async fn a_moved_tag_is_fetched_by_digest() {
    let [old, new] = [1, 2].map(|seed| Image::new(seed, &[10]));
    let upstream = upstream_with(&old).await;
    let server = mirror(&upstream, ALWAYS_REVALIDATE).await;
    digest_of_tag(&server).await;
    upstream.add_image(REPO, "1", &new);
    take_requests(&upstream);
    assert_eq!(digest_of_tag(&server).await, new.digest());
    assert_eq!(take_requests(&upstream), ["HEAD manifests/1".to_owned(), format!("GET manifests/{}", new.digest())]);
    // And back: the content is stored, so the HEAD that reports the move is enough.
    upstream.tag(REPO, "1", old.digest());
    assert_eq!(digest_of_tag(&server).await, old.digest());
    assert_eq!(take_requests(&upstream), ["HEAD manifests/1"]);
}

#[tokio::test]
async fn without_a_digest_header_the_manifest_is_fetched_conditionally() {
    let [old, new] = [1, 2].map(|seed| Image::new(seed, &[10]));
    let upstream = upstream_with(&old).await;
    let silent = Reply::normal().without_digest();
    upstream.always("*", TAG, silent);
    let server = mirror(&upstream, ALWAYS_REVALIDATE).await;
    assert_eq!(digest_of_tag(&server).await, old.digest());
    take_requests(&upstream);
    assert_eq!(digest_of_tag(&server).await, old.digest());
    assert_eq!(upstream.requests()[1].header("if-none-match"), format!("\"{}\"", old.digest()));
    assert_eq!(take_requests(&upstream), ["HEAD manifests/1", "GET manifests/1"]);
    assert_eq!(upstream.bytes_sent(), 0, "304 has no body");
    upstream.add_image(REPO, "1", &new);
    assert_eq!(digest_of_tag(&server).await, new.digest());
    assert_eq!(take_requests(&upstream), ["HEAD manifests/1", "GET manifests/1"]);
}

#[tokio::test]
async fn an_upstream_without_head_is_asked_by_get() {
    let image = Image::new(1, &[10]);
    let upstream = upstream_with(&image).await;
    let server = mirror(&upstream, ALWAYS_REVALIDATE).await;
    for status in [405, 501] {
        digest_of_tag(&server).await;
        take_requests(&upstream);
        upstream.script("HEAD", TAG, [Reply::status(status)]);
        assert_eq!(digest_of_tag(&server).await, image.digest());
        assert_eq!(take_requests(&upstream), ["HEAD manifests/1", "GET manifests/1"]);
    }
}

#[tokio::test]
async fn concurrent_requests_for_a_tag_share_one_upstream_request() {
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
    assert_eq!(take_requests(&upstream), ["GET manifests/1"]);
    let results = async |result| server.metric("roadstead_cache_results_total", &[("result", result)]).await;
    assert_eq!((results("miss").await, results("joined").await), (1.0, (CLIENTS - 1) as f64));
}

#[tokio::test]
async fn a_client_that_leaves_does_not_cancel_the_shared_request() {
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
    assert_eq!((take_requests(&upstream).len(), upstream.abandoned()), (1, 0));
}

#[tokio::test]
async fn head_of_a_cold_tag_caches_the_manifest() {
    let image = Image::new(1, &[10]);
    let upstream = upstream_with(&image).await;
    let server = mirror(&upstream, "").await;
    let head = server.head(TAG).await;
    assert_eq!((head.status, head.header("docker-content-digest")), (200, image.digest()));
    assert_eq!(head.header("content-length"), image.manifest.bytes.len().to_string());
    assert_eq!(head.header("content-type"), image.manifest.media_type);
    take_requests(&upstream);
    let get = server.get(&format!("/v2/{REPO}/manifests/{}", image.digest())).await;
    assert_eq!(get.body, image.manifest.bytes);
    assert_eq!(take_requests(&upstream), [""; 0]);
}

#[tokio::test]
async fn a_matching_if_none_match_gets_304() {
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
async fn an_absence_is_cached_for_negative_ttl() {
    let image = Image::new(1, &[10]);
    let upstream = upstream_with(&image).await;
    let server = mirror(&upstream, ALWAYS_REVALIDATE).await;
    digest_of_tag(&server).await;
    take_requests(&upstream);
    upstream.remove_tag(REPO, "1");
    // Only the GET says that the tag is gone.
    for question in [vec!["HEAD manifests/1", "GET manifests/1"], vec![]] {
        let answer = server.get(TAG).await;
        assert_eq!((answer.status, answer.error_code().as_str()), (404, "MANIFEST_UNKNOWN"));
        assert_eq!(take_requests(&upstream), question);
    }
    // The tag is gone, but its content is still there.
    assert_eq!(server.get(&format!("/v2/{REPO}/manifests/{}", image.digest())).await.status, 200);
    for (path, code) in [("manifests/none", "MANIFEST_UNKNOWN"), ("blobs", "BLOB_UNKNOWN")] {
        let unknown = Image::new(77, &[]).manifest.digest;
        let path = if path == "blobs" { format!("blobs/{unknown}") } else { path.to_owned() };
        for questions in [1, 0] {
            assert_eq!(server.get(&format!("/v2/{REPO}/{path}")).await.error_code(), code);
            assert_eq!(take_requests(&upstream).len(), questions, "{path}");
        }
    }
    let forgetful = mirror(&upstream, "negative_ttl = \"0s\"").await;
    for _ in 0..2 {
        assert_eq!(forgetful.get(TAG).await.status, 404);
        assert_eq!(take_requests(&upstream), ["GET manifests/1"]);
    }
}

#[tokio::test]
async fn a_token_is_reused_and_replaced_when_revoked() {
    let image = Image::new(1, &[10]);
    let upstream = upstream_with(&image).await;
    upstream.require_bearer(Bearer::new());
    let server = mirror(&upstream, ALWAYS_REVALIDATE).await;
    for _ in 0..3 {
        assert_eq!(digest_of_tag(&server).await, image.digest());
    }
    assert_eq!(upstream.tokens_given(), 1);
    upstream.revoke_tokens();
    assert_eq!(digest_of_tag(&server).await, image.digest());
    assert_eq!(upstream.tokens_given(), 2);
}

//! Tests of the support itself, on which every other test relies.

use std::time::Duration;

use bytes::Bytes;
use tokio::time::{Instant, timeout};

use super::metrics::Metrics;
use super::settings::Settings;
use super::{Bearer, Client, Conn, Ended, Gate, Image, Index, Reply, Upstream, random_bytes};

const BLOB: usize = 300_000;

/// An upstream with one image of one layer, and the path of that layer.
async fn upstream_with_a_layer() -> (Upstream, Bytes, String) {
    let upstream = Upstream::start().await;
    let image = Image::new(7, &[BLOB]);
    upstream.add_image("library/busybox", "latest", &image);
    let layer = image.layers[0].clone();
    let path = format!("/v2/library/busybox/blobs/{}", layer.digest);
    (upstream, layer.bytes, path)
}

#[tokio::test]
async fn the_upstream_serves_like_a_registry() {
    let (upstream, layer, path) = upstream_with_a_layer().await;
    let client = Client::new();
    let tag = upstream.url("/v2/library/busybox/manifests/latest");
    let by_tag = client.get(&tag).await;
    let digest = by_tag.header("docker-content-digest").to_owned();
    let by_digest = upstream.url(&format!("/v2/library/busybox/manifests/{digest}"));
    assert_eq!(client.get(&by_digest).await.body, by_tag.body);
    let head = client.head(&tag).await;
    assert_eq!(head.header("content-length"), by_tag.body.len().to_string());
    assert!(head.body.is_empty());
    let etag = [("If-None-Match", by_tag.header("etag"))];
    assert_eq!(client.get_with(&tag, &etag).await.status, 304);

    let blob = upstream.url(&path);
    assert_eq!(client.get(&blob).await.body, layer);
    let part = client.get_with(&blob, &[("Range", "bytes=10-19")]).await;
    assert_eq!((part.status, &part.body[..]), (206, &layer[10..20]));
    assert_eq!(part.header("content-range"), format!("bytes 10-19/{BLOB}"));
    assert_eq!(client.get_with(&blob, &[("Range", "bytes=300000-")]).await.status, 416);

    let missing = client.get(&upstream.url("/v2/library/busybox/manifests/none")).await;
    assert_eq!((missing.status, missing.error_code().as_str()), (404, "MANIFEST_UNKNOWN"));
    upstream.tag("library/busybox", "other", &digest);
    let tags = client.get(&upstream.url("/v2/library/busybox/tags/list?n=1")).await;
    assert_eq!(tags.json()["tags"][0], "latest");
    assert!(tags.header("link").contains("last=latest"));
}

#[tokio::test]
async fn the_upstream_records_its_requests() {
    let (upstream, _, path) = upstream_with_a_layer().await;
    let client = Client::new();
    client.get_with(&upstream.url(&path), &[("Range", "bytes=0-9")]).await;
    client.get(&upstream.url("/v2/?ns=docker.io")).await;
    assert_eq!((upstream.count("GET", &path), upstream.total()), (1, 2));
    assert_eq!(upstream.requests()[0].header("range"), "bytes=0-9");
    assert_eq!(upstream.requests()[1].query, "ns=docker.io");
    // Ten bytes of the blob and two of `{}`.
    assert_eq!(upstream.bytes_sent(), 12);
    upstream.forget();
    assert_eq!((upstream.total(), upstream.bytes_sent()), (0, 0));
}

#[tokio::test]
async fn the_usual_response_follows_a_finished_script() {
    let (upstream, layer, path) = upstream_with_a_layer().await;
    let client = Client::new();
    let elsewhere = Reply::redirect("http://127.0.0.1:1/elsewhere");
    let trouble = Reply::error(503, "UNAVAILABLE");
    let quirks = Reply::normal().without_digest().claims_gzip().ignore_range();
    upstream.script("GET", &path, [trouble, elsewhere, quirks]);
    let blob = upstream.url(&path);
    assert_eq!(client.get(&blob).await.error_code(), "UNAVAILABLE");
    assert_eq!(client.get(&blob).await.header("location"), "http://127.0.0.1:1/elsewhere");
    let reply = client.get_with(&blob, &[("Range", "bytes=1-2")]).await;
    assert_eq!((reply.status, reply.body.len()), (200, BLOB));
    assert_eq!(reply.header("content-encoding"), "gzip");
    assert_eq!(reply.header("docker-content-digest"), "");
    assert_eq!(client.get(&blob).await.body, layer);
    upstream.always("*", "/v2/library/*", Reply::status(429).header("Retry-After", "7"));
    for _ in 0..3 {
        assert_eq!(client.head(&blob).await.header("retry-after"), "7");
    }
    upstream.end_scripts();
    assert_eq!(client.head(&blob).await.status, 200);
}

#[tokio::test]
async fn a_gate_holds_the_body_until_it_opens() {
    let (upstream, layer, path) = upstream_with_a_layer().await;
    let gate = Gate::new();
    upstream.script("GET", &path, [Reply::normal().wait_after(100_000, &gate)]);
    let mut conn = Conn::get(upstream.addr(), &path).await;
    assert_eq!(conn.take(100_000).await, layer[..100_000]);
    gate.reached(1).await;
    assert!(timeout(Duration::from_millis(50), conn.take(1)).await.is_err());
    gate.open();
    assert_eq!(conn.rest().await, (layer.slice(100_000..), Ended::Complete));
}

#[tokio::test]
async fn bodies_end_as_scripted() {
    let (upstream, layer, path) = upstream_with_a_layer().await;
    let corrupted = |at: usize| {
        let mut bytes = layer.to_vec();
        bytes[at] ^= 0x20;
        Bytes::from(bytes)
    };
    let longer = BLOB as u64 + 1;
    for (reply, body, ended) in [
        (Reply::normal().cut_after(1000), layer.slice(..1000), Ended::Short),
        (Reply::normal().chunked().cut_after(1000), layer.slice(..1000), Ended::Short),
        (Reply::normal().chunked(), layer.clone(), Ended::Complete),
        (Reply::normal().until_close(), layer.clone(), Ended::Complete),
        (Reply::normal().flip(200_000), corrupted(200_000), Ended::Complete),
        (Reply::normal().declare_length(longer), layer.clone(), Ended::Short),
        (Reply::normal().declare_length(5), layer.slice(..5), Ended::Complete),
    ] {
        upstream.script("GET", &path, [reply.clone()]);
        let mut conn = Conn::get(upstream.addr(), &path).await;
        let (got, how) = conn.rest().await;
        assert!(got == body && how == ended, "{reply:?} gave {} bytes, {how:?}", got.len());
    }
    upstream.script("GET", &path, [Reply::normal().reset_after(1000)]);
    assert_eq!(Conn::get(upstream.addr(), &path).await.rest().await.1, Ended::Reset);
    upstream.script("GET", &path, [Reply::hang_up()]);
    let request = format!("GET {path} HTTP/1.1\r\n\r\n");
    assert!(Conn::ask(upstream.addr(), &request).await.is_err());
}

#[tokio::test]
async fn pace_is_kept_and_a_leaving_client_is_noticed() {
    let (upstream, layer, path) = upstream_with_a_layer().await;
    upstream.script("GET", &path, [Reply::normal().pace(1_000_000)]);
    let start = Instant::now();
    assert_eq!(Conn::get(upstream.addr(), &path).await.rest().await.0, layer);
    assert!(start.elapsed() >= Duration::from_millis(280), "{:?}", start.elapsed());
    upstream.script("GET", &path, [Reply::normal().silent_after(10)]);
    let mut conn = Conn::get(upstream.addr(), &path).await;
    conn.take(10).await;
    drop(conn);
    while upstream.abandoned() == 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[tokio::test]
async fn a_token_opens_only_its_repository() {
    let (upstream, layer, path) = upstream_with_a_layer().await;
    let realm = Upstream::start().await;
    let client = Client::new();
    let manners = Bearer::new().only_access_token().credentials("me", "secret");
    upstream.require_bearer_from(&realm, manners.takes_post());
    let challenge = client.get(&upstream.url(&path)).await;
    assert_eq!(challenge.status, 401);
    assert_eq!(
        challenge.header("www-authenticate"),
        format!(
            "Bearer realm=\"{}\",service=\"scripted\",scope=\"repository:library/busybox:pull\"",
            realm.url("/token")
        )
    );
    let token_url = realm.url("/token?scope=repository:library/busybox:pull");
    assert_eq!(client.get(&token_url).await.status, 401);
    let form = "grant_type=password&username=me&password=secret&scope=repository:a:pull";
    let other = client.send("POST", &realm.url("/token"), &[], form).await.json();
    let named = client.get_with(&token_url, &[("Authorization", "Basic bWU6c2VjcmV0")]).await;
    let bearer = |token: &serde_json::Value| format!("Bearer {}", token["access_token"].as_str().unwrap());
    let (wrong, right) = (bearer(&other), bearer(&named.json()));
    let get = async |token: &str| client.get_with(&upstream.url(&path), &[("Authorization", token)]).await;
    assert!(get(&wrong).await.header("www-authenticate").contains("insufficient_scope"));
    assert_eq!(get(&right).await.body, layer);
    assert_eq!(upstream.tokens_given(), 2);
    upstream.revoke_tokens();
    assert!(get(&right).await.header("www-authenticate").contains("invalid_token"));
}

#[tokio::test]
async fn basic_credentials_are_required() {
    let (upstream, layer, path) = upstream_with_a_layer().await;
    upstream.require_basic("me", "secret");
    let client = Client::new();
    assert_eq!(client.get(&upstream.url(&path)).await.status, 401);
    let named = [("Authorization", "Basic bWU6c2VjcmV0")];
    assert_eq!(client.get_with(&upstream.url(&path), &named).await.body, layer);
}

#[tokio::test]
async fn the_upstream_goes_down_and_comes_back() {
    let (upstream, layer, path) = upstream_with_a_layer().await;
    let client = Client::new();
    upstream.go_down().await;
    let down = client.try_send("GET", &upstream.url(&path), &[], Bytes::new()).await;
    assert!(down.unwrap_err().is_connect());
    upstream.come_back().await;
    assert_eq!(client.get(&upstream.url(&path)).await.body, layer);
}

#[test]
fn images_of_one_seed_are_equal() {
    let (one, two) = (Image::new(1, &[10, 20]), Image::new(1, &[10, 20]));
    assert_eq!(one.digest(), two.digest());
    assert_ne!(one.digest(), Image::new(2, &[10, 20]).digest());
    let index = Index::new(1, &["linux/amd64", "linux/arm64"], &[10]);
    assert_ne!(index.images[0].digest(), index.images[1].digest());
    let start = std::time::Instant::now();
    random_bytes(1, 64 << 20);
    println!("64 MiB took {:?}", start.elapsed());
}

#[test]
fn metrics_are_summed_over_the_labels_not_named() {
    let metrics = Metrics::parse(
        "# HELP hits_total How many\n# TYPE hits_total counter\n\
         hits_total{type=\"blob\",upstream=\"docker.io\"} 2\n\
         hits_total{type=\"blob\",upstream=\"ghcr.io\"} 3\n\
         hits_total{type=\"manifest\",upstream=\"ghcr.io\"} 5\nin_flight 7\n",
    );
    assert_eq!(metrics.sum("hits_total", &[("type", "blob")]), 5.0);
    assert_eq!(metrics.sum("hits_total", &[]), 10.0);
    assert_eq!(metrics.sum("in_flight", &[]), 7.0);
    assert_eq!(metrics.sum("none", &[]), 0.0);
}

#[test]
fn settings_are_merged_table_by_table() {
    let settings = Settings::new()
        .upstream_url("docker.io", "http://127.0.0.1:1")
        .config("[upstream.\"docker.io\"]\nusername = \"me\"")
        .config("[cache]\ntag_ttl = \"0s\"");
    let table: toml::Table = settings.to_toml().parse().unwrap();
    assert_eq!(table["upstream"]["docker.io"]["url"].as_str(), Some("http://127.0.0.1:1"));
    assert_eq!(table["upstream"]["docker.io"]["username"].as_str(), Some("me"));
    assert_eq!(table["server"]["listen"].as_str(), Some("127.0.0.1:0"));
}

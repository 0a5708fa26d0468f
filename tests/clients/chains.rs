//! Debian's docker-registry as a pull-through cache, upstream and downstream of Roadstead.

use std::time::Duration;

use super::registry::Registry;
use super::roadstead;
use crate::freshness::{ALWAYS_REVALIDATE, REPO, mirror, upstream_with};
use crate::scene::{MIB, until};
use crate::support::process::ServerProcess;
use crate::support::settings::Settings;
use crate::support::{Client, Image};

const QUICK: &str = "tag_ttl = \"0s\"\n[upstream.\"docker.io\"]\nheader_timeout = \"1s\"";

/// Attempts while docker-registry fails because of its own race.
const MAX_ATTEMPTS: usize = 100;

/// Pulls the complete image and compares every byte.
async fn pull(url: &str, image: &Image) {
    let client = Client::new();
    let accept = [("Accept", image.manifest.media_type.as_str())];
    let manifest = client.get_with(&format!("{url}/v2/{REPO}/manifests/1"), &accept).await;
    assert_eq!((manifest.status, &manifest.body), (200, &image.manifest.bytes), "{}", manifest.text());
    assert_eq!(manifest.header("docker-content-digest"), image.digest());
    for blob in image.blobs() {
        let path = format!("{url}/v2/{REPO}/blobs/{}", blob.digest);
        assert_eq!(client.head(&path).await.header("content-length"), blob.bytes.len().to_string());
        let mut answer = client.get(&path).await;
        // docker-registry may read its links while it writes them, and then responds 500. Roadstead never does.
        for _ in 0..MAX_ATTEMPTS {
            if answer.status == 500 && answer.text().contains("UNKNOWN") {
                tokio::time::sleep(Duration::from_millis(50)).await;
                answer = client.get(&path).await;
            }
        }
        assert!(answer.body == blob.bytes, "{path}: {}, {} bytes", answer.status, answer.body.len());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn docker_registry_mirrors_through_roadstead() {
    assert_mirrors_through_roadstead(Registry::mirror_of).await;
}

/// Checks a registry that mirrors a URL.
pub async fn assert_mirrors_through_roadstead(mirror_of: impl Fn(&str) -> Registry) {
    let image = Image::new(1, &[MIB, 10]);
    let upstream = upstream_with(&image).await;
    let server = mirror(&upstream, QUICK).await;
    let outer = mirror_of(&server.url(""));
    pull(&outer.url(), &image).await;
    assert_eq!(upstream.count("GET", &format!("/v2/{REPO}/manifests/1")), 1);
    for blob in image.blobs() {
        assert_eq!(upstream.count("GET", &format!("/v2/{REPO}/blobs/{}", blob.digest)), 1);
    }
    assert_eq!(server.metric("roadstead_upstream_requests_total", &[]).await, upstream.total() as f64);
    upstream.go_down().await;
    for _ in 0..3 {
        pull(&outer.url(), &image).await;
    }
    // The cache of docker-registry is empty, that of Roadstead is not.
    pull(&mirror_of(&server.url("")).url(), &image).await;
    let stale = server.head(&format!("/v2/{REPO}/manifests/1")).await;
    assert!(stale.status == 200 && stale.header("warning").starts_with("299"));
}

#[tokio::test(flavor = "multi_thread")]
async fn roadstead_mirrors_through_docker_registry() {
    assert_roadstead_mirrors_through(Registry::mirror_of).await;
}

/// Checks Roadstead with such a registry as its upstream.
pub async fn assert_roadstead_mirrors_through(mirror_of: impl Fn(&str) -> Registry) {
    let image = Image::new(1, &[MIB, 10]);
    let upstream = upstream_with(&image).await;
    let inner = mirror_of(&upstream.url(""));
    let settings = Settings::new().upstream_url("docker.io", &inner.url()).default_upstream("docker.io");
    let server = ServerProcess::start(settings.config(&format!("[cache]\n{ALWAYS_REVALIDATE}")));
    pull(&server.url(""), &image).await;
    for blob in image.blobs() {
        assert_eq!(inner.blob_gets_of(REPO, &blob.digest), 1, "{}", blob.digest);
    }
    upstream.go_down().await;
    // Both mirrors serve their caches.
    pull(&server.url(""), &image).await;
    let cold = Client::new().get(&server.url(&format!("/v2/{REPO}/manifests/cold"))).await;
    assert!(cold.status == 404 || cold.status >= 500, "{}", cold.status);
    drop(inner);
    let manifest = server.url(&format!("/v2/{REPO}/manifests/1"));
    until("the circuit of the inner mirror is open", async || {
        let stale = Client::new().get(&manifest).await;
        assert_eq!((stale.status, &stale.body), (200, &image.manifest.bytes));
        assert!(stale.header("warning").starts_with("299"));
        server.metric("roadstead_upstream_available", &[]).await == 0.0
    })
    .await;
    pull(&server.url(""), &image).await;
    assert_eq!(server.metric("registry_proxy_misses_total", &[("type", "blob")]).await, image.blobs().count() as f64);
}

#[tokio::test(flavor = "multi_thread")]
async fn three_chained_mirrors_deliver_the_image() {
    let image = Image::new(1, &[2 * MIB]);
    let end = Registry::start();
    end.push(REPO, "1", &image).await;
    let inner = roadstead(&[("docker.io", &end)]);
    let middle = Registry::mirror_of(&inner.url(""));
    let outer = roadstead(&[("docker.io", &middle)]);
    pull(&outer.url(""), &image).await;
    assert_eq!(end.blob_gets_of(REPO, &image.layers[0].digest), 1);
}

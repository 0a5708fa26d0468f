//! Eviction: the bounds of the cache, the eviction order, and what is never evicted.

use std::fs;
use std::path::Path;

use crate::operator::roadstead;
use crate::scene::{KIB, MIB, REPO, blob, blob_path, is_stored, settle, until};
use crate::support::{Conn, Content, Ended, Image, TestServer, Upstream};

/// Bytes of all files below `blobs/`.
fn bytes_stored(data: &Path) -> u64 {
    let mut folders = vec![data.join("blobs")];
    let mut bytes = 0;
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            match fs::metadata(&path) {
                Ok(found) if found.is_dir() => folders.push(path),
                Ok(found) => bytes += found.len(),
                // Evicted since the listing.
                Err(_) => {}
            }
        }
    }
    bytes
}

pub fn blobs(upstream: &Upstream, seeds: std::ops::Range<u64>, size: usize) -> Vec<Content> {
    let blobs: Vec<Content> = seeds.map(|seed| blob(seed, size)).collect();
    for blob in &blobs {
        upstream.add_blob(REPO, blob);
    }
    blobs
}

pub async fn pull(server: &TestServer, blob: &Content) {
    let answer = server.get(&blob_path(REPO, blob)).await;
    assert!(answer.status == 200 && answer.body == blob.bytes, "{} arrives completely", blob.digest);
    settle(server).await;
}

async fn pull_image(server: &TestServer, tag: &str, image: &Image) {
    assert_eq!(server.get(&format!("/v2/{REPO}/manifests/{tag}")).await.body, image.manifest.bytes);
    for blob in image.layers.iter().chain([&image.config]) {
        pull(server, blob).await;
    }
}

pub async fn with_bounds(upstream: &Upstream, cache: &str) -> TestServer {
    let builder = TestServer::builder().upstream("docker.io", upstream).default_upstream("docker.io");
    let server = builder.config(&format!("[cache]\nmin_free = \"0B\"\n{cache}")).start().await;
    wait_until_index_ready(&server).await;
    server
}

/// Nothing is evicted before the order of last uses is known.
pub async fn wait_until_index_ready(server: &TestServer) {
    until("the index is ready", async || server.metric("roadstead_index_ready", &[]).await == 1.0).await;
}

pub async fn evictions(server: &TestServer) -> f64 {
    server.metric("roadstead_evictions_total", &[("reason", "size")]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_cache_stays_within_max_size_and_refetches_evicted_content() {
    let upstream = Upstream::start().await;
    let server = with_bounds(&upstream, "max_size = \"2MiB\"").await;
    let blobs = blobs(&upstream, 0..20, 256 * KIB);
    for blob in &blobs {
        pull(&server, blob).await;
        assert!(bytes_stored(server.data_dir()) <= 2 * MIB as u64);
    }
    assert!(!is_stored(server.data_dir(), &blobs[0]) && is_stored(server.data_dir(), &blobs[19]));
    let kept = blobs.iter().filter(|blob| is_stored(server.data_dir(), blob)).count();
    assert!(kept >= 6, "{kept} of at most 7 are stored: no more than necessary was evicted");
    assert_eq!(evictions(&server).await as usize, 20 - kept);
    let bytes = server.metric("roadstead_evicted_bytes_total", &[]).await as usize;
    assert_eq!(bytes, (20 - kept) * 256 * KIB);
    assert_eq!(server.metric("roadstead_storage_bytes", &[("class", "cached")]).await as usize, kept * 256 * KIB);
    upstream.forget();
    pull(&server, &blobs[19]).await;
    assert_eq!(upstream.total(), 0, "stored blobs are served");
    pull(&server, &blobs[0]).await;
    assert_eq!(upstream.count("GET", &blob_path(REPO, &blobs[0])), 1, "an evicted blob is fetched again");
}

#[tokio::test(flavor = "multi_thread")]
async fn used_content_is_evicted_after_unused_content() {
    let upstream = Upstream::start().await;
    let server = with_bounds(&upstream, "max_size = \"1200KiB\"").await;
    let blobs = blobs(&upstream, 0..12, 256 * KIB);
    for blob in &blobs[..4] {
        pull(&server, blob).await;
    }
    for blob in &blobs[4..] {
        pull(&server, &blobs[0]).await;
        pull(&server, blob).await;
    }
    assert!(is_stored(server.data_dir(), &blobs[0]), "it was used before each of the others arrived");
    assert!(!is_stored(server.data_dir(), &blobs[1]));
    assert_eq!(upstream.count("GET", &blob_path(REPO, &blobs[0])), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn pushed_content_is_not_evicted_even_if_cached_before() {
    let upstream = Upstream::start().await;
    let server = with_bounds(&upstream, "max_size = \"1200KiB\"").await;
    let blobs = blobs(&upstream, 100..120, 256 * KIB);
    let pushed = Image::new(7, &[300 * KIB, 300 * KIB, 300 * KIB, 300 * KIB]);
    server.client().push_image(&server.url(""), "team/app", "v1", &pushed).await;
    // Cached first, then uploaded.
    pull(&server, &blobs[0]).await;
    let both = Image::for_platform("linux/amd64", vec![blobs[0].clone()]);
    server.client().push_image(&server.url(""), "team/both", "v1", &both).await;
    for blob in &blobs[1..] {
        pull(&server, blob).await;
    }
    assert!(evictions(&server).await > 0.0);
    for (repo, image) in [("team/app", &pushed), ("team/both", &both)] {
        for content in image.layers.iter().chain([&image.config]) {
            assert!(server.get(&blob_path(repo, content)).await.body == content.bytes);
        }
        assert_eq!(server.get(&format!("/v2/{repo}/manifests/v1")).await.body, image.manifest.bytes);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn content_being_read_is_not_evicted() {
    let upstream = Upstream::start().await;
    let server = with_bounds(&upstream, "max_size = \"24MiB\"").await;
    let read = blob(1, 16 * MIB);
    upstream.add_blob(REPO, &read);
    pull(&server, &read).await;
    let mut slow = Conn::get(server.addr(), &blob_path(REPO, &read)).await;
    let small = blobs(&upstream, 10..30, MIB);
    for blob in &small {
        pull(&server, blob).await;
    }
    assert!(is_stored(server.data_dir(), &read), "the oldest blob, but it is being read");
    assert!(evictions(&server).await > 0.0);
    let (body, ended) = slow.rest().await;
    assert!(ended == Ended::Complete && body == read.bytes);
    drop(slow);
    until("it can be evicted like any other", async || {
        for blob in &small {
            pull(&server, blob).await;
        }
        !is_stored(server.data_dir(), &read)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn references_of_a_served_manifest_are_shielded() {
    let upstream = Upstream::start().await;
    let server = with_bounds(&upstream, "max_size = \"3MiB\"").await;
    let image = Image::new(3, &[400 * KIB, 400 * KIB]);
    upstream.add_image(REPO, "v1", &image);
    pull_image(&server, "v1", &image).await;
    // Served once more: the first time, its blobs were not stored yet.
    server.get(&format!("/v2/{REPO}/manifests/{}", image.manifest.digest)).await;
    let others = blobs(&upstream, 10..30, 256 * KIB);
    for blob in &others {
        pull(&server, blob).await;
    }
    assert!(evictions(&server).await > 0.0);
    let mut parts = image.layers.iter().chain([&image.config, &image.manifest]);
    assert!(parts.all(|part| is_stored(server.data_dir(), part)), "shielded although their own last use is older");
}

#[tokio::test(flavor = "multi_thread")]
async fn eviction_of_a_manifest_removes_its_link_and_tags() {
    names_go_with_their_manifest(|_| {}).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn eviction_removes_links_and_tags_after_the_index_was_lost() {
    names_go_with_their_manifest(|data| fs::remove_dir_all(data.join("index")).unwrap()).await;
}

async fn names_go_with_their_manifest(while_stopped: fn(&Path)) {
    let upstream = Upstream::start().await;
    let mut server = with_bounds(&upstream, "max_size = \"2MiB\"").await;
    let image = Image::new(3, &[300 * KIB]);
    upstream.add_image("org/deep/app", "v1", &image);
    let tag = "/v2/org/deep/app/manifests/v1";
    assert_eq!(server.get(tag).await.body, image.manifest.bytes);
    server.get(&blob_path("org/deep/app", &image.layers[0])).await;
    settle(&server).await;
    let repositories = server.data_dir().join("repositories/docker.io");
    assert!(repositories.join("org/deep/app/_tags/v1").exists());
    // Shields are kept in memory only.
    server.stop_running().await;
    while_stopped(server.data_dir());
    server.restart().await;
    wait_until_index_ready(&server).await;
    for blob in &blobs(&upstream, 10..30, 256 * KIB) {
        pull(&server, blob).await;
    }
    assert!(!is_stored(server.data_dir(), &image.manifest));
    let names = repositories.join("org/deep/app");
    assert!(!names.join("_tags").exists() && !names.join("_manifests").exists(), "the content of the names is gone");
    upstream.forget();
    assert_eq!(server.get(tag).await.body, image.manifest.bytes);
    assert_eq!(upstream.count("GET", tag), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pinned_image_is_never_evicted() {
    let upstream = Upstream::start().await;
    let pins = "max_size = \"2MiB\"\npin = [\"docker.io/library/app:v*\"]";
    let mut server = with_bounds(&upstream, pins).await;
    let (pinned, other) = (Image::new(3, &[300 * KIB]), Image::new(4, &[300 * KIB]));
    upstream.add_image(REPO, "v1", &pinned);
    upstream.add_image(REPO, "edge", &other);
    pull_image(&server, "v1", &pinned).await;
    pull_image(&server, "edge", &other).await;
    for seeds in [10..30, 30..50] {
        server.restart().await;
        wait_until_index_ready(&server).await;
        for blob in &blobs(&upstream, seeds, 256 * KIB) {
            pull(&server, blob).await;
        }
    }
    let mut parts = pinned.layers.iter().chain([&pinned.config, &pinned.manifest]);
    assert!(parts.all(|part| is_stored(server.data_dir(), part)));
    assert!(!is_stored(server.data_dir(), &other.layers[0]));
    upstream.go_down().await;
    pull_image(&server, "v1", &pinned).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blob_larger_than_the_cache_evicts_nothing() {
    let upstream = Upstream::start().await;
    let server = with_bounds(&upstream, "max_size = \"2MiB\"").await;
    let small = blobs(&upstream, 0..4, 256 * KIB);
    for blob in &small {
        pull(&server, blob).await;
    }
    let large = blob(9, 3 * MIB);
    upstream.add_blob(REPO, &large);
    pull(&server, &large).await;
    pull(&server, &large).await;
    assert_eq!(server.metric("roadstead_cache_results_total", &[("result", "bypass")]).await, 2.0);
    assert_eq!(evictions(&server).await, 0.0);
    assert!(small.iter().all(|blob| is_stored(server.data_dir(), blob)) && !is_stored(server.data_dir(), &large));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_smaller_max_size_takes_effect_at_the_next_start() {
    let upstream = Upstream::start().await;
    let mut server = with_bounds(&upstream, "max_size = \"20MiB\"").await;
    for blob in &blobs(&upstream, 0..12, MIB) {
        pull(&server, blob).await;
    }
    server.restart_with("[cache]\nmax_size = \"5MiB\"").await;
    until("the cache is within its bounds again", async || bytes_stored(server.data_dir()) <= 5 * MIB as u64).await;
    assert!(bytes_stored(server.data_dir()) >= 3 * MIB as u64, "no more than necessary was evicted");
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_evicted_during_a_backup() {
    let upstream = Upstream::start().await;
    let first = blobs(&upstream, 0..8, 128 * KIB);
    let server = with_bounds(&upstream, "max_size = \"1200KiB\"").await;
    for blob in &first {
        pull(&server, blob).await;
    }
    assert_eq!(roadstead(server.data_dir(), &["backup-lease"]).await.code, 0);
    let more = blobs(&upstream, 10..14, 128 * KIB);
    for blob in &more {
        pull(&server, blob).await;
    }
    assert_eq!(evictions(&server).await, 0.0);
    assert!(first.iter().all(|blob| is_stored(server.data_dir(), blob)));
    assert!(server.metric("roadstead_no_room_total", &[]).await > 0.0, "content without room bypasses the store");
    assert_eq!(roadstead(server.data_dir(), &["backup-lease", "--release"]).await.code, 0);
    until("requested content is stored again", async || {
        pull(&server, &more[3]).await;
        is_stored(server.data_dir(), &more[3])
    })
    .await;
    assert!(evictions(&server).await > 0.0);
}

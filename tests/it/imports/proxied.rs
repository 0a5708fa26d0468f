//! The folder of a pull-through cache becomes cached content of its upstream.

use std::fs;

use super::tree::RegistryFolder;
use super::{assert_served, begin, import, numbers, start, status, summary};
use crate::support::settings::Settings;
use crate::support::{Client, Image, Index, Upstream};

const REPO: &str = "library/app";

fn cache_of(upstream: &Upstream) -> Settings {
    Settings::new().upstream("docker.io", upstream).default_upstream("docker.io")
}

/// The folder of a pull-through cache, whose tags were confirmed just now.
fn proxy(images: &[(&str, &Image)]) -> RegistryFolder {
    let source = RegistryFolder::new();
    fs::write(source.at("../../../scheduler-state.json"), "{}").unwrap();
    for (tag, image) in images {
        source.image(REPO, tag, image);
    }
    source
}

#[tokio::test(flavor = "multi_thread")]
async fn the_upstream_of_a_pull_through_cache_must_be_named() {
    let upstream = Upstream::start().await;
    let source = proxy(&[("v1", &Image::new(1, &[100]))]);
    let server = start(cache_of(&upstream)).await;
    let output = import(&server, &[source.path()]).await;
    assert!(output.code == 1 && output.err.contains("--proxied docker.io"), "{output:?}");
    assert_eq!(status(&server, "/v2/_catalog").await, 200);
    let output = import(&server, &[source.path(), "--proxied", "quay.io"]).await;
    assert!(output.code == 1 && output.err.contains("quay.io is no upstream"), "{output:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn proxied_content_is_cached_and_its_tags_are_confirmed_before_use() {
    let [same, moved, newer] = [1, 2, 3].map(|seed| Image::new(seed, &[4000]));
    let upstream = Upstream::start().await;
    upstream.add_image(REPO, "same", &same);
    upstream.add_image(REPO, "moved", &newer);
    let source = proxy(&[("same", &same), ("moved", &moved)]);
    let server = start(cache_of(&upstream)).await;
    let output = import(&server, &[source.path(), "--proxied", "index.docker.io"]).await;
    assert_eq!((output.code, numbers(&output, ["manifests", "tags", "blobs"])), (0, [2, 2, 4]), "{output:?}");
    assert_eq!(upstream.total(), 0, "an import asks no upstream");

    let base = server.url(&format!("/v2/{REPO}"));
    let tag = format!("/v2/{REPO}/manifests/same");
    assert_served(&base, "same", &same).await;
    assert_eq!((upstream.count("HEAD", &tag), upstream.total()), (1, 1), "{:?}", upstream.requests());
    let got = Client::new().get(&format!("{base}/manifests/moved")).await;
    assert_eq!(got.body, newer.manifest.bytes, "the tag has moved");
    let catalog = Client::new().get(&server.url("/v2/_catalog")).await.json();
    assert_eq!(catalog["repositories"].as_array().unwrap().len(), 0, "nothing is local");
    assert!(server.metric("roadstead_storage_bytes", &[("class", "cached")]).await > 8000.0);
    assert_eq!(server.metric("roadstead_storage_bytes", &[("class", "pushed")]).await, 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn imported_tags_are_used_while_the_upstream_is_down() {
    let image = Image::new(1, &[100]);
    let upstream = Upstream::start().await;
    upstream.go_down().await;
    let source = proxy(&[("v1", &image)]);
    let mut server = start(cache_of(&upstream)).await;
    tokio::task::block_in_place(|| server.stop());
    let output = import(&server, &[source.path(), "--proxied", "docker.io"]).await;
    assert_eq!(output.code, 0, "{output:?}");
    begin(&mut server).await;
    assert_served(&server.url(&format!("/v2/{REPO}")), "v1", &image).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn missing_content_of_a_cache_is_fetched_from_its_upstream() {
    let upstream = Upstream::start().await;
    let (image, index) = (Image::new(1, &[100, 200]), Index::new(5, &["linux/amd64", "linux/arm64"], &[300]));
    upstream.add_image(REPO, "v1", &image);
    upstream.add_index(REPO, "multi", &index);
    let source = proxy(&[("v1", &image)]);
    fs::remove_file(source.data(&image.layers[0].digest)).unwrap();
    fs::write(source.data(&image.layers[1].digest), "corrupt").unwrap();
    source.manifest(REPO, &index.manifest);
    source.tag(REPO, "multi", index.digest());
    let server = start(cache_of(&upstream)).await;
    let output = import(&server, &[source.path(), "--proxied", "docker.io"]).await;
    // The missing layer is normal in a cache, and the corrupt one is named.
    let expected = (1, [2, 2, 1, 1, 0]);
    let found = numbers(&output, ["manifests", "tags", "blobs", "failed", "sparse_indexes"]);
    assert_eq!((output.code, found), expected, "{output:?}");
    let base = server.url(&format!("/v2/{REPO}"));
    assert_served(&base, "v1", &image).await;
    assert_served(&base, index.images[1].digest(), &index.images[1]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_import_evicts_nothing_for_cached_content() {
    let upstream = Upstream::start().await;
    let used = Image::new(1, &[300_000]);
    upstream.add_image(REPO, "used", &used);
    let images: Vec<Image> = (10..20).map(|seed| Image::new(seed, &[200_000])).collect();
    let source = RegistryFolder::new();
    for image in &images {
        source.image("team/old", &format!("v{}", &image.digest()[7..15]), image);
    }
    let server = start(cache_of(&upstream).config("[cache]\nmax_size = \"1MB\"")).await;
    let base = server.url(&format!("/v2/{REPO}"));
    assert_served(&base, "used", &used).await;
    let output = import(&server, &[source.path(), "--proxied", "docker.io"]).await;
    let [blobs, without_room, bytes] = numbers(&output, ["blobs", "without_room", "bytes_without_room"]);
    assert!(output.code == 1 && blobs >= 2 && without_room > 5 && bytes > 1_000_000, "{output:?}");
    assert_eq!(summary(&output)["stopped"], serde_json::Value::Null);
    upstream.forget();
    assert_served(&base, "used", &used).await;
    assert_eq!(upstream.count("GET", &format!("/v2/{REPO}/blobs/{}", used.layers[0].digest)), 0);
}

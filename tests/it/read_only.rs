//! A read-only data folder: stored content is served, other content bypasses the store, and nothing is written.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde_json::json;

use crate::disk::files_below;
use crate::operator::{roadstead, roadstead_with};
use crate::scene::settle;
use crate::support::image::OCI_MANIFEST;
use crate::support::{Answer, Image, TestServer, Upstream};

const READ_ONLY: (&str, &str) = ("ROADSTEAD_STORAGE__READ_ONLY", "true");

/// A pushed image, a pulled one and one that only the upstream has. Then the folder becomes read-only.
struct Scene {
    upstream: Upstream,
    server: TestServer,
    pushed: Image,
    cached: Image,
    elsewhere: Image,
}

impl Scene {
    async fn new() -> Self {
        let upstream = Upstream::start().await;
        let images = [1, 2, 3].map(|seed| Image::new(seed, &[200_000]));
        let [pushed, cached, elsewhere] = images;
        upstream.add_image("library/app", "v1", &cached);
        upstream.add_image("library/app", "v2", &elsewhere);
        let settings = TestServer::builder().upstream("docker.io", &upstream).default_upstream("docker.io");
        let mut server = settings.config("[cache]\ntag_ttl = \"1h\"").start().await;
        server.client().push_image(&server.url(""), "team/app", "v1", &pushed).await;
        pull(&server, "v1", &cached).await;
        settle(&server).await;
        server.restart_with("[storage]\nread_only = true").await;
        upstream.forget();
        Self { upstream, server, pushed, cached, elsewhere }
    }
}

async fn pull(server: &TestServer, tag: &str, image: &Image) {
    assert_eq!(server.get(&format!("/v2/library/app/manifests/{tag}")).await.body, image.manifest.bytes);
    for blob in image.blobs() {
        assert_eq!(server.get(&format!("/v2/library/app/blobs/{}", blob.digest)).await.body, blob.bytes);
    }
}

/// Every file with its size and modification time.
fn state(data: &Path) -> Vec<(PathBuf, u64, SystemTime)> {
    let of = |path: PathBuf| {
        let metadata = std::fs::metadata(&path).unwrap();
        (path, metadata.len(), metadata.modified().unwrap())
    };
    files_below(data).into_iter().map(of).collect()
}

fn assert_refused(answer: &Answer) {
    assert_eq!((answer.status, answer.error_code().as_str()), (405, "UNSUPPORTED"), "{}", answer.text());
    assert!(answer.text().contains("read-only"), "{}", answer.text());
}

#[tokio::test(flavor = "multi_thread")]
async fn stored_content_is_served_and_other_content_bypasses_the_store() {
    let scene = Scene::new().await;
    let server = &scene.server;
    let before = state(server.data_dir());
    pull(server, "v1", &scene.cached).await;
    assert_eq!(server.get("/v2/team/app/manifests/v1").await.body, scene.pushed.manifest.bytes);
    assert_eq!(server.get("/v2/team/app/tags/list").await.json()["tags"], json!(["v1"]));
    assert_eq!(server.get("/v2/_catalog").await.json()["repositories"], json!(["team/app"]));
    assert_eq!(scene.upstream.total(), 0);

    for _ in 0..2 {
        pull(server, "v2", &scene.elsewhere).await;
    }
    let layer = format!("/v2/library/app/blobs/{}", scene.elsewhere.layers[0].digest);
    assert_eq!(scene.upstream.count("GET", &layer), 2, "each request goes to the upstream");
    let bypassed = server.metric("roadstead_cache_results_total", &[("result", "bypass")]).await;
    assert_eq!(bypassed, 6.0);
    let head = server.head(&layer).await;
    assert_eq!((head.status, head.header("content-length")), (200, "200000"));
    let part = server.get_with(&layer, &[("Range", "bytes=1000-1999")]).await;
    assert_eq!((part.status, &part.body[..]), (206, &scene.elsewhere.layers[0].bytes[1000..2000]));
    assert_eq!(state(server.data_dir()), before, "nothing was written");
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_are_refused_and_readyz_reports_read_only() {
    let scene = Scene::new().await;
    let server = &scene.server;
    let before = state(server.data_dir());
    assert_refused(&server.send("POST", "/v2/team/app/blobs/uploads/", &[], "").await);
    let headers = [("Content-Type", OCI_MANIFEST)];
    assert_refused(
        &server.send("PUT", "/v2/team/app/manifests/v2", &headers, scene.pushed.manifest.bytes.clone()).await,
    );
    assert_refused(&server.delete("/v2/team/app/manifests/v1").await);
    assert_refused(&server.delete(&format!("/v2/team/app/blobs/{}", scene.pushed.layers[0].digest)).await);
    let ready = server.get("/readyz").await;
    let expected = json!({"ready": true, "storage": "read_only", "index_rebuilding": false,
                          "index_without_room": false, "bypassing": false,
                          "deletions_held": false});
    assert_eq!((ready.status, ready.json()), (200, expected));
    assert_eq!(state(server.data_dir()), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn readers_share_a_folder_and_exclude_writers() {
    let mut scene = Scene::new().await;
    let data = scene.server.data_dir().to_owned();
    let before = state(&data);
    for command in [["scrub"].as_slice(), &["du"]] {
        let output = roadstead_with(&data, command, &[READ_ONLY]).await;
        assert_eq!((output.code, output.err.as_str()), (0, ""), "{command:?}: {output:?}");
    }
    let repair = roadstead_with(&data, &["scrub", "--repair"], &[READ_ONLY]).await;
    assert_eq!(repair.code, 2);
    assert!(repair.err.contains("read-only"), "{}", repair.err);
    for command in [["gc"].as_slice(), &["gc", "--dry-run"]] {
        let refused = roadstead_with(&data, command, &[READ_ONLY]).await;
        assert_eq!((refused.code, refused.out.as_str()), (1, ""));
        assert!(refused.err.contains("read-only"), "{}", refused.err);
    }
    let writer = roadstead(&data, &["du"]).await;
    assert_eq!(writer.code, 1);
    assert!(writer.err.contains("in use by a process that only reads it"), "{}", writer.err);
    assert_eq!(state(&data), before);

    scene.server.restart_with("[storage]\nread_only = false").await;
    let reader = roadstead_with(&data, &["serve", "--listen", "127.0.0.1:0"], &[READ_ONLY]).await;
    assert_eq!(reader.code, 1);
    let holder = format!("in use by process {}", std::process::id());
    assert!(reader.err.contains(&holder), "{}", reader.err);
}

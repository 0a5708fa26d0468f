//! What somebody tried to break the server with, and once did.

use std::fs;
use std::time::Duration;

use serde_json::json;

use crate::scene::{KIB, MIB, REPO, Scene, blob, blob_path, files_below, is_stored, settle};
use crate::support::image::OCI_INDEX;
use crate::support::{Bearer, Content, Image, Reply, TestServer, Upstream};

#[tokio::test(flavor = "multi_thread")]
async fn every_blob_of_a_burst_is_kept_however_fast_its_clients_leave() {
    const BLOBS: u64 = 60;
    let upstream = Upstream::start().await;
    let server = TestServer::mirror_of(&upstream).await;
    let blobs: Vec<_> = (0..BLOBS).map(|n| blob(n, 20 * KIB)).collect();
    blobs.iter().for_each(|blob| upstream.add_blob(REPO, blob));
    let paths: Vec<_> = blobs.iter().map(|blob| blob_path(REPO, blob)).collect();
    futures_util::future::join_all(paths.iter().map(|path| server.get(path))).await;
    settle(&server).await;
    let kept = blobs.iter().filter(|blob| is_stored(server.data_dir(), blob)).count();
    assert_eq!(kept as u64, BLOBS);
    let metrics = server.metrics().await;
    let results = |result| metrics.sum("roadstead_cache_results_total", &[("type", "blob"), ("result", result)]);
    assert_eq!(results("miss"), BLOBS as f64, "who causes a fetch has missed, however fast it was");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dripping_answer_is_late_like_any_other() {
    let upstream = Upstream::start().await;
    let image = Image::new(1, &[10]);
    upstream.add_image(REPO, "v1", &image);
    let config = "[cache]\nanswer_within = \"1s\"\ntag_ttl = \"0s\"";
    let builder = TestServer::builder().upstream("docker.io", &upstream).default_upstream("docker.io");
    let server = builder.config(config).start().await;
    let tag = format!("/v2/{REPO}/manifests/v1");
    assert_eq!(server.get(&tag).await.status, 200);
    let drip = Reply::status(200).header("Content-Type", &image.manifest.media_type).body(image.manifest.bytes.clone());
    upstream.always("HEAD", &tag, Reply::status(405));
    upstream.always("GET", &tag, drip.pace(20));
    let stale = server.get(&tag).await;
    assert_eq!((stale.status, stale.header("warning").is_empty()), (200, false));
    let list = format!("/v2/{REPO}/tags/list");
    upstream.always("GET", &list, Reply::normal().body(vec![b' '; 1000]).pace(20));
    assert_eq!(server.get(&list).await.json()["tags"], json!(["v1"]));
    upstream.end_scripts();
    assert_eq!(server.get(&tag).await.header("warning"), "");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blob_file_that_has_lost_its_end_is_not_served() {
    let mut scene = Scene::with_blob(MIB).await;
    let pushed = blob(7, 100 * KIB);
    scene.server.client().push_blob(&scene.server.url(""), "team/app", &pushed).await;
    scene.server.get(&scene.path()).await;
    scene.settle().await;
    for content in [&scene.blob, &pushed] {
        let hex = content.digest.strip_prefix("sha256:").unwrap();
        let file = scene.server.data_dir().join("blobs/sha256").join(&hex[..2]).join(hex);
        fs::File::options().write(true).open(file).unwrap().set_len(1000).unwrap();
    }
    assert!(scene.server.get(&scene.path()).await.body == scene.bytes(), "cached content is fetched again");
    let lost = scene.server.get(&blob_path("team/app", &pushed)).await;
    assert_eq!((lost.status, lost.error_code().as_str()), (404, "BLOB_UNKNOWN"));
    assert_eq!(files_below(&scene.server.data_dir().join("quarantine")), 2);
    scene.server.client().push_blob(&scene.server.url(""), "team/app", &pushed).await;
    scene.server.restart().await;
    assert!(scene.server.get(&blob_path("team/app", &pushed)).await.body == pushed.bytes, "a new push heals it");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_index_of_absurd_size_makes_no_names() {
    let upstream = Upstream::start().await;
    let server = TestServer::mirror_of(&upstream).await;
    let entries: Vec<_> =
        (0..5000).map(|n| json!({"digest": format!("sha256:{n:064x}"), "size": 1, "mediaType": "a/b"})).collect();
    let index = json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries});
    let index = Content::json(OCI_INDEX, &index);
    upstream.add_manifest(REPO, &index);
    let path = format!("/v2/{REPO}/manifests/{}", index.digest);
    assert_eq!(server.get(&path).await.status, 502);
    assert!(!server.data_dir().join("repositories/docker.io").exists());
    let url = format!("/v2/team/app/manifests/{}", index.digest);
    let headers = [("Content-Type", OCI_INDEX)];
    let pushed = server.send("PUT", &url, &headers, index.bytes.clone()).await;
    assert_eq!((pushed.status, pushed.error_code().as_str()), (400, "MANIFEST_INVALID"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_token_server_matters_only_to_who_is_challenged() {
    let (upstream, desk) = (Upstream::start().await, Upstream::start().await);
    let (open, closed) = (Image::new(1, &[10]), Image::new(2, &[10]));
    upstream.add_image("org/open", "v1", &open);
    upstream.add_image("org/closed", "v1", &closed);
    let builder = TestServer::builder().upstream("docker.io", &upstream).default_upstream("docker.io");
    let server = builder.start().await;
    upstream.require_bearer_from(&desk, Bearer::new());
    desk.always("GET", "/token", Reply::error(500, "UNKNOWN"));
    desk.always("POST", "/token", Reply::error(500, "UNKNOWN"));
    assert!(server.get("/v2/org/closed/manifests/v1").await.status >= 500);
    upstream.require_nothing();
    assert_eq!(server.get("/v2/org/open/manifests/v1").await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn open_sessions_hold_no_files_open() {
    let server = TestServer::builder().start().await;
    let descriptors = || files_below(std::path::Path::new("/proc/self/fd"));
    let before = descriptors();
    for _ in 0..200 {
        server.client().start_upload(&server.url(""), "team/app").await;
    }
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(descriptors() < before + 100, "{before} before, {} now", descriptors());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_file_that_is_no_text_is_no_name() {
    let mut scene = Scene::with_blob(KIB).await;
    let image = Image::new(3, &[10]);
    scene.upstream.add_image(REPO, "v1", &image);
    let tag = format!("/v2/{REPO}/manifests/v1");
    scene.server.get(&tag).await;
    scene.server.stop_running().await;
    let file = scene.server.data_dir().join(format!("repositories/docker.io/{REPO}/_tags/v1"));
    assert!(fs::read_to_string(&file).unwrap().contains(image.digest()));
    fs::write(file, [0xff, 0xfe, 0x00]).unwrap();
    scene.server.restart().await;
    assert_eq!(scene.server.get(&tag).await.body, image.manifest.bytes);
    assert_eq!(scene.upstream.count("GET", &tag), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_pulled_can_be_pushed_back_under_its_short_name() {
    let upstream = Upstream::start().await;
    let image = Image::new(3, &[10 * KIB]);
    upstream.add_image("library/two", "latest", &image);
    let server = TestServer::mirror_of(&upstream).await;
    server.get("/v2/library/two/manifests/latest").await;
    for blob in image.blobs() {
        server.get(&blob_path("library/two", blob)).await;
        // As docker asks before it uploads: a yes would be for another repository than the one it pushes to.
        assert_eq!(server.head(&blob_path("two", blob)).await.status, 404);
    }
    server.client().push_image(&server.url(""), "two", "mine", &image).await;
    assert_eq!(server.get("/v2/two/manifests/mine").await.body, image.manifest.bytes);
    assert_eq!(server.get("/v2/library/two/manifests/latest").await.body, image.manifest.bytes);
}

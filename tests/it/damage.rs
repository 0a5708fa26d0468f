//! Damage that appears while no server runs: something else in the place of a file, shortened files, and an unusable
//! record of the last fsync. Mirrored content is fetched again, no request hangs, and none is answered 500.

use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::disk::{blob_file, files_below};
use crate::operator::roadstead;
use crate::scene::{KIB, settle, until};
use crate::support::image::OCI_MANIFEST;
use crate::support::{Content, Image, TestServer, Upstream};

const MIRRORED: &str = "library/app";
const LOCAL: &str = "team/app";
const KINDS: [&str; 4] = ["pipe", "folder", "socket", "link"];

/// Puts something that is no regular file in the place of a file.
fn replace(path: &Path, kind: &str) {
    let _ = fs::remove_file(path);
    match kind {
        "pipe" => assert!(Command::new("mkfifo").arg(path).status().unwrap().success()),
        "folder" => {
            fs::create_dir(path).unwrap();
            fs::write(path.join("inside"), b"x").unwrap();
        }
        "socket" => {
            // The path of a socket must be short.
            let short = tempfile::tempdir_in(std::env::temp_dir()).unwrap();
            UnixListener::bind(short.path().join("s")).unwrap();
            fs::rename(short.path().join("s"), path).unwrap();
        }
        "link" => symlink("/etc/hostname", path).unwrap(),
        kind => panic!("{kind}"),
    }
}

struct Scene {
    upstream: Upstream,
    server: TestServer,
    cached: Image,
    pushed: Image,
}

impl Scene {
    /// A cached image and a pushed one.
    async fn start() -> Self {
        let upstream = Upstream::start().await;
        let [cached, pushed] = [1, 2].map(|seed| Image::new(seed, &[100 * KIB, 50 * KIB]));
        upstream.add_image(MIRRORED, "v1", &cached);
        let server = TestServer::mirror_of(&upstream).await;
        server.client().push_image(&server.url(""), LOCAL, "v1", &pushed).await;
        let scene = Self { upstream, server, cached, pushed };
        scene.assert_cached_served("at first").await;
        settle(&scene.server).await;
        scene
    }

    fn data(&self) -> &Path {
        self.server.data_dir()
    }

    fn name_file(&self, repo: &str, name: &str) -> PathBuf {
        let scope = if repo == LOCAL { "local" } else { "docker.io" };
        self.data().join("repositories").join(scope).join(repo).join(name)
    }

    async fn assert_cached_served(&self, what: &str) {
        let manifest = self.server.get(&format!("/v2/{MIRRORED}/manifests/v1")).await;
        assert_eq!((manifest.status, &manifest.body), (200, &self.cached.manifest.bytes), "{what}");
        for blob in self.cached.blobs() {
            let path = format!("/v2/{MIRRORED}/blobs/{}", blob.digest);
            let head = self.server.head(&path).await;
            assert_eq!(head.header("content-length"), blob.bytes.len().to_string(), "{what}");
            let answer = self.server.get(&path).await;
            assert!(answer.status == 200 && answer.body == blob.bytes, "{what}: {}", answer.status);
        }
    }

    async fn pushed_status(&self, path: &str) -> u16 {
        self.server.get(&format!("/v2/{LOCAL}/{path}")).await.status
    }

    async fn push_again(&self) {
        self.server.client().push_image(&self.server.url(""), LOCAL, "v1", &self.pushed).await;
        assert_eq!(self.server.get(&format!("/v2/{LOCAL}/manifests/v1")).await.body, self.pushed.manifest.bytes);
        let layer = &self.pushed.layers[0];
        assert_eq!(self.server.get(&format!("/v2/{LOCAL}/blobs/{}", layer.digest)).await.body, layer.bytes);
    }
}

fn hex(content: &Content) -> &str {
    content.digest.trim_start_matches("sha256:")
}

#[tokio::test(flavor = "multi_thread")]
async fn something_else_in_the_place_of_cached_files_is_fetched_again() {
    let mut scene = Scene::start().await;
    let manifest = scene.cached.manifest.clone();
    let places = [
        blob_file(scene.data(), &scene.cached.layers[0].digest),
        blob_file(scene.data(), &manifest.digest),
        scene.name_file(MIRRORED, "_tags/v1"),
        scene.name_file(MIRRORED, &format!("_manifests/sha256/{}", hex(&manifest))),
        scene.name_file(MIRRORED, &format!("_blobs/sha256/{}", hex(&scene.cached.layers[0]))),
    ];
    for kind in KINDS {
        for with_index in [true, false] {
            scene.server.stop_running().await;
            places.iter().for_each(|place| replace(place, kind));
            if !with_index {
                fs::remove_dir_all(scene.data().join("index")).unwrap();
            }
            scene.server.restart().await;
            scene.assert_cached_served(kind).await;
            settle(&scene.server).await;
            for place in &places {
                until(&format!("{} is a file again", place.display()), async || {
                    fs::symlink_metadata(place).is_ok_and(|found| found.is_file())
                })
                .await;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn something_else_in_the_place_of_pushed_files_is_404_until_pushed_again() {
    let mut scene = Scene::start().await;
    let layer = scene.pushed.layers[0].clone();
    let (manifest, data) = (scene.pushed.manifest.clone(), scene.data().to_owned());
    for kind in KINDS {
        for (place, path) in [
            (scene.name_file(LOCAL, "_tags/v1"), "manifests/v1".to_owned()),
            (scene.name_file(LOCAL, &format!("_manifests/sha256/{}", hex(&manifest))), "manifests/v1".to_owned()),
            (blob_file(&data, &manifest.digest), "manifests/v1".to_owned()),
            (blob_file(&data, &layer.digest), format!("blobs/{}", layer.digest)),
        ] {
            scene.server.stop_running().await;
            replace(&place, kind);
            scene.server.restart().await;
            assert_eq!(scene.pushed_status(&path).await, 404, "{kind} {}", place.display());
            assert_eq!(scene.server.get(&format!("/v2/{LOCAL}/tags/list")).await.status, 200, "{kind}");
            scene.push_again().await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn something_else_in_the_place_of_an_upload_is_an_unknown_upload() {
    let mut scene = Scene::start().await;
    for kind in KINDS {
        for file in ["data", "repository", "undo"] {
            let location = scene.server.client().start_upload(&scene.server.url(""), LOCAL).await;
            let id = location.rsplit('/').next().unwrap().to_owned();
            scene.server.stop_running().await;
            replace(&scene.data().join("uploads").join(&id).join(file), kind);
            scene.server.restart().await;
            let status = scene.server.get(&format!("/v2/{LOCAL}/blobs/uploads/{id}")).await.status;
            // If the record of an interrupted chunk is no regular file, it is ignored.
            assert_eq!(status, if file == "undo" { 204 } else { 404 }, "{kind} {file}");
        }
    }
    scene.push_again().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_scrub_moves_something_else_in_the_place_of_a_blob_aside() {
    let mut scene = Scene::start().await;
    for kind in KINDS {
        scene.server.stop_running().await;
        let place = blob_file(scene.data(), &scene.cached.layers[0].digest);
        replace(&place, kind);
        let found = roadstead(scene.data(), &["scrub", "--repair"]).await;
        assert!(found.out.contains(hex(&scene.cached.layers[0])), "{kind}: {found:?}");
        assert!(fs::symlink_metadata(&place).is_err(), "{kind}");
        scene.server.restart().await;
        scene.assert_cached_served(kind).await;
        settle(&scene.server).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unusable_record_of_the_last_fsync_is_not_trusted() {
    let mut scene = Scene::start().await;
    let layer = scene.cached.layers[0].clone();
    let file = blob_file(scene.data(), &layer.digest);
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    let next_year = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() + 365 * 24 * 3600;
    let record = scene.data().join("settled");
    for text in [
        String::new(),
        "boot ".to_owned(),
        "\0\0\0\0\0\0\0\0".to_owned(),
        format!("boot {}\nsettled 17", boot.trim()),
        format!("boot {}\nsettled {next_year}.000000000\n", boot.trim()),
        "a folder".to_owned(),
    ] {
        scene.server.stop_running().await;
        let _ = fs::remove_dir_all(&record);
        if text == "a folder" {
            replace(&record, "folder");
        } else {
            fs::write(&record, &text).unwrap();
        }
        // The right length, and zeros.
        fs::write(&file, vec![0; layer.bytes.len()]).unwrap();
        scene.server.restart().await;
        scene.assert_cached_served(&text).await;
        settle(&scene.server).await;
        assert_eq!(fs::read(&file).unwrap(), layer.bytes, "{text:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shortened_file_is_found_without_the_index() {
    let mut scene = Scene::start().await;
    let shorten = |content: &Content, length: u64, data: &Path| {
        let path = blob_file(data, &content.digest);
        // The mode stays, which marks pushed content.
        fs::write(&path, &content.bytes[..length as usize]).unwrap();
    };
    for length in [0, 1, 40_000] {
        scene.server.stop_running().await;
        let data = scene.data().to_owned();
        for layer in &scene.cached.layers {
            shorten(layer, length, &data);
        }
        for layer in &scene.pushed.layers {
            shorten(layer, length, &data);
        }
        fs::remove_dir_all(data.join("index")).unwrap();
        scene.server.restart().await;
        // At once, and again when the index is ready.
        for layer in &scene.pushed.layers {
            assert_eq!(scene.pushed_status(&format!("blobs/{}", layer.digest)).await, 404, "{length}");
        }
        scene.assert_cached_served(&length.to_string()).await;
        until("the index is there", async || scene.server.get("/readyz").await.status == 200).await;
        scene.assert_cached_served(&length.to_string()).await;
        scene.push_again().await;
        settle(&scene.server).await;
    }
}

/// A manifest may be wrong about a length. The digest decides.
#[tokio::test(flavor = "multi_thread")]
async fn content_with_the_right_digest_stays_despite_a_wrong_length() {
    let scene = Scene::start().await;
    let mut manifest: serde_json::Value = serde_json::from_slice(&scene.cached.manifest.bytes).unwrap();
    manifest["layers"][0]["size"] = 7.into();
    let wrong = Content::json(OCI_MANIFEST, &manifest);
    scene.upstream.add_manifest("library/wrong", &wrong);
    scene.upstream.tag("library/wrong", "v1", &wrong.digest);
    scene.cached.blobs().for_each(|blob| scene.upstream.add_blob("library/wrong", blob));
    let Scene { upstream, mut server, cached, .. } = scene;
    let layer = format!("/v2/library/wrong/blobs/{}", cached.layers[0].digest);
    for with_index in [true, true, false] {
        server.stop_running().await;
        if !with_index {
            fs::remove_dir_all(server.data_dir().join("index")).unwrap();
        }
        server.restart().await;
        assert_eq!(server.get("/v2/library/wrong/manifests/v1").await.body, wrong.bytes);
        assert_eq!(server.get(&layer).await.body, cached.layers[0].bytes);
        assert_eq!(server.head(&layer).await.header("content-length"), cached.layers[0].bytes.len().to_string());
    }
    assert!(files_below(&server.data_dir().join("quarantine")).is_empty());
    let fetches: usize = ["library/wrong", MIRRORED]
        .map(|repo| upstream.count("GET", &format!("/v2/{repo}/blobs/{}", cached.layers[0].digest)))
        .iter()
        .sum();
    assert_eq!(fetches, 1);
}

/// The clock was set forward while no server ran: the sessions are as old as they were.
#[tokio::test(flavor = "multi_thread")]
async fn a_clock_set_forward_expires_no_upload() {
    let mut server = TestServer::builder().start().await;
    let location = server.client().start_upload(&server.url(""), LOCAL).await;
    let id = location.rsplit('/').next().unwrap().to_owned();
    server.stop_running().await;
    let data = server.data_dir().to_owned();
    let days = |days: u64| SystemTime::now() - Duration::from_secs(days * 24 * 3600);
    // As if the server had stopped 400 days ago, a minute after the session was opened.
    let stopped = days(400).duration_since(UNIX_EPOCH).unwrap().as_millis();
    fs::write(data.join("ages"), format!("seen {stopped}\n")).unwrap();
    let folder = data.join("uploads").join(&id);
    for file in files_below(&folder).into_iter().chain([folder.clone()]) {
        File::open(file).unwrap().set_modified(days(400) - Duration::from_secs(60)).unwrap();
    }
    let other = data.join("uploads").join("00000000-0000-4000-8000-000000000000");
    fs::create_dir(&other).unwrap();
    File::open(&other).unwrap().set_modified(days(403)).unwrap();
    server.restart().await;
    until("the session that was old before is removed", async || !other.exists()).await;
    assert_eq!(server.get(&format!("/v2/{LOCAL}/blobs/uploads/{id}")).await.status, 204);
}

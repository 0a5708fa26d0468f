//! A data folder on its own small file system, and the behaviour when it is full.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::folder::Folder;
use super::program::run;
use crate::disk::files_below;
use crate::scene::{KIB, MIB, REPO, blob, blob_path, entry_count, is_stored, until};
use crate::support::image::OCI_MANIFEST;
use crate::support::process::ServerProcess;
use crate::support::settings::Settings;
use crate::support::{Client, Conn, Ended, Image, Reply, Upstream};

/// The size of the file system: less than the blobs of the tests, more than an empty store.
const DISK_BYTES: usize = 24 * MIB;

fn small_disk() -> Folder {
    let folder = Folder::new();
    let size = format!("size={DISK_BYTES}");
    let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(folder.path()).status();
    assert!(mounted.is_ok_and(|status| status.success()), "a tmpfs can be mounted: this test runs as root");
    folder
}

fn mirror_of(upstream: &Upstream, disk: &Folder) -> ServerProcess {
    let settings = Settings::new().upstream("docker.io", upstream).default_upstream("docker.io");
    let settings = settings.config("[cache]\nmin_free = \"0B\"");
    ServerProcess::start_in(disk.path(), settings)
}

async fn read_all(server: &ServerProcess, path: &str) -> bytes::Bytes {
    let mut client = Conn::get(([127, 0, 0, 1], server.port()).into(), path).await;
    let (body, ended) = client.rest().await;
    assert_eq!((client.status, ended), (200, Ended::Complete), "{path}");
    body
}

#[tokio::test(flavor = "multi_thread")]
async fn content_without_room_on_disk_is_served_correctly() {
    let upstream = Upstream::start().await;
    let (small, large) = (blob(1, MIB), blob(2, 2 * DISK_BYTES));
    upstream.add_blob(REPO, &small);
    upstream.add_blob(REPO, &large);
    let disk = small_disk();
    let server = mirror_of(&upstream, &disk);
    let (small_path, large_path) = (blob_path(REPO, &small), blob_path(REPO, &large));
    assert!(read_all(&server, &small_path).await == small.bytes);
    for _ in 0..2 {
        assert!(read_all(&server, &large_path).await == large.bytes);
    }
    let bypassed = server.metric("roadstead_cache_results_total", &[("type", "blob"), ("result", "bypass")]).await;
    assert_eq!(bypassed, 2.0);
    assert!(server.metric("roadstead_no_room_total", &[]).await >= 2.0);
    assert_eq!(
        server.log().matches("pulled content is served but not stored").count(),
        1,
        "logged once: {}",
        server.log()
    );
    let ready = Client::new().get(&server.url("/readyz")).await;
    assert_eq!((ready.status, &ready.json()["bypassing"]), (200, &true.into()), "there is room for a file");
    let url = server.url(&large_path);
    let client = Client::new();
    let part = client.get_with(&url, &[("Range", "bytes=1000-1999")]).await;
    assert_eq!((part.status, &part.body[..]), (206, &large.bytes[1000..2000]));

    tokio::time::sleep(std::time::Duration::from_millis(1050)).await;
    upstream.always("GET", &large_path, Reply::normal().flip(2 * DISK_BYTES as u64 - 1));
    let mut cut = Conn::get(([127, 0, 0, 1], server.port()).into(), &large_path).await;
    assert_ne!(cut.rest().await.1, Ended::Complete, "a bypass holds back the tail, too");

    upstream.forget();
    assert!(read_all(&server, &small_path).await == small.bytes, "stored content stays stored");
    assert_eq!(upstream.total(), 0);
    until("the spool is empty", async || entry_count(&server.data_dir().join("spool")) == 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_refuses_pushes_serves_manifests_and_recovers() {
    let upstream = Upstream::start().await;
    let image = Image::new(3, &[10 * KIB]);
    upstream.add_image(REPO, "v1", &image);
    let disk = small_disk();
    let server = mirror_of(&upstream, &disk);
    let client = Client::new();
    let filler = fill_up(&disk);

    let tag = server.url(&format!("/v2/{REPO}/manifests/v1"));
    assert_eq!(client.get(&tag).await.body, image.manifest.bytes);
    let layer = blob_path(REPO, &image.layers[0]);
    assert!(read_all(&server, &layer).await == image.layers[0].bytes);
    let ready = client.get(&server.url("/readyz")).await;
    assert_eq!(ready.status, 503);
    let push = server.url("/v2/team/app/manifests/v1");
    let index = br#"{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","layers":[]}"#;
    let refused = client.send("PUT", &push, &[("Content-Type", OCI_MANIFEST)], &index[..]).await;
    assert_eq!((refused.status, refused.error_code().as_str()), (507, "UNAVAILABLE"));

    std::fs::remove_file(filler).unwrap();
    assert_eq!(entry_count(&server.data_dir().join("spool")), 0);
    until("the server is ready", async || client.get(&server.url("/readyz")).await.status == 200).await;
    client.push_image(&server.url(""), "team/app", "v1", &image).await;
    upstream.forget();
    for _ in 0..2 {
        assert_eq!(client.get(&tag).await.body, image.manifest.bytes);
    }
    assert_eq!(upstream.total(), 1, "kept again");
}

#[tokio::test(flavor = "multi_thread")]
async fn cached_content_is_evicted_for_a_push_above_min_free() {
    let upstream = Upstream::start().await;
    let disk = small_disk();
    let settings = Settings::new().upstream("docker.io", &upstream).default_upstream("docker.io");
    let server =
        ServerProcess::start_in(disk.path(), settings.config("[cache]\nmax_size = \"1GiB\"\nmin_free = \"4MiB\""));
    let (client, base) = (Client::new(), server.url(""));
    for seed in 0..30 {
        let cached = blob(seed, MIB);
        upstream.add_blob(REPO, &cached);
        assert!(read_all(&server, &blob_path(REPO, &cached)).await == cached.bytes);
    }
    until("the spool is empty", async || entry_count(&server.data_dir().join("spool")) == 0).await;
    let evictions = server.metric("roadstead_evictions_total", &[("reason", "disk")]).await;
    assert!(evictions >= 10.0, "{evictions} evictions for 30 MiB in 20 MiB of room");
    assert!(free(disk.path()) >= 4 * MIB as u64);

    let pushed = Image::new(50, &[12 * MIB]);
    client.push_image(&base, "team/app", "v1", &pushed).await;
    assert!(free(disk.path()) >= 4 * MIB as u64);
    assert!(read_all(&server, &blob_path("team/app", &pushed.layers[0])).await == pushed.layers[0].bytes);
    assert!(server.metric("roadstead_evictions_total", &[("reason", "disk")]).await > evictions);

    let larger = blob(51, 12 * MIB);
    let upload = client.start_upload(&base, "team/app").await;
    let refused =
        client.try_send("PATCH", &upload, &[("Content-Type", "application/octet-stream")], larger.bytes).await;
    // The push may be refused before all of it was sent.
    if let Ok(refused) = refused {
        assert_eq!((refused.status, refused.error_code().as_str()), (507, "UNAVAILABLE"));
    }
    until("the refused push leaves no session", async || entry_count(&server.data_dir().join("uploads")) == 0).await;
    // On another connection: that of the refused push may be closed.
    assert_eq!(Client::new().get(&upload).await.status, 404);
    let evicted = server.metric("roadstead_evictions_total", &[("reason", "disk")]).await;
    let hopeless = [("Content-Type", "application/octet-stream")];
    let upload = client.start_upload(&base, "team/app").await;
    drop(Client::new().try_send("PATCH", &upload, &hopeless, vec![0; 2 * DISK_BYTES]).await);
    until("this push leaves no session either", async || entry_count(&server.data_dir().join("uploads")) == 0).await;
    assert_eq!(
        server.metric("roadstead_evictions_total", &[("reason", "disk")]).await,
        evicted,
        "nothing is evicted for it"
    );
    assert!(read_all(&server, &blob_path("team/app", &pushed.layers[0])).await == pushed.layers[0].bytes);
    assert_eq!(Client::new().get(&server.url("/readyz")).await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn start_on_a_full_disk_evicts_cached_content_for_the_index() {
    let upstream = Upstream::start().await;
    let disk = small_disk();
    let mut server = mirror_of(&upstream, &disk);
    let (client, pushed) = (Client::new(), Image::new(60, &[10 * KIB]));
    client.push_image(&server.url(""), "team/app", "v1", &pushed).await;
    let cached: Vec<_> = (0..10).map(|seed| blob(seed, MIB)).collect();
    for blob in &cached {
        upstream.add_blob(REPO, blob);
        assert!(read_all(&server, &blob_path(REPO, blob)).await == blob.bytes);
    }
    server.kill();
    fill_up(&disk);
    assert_eq!(free(disk.path()), 0);

    let blobs = server.data_dir().join("blobs");
    let before = files_below(&blobs).len();
    let config = server.config_file();
    for command in ["du", "scrub"] {
        run(Path::new(env!("CARGO_BIN_EXE_roadstead")), &[command, "--config", config.to_str().unwrap()], &[]);
    }
    assert_eq!(files_below(&blobs).len(), before, "the command removes nothing");

    for _ in 0..2 {
        server.begin();
        until("the index is rebuilt", async || ready(&server).await["index_rebuilding"] == false).await;
        let ready = ready(&server).await;
        assert_eq!((&ready["ready"], &ready["index_without_room"]), (&true.into(), &false.into()), "{ready}");
        let index = server.metric("roadstead_index_ready", &[]).await;
        assert_eq!(index, 1.0, "eviction works again");
        let left = files_below(&blobs).len();
        assert!((4..=10).contains(&left), "{left} files: only part of the cached content was evicted");
        for blob in &pushed.layers {
            assert!(read_all(&server, &blob_path("team/app", blob)).await == blob.bytes);
        }
        for blob in &cached {
            assert!(read_all(&server, &blob_path(REPO, blob)).await == blob.bytes);
        }
        server.stop();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn stored_content_is_served_until_the_index_has_room() {
    let upstream = Upstream::start().await;
    let disk = small_disk();
    let mut server = mirror_of(&upstream, &disk);
    let (client, pushed) = (Client::new(), Image::new(70, &[3 * MIB]));
    client.push_image(&server.url(""), "team/app", "v1", &pushed).await;
    server.stop();
    let filler = fill_up(&disk);

    server.begin();
    let state = ready(&server).await;
    let flags = ["ready", "index_rebuilding", "index_without_room"].map(|key| state[key] == true);
    assert_eq!(flags, [false, true, true], "{state}");
    let manifest = server.url("/v2/team/app/manifests/v1");
    assert_eq!(client.get(&manifest).await.body, pushed.manifest.bytes);
    assert!(read_all(&server, &blob_path("team/app", &pushed.layers[0])).await == pushed.layers[0].bytes);
    let tags = client.get(&server.url("/v2/team/app/tags/list")).await;
    assert_eq!((tags.status, &tags.json()["tags"]), (200, &serde_json::json!(["v1"])));
    server.stop();
    let config = server.config_file();
    let config = config.to_str().expect("a plain path");
    for command in ["scrub", "du", "gc"] {
        run(Path::new(env!("CARGO_BIN_EXE_roadstead")), &[command, "--config", config], &[]);
    }
    server.begin();

    std::fs::remove_file(filler).unwrap();
    // The index may be rebuilt before the disk is tested again, or after that.
    until("the index is rebuilt, and the disk is writable", async || {
        let state = ready(&server).await;
        state["ready"] == true && state["index_rebuilding"] == false
    })
    .await;
    let state = ready(&server).await;
    assert_eq!(state["index_without_room"], false, "{state}");
    let cached = blob(71, MIB);
    upstream.add_blob(REPO, &cached);
    for _ in 0..2 {
        assert!(read_all(&server, &blob_path(REPO, &cached)).await == cached.bytes);
    }
    assert_eq!(upstream.total(), 1, "the blob is stored");
    assert!(!server.data_dir().join("index.behind").exists());
}

/// A file system with these options of tmpfs.
fn disk_with(options: &str) -> Folder {
    let folder = Folder::new();
    let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", options, "tmpfs"]).arg(folder.path()).status();
    assert!(mounted.is_ok_and(|status| status.success()), "a tmpfs can be mounted: this test runs as root");
    folder
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_small_volume_works_without_configuration() {
    let upstream = Upstream::start().await;
    for size in ["16m", "64m", "1g"] {
        let disk = disk_with(&format!("size={size}"));
        let settings = Settings::new().upstream("docker.io", &upstream).default_upstream("docker.io");
        let server = ServerProcess::start_in(disk.path(), settings);
        let client = Client::new();
        client.push_image(&server.url(""), "team/app", "v1", &Image::new(1, &[MIB])).await;
        let (known, unknown) = (blob(11, MIB), blob(12, MIB));
        for content in [&known, &unknown] {
            upstream.add_blob(REPO, content);
        }
        upstream.always("GET", &blob_path(REPO, &unknown), Reply::normal().chunked());
        upstream.always("HEAD", &blob_path(REPO, &unknown), Reply::normal().without("Content-Length"));
        for content in [&known, &unknown] {
            assert!(read_all(&server, &blob_path(REPO, content)).await == content.bytes, "{size}");
            until("it is stored", async || is_stored(&server.data_dir(), content)).await;
        }
        let ready = ready(&server).await;
        assert_eq!((&ready["ready"], &ready["bypassing"]), (&true.into(), &false.into()), "{size}: {ready}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn cached_content_makes_way_on_a_disk_without_inodes() {
    let upstream = Upstream::start().await;
    let disk = disk_with("size=256m,nr_inodes=2000");
    let mut server = mirror_of(&upstream, &disk);
    let client = Client::new();
    for seed in 0..200 {
        let (repo, image) = (format!("library/app{seed}"), Image::new(1000 + 10 * seed, &[100]));
        upstream.add_image(&repo, "v1", &image);
        let tag = server.url(&format!("/v2/{repo}/manifests/v1"));
        assert_eq!(client.get(&tag).await.body, image.manifest.bytes);
        assert!(read_all(&server, &blob_path(&repo, &image.layers[0])).await == image.layers[0].bytes);
    }
    assert_eq!(server.metric("roadstead_no_room_total", &[]).await, 0.0, "everything was stored");
    for _ in 0..2 {
        let pushed = Image::new(fastrand::u64(..), &[100]);
        client.push_image(&server.url(""), "team/app", "v1", &pushed).await;
        let ready = client.get(&server.url("/readyz")).await;
        assert_eq!(ready.status, 200, "{}", ready.text());
        server.stop();
        server.begin();
        until("eviction works again", async || server.metric("roadstead_index_ready", &[]).await == 1.0).await;
    }
}

async fn ready(server: &ServerProcess) -> serde_json::Value {
    Client::new().get(&server.url("/readyz")).await.json()
}

/// Fills the disk to the last byte with a file beside the data.
fn fill_up(disk: &Folder) -> PathBuf {
    let filler = disk.path().join("filler");
    // cp fails when the disk is full.
    drop(Command::new("cp").arg("/dev/zero").arg(&filler).stderr(std::process::Stdio::null()).status());
    filler
}

/// Free bytes of a disk.
fn free(disk: &std::path::Path) -> u64 {
    let text = Command::new("stat").args(["-f", "-c", "%a %S"]).arg(disk).output().expect("stat runs");
    let text = String::from_utf8(text.stdout).expect("two numbers");
    let (blocks, size) = text.trim().split_once(' ').expect("two numbers");
    blocks.parse::<u64>().expect("a number") * size.parse::<u64>().expect("a number")
}

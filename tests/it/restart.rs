//! The data folder survives a second server, a corrupt index, and a kill.

use std::path::{Path, PathBuf};
use std::time::Duration;

use roadstead::config::Config;
use serde_json::json;

use crate::disk::{blob_file, files_below, open_index, wait_until_idle};
use crate::scene::until;
use crate::support::process::ServerProcess;
use crate::support::settings::Settings;
use crate::support::{Client, Content, Image, TestServer, random_bytes};

/// A stopped server with two local repositories and three tags.
async fn stopped_server() -> TestServer {
    let mut server = TestServer::builder().start().await;
    let base = server.url("");
    server.client().push_image(&base, "team/app", "v1", &Image::new(1, &[1000])).await;
    server.client().push_image(&base, "team/app", "v2", &Image::new(2, &[1000])).await;
    server.client().push_image(&base, "b", "latest", &Image::new(3, &[10])).await;
    server.stop_running().await;
    server
}

async fn assert_lists(server: &TestServer) {
    assert_eq!(server.get("/v2/_catalog").await.json()["repositories"], json!(["b", "team/app"]));
    assert_eq!(server.get("/v2/team/app/tags/list").await.json()["tags"], json!(["v1", "v2"]));
}

async fn assert_content(server: &TestServer) {
    let image = Image::new(2, &[1000]);
    assert_eq!(server.get("/v2/team/app/manifests/v2").await.body, image.manifest.bytes);
    let layer = &image.layers[0];
    assert_eq!(server.get(&format!("/v2/team/app/blobs/{}", layer.digest)).await.body, layer.bytes);
}

/// Overwrites the mark in which the index records its version, folder and clean close.
fn write_mark(index: &Path, mark: &[u8]) {
    let db = open_index(index);
    db.insert(b"M", mark).unwrap();
    db.flush().unwrap();
}

fn largest(folder: &Path) -> PathBuf {
    let largest = files_below(folder).into_iter().max_by_key(|file| std::fs::metadata(file).unwrap().len());
    largest.expect("the index has files")
}

fn halve_largest(folder: &Path) {
    let file = largest(folder);
    let mut bytes = std::fs::read(&file).unwrap();
    // Half of the written part: the rest of the file is preallocated and empty.
    let written = bytes.iter().rposition(|byte| *byte != 0).unwrap();
    bytes.truncate(written / 2);
    std::fs::write(file, bytes).unwrap();
}

fn corrupt_largest(folder: &Path) {
    let largest = largest(folder);
    let mut bytes = std::fs::read(&largest).unwrap();
    for byte in bytes.iter_mut().take(4096) {
        *byte ^= 0x55;
    }
    std::fs::write(&largest, bytes).unwrap();
}

/// A way to damage an index, and whether its remains are kept for inspection.
type Damage = (&'static str, fn(&Path), bool);

const DAMAGES: [Damage; 8] = [
    ("deleted", |index| std::fs::remove_dir_all(index).unwrap(), false),
    (
        "emptied",
        |index| {
            std::fs::remove_dir_all(index).unwrap();
            std::fs::create_dir(index).unwrap();
        },
        false,
    ),
    (
        "a file in its place",
        |index| {
            std::fs::remove_dir_all(index).unwrap();
            std::fs::write(index, "nonsense").unwrap();
        },
        true,
    ),
    ("garbage in its configuration", |index| std::fs::write(index.join("conf"), [0xff; 300]).unwrap(), true),
    ("of a newer version", |index| write_mark(index, &[9; 26]), true),
    ("of another folder", |index| write_mark(index, &[[1, 1].as_slice(), &[7; 16], &[0; 8]].concat()), true),
    ("corrupt on disk", corrupt_largest, true),
    ("half a file", halve_largest, true),
];

#[tokio::test]
async fn a_corrupt_index_is_set_aside_and_rebuilt_online() {
    let mut server = stopped_server().await;
    let lengths = files_below(&server.data_dir().join("blobs")).into_iter().map(|file| file.metadata().unwrap().len());
    let sum = lengths.sum::<u64>() as f64;
    for (what, damage, is_kept) in DAMAGES {
        damage(&server.data_dir().join("index"));
        server.restart().await;
        // From the start on, during the walk and after it.
        assert_lists(&server).await;
        assert_content(&server).await;
        let rebuilt = server.metric("roadstead_index_rebuilds_total", &[]).await;
        assert_eq!(
            (rebuilt, server.data_dir().join("index.odd").exists()),
            (f64::from(u8::from(is_kept)), is_kept),
            "{what}"
        );
        let pushed = || server.metric("roadstead_storage_bytes", &[("class", "pushed")]);
        until("the sums are correct again", async || pushed().await == sum).await;
        assert_lists(&server).await;
        server.restart().await;
        assert_lists(&server).await;
        assert_eq!(server.metric("roadstead_index_rebuilds_total", &[]).await, 0.0, "{what}: rebuilt once");
        assert_eq!(server.metric("roadstead_storage_bytes", &[("class", "pushed")]).await, sum, "{what}");
        server.stop_running().await;
        // One corrupt index is kept; a later one replaces it.
        if server.data_dir().join("index.odd").is_dir() {
            std::fs::remove_dir_all(server.data_dir().join("index.odd")).unwrap();
        } else if is_kept {
            std::fs::remove_file(server.data_dir().join("index.odd")).unwrap();
        }
    }
}

#[tokio::test]
async fn only_one_corrupt_index_is_kept() {
    let mut server = stopped_server().await;
    for _ in 0..2 {
        write_mark(&server.data_dir().join("index"), &[9; 26]);
        server.restart().await;
        assert_lists(&server).await;
        server.stop_running().await;
    }
    let folders =
        std::fs::read_dir(server.data_dir()).unwrap().filter_map(|entry| entry.unwrap().file_name().into_string().ok());
    let kept: Vec<_> = folders.filter(|name| name.starts_with("index.")).collect();
    assert_eq!(kept, ["index.odd"]);
}

#[tokio::test]
async fn a_folder_in_use_is_refused_with_the_holders_pid() {
    let server = TestServer::builder().start().await;
    let settings = Settings::new().data_dir(server.data_dir());
    let config = Config::from_toml(&settings.to_toml(), "test").unwrap();
    let refused = roadstead::server::start(config).await.err().expect("a second server is refused").to_string();
    assert!(refused.contains(&std::process::id().to_string()), "{refused}");
    // The first server is not affected.
    server.client().push_image(&server.url(""), "team/app", "v1", &Image::new(1, &[10])).await;
    assert_eq!(server.get("/v2/team/app/tags/list").await.json()["tags"], json!(["v1"]));
}

#[tokio::test]
async fn leftover_spool_files_are_removed_at_start() {
    let mut server = stopped_server().await;
    let data = server.data_dir().to_owned();
    std::fs::write(data.join("spool/0c0ffee0"), "half a layer").unwrap();
    std::fs::create_dir_all(data.join("uploads/00000000-0000-4000-8000-000000000000")).unwrap();
    server.restart().await;
    assert!(files_below(&data.join("spool")).is_empty());
    // A folder without a session's files.
    let path = "/v2/team/app/blobs/uploads/00000000-0000-4000-8000-000000000000";
    assert_eq!(server.get(path).await.error_code(), "BLOB_UPLOAD_UNKNOWN");
}

/// Pushes images into its own repositories until the server is killed. Returns the acknowledged ones.
async fn push_until_the_end(base: String, pusher: u64) -> Vec<(String, Content)> {
    let client = Client::new();
    let mut acknowledged = Vec::new();
    for n in 0.. {
        let image = Image::new(1000 * pusher + n, &[40_000]);
        let repo = format!("team/app{pusher}");
        for blob in image.blobs() {
            let url = format!("{base}/v2/{repo}/blobs/uploads/?digest={}", blob.digest);
            match client.try_send("POST", &url, &[], blob.bytes.clone()).await {
                Ok(answer) if answer.status == 201 => {
                    acknowledged.push((format!("{repo}/blobs/{}", blob.digest), blob.clone()))
                }
                Ok(answer) => panic!("{}: {}", answer.status, answer.text()),
                Err(_) => return acknowledged,
            }
        }
        let url = format!("{base}/v2/{repo}/manifests/v{n:03}");
        let kind = [("Content-Type", image.manifest.media_type.as_str())];
        match client.try_send("PUT", &url, &kind, image.manifest.bytes.clone()).await {
            Ok(answer) if answer.status == 201 => {
                acknowledged.push((format!("{repo}/manifests/v{n:03}"), image.manifest));
            }
            Ok(answer) => panic!("{}: {}", answer.status, answer.text()),
            Err(_) => return acknowledged,
        }
    }
    acknowledged
}

#[tokio::test(flavor = "multi_thread")]
async fn acknowledged_pushes_survive_a_kill() {
    let mut process = tokio::task::spawn_blocking(|| ServerProcess::start(Settings::new())).await.unwrap();
    let pushers: Vec<_> = (0..3).map(|n| tokio::spawn(push_until_the_end(process.url(""), n))).collect();
    let repositories = process.data_dir().join("repositories/local/team");
    until("a few images are stored", async || repositories.is_dir() && files_below(&repositories).len() > 60).await;
    process.kill();
    let mut acknowledged = Vec::new();
    for pusher in pushers {
        acknowledged.extend(pusher.await.unwrap());
    }
    process.begin();
    assert!(acknowledged.len() > 20, "{}", acknowledged.len());
    let client = Client::new();
    for (path, content) in &acknowledged {
        let answer = client.get(&process.url(&format!("/v2/{path}"))).await;
        assert!(answer.status == 200 && answer.body == content.bytes, "{path}: {}", answer.status);
        assert_eq!(std::fs::read(blob_file(&process.data_dir(), &content.digest)).unwrap(), content.bytes);
    }
    // A file of the running server may be there for a moment. What the killed one left would stay.
    let spool = process.data_dir().join("spool");
    until("nothing is left of the killed server", async || files_below(&spool).is_empty()).await;
    // The lists are correct at once, from the files, and later from the index.
    for _ in 0..2 {
        for pusher in 0..3 {
            let list = client.get(&process.url(&format!("/v2/team/app{pusher}/tags/list"))).await.json();
            let tags: Vec<String> = serde_json::from_value(list["tags"].clone()).unwrap();
            let prefix = format!("team/app{pusher}/manifests/");
            let pushed: Vec<_> = acknowledged.iter().filter_map(|(path, _)| path.strip_prefix(&prefix)).collect();
            // One push may be complete without an acknowledgement.
            assert_eq!(tags[..pushed.len()], pushed, "app{pusher}");
            assert!(tags.len() <= pushed.len() + 1);
        }
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_open_session_resumes_after_a_kill() {
    let mut process = tokio::task::spawn_blocking(|| ServerProcess::start(Settings::new())).await.unwrap();
    let client = Client::new();
    let content = Content::new("application/octet-stream", random_bytes(5, 200_000));
    let location = client.start_upload(&process.url(""), "team/app").await;
    let half = client.send("PATCH", &location, &[], content.bytes.slice(..120_000)).await;
    assert_eq!(half.header("range"), "0-119999");
    process.kill();
    process.begin();
    assert_eq!(client.get(&location).await.header("range"), "0-119999");
    let url = format!("{location}?digest={}", content.digest);
    assert_eq!(client.send("PUT", &url, &[], content.bytes.slice(120_000..)).await.status, 201);
    let blob = process.url(&format!("/v2/team/app/blobs/{}", content.digest));
    assert_eq!(client.get(&blob).await.body, content.bytes);
    wait_until_idle(&process.data_dir()).await;
}

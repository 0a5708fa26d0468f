//! What the data folder survives: a second server, a spoilt index, a stop without a warning.

use std::path::{Path, PathBuf};
use std::time::Duration;

use roadstead::config::Config;
use serde_json::json;

use crate::disk::{blob_file, files_below, open_index, settled};
use crate::scene::until;
use crate::support::process::ServerProcess;
use crate::support::settings::Settings;
use crate::support::{Client, Content, Image, TestServer, random_bytes};

/// A server with two local repositories and three tags, stopped.
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

/// Overwrites the mark that the index keeps of itself.
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
    // Half of what was written to it: the rest was set aside and is empty.
    let written = bytes.iter().rposition(|byte| *byte != 0).unwrap();
    bytes.truncate(written / 2);
    std::fs::write(file, bytes).unwrap();
}

fn spoil_largest(folder: &Path) {
    let largest = largest(folder);
    let mut bytes = std::fs::read(&largest).unwrap();
    for byte in bytes.iter_mut().take(4096) {
        *byte ^= 0x55;
    }
    std::fs::write(&largest, bytes).unwrap();
}

/// What happens to an index, and whether somebody may want to look at what is left of it.
type Mishap = (&'static str, fn(&Path), bool);

const MISHAPS: [Mishap; 8] = [
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
    ("from the future", |index| write_mark(index, &[9; 26]), true),
    ("of another folder", |index| write_mark(index, &[[1, 1].as_slice(), &[7; 16], &[0; 8]].concat()), true),
    ("spoilt on the disk", spoil_largest, true),
    ("half a file", halve_largest, true),
];

#[tokio::test]
async fn an_odd_index_is_set_aside_and_rebuilt_while_everything_is_served() {
    let mut server = stopped_server().await;
    let lengths = files_below(&server.data_dir().join("blobs")).into_iter().map(|file| file.metadata().unwrap().len());
    let sum = lengths.sum::<u64>() as f64;
    for (what, mishap, odd) in MISHAPS {
        mishap(&server.data_dir().join("index"));
        server.restart().await;
        // From the first moment on, whether the walk has ended or not.
        assert_lists(&server).await;
        assert_content(&server).await;
        let rebuilt = server.metric("roadstead_index_rebuilds_total", &[]).await;
        assert_eq!((rebuilt, server.data_dir().join("index.odd").exists()), (f64::from(u8::from(odd)), odd), "{what}");
        let pushed = || server.metric("roadstead_storage_bytes", &[("class", "pushed")]);
        until("the sums are right again", async || pushed().await == sum).await;
        assert_lists(&server).await;
        server.restart().await;
        assert_lists(&server).await;
        assert_eq!(server.metric("roadstead_index_rebuilds_total", &[]).await, 0.0, "{what}: rebuilt once");
        assert_eq!(server.metric("roadstead_storage_bytes", &[("class", "pushed")]).await, sum, "{what}");
        server.stop_running().await;
        // One is kept, and one that is set aside later takes its place.
        if server.data_dir().join("index.odd").is_dir() {
            std::fs::remove_dir_all(server.data_dir().join("index.odd")).unwrap();
        } else if odd {
            std::fs::remove_file(server.data_dir().join("index.odd")).unwrap();
        }
    }
}

#[tokio::test]
async fn only_one_odd_index_is_kept() {
    let mut server = stopped_server().await;
    for _ in 0..2 {
        write_mark(&server.data_dir().join("index"), &[9; 26]);
        server.restart().await;
        assert_lists(&server).await;
        server.stop_running().await;
    }
    let folders =
        std::fs::read_dir(server.data_dir()).unwrap().filter_map(|entry| entry.unwrap().file_name().into_string().ok());
    let odd: Vec<_> = folders.filter(|name| name.starts_with("index.")).collect();
    assert_eq!(odd, ["index.odd"]);
}

#[tokio::test]
async fn a_folder_that_is_in_use_is_refused_with_the_process_that_uses_it() {
    let server = TestServer::builder().start().await;
    let settings = Settings::new().data_dir(server.data_dir());
    let config = Config::from_toml(&settings.to_toml(), "test").unwrap();
    let refused = roadstead::server::start(config).await.err().expect("a second server is refused").to_string();
    assert!(refused.contains(&std::process::id().to_string()), "{refused}");
    // And the first has noticed nothing.
    server.client().push_image(&server.url(""), "team/app", "v1", &Image::new(1, &[10])).await;
    assert_eq!(server.get("/v2/team/app/tags/list").await.json()["tags"], json!(["v1"]));
}

#[tokio::test]
async fn what_an_earlier_process_left_in_the_spool_is_removed() {
    let mut server = stopped_server().await;
    let data = server.data_dir().to_owned();
    std::fs::write(data.join("spool/0c0ffee0"), "half a layer").unwrap();
    std::fs::create_dir_all(data.join("uploads/00000000-0000-4000-8000-000000000000")).unwrap();
    server.restart().await;
    assert!(files_below(&data.join("spool")).is_empty());
    // A folder that holds no session is no session.
    let path = "/v2/team/app/blobs/uploads/00000000-0000-4000-8000-000000000000";
    assert_eq!(server.get(path).await.error_code(), "BLOB_UPLOAD_UNKNOWN");
}

/// Pushes images into repositories of its own until the server is gone; those that were acknowledged.
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
async fn what_was_acknowledged_is_there_after_a_kill() {
    let mut process = tokio::task::spawn_blocking(|| ServerProcess::start(Settings::new())).await.unwrap();
    let pushers: Vec<_> = (0..3).map(|n| tokio::spawn(push_until_the_end(process.url(""), n))).collect();
    let repositories = process.data_dir().join("repositories/local/team");
    until("a few images are there", async || repositories.is_dir() && files_below(&repositories).len() > 60).await;
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
    assert!(files_below(&process.data_dir().join("spool")).is_empty());
    // The lists are right at once, from the files, and stay so when they come from the index again.
    for _ in 0..2 {
        for pusher in 0..3 {
            let list = client.get(&process.url(&format!("/v2/team/app{pusher}/tags/list"))).await.json();
            let tags: Vec<String> = serde_json::from_value(list["tags"].clone()).unwrap();
            let prefix = format!("team/app{pusher}/manifests/");
            let pushed: Vec<_> = acknowledged.iter().filter_map(|(path, _)| path.strip_prefix(&prefix)).collect();
            // One push may have been done and not yet acknowledged.
            assert_eq!(tags[..pushed.len()], pushed, "app{pusher}");
            assert!(tags.len() <= pushed.len() + 1);
        }
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_was_open_at_a_kill_goes_on_with_what_is_there() {
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
    settled(&process.data_dir()).await;
}

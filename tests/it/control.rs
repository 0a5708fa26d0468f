//! `control.sock`: its permissions, its lifetime, and operation without it.

use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use crate::freshness::{TAG, mirror, upstream_with};
use crate::operator::roadstead;
use crate::scene::until;
use crate::support::process::ServerProcess;
use crate::support::settings::Settings;
use crate::support::{Client, Image, Reply, TestServer, Upstream};

#[tokio::test(flavor = "multi_thread")]
async fn the_socket_is_private_and_removed_at_stop() {
    let mut server = TestServer::builder().start().await;
    let socket = server.data_dir().join("control.sock");
    let metadata = std::fs::metadata(&socket).unwrap();
    assert!(metadata.file_type().is_socket());
    assert_eq!(metadata.permissions().mode() & 0o777, 0o600);
    server.stop_running().await;
    assert!(!socket.exists());
    server.restart().await;
    assert!(socket.exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stale_socket_blocks_no_command_and_no_start() {
    let mut process = tokio::task::spawn_blocking(|| ServerProcess::start(Settings::new())).await.unwrap();
    let data = process.data_dir();
    let socket = data.join("control.sock");
    until("the socket exists", async || socket.exists()).await;
    process.kill();
    assert!(socket.exists());
    assert_eq!(roadstead(&data, &["scrub"]).await.code, 0, "without a listener the command works on the folder");
    let started = tokio::task::spawn_blocking(move || {
        process.begin();
        process
    });
    let process = started.await.unwrap();
    assert_eq!(Client::new().get(&process.url("/v2/")).await.status, 200);
    // The running server holds the lock, so the command uses its socket.
    assert_eq!(roadstead(&data, &["scrub"]).await.code, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_path_too_long_for_a_socket_is_still_served() {
    let parent = tempfile::tempdir().unwrap();
    let deep = parent.path().join("d".repeat(100));
    std::fs::create_dir(&deep).unwrap();
    let process = tokio::task::spawn_blocking(move || ServerProcess::start_in(&deep, Settings::new())).await.unwrap();
    assert_eq!(Client::new().get(&process.url("/v2/")).await.status, 200);
    until("the missing socket is logged", async || process.log().contains("control.sock")).await;
    assert_eq!(process.log().matches("control.sock").count(), 1, "{}", process.log());
    let output = roadstead(&process.data_dir(), &["du"]).await;
    let pid = process.pid().unwrap().to_string();
    assert_eq!(output.code, 1);
    assert!(output.err.contains("in use") && output.err.contains(&pid), "{}", output.err);
}

#[tokio::test(flavor = "multi_thread")]
async fn explain_accepts_request_lines_from_logs() {
    let upstream = Upstream::start().await;
    let image = Image::new(1, &[1000]);
    upstream.add_image("library/app", "v1", &image);
    let mut server = TestServer::mirror_of(&upstream).await;
    server.get("/v2/library/app/manifests/v1").await;
    server.get(&format!("/v2/library/app/blobs/{}", image.layers[0].digest)).await;
    let (kept, config) = (&image.layers[0].digest, &image.config.digest);
    let nothing = format!("sha256:{}", "0".repeat(64));
    for running in [true, false] {
        let layer = format!("http://cache:5000/v2/library/app/blobs/{kept}?ns=docker.io");
        let other = format!("/v2/docker.io/library/other/blobs/{kept}");
        let referrers = format!("/docker.io/v2/library/app/referrers/{kept}");
        let manifest = "http://cache:5000/v2/app/manifests/v1?ns=docker.io";
        let get_config = format!("GET blobs/{config}");
        let ask_other = format!("HEAD or GET blobs/{kept}");
        let get_referrers = format!("GET referrers/{kept}");
        let absent = format!("/v2/library/app/blobs/{nothing}");
        let ask_absent = format!("HEAD or GET blobs/{nothing}");
        for (request, rule, kind, here, asks) in [
            (manifest, "ns", "image", true, [get_config.as_str()].as_slice()),
            (&layer, "ns", "blob", true, &[]),
            (&other, "begins", "blob", false, &[ask_other.as_str()]),
            (&absent, "default upstream", "blob", false, &[ask_absent.as_str()]),
            ("/v2/library/app/tags/list", "default upstream", "tags", false, &["GET tags/list"]),
            (&referrers, "begins", "referrers", false, &[get_referrers.as_str()]),
        ] {
            let facts = roadstead(server.data_dir(), &["explain", request, "--output", "json"]).await.json();
            assert!(facts["rule"].as_str().is_some_and(|words| words.contains(rule)), "{request}: {facts}");
            assert_eq!(facts["kind"], kind, "{request}: {facts}");
            assert_eq!(facts["manifest"]["here"] == true, here, "{request}: {facts}");
            assert_eq!(facts["upstream_requests"], serde_json::json!(asks), "{request}: {facts}");
            let text = roadstead(server.data_dir(), &["explain", request]).await;
            assert!(text.code == 0 && asks.iter().all(|ask| text.out.contains(ask)), "{request}: {}", text.out);
        }
        let unknown = roadstead(server.data_dir(), &["explain", "/v2/a/manifests/1?ns=evil.example"]).await;
        assert!(unknown.code == 1 && unknown.err.contains("no upstream is configured for evil.example"));
        if running {
            server.stop_running().await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn explain_shows_the_memory_of_the_running_server() {
    let upstream = Upstream::start().await;
    let image = Image::new(1, &[1000]);
    upstream.add_image("library/app", "v1", &image);
    let mut server = TestServer::mirror_of(&upstream).await;
    server.get("/v2/library/app/manifests/v1").await;
    // The file has an old confirmation time. The running server has a newer one in memory.
    let file = server.data_dir().join("repositories/docker.io/library/app/_tags/v1");
    let text = std::fs::read_to_string(&file).unwrap();
    let lines = text.lines().map(|line| if line.starts_with("confirmed ") { "confirmed 1000000000" } else { line });
    std::fs::write(&file, lines.map(|line| format!("{line}\n")).collect::<String>()).unwrap();

    let args = ["explain", "docker.io/library/app:v1", "--output", "json"];
    let online = roadstead(server.data_dir(), &args).await.json();
    assert_eq!((&online["tag"]["fresh"], &online["breaker"]["state"]), (&true.into(), &"closed".into()), "{online}");
    server.stop_running().await;
    let offline = roadstead(server.data_dir(), &args).await.json();
    assert_eq!((&offline["tag"]["fresh"], &offline["breaker"]), (&false.into(), &().into()), "{offline}");
    assert_eq!(online["manifest"], offline["manifest"]);

    server.restart().await;
    let wrong = roadstead(server.data_dir(), &["explain", "a@sha256:x"]).await;
    assert_eq!((wrong.code, wrong.out.as_str()), (1, ""));
    assert!(wrong.err.starts_with("roadstead: a@sha256:x: "), "{}", wrong.err);
}

#[tokio::test(flavor = "multi_thread")]
async fn explain_uses_the_tag_ttl_in_force() {
    // Where few pulls are left, a tag counts as fresh for ten times as long.
    for (left, fresh) in [("50;w=21600", false), ("3;w=21600", true)] {
        let upstream = upstream_with(&Image::new(1, &[10])).await;
        let budget = Reply::normal().header("RateLimit-Limit", "100;w=21600").header("RateLimit-Remaining", left);
        upstream.always("*", TAG, budget);
        let server = mirror(&upstream, "tag_ttl = \"1s\"").await;
        server.get(TAG).await;
        tokio::time::sleep(Duration::from_millis(1100)).await;
        let args = ["explain", TAG, "--output", "json"];
        let online = roadstead(server.data_dir(), &args).await.json();
        let confirms = online["upstream_requests"].to_string().contains("HEAD manifests/1");
        assert_eq!((&online["tag"]["fresh"], confirms), (&fresh.into(), !fresh), "{left}: {online}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn unfinished_control_requests_block_no_other_request() {
    let server = TestServer::builder().start().await;
    let mut half_sent = Vec::new();
    for _ in 0..20 {
        let mut stream = connect(&server).await;
        let head = b"POST /v1/scrub HTTP/1.1\r\nHost: x\r\nContent-Length: 20\r\n\r\n{\"rep";
        stream.write_all(head).await.unwrap();
        half_sent.push(stream);
    }
    assert_eq!(roadstead(server.data_dir(), &["du"]).await.code, 0);
    let mut response = String::new();
    half_sent[0].read_to_string(&mut response).await.unwrap();
    assert!(response.starts_with("HTTP/1.1 408 "), "{response}");
}

/// Connects to the control socket. Its backlog may be full for a moment, which a Unix socket reports at once.
async fn connect(server: &TestServer) -> UnixStream {
    let path = server.data_dir().join("control.sock");
    loop {
        match UnixStream::connect(&path).await {
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => tokio::task::yield_now().await,
            connected => return connected.unwrap(),
        }
    }
}

//! Tests of starting, stopping and restarting Roadstead.

use super::process::ServerProcess;
use super::settings::Settings;
use super::{Client, Conn, Ended, Image, TestServer, Upstream};

#[tokio::test]
async fn a_server_keeps_its_folder_across_a_restart() {
    let upstream = Upstream::start().await;
    let image = Image::new(3, &[100_000]);
    upstream.add_image("library/busybox", "latest", &image);
    let mut server = TestServer::mirror_of(&upstream).await;
    let layer = format!("/v2/library/busybox/blobs/{}", image.layers[0].digest);
    let manifest = server.get("/v2/library/busybox/manifests/latest").await;
    assert_eq!(manifest.body, image.manifest.bytes);
    assert_eq!(server.get(&layer).await.body, image.layers[0].bytes);
    let misses = [("type", "blob"), ("upstream", "docker.io")];
    assert_eq!(server.metric("registry_proxy_misses_total", &misses).await, 1.0);
    server.restart().await;
    upstream.go_down().await;
    let mut conn = Conn::get(server.addr(), &layer).await;
    assert_eq!(conn.rest().await, (image.layers[0].bytes.clone(), Ended::Complete));
    server.stop().await;
}

#[tokio::test]
async fn a_process_keeps_a_push_across_a_kill() {
    let mut process = ServerProcess::start(Settings::new());
    let (client, image) = (Client::new(), Image::new(4, &[100_000]));
    client.push_image(&process.url(""), "team/app", "v1", &image).await;
    process.kill();
    process.begin();
    let manifest = Client::new().get(&process.url("/v2/team/app/manifests/v1")).await;
    assert_eq!(manifest.body, image.manifest.bytes);
    assert!(process.stop().is_some_and(|status| status.success()));
}

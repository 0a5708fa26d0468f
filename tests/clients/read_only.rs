//! A data folder that is mounted read-only.

use std::process::Command;

use super::folder::Folder;
use crate::operator::{roadstead, roadstead_with};
use crate::scene::until;
use crate::support::daemon::{Daemon, free_port};
use crate::support::process::ServerProcess;
use crate::support::settings::Settings;
use crate::support::{Client, Image, Upstream};

fn mount(args: &[&str]) {
    let mounted = Command::new("mount").args(args).status();
    assert!(mounted.is_ok_and(|status| status.success()), "mount {args:?}: this test runs as root");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_only_mount_is_served_when_configured() {
    let upstream = Upstream::start().await;
    let (cached, elsewhere) = (Image::new(1, &[100_000]), Image::new(2, &[100_000]));
    upstream.add_image("library/app", "v1", &cached);
    upstream.add_image("library/app", "v2", &elsewhere);
    let folder = Folder::new();
    let settings = Settings::new().upstream("docker.io", &upstream).default_upstream("docker.io");
    let mut writer = ServerProcess::start_in(folder.path(), settings);
    let client = Client::new();
    client.push_image(&writer.url(""), "team/app", "v1", &cached).await;
    let blob = |image: &Image| format!("/v2/docker.io/library/app/blobs/{}", image.layers[0].digest);
    assert_eq!(client.get(&writer.url(&blob(&cached))).await.status, 200);
    writer.stop();
    let data = writer.data_dir();
    let text = data.to_str().unwrap();
    mount(&["--bind", text, text]);
    mount(&["-o", "remount,bind,ro", text]);

    let port = free_port();
    let (address, mirror) = (format!("127.0.0.1:{port}"), format!("docker.io={}", upstream.url("")));
    let args = ["serve", "--listen", &address, "--data", text, "--upstream", &mirror];
    let mut refused = Daemon::spawn("refused", folder.path(), env!("CARGO_BIN_EXE_roadstead").as_ref(), &args);
    until("the server has ended", async || refused.exited().is_some()).await;
    let output = roadstead(&data, &["scrub"]).await;
    assert_eq!(output.code, 2);
    for text in [refused.log(), output.err] {
        assert!(text.contains("Read-only file system") && text.contains("set storage.read_only"), "{text}");
    }

    let variables = [("ROADSTEAD_STORAGE__READ_ONLY", "true")];
    let program = env!("CARGO_BIN_EXE_roadstead").as_ref();
    let mut reader = Daemon::spawn_with("reader", folder.path(), program, &args, &variables);
    reader.wait_until(|| std::net::TcpStream::connect(("127.0.0.1", port)).is_ok());
    let url = |path: &str| format!("http://{address}{path}");
    assert_eq!(client.get(&url("/readyz")).await.json()["storage"], "read_only");
    upstream.forget();
    assert_eq!(client.get(&url("/v2/team/app/manifests/v1")).await.body, cached.manifest.bytes);
    assert_eq!(client.get(&url(&blob(&cached))).await.body, cached.layers[0].bytes);
    assert_eq!(upstream.total(), 0);
    assert_eq!(client.get(&url(&blob(&elsewhere))).await.body, elsewhere.layers[0].bytes);
    let push = client.send("POST", &url("/v2/team/app/blobs/uploads/"), &[], "").await;
    assert_eq!((push.status, push.error_code().as_str()), (405, "UNSUPPORTED"));
    assert_eq!(roadstead_with(&data, &["scrub"], &variables).await.code, 0);
    assert!(reader.stop().success());
    assert!(!reader.log().contains("ERROR") && !reader.log().contains("WARN"), "{}", reader.log());
}

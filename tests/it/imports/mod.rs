//! `roadstead import`: content of other registries and of image files.

mod damage;
mod images;
mod interrupted;
mod proxied;
mod registries;
pub mod tree;

use serde_json::Value;

use crate::operator::{CommandOutput, roadstead};
use crate::support::process::ServerProcess;
use crate::support::settings::Settings;
use crate::support::{Client, Content, Image};

/// A running server with more TOML in its configuration.
async fn start(settings: Settings) -> ServerProcess {
    let server = tokio::task::spawn_blocking(|| ServerProcess::start(settings)).await.unwrap();
    until_ready(&server).await;
    server
}

/// Starts it again.
async fn begin(server: &mut ServerProcess) {
    tokio::task::block_in_place(|| server.begin());
    until_ready(server).await;
}

/// The port is open before commands can reach the server.
async fn until_ready(server: &ServerProcess) {
    assert_eq!(status(server, "/v2/").await, 200);
}

/// Imports with the configuration of a server, which need not run.
async fn import(server: &ServerProcess, args: &[&str]) -> CommandOutput {
    let config = server.config_file();
    let args = [&["import"], args, &["--output", "json", "--config", config.to_str().unwrap()]].concat();
    roadstead(&server.data_dir(), &args).await
}

/// The last event.
fn summary(output: &CommandOutput) -> Value {
    output.events().pop().unwrap_or_else(|| panic!("{output:?}"))
}

/// These numbers of the summary.
fn numbers<const N: usize>(output: &CommandOutput, keys: [&str; N]) -> [u64; N] {
    let summary = summary(output);
    keys.map(|key| summary[key].as_u64().unwrap_or_else(|| panic!("{key}: {output:?}")))
}

/// The names and reasons of what was left out.
fn left_out(output: &CommandOutput, failed: bool) -> Vec<(String, String)> {
    let events = output.events().into_iter().filter(|event| event["event"] == "left" && event["failed"] == failed);
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    events.map(|event| (text(&event["name"]), text(&event["reason"]))).collect()
}

/// Checks that the image is served by tag and digest, with everything in it. `base` ends with the repository.
async fn assert_served(base: &str, tag: &str, image: &Image) {
    let client = Client::new();
    let Content { media_type, bytes, .. } = &image.manifest;
    for reference in [tag, image.digest()] {
        let got = client.get(&format!("{base}/manifests/{reference}")).await;
        assert_eq!((got.status, &got.body, got.header("content-type")), (200, bytes, media_type.as_str()), "{base}");
    }
    for blob in image.blobs() {
        let got = client.get(&format!("{base}/blobs/{}", blob.digest)).await;
        assert!(got.status == 200 && got.body == blob.bytes, "{base}: {}", blob.digest);
    }
}

async fn status(server: &ServerProcess, path: &str) -> u16 {
    Client::new().get(&server.url(path)).await.status
}

//! A start with a full cache after a kill. The server responds during the walk of the files, and evicts nothing before
//! the walk ends.

use std::path::Path;

use crate::scene::{KIB, MIB, REPO, blob, blob_path, until};
use crate::support::process::ServerProcess;
use crate::support::settings::Settings;
use crate::support::{Client, Content, Image, Upstream};

/// Enough files for a walk of noticeable length.
const FILES: u32 = 6_000;

/// Adds cached blobs of one byte each, as an earlier run would have left them.
fn add_files(data: &Path) {
    for n in 0..FILES {
        let hex = format!("{:02x}{n:062x}", n % 256);
        std::fs::write(data.join("blobs/sha256").join(&hex[..2]).join(hex), [0]).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_cache_answers_and_evicts_nothing_during_the_walk() {
    let upstream = Upstream::start().await;
    let mirrored: Vec<Content> = (0..12).map(|seed| blob(seed, 200 * KIB)).collect();
    for blob in &mirrored {
        upstream.add_blob(REPO, blob);
    }
    let config = "[cache]\nmax_size = \"1MiB\"\nmin_free = \"0B\"";
    let settings = Settings::new().upstream("docker.io", &upstream).default_upstream("docker.io").config(config);
    let mut process = ServerProcess::start(settings);
    let (client, base) = (Client::new(), process.url(""));
    let image = Image::new(7, &[300 * KIB, 300 * KIB]);
    client.push_image(&base, "team/app", "v1", &image).await;
    let pull_all = async || {
        for blob in &mirrored {
            let answer = client.get(&format!("{base}{}", blob_path(REPO, blob))).await;
            assert!(answer.status == 200 && answer.body == blob.bytes);
        }
        for content in image.blobs() {
            let answer = client.get(&format!("{base}{}", blob_path("team/app", content))).await;
            assert!(answer.status == 200 && answer.body == content.bytes);
        }
    };
    pull_all().await;
    until("the fetched bytes are counted", async || {
        process.metric("roadstead_storage_bytes", &[("class", "cached")]).await > 0.7 * MIB as f64
    })
    .await;
    process.kill();
    add_files(&process.data_dir());
    process.begin();
    assert_eq!(process.metric("roadstead_index_ready", &[]).await, 0.0, "the server responds during the walk");
    pull_all().await;
    let evicted = process.metric("roadstead_evictions_total", &[]).await;
    if process.metric("roadstead_index_ready", &[]).await == 0.0 {
        assert_eq!(evicted, 0.0, "the eviction order is not known yet");
        assert!(process.metric("roadstead_no_room_total", &[]).await > 0.0, "content without room bypasses the store");
    }
    until("the index is ready", async || process.metric("roadstead_index_ready", &[]).await == 1.0).await;
    until("something is evicted", async || {
        pull_all().await;
        process.metric("roadstead_evictions_total", &[]).await > 0.0
    })
    .await;
    pull_all().await;
}

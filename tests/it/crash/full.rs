//! A start with a full cache after a kill, while the walk of the files goes on: it answers at once, and nothing goes before
//! the walk has ended.

use std::path::Path;

use crate::scene::{KIB, MIB, REPO, blob, blob_path, until};
use crate::support::process::ServerProcess;
use crate::support::settings::Settings;
use crate::support::{Client, Content, Image, Upstream};

/// Enough for the walk to take a while.
const FILES: u32 = 6_000;

/// Cached content of an earlier run, of one byte each.
fn add_files(data: &Path) {
    for n in 0..FILES {
        let hex = format!("{:02x}{n:062x}", n % 256);
        std::fs::write(data.join("blobs/sha256").join(&hex[..2]).join(hex), [0]).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_with_a_full_cache_answers_during_the_walk_and_nothing_goes_before_its_end() {
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
    until("what was fetched is counted", async || {
        process.metric("roadstead_storage_bytes", &[("class", "cached")]).await > 0.7 * MIB as f64
    })
    .await;
    process.kill();
    add_files(&process.data_dir());
    process.begin();
    assert_eq!(process.metric("roadstead_index_ready", &[]).await, 0.0, "it answers before the walk has ended");
    pull_all().await;
    let evicted = process.metric("roadstead_evictions_total", &[]).await;
    if process.metric("roadstead_index_ready", &[]).await == 0.0 {
        assert_eq!(evicted, 0.0, "nobody knows yet what may go");
        assert!(process.metric("roadstead_no_room_total", &[]).await > 0.0, "and what finds no room passes by");
    }
    until("the index is ready", async || process.metric("roadstead_index_ready", &[]).await == 1.0).await;
    until("something has to go", async || {
        pull_all().await;
        process.metric("roadstead_evictions_total", &[]).await > 0.0
    })
    .await;
    pull_all().await;
}

//! After a power cut, files that were not fsynced are verified before they are served.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use crate::disk::blob_file;
use crate::scene::{KIB, MIB, Scene, blob, blob_path, entry_count, until};
use crate::support::process::ServerProcess;
use crate::support::settings::Settings;
use crate::support::{Client, Image, Upstream};

/// Sets the folder to the state after a power cut in another boot: index not closed, durability mark older than all
/// files.
fn cut_the_power(data: &std::path::Path) {
    fs::remove_dir_all(data.join("index")).unwrap();
    fs::write(data.join("settled"), "boot another-one\nsettled 1.000000000\n").unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_corrupted_by_a_power_cut_is_refetched() {
    let mut scene = Scene::with_blob(MIB).await;
    scene.server.get(&scene.path()).await;
    scene.settle().await;
    let (data, file) = (scene.server.data_dir().to_owned(), blob_file(scene.server.data_dir(), &scene.blob.digest));
    scene.server.stop_running().await;
    cut_the_power(&data);
    // The correct length, but only zeros.
    fs::write(&file, vec![0; MIB]).unwrap();
    scene.server.restart().await;
    for _ in 0..2 {
        assert!(scene.server.get(&scene.path()).await.body == scene.bytes());
    }
    assert_eq!(scene.fetches(), 2);
    assert_eq!(entry_count(&data.join("quarantine")), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn content_that_survived_a_power_cut_is_served_from_disk() {
    let mut scene = Scene::with_blob(MIB).await;
    scene.server.get(&scene.path()).await;
    scene.settle().await;
    let data = scene.server.data_dir().to_owned();
    scene.server.stop_running().await;
    cut_the_power(&data);
    scene.server.restart().await;
    assert!(scene.server.get(&scene.path()).await.body == scene.bytes());
    assert_eq!(scene.fetches(), 1);
    // The walk may need another start to finish.
    until("the durability mark is of this boot", async || {
        scene.server.restart().await;
        !fs::read_to_string(data.join("settled")).unwrap().contains("another-one")
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_manifest_file_with_wrong_content_is_refetched() {
    let mut scene = Scene::with_blob(KIB).await;
    let image = Image::new(7, &[10]);
    scene.upstream.add_image(crate::scene::REPO, "v1", &image);
    let path = format!("/v2/{}/manifests/v1", crate::scene::REPO);
    scene.server.get(&path).await;
    let file = blob_file(scene.server.data_dir(), image.digest());
    scene.server.stop_running().await;
    fs::write(&file, b"{}").unwrap();
    scene.server.restart().await;
    assert_eq!(scene.server.get(&path).await.body, image.manifest.bytes);
    until("the file is complete again", async || fs::read(&file).unwrap() == image.manifest.bytes).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_push_whose_record_was_lost_counts_as_pushed_again() {
    let upstream = Upstream::start().await;
    let content = blob(1, 5000);
    upstream.add_blob("org/app", &content);
    let settings = Settings::new().upstream("docker.io", &upstream).default_upstream("docker.io");
    let mut process = tokio::task::spawn_blocking(|| ServerProcess::start(settings)).await.unwrap();
    let sums = async |process: &ServerProcess| {
        let sum = async |class| process.metric("roadstead_storage_bytes", &[("class", class)]).await;
        (sum("cached").await, sum("pushed").await)
    };
    assert_eq!(Client::new().get(&process.url(&blob_path("org/app", &content))).await.status, 200);
    until("the blob is stored", async || sums(&process).await == (5000.0, 0.0)).await;
    // The index is saved with the blob as cached content. Then a push changes the mode of the file, and the process is
    // killed before the index has saved that.
    process.stop();
    process.begin();
    until("the index is in use", async || process.metric("roadstead_index_ready", &[]).await == 1.0).await;
    process.kill();
    let file = blob_file(&process.data_dir(), &content.digest);
    fs::set_permissions(file, fs::Permissions::from_mode(0o400)).unwrap();
    process.begin();
    until("the blob counts as pushed", async || sums(&process).await == (0.0, 5000.0)).await;
}

//! After a power cut: what had not been settled is looked at before it is served.

use std::fs;
use std::path::PathBuf;

use crate::scene::{KIB, MIB, Scene, files_below, until};
use crate::support::Image;

fn blob_file(scene: &Scene) -> PathBuf {
    let hex = scene.blob.digest.strip_prefix("sha256:").unwrap();
    scene.server.data_dir().join("blobs/sha256").join(&hex[..2]).join(hex)
}

/// The folder as a power cut in another boot leaves it: the index not closed, the mark older than every file.
fn cut_the_power(data: &std::path::Path) {
    fs::remove_dir_all(data.join("index")).unwrap();
    fs::write(data.join("settled"), "boot another-one\nsettled 1.000000000\n").unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_a_power_cut_has_spoilt_is_fetched_again_and_never_served() {
    let mut scene = Scene::with_blob(MIB).await;
    scene.server.get(&scene.path()).await;
    scene.settle().await;
    let (data, file) = (scene.server.data_dir().to_owned(), blob_file(&scene));
    scene.server.stop_running().await;
    cut_the_power(&data);
    // The right length, and nothing in it.
    fs::write(&file, vec![0; MIB]).unwrap();
    scene.server.restart().await;
    for _ in 0..2 {
        assert!(scene.server.get(&scene.path()).await.body == scene.bytes());
    }
    assert_eq!(scene.fetches(), 2);
    assert_eq!(files_below(&data.join("quarantine")), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_survived_a_power_cut_is_served_without_a_question_and_settles_again() {
    let mut scene = Scene::with_blob(MIB).await;
    scene.server.get(&scene.path()).await;
    scene.settle().await;
    let data = scene.server.data_dir().to_owned();
    scene.server.stop_running().await;
    cut_the_power(&data);
    scene.server.restart().await;
    assert!(scene.server.get(&scene.path()).await.body == scene.bytes());
    assert_eq!(scene.fetches(), 1);
    // The walk may need another start to come to its end.
    until("a mark of this boot is set", async || {
        scene.server.restart().await;
        !fs::read_to_string(data.join("settled")).unwrap().contains("another-one")
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_manifest_file_that_holds_something_else_is_fetched_again() {
    let mut scene = Scene::with_blob(KIB).await;
    let image = Image::new(7, &[10]);
    scene.upstream.add_image(crate::scene::REPO, "v1", &image);
    let path = format!("/v2/{}/manifests/v1", crate::scene::REPO);
    scene.server.get(&path).await;
    let hex = image.digest().strip_prefix("sha256:").unwrap().to_owned();
    let file = scene.server.data_dir().join("blobs/sha256").join(&hex[..2]).join(&hex);
    scene.server.stop_running().await;
    fs::write(&file, b"{}").unwrap();
    scene.server.restart().await;
    assert_eq!(scene.server.get(&path).await.body, image.manifest.bytes);
    until("it is whole again", async || fs::read(&file).unwrap() == image.manifest.bytes).await;
}

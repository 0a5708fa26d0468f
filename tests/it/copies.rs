//! A data folder that somebody has copied, or gone over, so that its files say nothing any more of who pushed them:
//! pushed content is still not evicted.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

use crate::disk::files_below;
use crate::eviction::{blobs, evictions, is_settled, pull, with_bounds};
use crate::scene::{KIB, blob_path};
use crate::support::{Image, TestServer, Upstream};

/// As a volume does that is made writable for a group at every mount, or a copy without permissions.
fn lose_permissions(data: &Path) {
    for file in files_below(data) {
        fs::set_permissions(file, Permissions::from_mode(0o644)).unwrap();
    }
}

fn copy(from: &Path, to: &Path) {
    assert!(Command::new("cp").arg("-r").arg(from).arg(to).status().unwrap().success());
}

struct Scene {
    upstream: Upstream,
    server: TestServer,
    pushed: [(&'static str, Image); 2],
    /// The index as it was left before anything was pushed.
    earlier: tempfile::TempDir,
}

impl Scene {
    /// Something that was pushed, and something that was cached before it was pushed; stopped.
    async fn new() -> Self {
        let upstream = Upstream::start().await;
        let mut server = with_bounds(&upstream, "max_size = \"1200KiB\"").await;
        let cached = blobs(&upstream, 100..101, 256 * KIB);
        pull(&server, &cached[0]).await;
        server.stop_running().await;
        let earlier = tempfile::tempdir().unwrap();
        copy(&server.data_dir().join("index"), earlier.path());
        server.restart().await;
        is_settled(&server).await;
        let both = Image::for_platform("linux/amd64", cached);
        let pushed = [("team/app", Image::new(7, &[300 * KIB, 300 * KIB])), ("team/both", both)];
        for (repo, image) in &pushed {
            server.client().push_image(&server.url(""), repo, "v1", image).await;
        }
        server.stop_running().await;
        Self { upstream, server, pushed, earlier }
    }

    /// Starts, makes everything go that may, and looks what is left; twice.
    async fn assert_kept(mut self) {
        for seeds in [0..20, 20..40] {
            self.server.restart().await;
            is_settled(&self.server).await;
            for blob in &blobs(&self.upstream, seeds, 256 * KIB) {
                pull(&self.server, blob).await;
            }
            assert!(evictions(&self.server).await > 0.0);
            for (repo, image) in &self.pushed {
                assert_eq!(self.server.get(&format!("/v2/{repo}/manifests/v1")).await.body, image.manifest.bytes);
                for content in image.blobs() {
                    assert!(self.server.get(&blob_path(repo, content)).await.body == content.bytes, "{repo}");
                }
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pushed_content_stays_without_permissions_and_without_an_index() {
    let scene = Scene::new().await;
    let data = scene.server.data_dir();
    lose_permissions(data);
    fs::remove_dir_all(data.join("index")).unwrap();
    scene.assert_kept().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pushed_content_stays_without_permissions_after_a_clean_stop() {
    let scene = Scene::new().await;
    lose_permissions(scene.server.data_dir());
    scene.assert_kept().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pushed_content_stays_without_permissions_and_with_an_index_that_knows_it_as_cached() {
    let scene = Scene::new().await;
    let data = scene.server.data_dir();
    lose_permissions(data);
    fs::remove_dir_all(data.join("index")).unwrap();
    copy(&scene.earlier.path().join("index"), data);
    scene.assert_kept().await;
}

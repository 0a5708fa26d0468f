//! A data folder that lost its file permissions, which mark pushed content: that content is still not evicted.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

use crate::disk::files_below;
use crate::eviction::{blobs, evictions, pull, wait_until_index_ready, with_bounds};
use crate::scene::{KIB, blob_path};
use crate::support::{Image, TestServer, Upstream};

/// Like a copy without permissions, or a volume that is made writable for a group at every mount.
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
    /// The index from before the pushes.
    earlier: tempfile::TempDir,
}

impl Scene {
    /// A stopped server with pushed content, part of which was cached before.
    async fn new() -> Self {
        let upstream = Upstream::start().await;
        let mut server = with_bounds(&upstream, "max_size = \"1200KiB\"").await;
        let cached = blobs(&upstream, 100..101, 256 * KIB);
        pull(&server, &cached[0]).await;
        server.stop_running().await;
        let earlier = tempfile::tempdir().unwrap();
        copy(&server.data_dir().join("index"), earlier.path());
        server.restart().await;
        wait_until_index_ready(&server).await;
        let both = Image::for_platform("linux/amd64", cached);
        let pushed = [("team/app", Image::new(7, &[300 * KIB, 300 * KIB])), ("team/both", both)];
        for (repo, image) in &pushed {
            server.client().push_image(&server.url(""), repo, "v1", image).await;
        }
        server.stop_running().await;
        Self { upstream, server, pushed, earlier }
    }

    /// Starts the server, fills the cache so that all cached content is evicted, and checks the pushed content; twice.
    async fn assert_kept(mut self) {
        for seeds in [0..20, 20..40] {
            self.server.restart().await;
            wait_until_index_ready(&self.server).await;
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
async fn pushed_content_stays_without_permissions_or_index() {
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
async fn pushed_content_stays_when_the_index_lists_it_as_cached() {
    let scene = Scene::new().await;
    let data = scene.server.data_dir();
    lose_permissions(data);
    fs::remove_dir_all(data.join("index")).unwrap();
    copy(&scene.earlier.path().join("index"), data);
    scene.assert_kept().await;
}

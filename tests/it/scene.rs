//! The setup of most tests of the miss engine: one mirrored blob, its upstream, and an empty server.

use std::path::Path;
use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::disk::blob_file;
use crate::support::image::OCI_LAYER;
use crate::support::{Content, Image, TestServer, Upstream, random_bytes};

pub const KIB: usize = 1 << 10;
pub const MIB: usize = 1 << 20;
/// The tail that a fill holds back until the blob is verified.
pub const HELD_BACK_TAIL_BYTES: usize = 64 * KIB;

pub const REPO: &str = "library/app";

pub struct Scene {
    pub upstream: Upstream,
    pub server: TestServer,
    pub blob: Content,
}

impl Scene {
    /// A blob of `size` random bytes at the upstream docker.io, which is the default.
    pub async fn with_blob(size: usize) -> Self {
        Self::configured(size, "").await
    }

    pub async fn configured(size: usize, toml: &str) -> Self {
        let upstream = Upstream::start().await;
        let blob = blob(1, size);
        upstream.add_blob(REPO, &blob);
        let builder = TestServer::builder().upstream("docker.io", &upstream).default_upstream("docker.io");
        let server = builder.config(toml).start().await;
        Self { upstream, server, blob }
    }

    pub fn path(&self) -> String {
        blob_path(REPO, &self.blob)
    }

    pub fn bytes(&self) -> &Bytes {
        &self.blob.bytes
    }

    /// GETs of the blob that the upstream received.
    pub fn fetches(&self) -> usize {
        self.upstream.count("GET", &self.path())
    }

    /// Waits until no fill is in flight and the spool is empty.
    pub async fn settle(&self) {
        settle(&self.server).await;
    }

    pub fn is_stored(&self) -> bool {
        is_stored(self.server.data_dir(), &self.blob)
    }
}

/// A server with one image of one layer, mirrored as `org/app:v1` and pushed as `team/app:v1`; nothing is cached.
pub async fn pushed_and_mirrored() -> (Upstream, TestServer, Image) {
    let upstream = Upstream::start().await;
    let image = Image::new(1, &[1000]);
    upstream.add_image("org/app", "v1", &image);
    let server = TestServer::mirror_of(&upstream).await;
    server.client().push_image(&server.url(""), "team/app", "v1", &image).await;
    (upstream, server, image)
}

pub fn blob(seed: u64, size: usize) -> Content {
    Content::new(OCI_LAYER, random_bytes(seed, size))
}

pub fn blob_path(repo: &str, blob: &Content) -> String {
    format!("/v2/{repo}/blobs/{}", blob.digest)
}

pub async fn settle(server: &TestServer) {
    until("no fill is in flight or waits", async || {
        let metrics = server.metrics().await;
        metrics.sum("roadstead_fills_in_flight", &[]) + metrics.sum("roadstead_fills_waiting", &[]) == 0.0
    })
    .await;
    until("the spool is empty", async || entry_count(&server.data_dir().join("spool")) == 0).await;
}

pub fn is_stored(data: &Path, blob: &Content) -> bool {
    blob_file(data, &blob.digest).exists()
}

/// The number of entries in a folder, without those of its sub-folders.
pub fn entry_count(folder: &Path) -> usize {
    std::fs::read_dir(folder).expect("the folder exists").count()
}

/// Waits until `holds` returns true. Only a broken program or test reaches the limit, also on a busy machine.
pub async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let limit = Instant::now() + Duration::from_secs(90);
    while !holds().await {
        assert!(Instant::now() < limit, "timed out waiting until {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

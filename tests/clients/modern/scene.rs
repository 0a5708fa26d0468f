//! What most of these tests start with: an upstream, Roadstead as its mirror, and what they must deliver.

use serde_json::Value;

use crate::support::process::ServerProcess;
use crate::support::settings::Settings;
use crate::support::{Client, Content, Index, Upstream, digest_of};

/// The scripted upstream as docker.io, which is the default, and Roadstead as its mirror.
pub async fn mirrored() -> (Upstream, ServerProcess) {
    let upstream = Upstream::start().await;
    let settings = Settings::new().upstream("docker.io", &upstream).default_upstream("docker.io");
    (upstream, ServerProcess::start(settings))
}

/// A Roadstead to push to, and another one that mirrors it as ghcr.io.
pub fn pushed_and_mirror() -> (ServerProcess, ServerProcess) {
    let pushed = ServerProcess::start(Settings::new());
    let mirror = ServerProcess::start(Settings::new().upstream_url("ghcr.io", &pushed.url("")));
    (pushed, mirror)
}

/// An index of two images, with layers of random bytes.
pub fn two_platforms() -> Index {
    Index::new(1, &["linux/amd64", "linux/arm64"], &[300_000, 5])
}

/// Checks that an OCI layout holds every manifest and blob of the index, unchanged.
pub fn assert_layout_holds(layout: &str, index: &Index) {
    let top = std::fs::read_to_string(format!("{layout}/index.json")).expect("an OCI layout");
    assert!(top.contains(index.digest()), "{top}");
    let manifests = index.images.iter().map(|image| &image.manifest);
    let blobs = index.images.iter().flat_map(|image| image.blobs());
    for Content { digest, bytes, .. } in manifests.chain(blobs).chain([&index.manifest]) {
        let file = format!("{layout}/blobs/{}", digest.replace(':', "/"));
        assert!(std::fs::read(&file).is_ok_and(|read| read == *bytes), "{file}");
    }
}

/// The digest of the manifest of this tag.
pub async fn digest_at(server: &ServerProcess, repository: &str, tag: &str) -> String {
    let answer = Client::new().get(&server.url(&format!("/v2/{repository}/manifests/{tag}"))).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    digest_of(&answer.body)
}

pub fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

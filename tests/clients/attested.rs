//! The output of current buildx: an index with an image and its attestation, under a tag made of a version with a `+`.

use super::containerd::Containerd;
use super::docker::Docker;
use super::podman::Podman;
use super::program::{MachineLock, find, run};
use super::readme::{generated, recipe};
use super::registry::Registry;
use super::{busybox, roadstead, shapes};
use crate::support::Index;
use crate::support::image::digest_of;
use crate::support::process::ServerProcess;

const TAG: &str = "1.0.0_build.5";

async fn scene() -> (Registry, ServerProcess, Index) {
    let hub = Registry::start();
    let index = shapes::attested(&busybox::image("attested"));
    hub.push_index("team/app", TAG, &index).await;
    let roadstead = roadstead(&[("docker.io", &hub)]);
    (hub, roadstead, index)
}

#[tokio::test]
async fn docker_pulls_an_image_with_an_attestation() {
    let (_hub, roadstead, _) = scene().await;
    let docker = Docker::start(&roadstead);
    let image = format!("team/app:{TAG}");
    docker.run(&["pull", "--quiet", &image]);
    assert_eq!(docker.greeting_in(&image), "attested");
}

#[tokio::test]
async fn containerd_pulls_an_image_with_an_attestation() {
    let (_hub, roadstead, index) = scene().await;
    let _lock = MachineLock::take("daemon");
    let containerd = Containerd::start();
    let hosts = containerd.set_up(&generated("containerd", &roadstead.url("")));
    let image = format!("docker.io/team/app:{TAG}");
    containerd.pull(&hosts, &image);
    assert_eq!(containerd.digest_of(&image), index.digest());
    assert_eq!(containerd.greeting_in(&image), "attested");
}

#[tokio::test]
async fn podman_pulls_and_skopeo_copies_an_image_with_an_attestation() {
    let (_hub, roadstead, index) = scene().await;
    let podman = Podman::new(&recipe("### podman, buildah, skopeo, CRI-O", "toml", &roadstead.host()));
    let image = format!("docker.io/team/app:{TAG}");
    podman.pull(&image);
    assert_eq!(podman.greeting_in(&image), "attested");

    let skopeo = |args: &[&str]| run(&find("skopeo", "skopeo"), args, &[]);
    let host = roadstead.host();
    let (from, to) = (format!("docker://{host}/docker.io/team/app:{TAG}"), format!("docker://{host}/copies/app:{TAG}"));
    skopeo(&["copy", "--all", "--src-tls-verify=false", "--dest-tls-verify=false", &from, &to]);
    let raw = skopeo(&["inspect", "--raw", "--tls-verify=false", &to]);
    assert_eq!(digest_of(raw.as_bytes()), index.digest());
}

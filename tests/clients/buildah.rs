//! buildah makes an image, pushes it, and runs what another storage pulled.

use super::folder::Folder;
use super::program::find;
use super::registry::Registry;
use super::{busybox, containers, roadstead};

struct Buildah {
    folder: Folder,
}

impl Buildah {
    fn new() -> Self {
        Self { folder: containers::folder("") }
    }

    fn run(&self, args: &[&str]) -> String {
        containers::run_in(&self.folder, &find("buildah", "buildah"), args)
    }
}

#[tokio::test]
async fn buildah_builds_on_a_mirrored_image_pushes_and_another_storage_pulls() {
    let hub = Registry::start();
    hub.push("library/busybox", "latest", &busybox::image("the base")).await;
    let roadstead = roadstead(&[("docker.io", &hub)]);
    let base = format!("{}/docker.io/library/busybox:latest", roadstead.host());
    let built = format!("{}/team/built:v1", roadstead.host());

    let builder = Buildah::new();
    builder.folder.write("greeting", "built upon it");
    let container = builder.run(&["from", "--quiet", "--tls-verify=false", &base]);
    builder.run(&["copy", "--quiet", &container, &builder.folder.at("greeting"), "/etc/greeting"]);
    builder.run(&["commit", "--quiet", &container, &built]);
    builder.run(&["push", "--quiet", "--tls-verify=false", &built]);

    let other = Buildah::new();
    let container = other.run(&["from", "--quiet", "--tls-verify=false", &built]);
    let said = other.run(&["run", "--isolation", "chroot", &container, "/bin/cat", "/etc/greeting"]);
    assert_eq!(said, "built upon it");
}

//! buildah builds and pushes an image, then pulls it into another storage and runs it.

use super::folder::Folder;
use super::program::find;
use super::registry::Registry;
use super::{busybox, containers, roadstead, shapes};
use crate::support::Client;

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

    /// Runs a container that copies its greeting, and returns the copy. On a busy machine `buildah run` may lose what a
    /// container prints.
    fn greeting(&self, container: &str) -> String {
        let copy = "cat /etc/greeting >/copy";
        self.run(&["run", "--isolation", "chroot", container, "/bin/sh", "-c", copy]);
        let root = self.run(&["mount", container]);
        let greeting = std::fs::read_to_string(format!("{root}/copy")).expect("the container has run");
        self.run(&["umount", container]);
        greeting
    }
}

#[tokio::test]
async fn buildah_builds_on_a_mirrored_image_and_pushes_the_result() {
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
    assert_eq!(other.greeting(&container), "built upon it");
}

#[tokio::test]
async fn buildah_pushes_an_index_with_an_empty_layer() {
    let roadstead = roadstead(&[]);
    let (index, client) = (busybox::index("one of four"), Client::new());
    client.push_index(&roadstead.url(""), "team/multi", "v1", &index).await;
    let host = roadstead.host();
    let builder = Buildah::new();
    builder.run(&["manifest", "create", "list"]);
    let source = format!("docker://{host}/team/multi:v1");
    builder.run(&["manifest", "add", "--all", "--tls-verify=false", "list", &source]);
    let target = format!("docker://{host}/team/copy:v1");
    builder.run(&["manifest", "push", "--all", "--tls-verify=false", "list", &target]);
    let mut copied = shapes::listed(&roadstead.url("/v2/team/copy/manifests/v1")).await;
    let mut wanted: Vec<String> = index.images.iter().map(|image| image.digest().to_owned()).collect();
    copied.sort();
    wanted.sort();
    assert_eq!(copied, wanted);

    let image = shapes::with_empty_layer(&index.images[0]);
    client.push_image(&roadstead.url(""), "team/empty-layer", "v1", &image).await;
    for name in ["copy", "empty-layer"] {
        let other = Buildah::new();
        let container = other.run(&["from", "--quiet", "--tls-verify=false", &format!("{host}/team/{name}:v1")]);
        assert_eq!(other.greeting(&container), "one of four", "{name}");
    }
}

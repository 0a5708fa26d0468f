//! podman with its own storage. It sends no `ns`: the upstream is the first part of the path.

use std::path::PathBuf;

use super::folder::Folder;
use super::program::find;
use super::readme::recipe;
use super::registry::Registry;
use super::{busybox, containers, roadstead, shapes, two_registries};
use crate::support::Client;

pub struct Podman {
    program: PathBuf,
    folder: Folder,
}

impl Podman {
    /// podman with this `registries.conf`.
    pub fn new(registries: &str) -> Self {
        Self::of_program(find("podman", "podman"), registries)
    }

    /// This program with this `registries.conf`.
    pub fn of_program(program: PathBuf, registries: &str) -> Self {
        Self { program, folder: containers::folder(registries) }
    }

    pub fn run(&self, args: &[&str]) -> String {
        containers::run_in(&self.folder, &self.program, args)
    }

    pub fn pull(&self, image: &str) {
        self.run(&["pull", "--quiet", image]);
    }

    pub fn digest_of(&self, image: &str) -> String {
        self.run(&["image", "inspect", "--format", "{{.Digest}}", image])
    }

    pub fn greeting_in(&self, image: &str) -> String {
        self.run(&["run", "--rm", "--network", "none", image, "/bin/cat", "/etc/greeting"])
    }
}

#[tokio::test]
async fn podman_pulls_through_the_path_form() {
    let [(hub, from_hub), (github, from_github)] = two_registries("library/busybox", "latest").await;
    let roadstead = roadstead(&[("docker.io", &hub), ("ghcr.io", &github)]);
    let host = roadstead.host();
    let podman = Podman::new(&format!(
        r#"
        [[registry]]
        prefix = "docker.io"
        location = "docker.io"
        [[registry.mirror]]
        location = "{host}/docker.io"
        insecure = true

        [[registry]]
        prefix = "ghcr.io"
        location = "{host}/ghcr.io"
        insecure = true
        "#
    ));
    for (image, wanted, greeting) in [
        ("docker.io/library/busybox:latest", &from_hub, "from the hub"),
        ("ghcr.io/team/tool:v1", &from_github, "from github"),
    ] {
        podman.pull(image);
        assert_eq!(podman.digest_of(image), wanted.digest());
        assert_eq!(podman.greeting_in(image), greeting);
    }
}

#[tokio::test]
async fn podman_pushes_an_index_and_pulls_an_image_with_an_empty_layer() {
    let roadstead = roadstead(&[]);
    let (index, client) = (busybox::index("one of three"), Client::new());
    client.push_index(&roadstead.url(""), "team/multi", "v1", &index).await;
    let image = shapes::with_empty_layer(&index.images[0]);
    client.push_image(&roadstead.url(""), "team/empty-layer", "v1", &image).await;
    let host = roadstead.host();
    let podman = Podman::new(&format!("[[registry]]\nlocation = \"{host}\"\ninsecure = true\n"));
    podman.run(&["manifest", "create", "list"]);
    let source = format!("docker://{host}/team/multi:v1");
    podman.run(&["manifest", "add", "--all", "--tls-verify=false", "list", &source]);
    let target = format!("docker://{host}/team/copy:v1");
    podman.run(&["manifest", "push", "--all", "--tls-verify=false", "list", &target]);
    assert_eq!(shapes::listed(&roadstead.url("/v2/team/copy/manifests/v1")).await.len(), 3);
    for name in ["copy", "empty-layer"] {
        let image = format!("{host}/team/{name}:v1");
        podman.pull(&image);
        assert_eq!(podman.greeting_in(&image), "one of three", "{name}");
    }
}

#[tokio::test]
async fn podman_pulls_with_the_readme_recipe() {
    let [(hub, from_hub), (github, from_github)] = two_registries("library/busybox", "latest").await;
    let roadstead = roadstead(&[("docker.io", &hub), ("ghcr.io", &github)]);
    let podman = Podman::new(&recipe("### podman, buildah, skopeo, CRI-O", "toml", &roadstead.host()));
    for (image, wanted) in [("docker.io/library/busybox:latest", &from_hub), ("ghcr.io/team/tool:v1", &from_github)] {
        podman.pull(image);
        assert_eq!(podman.digest_of(image), wanted.digest());
    }
}

/// With a mirror for digests only or for tags only, podman requests the rest from the registry itself.
#[tokio::test]
async fn podman_respects_pull_from_mirror() {
    let (hub, image) = (Registry::start(), busybox::image("by half"));
    hub.push("team/tool", "v1", &image).await;
    let (by_tag, by_digest) = ("hub.test/team/tool:v1".to_owned(), format!("hub.test/team/tool@{}", image.digest()));
    for (mode, through, around) in [("digest-only", &by_digest, &by_tag), ("tag-only", &by_tag, &by_digest)] {
        let roadstead = roadstead(&[("docker.io", &hub)]);
        let (host, port) = (roadstead.host(), hub.port());
        let registries = format!(
            r#"
            [[registry]]
            prefix = "hub.test"
            location = "127.0.0.1:{port}"
            insecure = true
            [[registry.mirror]]
            location = "{host}/docker.io"
            insecure = true
            pull-from-mirror = "{mode}"
            "#
        );
        let manifests = [("handler", "manifest")];
        Podman::new(&registries).pull(around);
        assert_eq!(roadstead.metric("registry_http_requests_total", &manifests).await, 0.0, "{mode}");
        Podman::new(&registries).pull(through);
        assert!(roadstead.metric("registry_http_requests_total", &manifests).await > 0.0, "{mode}");
    }
}

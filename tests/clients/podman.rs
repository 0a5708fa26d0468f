//! podman with a storage of its own. It knows no `ns`: the upstream is the start of the path.

use super::folder::Folder;
use super::program::{find, run};
use super::registry::Registry;
use super::{busybox, roadstead};

/// Locks of its own instead of the machine's, and no service manager. By itself podman asks for a
/// million files and processes, which a sandboxed machine may not have to give.
const CONTAINERS_CONF: &str = r#"
[containers]
default_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
lock_type = "file"
"#;

pub struct Podman {
    folder: Folder,
}

impl Podman {
    /// With this `registries.conf`.
    pub fn new(registries: &str) -> Self {
        let folder = Folder::new();
        folder.write("registries.conf", registries);
        folder.write("storage.conf", &folder.storage_conf());
        let (tmp, network) = (folder.at("tmp"), folder.at("network"));
        let own = format!("tmp_dir = {tmp:?}\n[network]\nnetwork_config_dir = {network:?}\n");
        folder.write("containers.conf", &format!("{CONTAINERS_CONF}{own}"));
        Self { folder }
    }

    fn run(&self, args: &[&str]) -> String {
        let at = |entry| self.folder.at(entry);
        let environment = [
            ("CONTAINERS_CONF", at("containers.conf")),
            ("CONTAINERS_REGISTRIES_CONF", at("registries.conf")),
            ("CONTAINERS_STORAGE_CONF", at("storage.conf")),
            ("HOME", at("")),
        ];
        let environment = environment.each_ref().map(|(name, value)| (*name, value.as_str()));
        run(&find("podman", "podman"), args, &environment)
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
    let (hub, github) = (Registry::start(), Registry::start());
    let (from_hub, from_github) = (busybox::image("from the hub"), busybox::image("from github"));
    hub.push("library/busybox", "latest", &from_hub).await;
    github.push("team/tool", "v1", &from_github).await;
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

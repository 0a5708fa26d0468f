//! containerd with its own root, state and socket, controlled by `ctr`.

use std::path::{Path, PathBuf};

use super::folder::Folder;
use super::program::{MachineLock, NO_INTERNET, find, run};
use super::readme::{generated, recipe};
use super::registry::Registry;
use super::{busybox, roadstead, two_registries};
use crate::support::daemon::Daemon;
use crate::support::process::ServerProcess;

pub struct Containerd {
    _daemon: Daemon,
    ctr: PathBuf,
    pub folder: Folder,
}

impl Containerd {
    pub fn start() -> Self {
        Self::start_program(&find("containerd", "containerd"), &find("ctr", "containerd"), "")
    }

    /// Starts this program, with more TOML in its configuration. Other programs beside it come before those of the path.
    pub fn start_program(program: &Path, ctr: &Path, more: &str) -> Self {
        let folder = Folder::new();
        let config = format!(
            r#"
            version = 2
            root = "{root}"
            state = "{state}"
            disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.cri.v1.images", "io.containerd.cri.v1.runtime"]
            [grpc]
            address = "{socket}"
            [ttrpc]
            address = "{socket}.ttrpc"
            [plugins."io.containerd.internal.v1.opt"]
            path = "{opt}"
            {more}"#,
            root = folder.at("root"),
            state = folder.at("state"),
            socket = folder.at("sock"),
            opt = folder.at("opt"),
        );
        folder.write("config.toml", &config);
        let args = ["--config", &folder.at("config.toml")];
        let beside = program.parent().and_then(Path::to_str).expect("a program is in a folder");
        let path = format!("{beside}:{}", std::env::var("PATH").unwrap_or_default());
        let environment = [&NO_INTERNET[..], &[("PATH", &path)]].concat();
        let mut daemon = Daemon::spawn_with("containerd", folder.path(), program, &args, &environment);
        let socket = folder.at("sock");
        daemon.wait_until(|| Path::new(&socket).exists());
        run(ctr, &["-a", &socket, "version"], &[]);
        Self { _daemon: daemon, ctr: ctr.to_owned(), folder }
    }

    pub fn socket(&self) -> String {
        self.folder.at("sock")
    }

    /// Pulls as a node does whose containerd has these files in `certs.d`. `launcher` starts `ctr`, for example in the node's
    /// network.
    pub fn pull_from(&self, launcher: &[&str], files: &[(&str, &str)], image: &str) {
        for (path, text) in files {
            self.folder.write(&format!("certs.d/{path}/hosts.toml"), text);
        }
        let (socket, hosts) = (self.socket(), self.folder.at("certs.d"));
        let fixed =
            ["-a", &socket, "-n", "test", "images", "pull", "--snapshotter", "native", "--hosts-dir", &hosts, image];
        let command = [launcher, &[self.ctr.to_str().expect("a plain path")], &fixed].concat();
        let (program, args) = command.split_first().expect("a program");
        // The launcher's network decides what can be reached.
        run(Path::new(program), args, &[("NO_PROXY", "*"), ("no_proxy", "*")]);
    }

    pub fn ctr(&self, args: &[&str]) -> String {
        let socket = self.socket();
        let args = [&["-a", &socket, "-n", "test"], args].concat();
        run(&self.ctr, &args, &[])
    }

    /// The hosts.toml that k3s generates from the README's registries.yaml: an endpoint without a path gets `/v2`, and `"*"`
    /// becomes `_default`.
    pub fn mirror_everything(&self, roadstead: &ServerProcess) -> String {
        let yaml = recipe("### k3s and k3d", "yaml", &roadstead.host());
        assert!(yaml.contains("\"*\":"), "{yaml}");
        let (_, endpoint) = yaml.split_once("- \"").expect("an endpoint");
        let (endpoint, _) = endpoint.split_once('"').expect("an endpoint ends");
        let hosts = format!("[host.\"{endpoint}/v2\"]\n  capabilities = [\"pull\", \"resolve\"]\n");
        self.folder.write("certs.d/_default/hosts.toml", &hosts);
        self.folder.at("certs.d")
    }

    /// Installs the output of `client-config` below a folder, including its commented part for pushes.
    pub fn set_up(&self, printed: &str) -> String {
        let (_, path) = printed.split_once("# /etc/containerd/certs.d/").expect("a path");
        let (path, _) = path.split_once('\n').expect("the marker line");
        self.folder.write(&format!("certs.d/{path}"), printed);
        let (_, pushes) = printed.split_once("# For pushes, create /etc/containerd/certs.d/").expect("a second path");
        let (path, marked) = pushes.split_once(" with the following lines, uncommented.\n").expect("the marker line");
        let file: String = marked.lines().map(|line| format!("{}\n", line.trim_start_matches('#'))).collect();
        self.folder.write(&format!("certs.d/{path}"), &file);
        self.folder.at("certs.d")
    }

    pub fn pull(&self, hosts_dir: &str, image: &str) {
        self.ctr(&["images", "pull", "--snapshotter", "native", "--hosts-dir", hosts_dir, image]);
    }

    pub fn digest_of(&self, image: &str) -> String {
        let list = self.ctr(&["images", "ls", &format!("name=={image}")]);
        let digest = list.split_whitespace().find(|word| word.starts_with("sha256:"));
        digest.expect("the list names the digest").to_owned()
    }

    pub fn greeting_in(&self, image: &str) -> String {
        self.ctr(&["run", "--rm", "--snapshotter", "native", image, "greeting", "/bin/cat", "/etc/greeting"])
    }
}

#[tokio::test]
async fn containerd_pulls_from_two_registries_through_one_mirror() {
    // The same name and tag at both registries: only `ns` distinguishes them.
    let [(hub, from_hub), (github, from_github)] = two_registries("team/tool", "v1").await;
    let roadstead = roadstead(&[("docker.io", &hub), ("ghcr.io", &github)]);
    let _lock = MachineLock::take("daemon");
    let containerd = Containerd::start();
    let hosts = containerd.mirror_everything(&roadstead);
    for (image, wanted, greeting) in
        [("docker.io/team/tool:v1", &from_hub, "from the hub"), ("ghcr.io/team/tool:v1", &from_github, "from github")]
    {
        containerd.pull(&hosts, image);
        assert_eq!(containerd.digest_of(image), wanted.digest());
        assert_eq!(containerd.greeting_in(image), greeting);
    }
}

#[tokio::test]
async fn containerd_works_with_the_output_of_client_config() {
    let [(hub, from_hub), (github, from_github)] = two_registries("team/tool", "v1").await;
    let roadstead = roadstead(&[("docker.io", &hub), ("ghcr.io", &github)]);
    let _lock = MachineLock::take("daemon");
    let containerd = Containerd::start();
    let hosts = containerd.set_up(&generated("containerd", &roadstead.url("")));
    for (image, wanted) in [("docker.io/team/tool:v1", &from_hub), ("ghcr.io/team/tool:v1", &from_github)] {
        containerd.pull(&hosts, image);
        assert_eq!(containerd.digest_of(image), wanted.digest());
    }
    let own = format!("{}/team/app:v1", roadstead.host());
    containerd.ctr(&["images", "tag", "docker.io/team/tool:v1", &own]);
    containerd.ctr(&["images", "push", "--hosts-dir", &hosts, &own]);
    containerd.ctr(&["images", "rm", &own]);
    containerd.pull(&hosts, &own);
    assert_eq!(containerd.digest_of(&own), from_hub.digest());
}

#[tokio::test]
async fn containerd_pulls_through_a_mirror_with_a_path() {
    let hub = Registry::start();
    let images = ["before", "after", "override"].map(busybox::image);
    for (image, name) in images.iter().zip(["before", "after", "override"]) {
        hub.push(&format!("team/{name}"), "v1", image).await;
    }
    let roadstead = roadstead(&[("docker.io", &hub)]);
    let _lock = MachineLock::take("daemon");
    let containerd = Containerd::start();
    for (name, path, more, image) in [
        ("before", "docker.io", "", &images[0]),
        ("after", "v2/docker.io", "", &images[1]),
        ("override", "v2/docker.io", "override_path = true\n", &images[2]),
    ] {
        let url = roadstead.url(&format!("/{path}"));
        let hosts = format!("[host.\"{url}\"]\ncapabilities = [\"pull\", \"resolve\"]\n{more}");
        containerd.folder.write("paths.d/docker.io/hosts.toml", &hosts);
        let pulled = format!("docker.io/team/{name}:v1");
        containerd.pull(&containerd.folder.at("paths.d"), &pulled);
        assert_eq!(containerd.digest_of(&pulled), image.digest());
    }
}

#[tokio::test]
async fn containerd_pulls_its_platform_from_an_index() {
    let hub = Registry::start();
    let index = busybox::index("one of three");
    hub.push_index("library/busybox", "latest", &index).await;
    let roadstead = roadstead(&[("docker.io", &hub)]);
    let _lock = MachineLock::take("daemon");
    let containerd = Containerd::start();
    let hosts = containerd.mirror_everything(&roadstead);
    let image = "docker.io/library/busybox:latest";
    containerd.pull(&hosts, image);
    assert_eq!(containerd.digest_of(image), index.digest());
    assert_eq!(containerd.greeting_in(image), "one of three");
}

//! A private dockerd, with its own data root, socket and containerd, and with Roadstead as its registry mirror.

use std::path::{Path, PathBuf};

use super::containerd::Containerd;
use super::folder::Folder;
use super::network::Network;
use super::podman::Podman;
use super::program::{MachineLock, NO_INTERNET, fail, find, run};
use super::readme::recipe;
use super::registry::Registry;
use super::{busybox, roadstead, shapes};
use crate::support::Client;
use crate::support::daemon::Daemon;
use crate::support::process::ServerProcess;

/// The programs of one version of Docker, and how its images are stored.
pub struct Programs {
    pub dockerd: PathBuf,
    pub docker: PathBuf,
    pub start_containerd: fn() -> Containerd,
    pub storage: &'static [&'static str],
}

pub struct Docker {
    _daemon: Daemon,
    docker: PathBuf,
    /// A private containerd: dockerd would otherwise use that of the machine, with its images.
    _containerd: Containerd,
    pub folder: Folder,
    _lock: MachineLock,
}

impl Programs {
    /// Docker as Debian packages it, with its classic store.
    fn of_debian() -> Self {
        Self {
            dockerd: find("dockerd", "docker.io"),
            docker: find("docker", "docker.io"),
            start_containerd: Containerd::start,
            storage: &["--storage-driver", "vfs"],
        }
    }
}

impl Docker {
    /// Starts dockerd with the configuration of the README.
    pub fn start(roadstead: &ServerProcess) -> Self {
        Self::start_with(&recipe("### Docker", "json", &roadstead.host()))
    }

    /// Starts dockerd with this `daemon.json`. Its containers have no network but that of the machine.
    pub fn start_with(daemon_json: &str) -> Self {
        Self::start_programs(Programs::of_debian(), daemon_json)
    }

    pub fn start_programs(programs: Programs, daemon_json: &str) -> Self {
        Self::launch(programs, daemon_json, &[], &["--bridge", "none"])
    }

    /// Starts dockerd in a network of its own, in which containers have addresses and published ports.
    pub fn start_in(network: &Network) -> Self {
        let enter = network.enter();
        Self::launch(Programs::of_debian(), "{}", &enter.each_ref().map(String::as_str), &[])
    }

    /// `launcher` is the command that starts dockerd; if it is empty, dockerd is started directly.
    fn launch(programs: Programs, daemon_json: &str, launcher: &[&str], more: &[&str]) -> Self {
        let lock = MachineLock::take("daemon");
        let (containerd, folder) = ((programs.start_containerd)(), Folder::new());
        folder.write("daemon.json", daemon_json);
        let (socket, containerd_socket) = (format!("unix://{}", folder.at("sock")), containerd.socket());
        let args = [
            ["--config-file", &folder.at("daemon.json")],
            ["--data-root", &folder.at("data")],
            ["--exec-root", &folder.at("exec")],
            ["--pidfile", &folder.at("pid")],
            ["--containerd", &containerd_socket],
            ["--host", &socket],
            ["--iptables=false", "--ip6tables=false"],
        ];
        let dockerd = programs.dockerd.to_str().expect("a plain path");
        let command = [launcher, &[dockerd], args.as_flattened(), programs.storage, more].concat();
        let (program, args) = command.split_first().expect("a program");
        let mut daemon = Daemon::spawn_with("dockerd", folder.path(), Path::new(program), args, &NO_INTERNET);
        daemon.wait_until(|| folder.path().join("sock").exists());
        let docker = Self { _daemon: daemon, docker: programs.docker, _containerd: containerd, folder, _lock: lock };
        docker.run(&["version"]);
        docker
    }

    pub fn run(&self, args: &[&str]) -> String {
        self.command(run, args)
    }

    /// Runs a command that must fail, and returns what it prints.
    pub fn fail(&self, args: &[&str]) -> String {
        self.command(fail, args)
    }

    fn command(&self, run: impl Fn(&Path, &[&str], &[(&str, &str)]) -> String, args: &[&str]) -> String {
        let socket = format!("unix://{}", self.folder.at("sock"));
        let args = [&["--host", &socket], args].concat();
        // Its own home, so that no existing credentials are sent.
        run(&self.docker, &args, &[("HOME", &self.folder.at(""))])
    }

    pub fn greeting_in(&self, image: &str) -> String {
        self.run(&["run", "--rm", "--network", "none", image, "/bin/cat", "/etc/greeting"])
    }
}

#[tokio::test]
async fn second_docker_pull_comes_from_the_cache() {
    let hub = Registry::start();
    let image = busybox::image("hello from the mirror");
    hub.push("library/busybox", "latest", &image).await;
    let roadstead = roadstead(&[("docker.io", &hub)]);
    let docker = Docker::start(&roadstead);

    docker.run(&["pull", "--quiet", "busybox"]);
    assert_eq!(docker.greeting_in("busybox"), "hello from the mirror");
    let id = docker.run(&["inspect", "--format", "{{.Id}}", "busybox"]);
    assert_eq!(id, image.config.digest);
    let blobs = image.blobs().count();
    assert_eq!(hub.blob_gets("library/busybox"), blobs);

    docker.run(&["rmi", "--force", "busybox"]);
    docker.run(&["pull", "--quiet", "busybox"]);
    assert_eq!(docker.greeting_in("busybox"), "hello from the mirror");
    assert_eq!(hub.blob_gets("library/busybox"), blobs, "the second pull came from the cache");
    let labels = [("upstream", "docker.io"), ("kind", "blob")];
    let counted = roadstead.metric("roadstead_upstream_requests_total", &labels).await;
    assert_eq!(counted, blobs as f64, "Roadstead and the upstream count the same GETs");
}

#[tokio::test]
async fn other_clients_pull_what_docker_pushed() {
    let hub = Registry::start();
    let roadstead = roadstead(&[("docker.io", &hub)]);
    let app = format!("{}/team/app:v1", roadstead.host());
    let docker = Docker::start(&roadstead);
    let tar = busybox::root_tar(&docker.folder, "made here");
    docker.run(&["import", &tar, &app]);
    docker.run(&["push", "--quiet", &app]);
    let pushed = docker.run(&["inspect", "--format", "{{index .RepoDigests 0}}", &app]);
    let (_, digest) = pushed.split_once('@').expect("a push names the digest");

    docker.run(&["rmi", "--force", &app]);
    docker.run(&["pull", "--quiet", &app]);
    assert_eq!(docker.greeting_in(&app), "made here");

    let podman = Podman::new(&insecure(&roadstead.host()));
    podman.pull(&app);
    assert_eq!(podman.digest_of(&app), digest);
    assert_eq!(podman.greeting_in(&app), "made here");
    assert_eq!(hub.blob_gets("team/app"), 0, "a pushed name is not requested upstream");
}

#[tokio::test]
async fn docker_pulls_and_pushes_its_platform_and_an_empty_layer() {
    let roadstead = roadstead(&[]);
    let (index, client) = (busybox::index("one of three"), Client::new());
    let image = shapes::with_empty_layer(&index.images[0]);
    client.push_index(&roadstead.url(""), "team/multi", "v1", &index).await;
    client.push_image(&roadstead.url(""), "team/empty-layer", "v1", &image).await;
    let docker = Docker::start(&roadstead);
    for name in ["multi", "empty-layer"] {
        let pulled = format!("{}/team/{name}:v1", roadstead.host());
        docker.run(&["pull", "--quiet", &pulled]);
        assert_eq!(docker.greeting_in(&pulled), "one of three", "{name}");
        let pushed = format!("{}/copies/{name}:v1", roadstead.host());
        docker.run(&["tag", &pulled, &pushed]);
        docker.run(&["push", "--quiet", &pushed]);
        docker.run(&["rmi", "--force", &pulled, &pushed]);
        docker.run(&["pull", "--quiet", &pushed]);
        assert_eq!(docker.greeting_in(&pushed), "one of three", "{name}");
    }
}

pub fn insecure(host: &str) -> String {
    format!("[[registry]]\nlocation = \"{host}\"\ninsecure = true\n")
}

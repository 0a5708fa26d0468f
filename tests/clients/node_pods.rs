//! The containers of the pod on each node (`deploy/kubernetes/per-node`), as processes with the same arguments, users and
//! capabilities: containerd of the node pulls through the server until the pod ends.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use super::busybox;
use super::containerd::Containerd;
use super::folder::Folder;
use super::program::MachineLock;
use super::registry::Registry;
use crate::support::daemon::{Daemon, free_port};

const SHAPE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/kubernetes/per-node");

/// A node: folders that belong to root, and the program where every user can run it.
struct Node {
    folder: Folder,
    pod: Value,
    port: u16,
}

impl Node {
    fn new() -> Self {
        let folder = Folder::new();
        fs::set_permissions(folder.path(), Permissions::from_mode(0o755)).expect("the mode can be changed");
        fs::copy(env!("CARGO_BIN_EXE_roadstead"), folder.at("roadstead")).expect("the program can be copied");
        for name in ["data", "certs.d"] {
            fs::create_dir(folder.at(name)).expect("a folder can be created");
        }
        let manifest = fs::read_to_string(format!("{SHAPE}/daemonset.yaml")).expect("the manifest");
        let manifest: Value = serde_saphyr::from_str(&manifest).expect("YAML");
        Self { folder, pod: manifest["spec"]["template"]["spec"].clone(), port: free_port() }
    }

    fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    /// The command line of a container, with the node's own paths and port, behind a command that takes away what the
    /// container does not have.
    fn command(&self, kind: &str, name: &str) -> Vec<String> {
        let containers = self.pod[kind].as_array().expect("containers");
        let container = containers.iter().find(|container| container["name"] == name).expect("the container");
        let security = &container["securityContext"];
        let id = |key: &str| security[key].as_u64().or(self.pod["securityContext"][key].as_u64()).expect("a number");
        assert_eq!(security["capabilities"]["drop"], serde_json::json!(["ALL"]));
        let added = security["capabilities"]["add"].as_array().into_iter().flatten();
        let added = added.map(|name| format!(",+{}", name.as_str().expect("a name").to_lowercase()));
        let mut command: Vec<String> =
            ["--pdeathsig=KILL", "--no-new-privs", "--clear-groups", "--inh-caps=-all"].map(str::to_owned).into();
        command.push(format!("--bounding-set=-all{}", added.collect::<String>()));
        command.extend([format!("--reuid={}", id("runAsUser")), format!("--regid={}", id("runAsGroup"))]);
        command.extend(["--".to_owned(), self.folder.at("roadstead")]);
        for argument in container["args"].as_array().expect("arguments") {
            command.push(match argument.as_str().expect("a word") {
                "/var/lib/registry" => self.folder.at("data"),
                "/host/etc/containerd/certs.d" => self.folder.at("certs.d"),
                "/etc/roadstead/roadstead.toml" => format!("{SHAPE}/roadstead.toml"),
                word => word.replace(":5000", &format!(":{}", self.port)),
            });
        }
        command
    }

    fn start(&self, name: &str, more: &[&str]) -> Daemon {
        let command = self.command("containers", name);
        let command: Vec<&str> = command.iter().map(String::as_str).chain(more.iter().copied()).collect();
        Daemon::spawn(name, self.folder.path(), Path::new("setpriv"), &command)
    }
}

#[tokio::test]
async fn containerd_of_a_node_pulls_through_its_pod() {
    let hub = Registry::start();
    let images = [busybox::image("first"), busybox::image("second")];
    hub.push("team/tool", "v1", &images[0]).await;
    let node = Node::new();
    let owner =
        || fs::metadata(node.data()).map(|found| (found.uid(), found.gid(), found.mode() & 0o7777)).expect("data");
    assert_eq!(owner(), (0, 0, 0o755));
    for _start in 0..2 {
        let output = Command::new("setpriv").args(node.command("initContainers", "data-folder")).output();
        let output = output.expect("setpriv, of util-linux, can be started");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(owner(), (65532, 65532, 0o700));
    }
    let (listen, data) = (format!("127.0.0.1:{}", node.port), node.folder.at("data"));
    let upstream = format!("docker.io={}", hub.url());
    let mut server = node.start("roadstead", &["--listen", &listen, "--data", &data, "--upstream", &upstream]);
    server.wait_until(|| std::net::TcpStream::connect(&listen).is_ok());
    let mut hosts = node.start("containerd-config", &[]);
    let file = node.folder.path().join("certs.d/_default/hosts.toml");
    hosts.wait_until(|| file.exists());

    let _lock = MachineLock::take("daemon");
    let containerd = Containerd::start();
    containerd.pull(&node.folder.at("certs.d"), "docker.io/team/tool:v1");
    assert_eq!(containerd.digest_of("docker.io/team/tool:v1"), images[0].digest());
    // The same image under the name of the server.
    let own = format!("{listen}/docker.io/team/tool:v1");
    containerd.pull(&node.folder.at("certs.d"), &own);
    assert_eq!(containerd.digest_of(&own), images[0].digest());

    // The kubelet stops the containers of a pod at the same time.
    assert!(hosts.stop().success() && server.stop().success(), "{}{}", hosts.log(), server.log());
    assert_eq!(fs::read_dir(node.folder.at("certs.d")).expect("the folder").count(), 0);
}

#[test]
fn data_of_another_user_is_not_taken_over() {
    let node = Node::new();
    fs::create_dir(node.data().join("lost+found")).expect("a folder can be created");
    fs::write(node.data().join("lock"), "").expect("a file can be written");
    let run = || Command::new("setpriv").args(node.command("initContainers", "data-folder")).output().expect("setpriv");
    let output = run();
    let line = String::from_utf8_lossy(&output.stderr);
    let remedy = format!("chown -R 65532:65532 {}", node.folder.at("data"));
    assert!(!output.status.success() && line.lines().count() == 1 && line.contains(&remedy), "{line}");
    fs::remove_file(node.data().join("lock")).expect("the file can be removed");
    assert!(run().status.success(), "a new file system has lost+found only");

    // A link in the place of the folder: its target keeps its owner.
    let node = Node::new();
    fs::remove_dir(node.data()).expect("the folder can be removed");
    fs::create_dir(node.folder.at("elsewhere")).expect("a folder can be created");
    std::os::unix::fs::symlink(node.folder.at("elsewhere"), node.data()).expect("a link can be created");
    let output = Command::new("setpriv").args(node.command("initContainers", "data-folder")).output().expect("setpriv");
    assert!(!output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    assert_eq!(fs::metadata(node.folder.at("elsewhere")).expect("the folder").uid(), 0);
}

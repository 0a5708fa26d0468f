//! Registries as k3d and kind create them, with our image in place of `registry:2`, and the nodes of their clusters.
//!
//! The flags, variables, mounts and ports of the containers are those of k3d 5.9 (`pkg/client/registry.go`) and of kind's
//! script `kind-with-registry.sh`. A node is a containerd with the files that these programs write.

use super::containerd::Containerd;
use super::docker::Docker;
use super::folder::Folder;
use super::network::Network;
use super::program::find;
use super::{busybox, image};
use crate::support::daemon::Daemon;

/// Docker in a network of its own, with our image as `roadstead`.
struct Machine {
    network: Network,
    docker: Docker,
    node: Containerd,
}

impl Machine {
    fn start() -> Self {
        let network = Network::new();
        let docker = Docker::start_in(&network);
        image::load(&docker, "roadstead");
        Self { node: Containerd::start(), network, docker }
    }

    /// The address of a container in a network of Docker.
    fn address_of(&self, container: &str, network: &str) -> String {
        let format = format!("{{{{(index .NetworkSettings.Networks \"{network}\").IPAddress}}}}");
        self.docker.run(&["inspect", "--format", &format, container])
    }

    /// Makes an image and pushes it under this name.
    fn push(&self, name: &str, greeting: &str) {
        let tar = busybox::root_tar(&self.docker.folder, greeting);
        self.docker.run(&["import", &tar, name]);
        self.docker.run(&["push", "--quiet", name]);
    }

    /// Pulls on a node whose containerd has these files, and runs the image.
    fn greeting_on_node(&self, host: (&str, &str), files: &[(&str, &str)], image: &str) -> String {
        let enter = self.network.enter_with_hosts(&[host]);
        let enter: Vec<_> = enter.iter().map(String::as_str).collect();
        self.node.pull_from(&enter, files, image);
        self.node.greeting_in(image)
    }
}

/// Debian's docker-registry in the network of the machine, at this address and port.
fn upstream_in(network: &Network, folder: &Folder, address: &str, port: u16) -> Daemon {
    let config = format!(
        "version: 0.1\nstorage: {{filesystem: {{rootdirectory: {}}}}}\nhttp: {{addr: '{address}:{port}', secret: of-a-test}}\n",
        folder.at("data")
    );
    let config = folder.write("config.yml", &config);
    let registry = find("docker-registry", "docker-registry");
    let enter = network.enter();
    let [nsenter, net, end] = enter.each_ref().map(String::as_str);
    let args = [net, end, registry.to_str().unwrap(), "serve", config.to_str().unwrap()];
    Daemon::spawn("docker-registry", folder.path(), std::path::Path::new(nsenter), &args)
}

#[tokio::test]
async fn k3d_registry_create_runs_our_image_and_keeps_its_volume() {
    let machine = Machine::start();
    let (docker, volume) = (&machine.docker, Folder::new());
    docker.run(&["network", "create", "--driver", "bridge", "k3d-test"]);
    // k3d registry create reg --image roadstead --port 127.0.0.1:5001 --delete-enabled --volume DIR:/var/lib/registry
    let mount = format!("{}:/var/lib/registry", volume.at("images"));
    let create = [
        ["run", "--detach"],
        ["--name", "k3d-reg"],
        ["--network", "k3d-test"],
        ["--restart", "unless-stopped"],
        ["--publish", "127.0.0.1:5001:5000"],
        ["--env", "REGISTRY_STORAGE_DELETE_ENABLED=true"],
        ["--label", "k3d.role=registry"],
        ["--volume", &mount],
    ];
    let create = [create.as_flattened(), &["roadstead"]].concat();
    docker.run(&create);
    assert_eq!(machine.network.status_of("http://127.0.0.1:5001/readyz"), "200");
    machine.push("localhost:5001/team/app:v1", "through k3d");

    // What k3s makes of the registries.yaml that k3d generates.
    let hosts = "server = \"https://k3d-reg:5001/v2\"\n\n[host.\"http://k3d-reg:5000/v2\"]\n  capabilities = [\"pull\", \"resolve\"]\n";
    let files = [("k3d-reg:5001", hosts)];
    let address = machine.address_of("k3d-reg", "k3d-test");
    let pull = || machine.greeting_on_node((&address, "k3d-reg"), &files, "k3d-reg:5001/team/app:v1");
    assert_eq!(pull(), "through k3d");

    docker.run(&["rm", "--force", "k3d-reg"]);
    docker.run(&create);
    docker.run(&["image", "rm", "--force", "localhost:5001/team/app:v1"]);
    assert_eq!(machine.network.status_of("http://127.0.0.1:5001/readyz"), "200");
    docker.run(&["pull", "--quiet", "localhost:5001/team/app:v1"]);
}

#[tokio::test]
async fn k3d_registry_create_proxies_on_another_port() {
    let machine = Machine::start();
    let (docker, folder) = (&machine.docker, Folder::new());
    docker.run(&[
        "network",
        "create",
        "--driver",
        "bridge",
        "--gateway",
        "172.30.0.1",
        "--subnet",
        "172.30.0.0/24",
        "k3d-test",
    ]);
    let _upstream = upstream_in(&machine.network, &folder, "0.0.0.0", 5999);
    assert_eq!(machine.network.status_of("http://127.0.0.1:5999/v2/"), "200");
    machine.push("localhost:5999/library/app:v1", "from the upstream");

    // k3d registry create reg --image roadstead --proxy-remote-url URL --enforce-port-match --port 0.0.0.0:5050
    let create = [
        ["run", "--detach"],
        ["--name", "k3d-reg"],
        ["--network", "k3d-test"],
        ["--publish", "0.0.0.0:5050:5050"],
        ["--env", "REGISTRY_HTTP_ADDR=:5050"],
        ["--env", "REGISTRY_PROXY_REMOTEURL=http://172.30.0.1:5999"],
        ["--env", "REGISTRY_PROXY_USERNAME="],
        ["--env", "REGISTRY_PROXY_PASSWORD="],
        // In a cluster, the remote is Docker Hub. Nothing leaves this network, so it is the registry beside it.
        ["--env", "ROADSTEAD_UPSTREAM__DOCKER_IO__URL=http://172.30.0.1:5999"],
    ];
    docker.run(&[create.as_flattened(), &["roadstead"]].concat());
    assert_eq!(machine.network.status_of("http://127.0.0.1:5050/readyz"), "200");
    assert_eq!(machine.network.status_of("http://127.0.0.1:5050/v2/library/app/manifests/v1"), "200");

    // --registry-config of the user: docker.io through the registry.
    let hosts = "[host.\"http://k3d-reg:5050/v2\"]\n  capabilities = [\"pull\", \"resolve\"]\n";
    let address = machine.address_of("k3d-reg", "k3d-test");
    let files = [("docker.io", hosts)];
    let greeting = machine.greeting_on_node((&address, "k3d-reg"), &files, "docker.io/library/app:v1");
    assert_eq!(greeting, "from the upstream");
}

#[tokio::test]
async fn script_of_kind_runs_our_image() {
    let machine = Machine::start();
    let docker = &machine.docker;
    docker.run(&["network", "create", "--driver", "bridge", "kind"]);
    let create = [
        "run",
        "-d",
        "--restart=always",
        "-p",
        "127.0.0.1:5001:5000",
        "--network",
        "bridge",
        "--name",
        "kind-registry",
    ];
    docker.run(&[&create[..], &["roadstead"]].concat());
    docker.run(&["network", "connect", "kind", "kind-registry"]);
    assert_eq!(machine.network.status_of("http://127.0.0.1:5001/readyz"), "200");
    machine.push("localhost:5001/team/app:v1", "through kind");

    // In a node, localhost is not the registry.
    let address = machine.address_of("kind-registry", "kind");
    docker.run(&["network", "disconnect", "bridge", "kind-registry"]);
    let files = [("localhost:5001", "[host.\"http://kind-registry:5000\"]\n")];
    let greeting = machine.greeting_on_node((&address, "kind-registry"), &files, "localhost:5001/team/app:v1");
    assert_eq!(greeting, "through kind");
}

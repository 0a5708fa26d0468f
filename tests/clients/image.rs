//! The container image, as `make image` builds it, run by Docker.

use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use bytes::Bytes;
use serde_json::Value;

use super::docker::Docker;
use super::folder::Folder;
use super::program::{find, run};
use super::registry::Registry;
use super::{busybox, roadstead};
use crate::scene::until;
use crate::support::daemon::free_port;
use crate::support::process::ServerProcess;
use crate::support::{Client, Image};

const SOURCES: &str = env!("CARGO_MANIFEST_DIR");
const PROGRAM: &str = env!("CARGO_BIN_EXE_roadstead");
/// The program of the tests is not optimised for size.
const MAX_BYTES: (&str, &str) = ("MAX_IMAGE_BYTES", "200000000");
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The image as an OCI layout. It is made once, in the folder for files of this build.
fn layout() -> &'static Path {
    static LAYOUT: OnceLock<PathBuf> = OnceLock::new();
    LAYOUT.get_or_init(|| make_layout("image"))
}

fn make_layout(name: &str) -> PathBuf {
    let layout = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{}", std::process::id()));
    let script = Path::new(SOURCES).join("deploy/docker/layout.sh");
    run(&script, &[PROGRAM, layout.to_str().unwrap()], &[MAX_BYTES]);
    layout
}

fn read_json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// The document that a descriptor of the layout refers to.
fn referred(layout: &Path, descriptor: &Value) -> Value {
    let digest = descriptor["digest"].as_str().unwrap();
    read_json(&layout.join("blobs").join(digest.replace(':', "/")))
}

/// Pushes the image to a server as `tools/roadstead:v1`, and lets Docker pull it from there.
fn pull_image(docker: &Docker, server: &ServerProcess) -> String {
    let name = format!("{}/tools/roadstead:v1", server.host());
    let layout = format!("oci:{}:{VERSION}", layout().display());
    let copy = ["copy", "--insecure-policy", "--dest-tls-verify=false", &layout, &format!("docker://{name}")];
    run(&find("skopeo", "skopeo"), &copy, &[]);
    docker.run(&["pull", "--quiet", &name]);
    name
}

/// Gives the image to Docker under this name.
pub fn load(docker: &Docker, name: &str) {
    let (layout, socket) =
        (format!("oci:{}:{VERSION}", layout().display()), format!("unix://{}", docker.folder.at("sock")));
    let copy =
        ["copy", "--insecure-policy", "--dest-daemon-host", &socket, &layout, &format!("docker-daemon:{name}:latest")];
    run(&find("skopeo", "skopeo"), &copy, &[]);
}

/// A container of the image on the network of the machine, at a free port.
struct Container<'a> {
    docker: &'a Docker,
    name: String,
    port: u16,
}

impl<'a> Container<'a> {
    /// `options` are those of `docker run`, and `arguments` those of the program.
    fn start(docker: &'a Docker, image: &str, options: &[&str], arguments: &[&str]) -> Self {
        let port = free_port();
        let (name, listen) = (format!("roadstead-{port}"), format!("REGISTRY_HTTP_ADDR=127.0.0.1:{port}"));
        let fixed = ["run", "--detach", "--network", "host", "--name", &name, "--env", &listen];
        docker.run(&[&fixed, options, &[image], arguments].concat());
        Self { docker, name, port }
    }

    fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    async fn until_ready(&self) {
        let client = Client::new();
        let ready = async || {
            let answer = client.try_send("GET", &format!("{}/readyz", self.url()), &[], Bytes::new()).await;
            answer.is_ok_and(|answer| answer.status == 200)
        };
        until("the container is ready", ready).await;
        assert_eq!(self.docker.run(&["exec", &self.name, "roadstead", "health"]), "ready");
    }

    fn inspect(&self, format: &str) -> String {
        self.docker.run(&["inspect", "--format", format, &self.name])
    }

    /// Stops it, and returns its exit code.
    fn stop(&self) -> String {
        self.docker.run(&["stop", "--time", "60", &self.name]);
        self.inspect("{{.State.ExitCode}}")
    }
}

impl Drop for Container<'_> {
    fn drop(&mut self) {
        self.docker.run(&["rm", "--force", "--volumes", &self.name]);
    }
}

/// Gets the image through the container, and checks its bytes.
async fn assert_pulls(container: &Container<'_>, repository: &str, image: &Image) {
    let client = Client::new();
    let manifest = client.get(&format!("{}/v2/{repository}/manifests/v1", container.url())).await;
    assert_eq!((manifest.status, &manifest.body), (200, &image.manifest.bytes));
    for blob in image.blobs() {
        let got = client.get(&format!("{}/v2/{repository}/blobs/{}", container.url(), blob.digest)).await;
        assert_eq!((got.status, &got.body), (200, &blob.bytes));
    }
}

/// A registry with an image, Roadstead to push our image to, Docker, and the name of our image in Docker.
async fn scene() -> (Registry, Image, ServerProcess, Docker, String) {
    let (hub, image) = (Registry::start(), busybox::image("through a container"));
    hub.push("team/app", "v1", &image).await;
    let server = roadstead(&[]);
    let docker = Docker::start(&server);
    let name = pull_image(&docker, &server);
    (hub, image, server, docker, name)
}

#[tokio::test]
async fn image_in_docker_serves_pulls_and_keeps_its_volume() {
    let (hub, image, _server, docker, name) = scene().await;
    let upstream = format!("hub.test={}", hub.url());
    let arguments = ["serve", "--upstream", &upstream, "--default-upstream", "hub.test"];
    docker.run(&["volume", "create", "images"]);
    let volume = ["--volume", "images:/var/lib/registry"];
    let first = Container::start(&docker, &name, &volume, &arguments);
    first.until_ready().await;
    assert_pulls(&first, "team/app", &image).await;
    let gets = hub.blob_gets("team/app");
    assert_eq!(first.stop(), "0", "SIGTERM ends the server cleanly");
    drop(first);

    // The files of root are readable by root only, so the next container is root too.
    let second = Container::start(&docker, &name, &[volume, ["--read-only", "--cap-drop=ALL"]].concat(), &arguments);
    second.until_ready().await;
    assert_pulls(&second, "team/app", &image).await;
    assert_eq!(hub.blob_gets("team/app"), gets, "the volume keeps what was cached");
}

#[tokio::test]
async fn image_runs_as_another_user_and_names_what_it_may_not_write() {
    let (_hub, _image, _server, docker, name) = scene().await;
    docker.run(&["volume", "create", "others"]);
    let options = ["--user", "65532", "--read-only", "--cap-drop=ALL", "--volume", "others:/var/lib/registry"];
    let container = Container::start(&docker, &name, &options, &[]);
    container.until_ready().await;
    assert_eq!(container.stop(), "0");

    let folder = Folder::new();
    std::fs::create_dir(folder.path().join("owned-by-root")).unwrap();
    let mount = format!("{}:/var/lib/registry", folder.at("owned-by-root"));
    let refused = docker.fail(&["run", "--rm", "--network", "none", "--user", "65532", "--volume", &mount, &name]);
    let lines: Vec<_> = refused.lines().filter(|line| line.starts_with("roadstead: ")).collect();
    assert_eq!(lines.len(), 1, "{refused}");
    assert!(lines[0].contains("chown -R 65532:65532 /var/lib/registry"), "{refused}");

    let root = Container::start(&docker, &name, &["--volume", &mount], &[]);
    root.until_ready().await;
}

#[tokio::test]
async fn commands_in_the_container_have_the_options_of_the_server() {
    let (_hub, _image, _server, docker, name) = scene().await;
    let listen = format!("127.0.0.1:{}", free_port());
    let run = ["run", "--detach", "--network", "host", "--name", "with-options", &name];
    docker.run(&[&run[..], &["serve", "--listen", &listen, "--data", "/tmp/images"]].concat());
    let healthy =
        async || docker.run(&["inspect", "--format", "{{.State.Health.Status}}", "with-options"]) == "healthy";
    until("the health check asks the server of the container", healthy).await;
    let du = docker.run(&["exec", "with-options", "roadstead", "du", "--output", "json"]);
    assert!(du.contains("max_size"), "the running server answers: {du}");
    docker.run(&["exec", "with-options", "roadstead", "reload"]);
    docker.run(&["rm", "--force", "--volumes", "with-options"]);
}

#[tokio::test]
async fn image_reads_the_mounted_files_of_registry_2() {
    let (hub, image, _server, docker, name) = scene().await;
    let folder = Folder::new();
    let yaml = format!(
        "version: 0.1\nstorage: {{filesystem: {{rootdirectory: /var/lib/registry}}, delete: {{enabled: true}}}}\n\
         http: {{addr: ':5000'}}\nproxy: {{remoteurl: '{}'}}\n",
        hub.url()
    );
    let file = folder.write("config.yml", &yaml);
    for (place, arguments) in [
        ("/etc/docker/registry/config.yml", [].as_slice()),
        ("/etc/distribution/config.yml", &[]),
        ("/other/config.yml", &["/other/config.yml"]),
        ("/other/config.yml", &["serve", "/other/config.yml"]),
    ] {
        let mount = format!("{}:{place}:ro", file.display());
        let container = Container::start(&docker, &name, &["--volume", &mount], arguments);
        container.until_ready().await;
        assert_pulls(&container, "team/app", &image).await;
    }
    let toml = folder.write("roadstead.toml", "[cache]\ntag_ttll = \"1s\"\n");
    let mount = format!("{}:/etc/roadstead/roadstead.toml:ro", toml.display());
    let refused = docker.fail(&["run", "--rm", "--network", "none", "--volume", &mount, &name]);
    assert!(refused.contains("roadstead: /etc/roadstead/roadstead.toml:2: cache.tag_ttll"), "{refused}");
}

/// A stage that builds: busybox, and a `cargo` that has nothing to do.
fn import_builder(docker: &Docker, folder: &Folder) {
    let busybox = find("busybox", "busybox-static");
    std::fs::create_dir_all(folder.path().join("builder/bin")).unwrap();
    std::fs::copy(busybox, folder.path().join("builder/bin/busybox")).unwrap();
    for name in ["sh", "cp", "mv", "mkdir"] {
        symlink("busybox", folder.path().join("builder/bin").join(name)).unwrap();
    }
    let cargo = folder.write("builder/bin/cargo", "#!/bin/sh\n");
    std::fs::set_permissions(cargo, std::fs::Permissions::from_mode(0o755)).unwrap();
    let (root, tar) = (folder.at("builder"), folder.at("builder.tar"));
    run(Path::new("tar"), &["-C", &root, "-cf", &tar, "."], &[]);
    docker.run(&["import", &tar, "builder:latest"]);
}

#[tokio::test]
async fn dockerfile_makes_an_image_that_both_users_can_run() {
    let server = roadstead(&[]);
    let (docker, folder) = (Docker::start(&server), Folder::new());
    import_builder(&docker, &folder);
    // The sources, with a tree that is made already: a compiler would take minutes.
    let sources = Path::new(SOURCES);
    let (context, tree) = (folder.path().join("sources"), folder.at("sources/tree"));
    std::fs::create_dir_all(&context).unwrap();
    run(&sources.join("deploy/docker/rootfs.sh"), &[PROGRAM, &tree], &[]);
    let dockerfile = std::fs::read_to_string(sources.join("deploy/docker/Dockerfile")).unwrap();
    folder.write("sources/Dockerfile", &dockerfile);
    let script = folder.write("sources/deploy/docker/rootfs.sh", "#!/bin/sh\ncp -a tree \"$2\"\n");
    std::fs::set_permissions(script, std::fs::Permissions::from_mode(0o755)).unwrap();
    let build = ["build", "--quiet", "--network", "none", "--build-arg", "RUST_IMAGE=builder:latest", "--tag", "built"];
    docker.run(&[&build[..], &[context.to_str().unwrap()]].concat());
    for user in ["0", "65532"] {
        let volume = format!("data-of-{user}:/var/lib/registry");
        let options = ["--user", user, "--read-only", "--cap-drop=ALL", "--volume", &volume];
        let container = Container::start(&docker, "built", &options, &[]);
        container.until_ready().await;
    }
}

#[test]
fn image_layout_is_reproducible_and_agrees_with_the_dockerfile() {
    let (one, two) = (layout(), make_layout("image-again"));
    let index = read_json(&one.join("index.json"));
    assert_eq!(index, read_json(&two.join("index.json")), "the same program gives the same digest");
    std::fs::remove_dir_all(two).unwrap();

    let manifest = referred(one, &index["manifests"][0]);
    let config = referred(one, &manifest["config"]);
    let settings = &config["config"];
    let dockerfile = std::fs::read_to_string(Path::new(SOURCES).join("deploy/docker/Dockerfile")).unwrap();
    let (_, last) = dockerfile.split_once("FROM scratch").expect("the last stage");
    let directive = |name: &str| {
        let line = last.lines().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("no {name}"));
        line.to_owned()
    };
    let list = |value: &Value| serde_json::to_string(value).unwrap().replace(',', ", ");
    assert_eq!(directive("ENTRYPOINT"), format!("ENTRYPOINT {}", list(&settings["Entrypoint"])));
    assert_eq!(directive("CMD"), format!("CMD {}", list(&settings["Cmd"])));
    let environment: Vec<_> = settings["Env"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
    assert_eq!(directive("ENV"), format!("ENV {}", environment.join(" ")));
    let port = settings["ExposedPorts"].as_object().unwrap().keys().next().unwrap();
    assert_eq!(format!("{}/tcp", directive("EXPOSE")), format!("EXPOSE {port}"));
    let volume = settings["Volumes"].as_object().unwrap().keys().next().unwrap();
    assert_eq!(directive("VOLUME"), format!("VOLUME {volume}"));
    assert!(directive("HEALTHCHECK").ends_with(r#"CMD ["roadstead", "health"]"#));
    for (label, value) in settings["Labels"].as_object().unwrap() {
        let variable = ["version", "revision"].iter().find(|name| label.ends_with(**name));
        let value = variable.map_or(value.as_str().unwrap().to_owned(), |name| format!("${{{}}}", name.to_uppercase()));
        assert!(last.contains(&format!("{label}=\"{value}\"")), "{label} in the Dockerfile");
    }
}

//! `roadstead import` of what real programs wrote: docker-registry, skopeo and Docker.

use std::path::Path;

use serde_json::Value;

use super::containerd::Containerd;
use super::docker::{Docker, insecure};
use super::folder::Folder;
use super::podman::Podman;
use super::program::{MachineLock, find, run};
use super::registry::Registry;
use super::{busybox, roadstead, roadstead_with, shapes};
use crate::imports::tree::RegistryFolder;
use crate::operator::{CommandOutput, roadstead as command, roadstead_with as command_with};
use crate::support::process::ServerProcess;
use crate::support::{Client, Image};

fn skopeo(args: &[&str]) -> String {
    let insecure = ["--src-tls-verify=false", "--dest-tls-verify=false"];
    run(&find("skopeo", "skopeo"), &[&["copy"], args, &insecure].concat(), &[])
}

async fn import(server: &ServerProcess, args: &[&str]) -> CommandOutput {
    // The port is open before commands can reach the server.
    assert_eq!(Client::new().get(&server.url("/v2/")).await.status, 200);
    let config = server.config_file();
    let args = [&["import"], args, &["--output", "json", "--config", config.to_str().unwrap()]].concat();
    command(&server.data_dir(), &args).await
}

fn summary(output: &CommandOutput) -> Value {
    output.events().pop().unwrap_or_else(|| panic!("{output:?}"))
}

/// Checks that every file that skopeo gets from two places is the same.
fn assert_same(from: [&str; 2]) {
    let folders = from.map(|from| {
        let folder = Folder::new();
        skopeo(&["--all", from, &format!("dir:{}", folder.at("image"))]);
        folder
    });
    let files = |folder: &Folder| {
        let mut files: Vec<_> = std::fs::read_dir(folder.path().join("image"))
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .map(|path| (path.file_name().unwrap().to_owned(), std::fs::read(&path).unwrap()))
            .collect();
        files.sort();
        files
    };
    let [one, two] = folders.each_ref().map(files);
    assert!(one.len() > 3 && one == two, "{from:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_docker_registry_is_replaced_with_all_its_images() {
    let (origin, mut old) = (Registry::start(), Registry::start());
    let (index, image) = (busybox::index("before the import"), busybox::image("an image"));
    origin.push_index("multi", "v1", &index).await;
    origin.push("tool", "v1", &image).await;
    let (multi, tool) = (format!("127.0.0.1:{}/team/multi", old.port()), format!("127.0.0.1:{}/tool", old.port()));
    skopeo(&["--all", &format!("docker://127.0.0.1:{}/multi:v1", origin.port()), &format!("docker://{multi}:v1")]);
    skopeo(&[&format!("docker://127.0.0.1:{}/tool:v1", origin.port()), &format!("docker://{tool}:v1")]);
    let signature = shapes::signature(&index.manifest);
    old.push("team/multi", "signature", &signature).await;
    let server = roadstead(&[]);

    // While the old registry runs, and again after the last push to it.
    let output = import(&server, &[&old.data()]).await;
    assert_eq!((output.code, &summary(&output)["repositories"]), (0, &2.into()), "{output:?}");
    let later = busybox::image("a later image");
    old.push("tool", "v1", &later).await;
    old.push("tool", "v2", &later).await;
    old.stop();
    let output = import(&server, &[&old.data()]).await;
    let done = summary(&output);
    assert_eq!((output.code, &done["manifests"], &done["tags"]), (0, &1.into(), &2.into()), "{output:?}");

    old.begin();
    let here = server.host();
    for name in ["team/multi:v1", "tool:v1", "tool:v2"] {
        assert_same([&format!("docker://127.0.0.1:{}/{name}", old.port()), &format!("docker://{here}/{name}")]);
    }
    assert_same([
        &format!("docker://127.0.0.1:{}/team/multi@{}", old.port(), index.digest()),
        &format!("docker://{here}/team/multi@{}", index.digest()),
    ]);
    let referrers = server.url(&format!("/v2/team/multi/referrers/{}", index.digest()));
    assert_eq!(shapes::listed(&referrers).await, [signature.digest()]);
    let got = Client::new().get(&server.url("/v2/tool/manifests/v1")).await;
    assert_eq!(got.body, later.manifest.bytes, "the tag has moved in the old registry");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_through_cache_is_replaced_with_its_content() {
    let mut hub = Registry::start();
    let image = busybox::image("from the hub");
    hub.push("library/app", "v1", &image).await;
    let mut cache = Registry::mirror_of(&hub.url());
    let pulled = Folder::new();
    skopeo(&[&format!("docker://127.0.0.1:{}/library/app:v1", cache.port()), &format!("dir:{}", pulled.at("image"))]);
    // It writes its state every five seconds.
    let state = Path::new(&cache.data()).join("scheduler-state.json");
    let end = std::time::Instant::now() + std::time::Duration::from_secs(30);
    while !state.exists() {
        assert!(std::time::Instant::now() < end, "no scheduler-state.json");
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    cache.stop();
    let server = roadstead_with(&[("docker.io", &hub)], "");
    let output = import(&server, &[&cache.data()]).await;
    assert!(output.code == 1 && output.err.contains("--proxied"), "{output:?}");
    let gets = hub.blob_gets("library/app");
    let output = import(&server, &[&cache.data(), "--proxied", "docker.io"]).await;
    assert_eq!((output.code, &summary(&output)["tags"]), (0, &1.into()), "{output:?}");
    shapes::assert_holds(&server.url("/v2/library/app"), &image).await;
    assert_eq!(hub.blob_gets("library/app"), gets, "no blob is fetched again");
    hub.stop();
    let got = Client::new().get(&server.url("/v2/library/app/manifests/v1")).await;
    assert_eq!((got.status, got.body), (200, image.manifest.bytes));
}

/// Pulls an image from this server with Docker, and returns its greeting.
fn greeting(server: &ServerProcess, docker: &Docker, name: &str) -> String {
    let image = format!("{}/{name}", server.host());
    docker.run(&["pull", "--quiet", &image]);
    docker.greeting_in(&image)
}

#[tokio::test(flavor = "multi_thread")]
async fn layouts_and_archives_of_skopeo_are_imported() {
    let (origin, index) = (Registry::start(), busybox::index("of a file"));
    origin.push_index("app", "v1", &index).await;
    let from = format!("docker://127.0.0.1:{}/app:v1", origin.port());
    let folder = Folder::new();
    skopeo(&["--all", &from, &format!("oci:{}:docker.io/team/layout:v1", folder.at("layout"))]);
    skopeo(&[&from, &format!("oci-archive:{}:v1", folder.at("layout.tar"))]);
    skopeo(&[&from, &format!("docker-archive:{}:team/archive:v1", folder.at("archive.tar"))]);
    let server = roadstead(&[]);
    for args in [
        &[folder.at("layout")][..],
        &[folder.at("layout.tar"), "--repository".to_owned(), "team/single".to_owned()],
        &[folder.at("archive.tar")],
    ] {
        let output = import(&server, &args.iter().map(String::as_str).collect::<Vec<_>>()).await;
        assert_eq!((output.code, &summary(&output)["tags"]), (0, &1.into()), "{output:?}");
    }
    assert_same([&from, &format!("docker://{}/team/layout:v1", server.host())]);
    let docker = Docker::start(&server);
    for name in ["team/layout:v1", "team/single:v1", "team/archive:v1"] {
        assert_eq!(greeting(&server, &docker, name), "of a file", "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_docker_saved_is_imported_and_pulled() {
    let server = roadstead(&[]);
    let docker = Docker::start(&server);
    let tar = busybox::root_tar(&docker.folder, "saved here");
    for name in ["team/app:v1", "single:v1"] {
        docker.run(&["import", &tar, name]);
    }
    let saved = docker.folder.at("saved.tar");
    docker.run(&["save", "--output", &saved, "team/app:v1", "single:v1"]);
    let mut digests = Vec::new();
    for _ in 0..2 {
        let output = import(&server, &[&saved]).await;
        assert_eq!(output.code, 0, "{output:?}");
        digests.push(digest(&server, "team/app").await);
    }
    assert_eq!(digests[0], digests[1]);
    docker.run(&["rmi", "--force", "team/app:v1", "single:v1"]);
    for name in ["team/app:v1", "single:v1", "library/single:v1"] {
        assert_eq!(greeting(&server, &docker, name), "saved here", "{name}");
    }
    let podman = Podman::new(&insecure(&server.host()));
    let app = format!("{}/team/app:v1", server.host());
    podman.pull(&app);
    assert_eq!(podman.greeting_in(&app), "saved here");
    drop(docker);
    // A node of a cluster without the internet asks for the names of docker.io.
    let _lock = MachineLock::take("daemon");
    let containerd = Containerd::start();
    let hosts = containerd.mirror_everything(&server);
    for image in ["docker.io/team/app:v1", "docker.io/library/single:v1"] {
        containerd.pull(&hosts, image);
        assert_eq!(containerd.greeting_in(image), "saved here", "{image}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_import_that_fills_the_disk_continues_with_more_room() {
    let (folder, source) = (Folder::new(), RegistryFolder::new());
    let images: Vec<Image> = (0..12).map(|seed| Image::new(10 * seed, &[3 << 20])).collect();
    for (number, image) in images.iter().enumerate() {
        source.image("team/app", &format!("v{number:02}"), image);
    }
    let mount = |options: &str| {
        let args = ["-t", "tmpfs", "-o", options, "tmpfs", &folder.at("")];
        run(&find("mount", "mount"), &args, &[]);
    };
    mount("size=24m");
    let data = folder.path().join("data");
    let args = ["import", source.path(), "--default-upstream", "none", "--output", "json"];
    let full = command_with(&data, &args, &[("ROADSTEAD_CACHE__MIN_FREE", "0B")]).await;
    let reason = summary(&full)["stopped"].as_str().unwrap_or_default().to_owned();
    assert!(full.code == 1 && reason.contains("disk"), "{full:?}");
    mount("remount,size=96m");
    let done = command_with(&data, &args, &[("ROADSTEAD_CACHE__MIN_FREE", "0B")]).await;
    assert_eq!(done.code, 0, "{done:?}");
    assert!(summary(&done)["known_manifests"].as_u64().unwrap() > 0, "{done:?}");
    let scrubbed = command(&data, &["scrub"]).await;
    assert_eq!(scrubbed.code, 0, "{scrubbed:?}");
}

async fn digest(server: &ServerProcess, repository: &str) -> String {
    let got = Client::new().head(&server.url(&format!("/v2/{repository}/manifests/v1"))).await;
    assert_eq!(got.status, 200);
    got.header("docker-content-digest").to_owned()
}

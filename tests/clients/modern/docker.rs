//! Docker 29 with both of its image stores: containerd's, which is the default, and the classic one.

use super::containerd;
use super::programs::commands_of;
use super::scene::mirrored;
use crate::clients::docker::{Docker, Programs};
use crate::clients::folder::Folder;
use crate::clients::login::{PASSWORD, with_users};
use crate::clients::readme::generated;
use crate::clients::{busybox, shapes};
use crate::support::Upstream;
use crate::support::process::ServerProcess;

const CONTAINERD_STORE: &[&str] = &["--feature", "containerd-snapshotter=true", "--storage-driver", "native"];
const CLASSIC_STORE: &[&str] = &["--feature", "containerd-snapshotter=false", "--storage-driver", "vfs"];

fn docker(storage: &'static [&'static str], daemon_json: &str) -> Docker {
    let programs = Programs {
        dockerd: commands_of("dockerd").join("dockerd"),
        docker: commands_of("docker").join("docker"),
        start_containerd: containerd::start,
        storage,
    };
    Docker::start_programs(programs, daemon_json)
}

/// The greeting in the file system of a container that is created, but not run: Docker 29 starts containers in a time
/// namespace, which runc of Debian 12 does not know.
fn greeting_in(docker: &Docker, image: &str) -> String {
    let container = docker.run(&["create", "--network", "none", image, "/bin/cat"]);
    let copy = docker.folder.at("greeting");
    docker.run(&["cp", "--quiet", &format!("{container}:/etc/greeting"), &copy]);
    docker.run(&["rm", &container]);
    std::fs::read_to_string(copy).expect("the copy")
}

/// Pulls an index with an attestation twice, the second time from the cache.
fn assert_pulls_twice(docker: &Docker, upstream: &Upstream, image: &str) {
    for pull in ["first", "second"] {
        docker.run(&["pull", "--quiet", image]);
        assert_eq!(greeting_in(docker, image), "attested", "{pull}");
        assert_eq!(upstream.total() == 0, pull == "second", "{pull}: {:?}", upstream.requests());
        docker.run(&["rmi", "--force", image]);
        upstream.forget();
    }
}

/// Pushes an image and an index with an attestation to names of this server, and pulls them back.
fn assert_pushes(docker: &Docker, roadstead: &ServerProcess, image: &str) {
    docker.run(&["pull", "--quiet", image]);
    docker.run(&["import", &busybox::root_tar(&docker.folder, "imported"), "imported"]);
    for (local, name, greeting) in [(image, "app", "attested"), ("imported", "imported", "imported")] {
        let own = format!("{}/copies/{name}:v1", roadstead.host());
        docker.run(&["tag", local, &own]);
        docker.run(&["push", "--quiet", &own]);
        let pushed = docker.run(&["inspect", "--format", "{{json .RepoDigests}}", &own]);
        docker.run(&["rmi", "--force", &own, local]);
        docker.run(&["pull", "--quiet", &own]);
        assert_eq!(greeting_in(docker, &own), greeting);
        let pulled = docker.run(&["inspect", "--format", "{{index .RepoDigests 0}}", &own]);
        assert!(pushed.contains(&pulled), "{pushed} {pulled}");
    }
}

async fn assert_works(storage: &'static [&'static str]) {
    let (upstream, roadstead) = mirrored().await;
    let index = shapes::attested(&busybox::image("attested"));
    upstream.add_index("team/app", "v1", &index);
    let docker = docker(storage, &generated("docker", &roadstead.url("")));
    assert_pulls_twice(&docker, &upstream, "team/app:v1");
    let by_digest = format!("team/app@{}", index.digest());
    docker.run(&["pull", "--quiet", &by_digest]);
    assert_eq!((greeting_in(&docker, &by_digest).as_str(), upstream.total()), ("attested", 0));
    docker.run(&["rmi", "--force", &by_digest]);
    assert_pushes(&docker, &roadstead, "team/app:v1");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs `make clients`"]
async fn docker_with_containerd_store_pulls_twice_and_pushes() {
    assert_works(CONTAINERD_STORE).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs `make clients`"]
async fn docker_with_classic_store_pulls_twice_and_pushes() {
    assert_works(CLASSIC_STORE).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs `make clients`"]
async fn docker_pulls_through_mirrors_with_a_path() {
    let (upstream, roadstead) = mirrored().await;
    let index = shapes::attested(&busybox::image("attested"));
    for storage in [CONTAINERD_STORE, CLASSIC_STORE] {
        for path in ["docker.io", "v2/docker.io"] {
            let repository = format!("team/{}-{}", path.replace(['/', '.'], "-"), storage[3]);
            upstream.add_index(&repository, "v1", &index);
            let mirrors = format!("{{\"registry-mirrors\": [\"{}\"]}}", roadstead.url(&format!("/{path}")));
            let docker = docker(storage, &mirrors);
            docker.run(&["pull", "--quiet", &format!("{repository}:v1")]);
            assert_eq!(greeting_in(&docker, &format!("{repository}:v1")), "attested");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs `make clients`"]
async fn docker_logs_in_pushes_and_logs_out() {
    for storage in [CONTAINERD_STORE, CLASSIC_STORE] {
        let folder = Folder::new();
        let server = with_users(&folder);
        let (host, docker) = (server.host(), docker(storage, "{}"));
        let (image, outside) = (format!("{host}/team/app:v1"), format!("{host}/other/app:v1"));
        docker.run(&["import", &busybox::root_tar(&folder, "pushed by ann"), &image]);
        docker.run(&["tag", &image, &outside]);
        docker.fail(&["push", "--quiet", &image]);
        docker.fail(&["login", "--username", "ann", "--password", "wrong", &host]);
        docker.run(&["login", "--username", "ann", "--password", PASSWORD, &host]);
        docker.run(&["push", "--quiet", &image]);
        docker.fail(&["push", "--quiet", &outside]);
        docker.run(&["logout", &host]);
        // Another tag: what is there already is not pushed again.
        let again = format!("{host}/team/app:v2");
        docker.run(&["tag", &image, &again]);
        docker.fail(&["push", "--quiet", &again]);
        docker.run(&["rmi", "--force", &image, &outside, &again]);
        docker.run(&["pull", "--quiet", &image]);
        assert_eq!(greeting_in(&docker, &image), "pushed by ann");
    }
}

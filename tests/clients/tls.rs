//! The same clients over TLS, with a certificate that only they trust.

use super::containerd::Containerd;
use super::docker::Docker;
use super::folder::Folder;
use super::podman::Podman;
use super::program::{MachineLock, find, run};
use super::readme::generated;
use super::registry::Registry;
use super::{busybox, roadstead_with};
use crate::support::Authority;
use crate::support::process::ServerProcess;
use crate::support::settings::Settings;

fn encrypted(authority: &Authority, hub: &Registry) -> ServerProcess {
    roadstead_with(&[("docker.io", hub)], &authority.config("roadstead"))
}

/// A folder with `ca.crt`, as podman, buildah and skopeo expect it.
fn certificates(authority: &Authority) -> Folder {
    let folder = Folder::new();
    folder.write("ca.crt", &authority.ca);
    folder
}

#[tokio::test]
async fn containerd_pulls_over_tls() {
    let (authority, hub, image) = (Authority::new(), Registry::start(), busybox::image("encrypted"));
    hub.push("library/busybox", "latest", &image).await;
    let roadstead = encrypted(&authority, &hub);
    let _lock = MachineLock::take("daemon");
    let containerd = Containerd::start();
    let ca = authority.write("ca.pem", &authority.ca);
    let printed = generated("containerd", &format!("https://{}", roadstead.host()));
    let with_ca = printed.replacen("  capabilities", &format!("  ca = {ca:?}\n  capabilities"), 1);
    let hosts = containerd.set_up(&with_ca);
    containerd.pull(&hosts, "docker.io/library/busybox:latest");
    assert_eq!(containerd.digest_of("docker.io/library/busybox:latest"), image.digest());
    assert_eq!(containerd.greeting_in("docker.io/library/busybox:latest"), "encrypted");
}

#[tokio::test]
async fn docker_pulls_and_pushes_over_tls() {
    let (authority, hub, image) = (Authority::new(), Registry::start(), busybox::image("encrypted"));
    hub.push("library/busybox", "latest", &image).await;
    let roadstead = encrypted(&authority, &hub);
    let docker = Docker::start_with(&generated("docker", &format!("https://{}", roadstead.host())));
    docker.run(&["pull", "--quiet", "busybox"]);
    assert_eq!(docker.greeting_in("busybox"), "encrypted");
    let app = format!("{}/team/app:v1", roadstead.host());
    docker.run(&["tag", "busybox", &app]);
    docker.run(&["push", "--quiet", &app]);
    docker.run(&["rmi", "--force", "busybox", &app]);
    docker.run(&["pull", "--quiet", &app]);
    assert_eq!(docker.greeting_in(&app), "encrypted");
}

#[tokio::test]
async fn podman_and_skopeo_pull_and_push_over_tls() {
    let (authority, hub, image) = (Authority::new(), Registry::start(), busybox::image("encrypted"));
    hub.push("library/busybox", "latest", &image).await;
    let roadstead = encrypted(&authority, &hub);
    let certificates = certificates(&authority);
    let podman = Podman::new(&generated("podman", &format!("https://{}", roadstead.host())));
    podman.run(&["pull", "--quiet", "--cert-dir", &certificates.at(""), "docker.io/library/busybox:latest"]);
    assert_eq!(podman.greeting_in("docker.io/library/busybox:latest"), "encrypted");

    let skopeo = |args: &[&str]| run(&find("skopeo", "skopeo"), args, &[]);
    let (from, to) = (
        format!("docker://{}/docker.io/library/busybox:latest", roadstead.host()),
        format!("docker://{}/team/app:v1", roadstead.host()),
    );
    let folder = certificates.at("");
    skopeo(&["copy", "--src-cert-dir", &folder, "--dest-cert-dir", &folder, &from, &to]);
    let raw = skopeo(&["inspect", "--raw", "--cert-dir", &folder, &to]);
    assert_eq!(crate::support::digest_of(raw.as_bytes()), image.digest());
}

#[tokio::test]
async fn curl_speaks_http2_and_http1() {
    let (authority, hub) = (Authority::new(), Registry::start());
    let roadstead = encrypted(&authority, &hub);
    let (ca, url) = (authority.write("ca.pem", &authority.ca), format!("https://{}/v2/", roadstead.host()));
    for (version, expected) in [("--http2", "2 200"), ("--http1.1", "1.1 200")] {
        let args = ["--silent", "--show-error", "--output", "/dev/null", "--write-out", "%{http_version} %{http_code}"];
        assert_eq!(run(&find("curl", "curl"), &[&args[..], &[version, "--cacert", &ca, &url]].concat(), &[]), expected);
    }
}

#[tokio::test]
async fn curl_shows_the_error_of_a_refused_large_push() {
    let authority = Authority::new();
    let settings = Settings::new().upstream_url("docker.io", "http://127.0.0.1:1");
    let roadstead = ServerProcess::start(settings.config(&authority.config("roadstead")));
    let (ca, body) = (authority.write("ca.pem", &authority.ca), authority.write("body", &"x".repeat(30_000_000)));
    for (method, path) in [("PUT", "docker.io/a/manifests/v1"), ("POST", "docker.io/a/blobs/uploads/")] {
        let url = format!("https://{}/v2/{path}", roadstead.host());
        let args = ["--silent", "--show-error", "--http2", "--cacert", &ca, "--header", "Expect:", "--request", method];
        let body = format!("@{body}");
        let answer = run(&find("curl", "curl"), &[&args[..], &["--data-binary", &body, &url]].concat(), &[]);
        assert!(answer.contains("DENIED"), "{answer}");
    }
}

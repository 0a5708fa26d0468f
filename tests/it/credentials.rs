//! Upstream credentials in a complete server: Docker's helpers on the PATH, and no secret in any output.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use crate::scene::until;
use crate::support::process::ServerProcess;
use crate::support::settings::Settings;
use crate::support::{Bearer, Client, Image, Reply, TestServer, Upstream};

const CANARY: &str = "canary-7fd1e0";

fn program(path: &Path, script: &str) {
    fs::write(path, format!("#!/bin/sh\n{script}\n")).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

/// A private upstream with one image.
async fn private() -> (Upstream, Image) {
    let upstream = Upstream::start().await;
    let image = Image::new(1, &[2000]);
    upstream.add_image("org/app", "v1", &image);
    upstream.require_bearer(Bearer::new().credentials("ann", CANARY));
    (upstream, image)
}

#[tokio::test]
async fn a_docker_credential_helper_is_used_without_leaking_its_secret() {
    let (upstream, image) = private().await;
    let folder = tempfile::tempdir().unwrap();
    let host = upstream.addr().to_string();
    let calls = folder.path().join("calls");
    program(
        &folder.path().join("docker-credential-canary"),
        &format!(
            "echo \"$1 $(cat)\" >> '{}'\necho {CANARY} >&2\necho '{{\"ServerURL\":\"x\",\"Username\":\"ann\",\"Secret\":\"{CANARY}\"}}'",
            calls.display()
        ),
    );
    let logins = folder.path().join("config.json");
    fs::write(&logins, format!("{{\"auths\":{{}},\"credHelpers\":{{\"{host}\":\"canary\"}}}}")).unwrap();
    let path = format!("{}:{}", folder.path().display(), std::env::var("PATH").unwrap());
    let environment = [("PATH", path.as_str()), ("RUST_LOG", "trace")];
    let settings = Settings::new()
        .upstream("docker.io", &upstream)
        .default_upstream("docker.io")
        .config(&format!("docker_config = {logins:?}\n[cache]\ntag_ttl = \"0s\""));
    let server = ServerProcess::start_with(folder.path(), settings, &environment);
    let client = Client::new();
    let mut answers = String::new();
    for path in ["/v2/org/app/manifests/v1", "/v2/org/app/manifests/none"] {
        let answer = client.get(&server.url(path)).await;
        answers += &format!("{} {} {:?}\n", answer.status, answer.text(), answer);
    }
    for blob in image.blobs() {
        assert_eq!(client.get(&server.url(&format!("/v2/org/app/blobs/{}", blob.digest))).await.status, 200);
    }
    assert!(answers.starts_with("200 "), "{answers}");
    assert_eq!(
        fs::read_to_string(&calls).unwrap(),
        format!("get {host}\n"),
        "the helper runs once, with the host as its input"
    );

    upstream.require_bearer(Bearer::new().credentials("ann", "another"));
    upstream.script("HEAD", "/v2/org/app/manifests/v1", [Reply::normal()]);
    let stale = client.get(&server.url("/v2/org/app/manifests/v1")).await;
    assert_eq!(
        (stale.status, stale.header("warning").is_empty()),
        (200, false),
        "refused credentials are an upstream failure"
    );
    let config = server.config_file();
    let run = |command: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_roadstead"));
        let mut output = output;
        let output = output.args(command).arg("--config").arg(&config).output().unwrap();
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
    };
    for (what, text) in [
        ("answers", answers),
        ("log", server.log()),
        ("metrics", client.get(&server.url("/metrics")).await.text().to_owned()),
        ("check", run(&["check"])),
        ("explain", run(&["explain", "org/app:v1"])),
    ] {
        assert!(text.len() > 50, "{what}: {text}");
        assert!(!text.contains(CANARY), "{what}: {text}");
        assert!(!text.contains("Bearer token-"), "{what}");
    }
}

#[tokio::test]
async fn check_and_explain_show_no_secret_of_any_source() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("roadstead.toml");
    fs::write(
        &config,
        format!(
            "[upstream.\"docker.io\"]\nusername = \"ann\"\npassword = \"{CANARY}\"\n\
             [[upstream.\"docker.io\".credentials]]\nrepository = \"a/*\"\nusername = \"ann\"\npassword = \"{CANARY}\"\n\
             [[upstream.\"docker.io\".credentials]]\nrepository = \"b/*\"\nusername = \"ann\"\nexec = [\"echo\", \"{CANARY}\"]\n"
        ),
    )
    .unwrap();
    for command in [["check"].as_slice(), &["explain", "a/app"], &["explain", "b/app", "--output", "json"]] {
        let mut program = Command::new(env!("CARGO_BIN_EXE_roadstead"));
        let output = program.args(command).arg("--config").arg(&config).env("HOME", folder.path()).output().unwrap();
        let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(text.contains("docker.io") && !text.contains(CANARY), "{text}");
    }
}

/// Stored content of one account's repository is not readable with another account of the same host.
#[tokio::test]
async fn a_second_account_must_prove_its_access() {
    let (upstream, image) = private().await;
    upstream.add_image("other/app", "v1", &Image::new(2, &[10]));
    let layer = &image.blobs().next().unwrap().digest.clone();
    let server = TestServer::builder()
        .upstream("docker.io", &upstream)
        .default_upstream("docker.io")
        .config(&format!(
            "[[upstream.\"docker.io\".credentials]]\nrepository = \"org/**\"\nusername = \"ann\"\npassword = \"{CANARY}\""
        ))
        .start()
        .await;
    assert_eq!(server.get("/v2/org/app/manifests/v1").await.status, 200);
    assert_eq!(server.get(&format!("/v2/org/app/blobs/{layer}")).await.status, 200);
    until("the fill has ended", async || server.metric("roadstead_fills_in_flight", &[]).await == 0.0).await;
    for path in ["manifests/v1".to_owned(), format!("blobs/{layer}")] {
        assert_eq!(server.get(&format!("/v2/other/app/{path}")).await.status, 404, "{path}: an anonymous account");
    }
}

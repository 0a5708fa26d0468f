//! Upstream credentials in a complete server: Docker's helpers on the PATH, and no secret in any output.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;

use crate::scene::until;
use crate::support::process::ServerProcess;
use crate::support::settings::Settings;
use crate::support::{Bearer, Client, Gate, Image, Reply, TestServer, Upstream};

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

/// A registry with two accounts, `ann` for `corp/*` and `bob` for `other/*`, and a server with Docker's file for both.
/// `other/evil` has a manifest that refers to the layer of `corp/app`, which its account may not read.
async fn two_logins(folder: &Path, is_global: bool) -> (Upstream, TestServer, Image) {
    let upstream = Upstream::start().await;
    let secret = Image::new(1, &[200_000]);
    upstream.add_image("corp/app", "v1", &secret);
    upstream.add_image("corp/tool", "v1", &secret);
    let claim = Image::for_platform("linux/arm64", secret.layers.clone());
    upstream.add_manifest("other/evil", &claim.manifest);
    upstream.tag("other/evil", "v1", claim.digest());
    let login = |user: &str| format!("Basic {}", BASE64.encode(format!("{user}:{CANARY}")));
    let (ann, bob) = (login("ann"), login("bob"));
    upstream.behave(move |seen| {
        let expected = if seen.path.starts_with("/v2/corp/") { &ann } else { &bob };
        match seen.header("authorization") {
            "" => Some(Reply::error(401, "UNAUTHORIZED").header("WWW-Authenticate", "Basic realm=\"x\"")),
            sent if sent != expected => Some(Reply::error(403, "DENIED")),
            _ => None,
        }
    });
    let path = folder.join("config.json");
    let entry = |scope: &str, user: &str| {
        format!("\"{}/{scope}\":{{\"username\":\"{user}\",\"password\":\"{CANARY}\"}}", upstream.addr())
    };
    fs::write(&path, format!("{{\"auths\":{{{},{}}}}}", entry("corp", "ann"), entry("other", "bob"))).unwrap();
    let table = if is_global { "" } else { "[upstream.\"docker.io\"]\n" };
    let server = TestServer::builder()
        .upstream("docker.io", &upstream)
        .default_upstream("docker.io")
        .config(&format!("{table}docker_config = {path:?}"))
        .start()
        .await;
    for repo in ["corp/app", "corp/tool", "other/evil"] {
        assert_eq!(server.get(&format!("/v2/{repo}/manifests/v1")).await.status, 200, "{repo}");
    }
    (upstream, server, secret)
}

#[tokio::test]
async fn logins_of_one_docker_file_share_no_stored_content() {
    for is_global in [false, true] {
        let folder = tempfile::tempdir().unwrap();
        let (upstream, server, secret) = two_logins(folder.path(), is_global).await;
        let layer = &secret.layers[0];
        let blob = |repo: &str| format!("/v2/{repo}/blobs/{}", layer.digest);
        assert_eq!(server.get(&blob("corp/app")).await.body, layer.bytes);
        until("the fill has ended", async || server.metric("roadstead_fills_in_flight", &[]).await == 0.0).await;
        upstream.forget();
        assert_eq!(server.get(&blob("other/evil")).await.status, 404, "global: {is_global}");
        assert!(upstream.total() > 0, "the upstream decides");
        upstream.forget();
        assert_eq!(server.get(&blob("corp/tool")).await.body, layer.bytes, "the same login");
        assert_eq!(upstream.total(), 0, "shared without a request");
    }
}

#[tokio::test]
async fn logins_of_one_docker_file_share_no_running_fill() {
    let folder = tempfile::tempdir().unwrap();
    let (upstream, server, secret) = two_logins(folder.path(), false).await;
    let layer = &secret.layers[0];
    let blob = |repo: &str| format!("/v2/{repo}/blobs/{}", layer.digest);
    let gate = Gate::new();
    upstream.script("GET", &blob("corp/app"), [Reply::normal().wait_after(100_000, &gate)]);
    let (own, other) = (blob("corp/app"), blob("other/evil"));
    let pull = server.get(&own);
    let foreign = async {
        gate.reached(1).await;
        let answer = server.get(&other).await;
        gate.open();
        answer
    };
    let (pulled, refused) = tokio::join!(pull, foreign);
    assert_eq!(pulled.body, layer.bytes);
    assert_eq!(refused.status, 404);
}

/// A registry that answers 404 to an anonymous request for a private name, and challenges at `/v2/` only.
#[tokio::test]
async fn a_hidden_private_image_is_pulled_and_its_absence_not_remembered() {
    let upstream = Upstream::start().await;
    let image = Image::new(1, &[2000]);
    upstream.add_image("org/app", "v1", &image);
    let expected = format!("Basic {}", BASE64.encode(format!("ann:{CANARY}")));
    let is_down = Arc::new(AtomicBool::new(true));
    let switch = is_down.clone();
    upstream.behave(move |seen| match (seen.path.as_str(), seen.header("authorization")) {
        ("/v2/", "") if switch.load(Ordering::Relaxed) => Some(Reply::error(503, "UNAVAILABLE")),
        ("/v2/", "") => Some(Reply::error(401, "UNAUTHORIZED").header("WWW-Authenticate", "Basic realm=\"x\"")),
        (_, sent) if sent == expected => None,
        _ => Some(Reply::error(404, "NAME_UNKNOWN")),
    });
    let server = TestServer::builder()
        .upstream("docker.io", &upstream)
        .default_upstream("docker.io")
        .config(&format!("[upstream.\"docker.io\"]\nusername = \"ann\"\npassword = \"{CANARY}\""))
        .start()
        .await;
    let paths = [
        "/v2/org/app/manifests/v1".to_owned(),
        format!("/v2/org/app/blobs/{}", image.layers[0].digest),
        "/v2/org/app/tags/list".to_owned(),
    ];
    // A list without an upstream may be that of a first push.
    for path in &paths[..2] {
        let status = server.get(path).await.status;
        assert!([502, 503].contains(&status), "{path}: {status}");
    }
    is_down.store(false, Ordering::Relaxed);
    for path in &paths {
        // A failure of a fill is remembered for a second.
        until("the content is served", async || server.get(path).await.status == 200).await;
    }
}

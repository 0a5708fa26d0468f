//! Real clients log in and push, and pull without a login, on a server with users.

use super::busybox;
use super::docker::Docker;
use super::folder::Folder;
use super::program::{NO_INTERNET, find, run};
use crate::support::process::ServerProcess;
use crate::support::settings::Settings;

const PASSWORD: &str = "a secret: word";

/// Everyone pulls, and ann pushes to `team/**`.
fn with_users(folder: &Folder) -> ServerProcess {
    let hash = bcrypt::hash_with_salt(PASSWORD, 4, [7; 16]).unwrap();
    let users = folder.write("htpasswd", &format!("ann:{hash}\n"));
    ServerProcess::start(Settings::new().config(&format!(
        "[auth]\nhtpasswd = {users:?}\n[[auth.rule]]\nwho = \"anonymous\"\non = \"**\"\nmay = \"pull\"\n\
         [[auth.rule]]\nwho = \"ann\"\non = \"team/**\"\nmay = [\"pull\", \"push\"]\n"
    )))
}

/// Runs a program that must fail, and returns what it prints.
fn fail(program: &str, package: &str, args: &[&str], home: &Folder) -> String {
    let command = find(program, package);
    let mut timeout = std::process::Command::new("timeout");
    timeout.arg("120").arg(command).args(args).env("HOME", home.at("")).envs(NO_INTERNET);
    let output = timeout.output().unwrap();
    let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(!output.status.success(), "{program} {args:?} should have failed: {text}");
    text
}

#[tokio::test]
async fn skopeo_logs_in_and_pushes_and_others_pull() {
    let folder = Folder::new();
    let roadstead = with_users(&folder);
    let (host, image) = (roadstead.host(), busybox::image("pushed by ann"));
    // A folder as skopeo writes it.
    folder.write("image/version", "Directory Transport Version: 1.1\n");
    std::fs::write(folder.at("image/manifest.json"), &image.manifest.bytes).unwrap();
    for blob in image.blobs() {
        std::fs::write(folder.at(&format!("image/{}", blob.digest.trim_start_matches("sha256:"))), &blob.bytes)
            .unwrap();
    }
    let (source, target) = (format!("dir:{}", folder.at("image")), format!("docker://{host}/team/app:v1"));
    let copy = ["copy", "--preserve-digests", "--dest-tls-verify=false", &source, &target];
    let login = |password| ["login", "--tls-verify=false", "--username", "ann", "--password", password, &host];
    let skopeo = |args: &[&str]| {
        let own = [("HOME", folder.at("")), ("REGISTRY_AUTH_FILE", folder.at("auth.json"))];
        run(&find("skopeo", "skopeo"), args, &own.each_ref().map(|(name, value)| (*name, value.as_str())))
    };
    fail("skopeo", "skopeo", &copy, &folder);
    fail("skopeo", "skopeo", &login("wrong"), &folder);
    skopeo(&login(PASSWORD));
    skopeo(&copy);
    skopeo(&["logout", &host]);
    let digest = skopeo(&["inspect", "--tls-verify=false", "--format", "{{.Digest}}", &target]);
    assert_eq!(digest, image.digest());
}

#[tokio::test]
async fn docker_logs_in_and_pushes_and_others_pull() {
    let folder = Folder::new();
    let roadstead = with_users(&folder);
    let docker = tokio::task::spawn_blocking(|| Docker::start_with("{}")).await.unwrap();
    let host = roadstead.host();
    let image = format!("{host}/team/app:v1");
    docker.run(&["import", &busybox::root_tar(&folder, "pushed by ann"), &image]);
    let refused = docker.fail(&["push", "--quiet", &image]);
    assert!(
        refused.contains("denied") || refused.contains("authentication required") || refused.contains("unauthorized"),
        "{refused}"
    );
    docker.fail(&["login", "--username", "ann", "--password", "wrong", &host]);
    docker.run(&["login", "--username", "ann", "--password", PASSWORD, &host]);
    docker.run(&["push", "--quiet", &image]);
    let outside = format!("{host}/other/app:v1");
    docker.run(&["tag", &image, &outside]);
    assert!(docker.fail(&["push", "--quiet", &outside]).contains("denied"));
    docker.run(&["logout", &host]);
    docker.run(&["rmi", &image, &outside]);
    docker.run(&["pull", "--quiet", &image]);
    assert_eq!(docker.greeting_in(&image), "pushed by ann");
}

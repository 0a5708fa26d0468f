//! Real clients log in and push, and pull without a login, on a server with users.

use super::docker::Docker;
use super::folder::Folder;
use super::program::{fail, find, run};
use super::{busybox, shapes};
use crate::support::process::ServerProcess;
use crate::support::settings::Settings;

pub const PASSWORD: &str = "a secret: word";

/// Everyone pulls, and ann pushes to `team/**`.
pub fn with_users(folder: &Folder) -> ServerProcess {
    let hash = bcrypt::hash_with_salt(PASSWORD, 4, [7; 16]).unwrap();
    let users = folder.write("htpasswd", &format!("ann:{hash}\n"));
    ServerProcess::start(Settings::new().config(&format!(
        "[auth]\nhtpasswd = {users:?}\n[[auth.rule]]\nwho = \"anonymous\"\non = \"**\"\nmay = \"pull\"\n\
         [[auth.rule]]\nwho = \"ann\"\non = \"team/**\"\nmay = [\"pull\", \"push\"]\n"
    )))
}

#[tokio::test]
async fn skopeo_logs_in_and_pushes_and_others_pull() {
    let folder = Folder::new();
    let roadstead = with_users(&folder);
    let (host, image) = (roadstead.host(), busybox::image("pushed by ann"));
    let (source, target) = (shapes::write_dir(&folder, &image), format!("docker://{host}/team/app:v1"));
    let copy = ["copy", "--preserve-digests", "--dest-tls-verify=false", &source, &target];
    let login = |password| ["login", "--tls-verify=false", "--username", "ann", "--password", password, &host];
    let own = [("HOME", folder.at("")), ("REGISTRY_AUTH_FILE", folder.at("auth.json"))];
    let own = own.each_ref().map(|(name, value)| (*name, value.as_str()));
    let program = find("skopeo", "skopeo");
    let skopeo = |args: &[&str]| run(&program, args, &own);
    fail(&program, &copy, &own);
    fail(&program, &login("wrong"), &own);
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

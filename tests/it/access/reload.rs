//! Rules and groups that change while the server runs.

use std::process::{Command, Output};

use bytes::Bytes;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{login, write_users};
use crate::scene::until;
use crate::support::Client;
use crate::support::process::ServerProcess;
use crate::support::settings::Settings;

/// Rules for a member of `dev`.
fn rules(member: &str) -> String {
    format!(
        "[auth.groups]\ndev = [{member:?}]\n[[auth.rule]]\nwho = \"group:dev\"\non = \"team/**\"\nmay = [\"pull\", \"push\"]\n"
    )
}

struct Running {
    process: ServerProcess,
    client: Client,
    audit: std::path::PathBuf,
    _folder: tempfile::TempDir,
}

impl Running {
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (users, audit) = (folder.path().join("htpasswd"), folder.path().join("audit.log"));
        write_users(&users, &["ann", "bob"]);
        let settings = Settings::new().config(&format!("[auth]\nhtpasswd = {users:?}\n[audit]\nfile = {audit:?}"));
        let process = ServerProcess::start(settings.config(&rules("ann")));
        Self { process, client: Client::new(), audit, _folder: folder }
    }

    /// The status of the beginning of a push.
    async fn push(&self, authorization: &str) -> u16 {
        let url = self.process.url("/v2/team/app/blobs/uploads/");
        self.client.send("POST", &url, &[("Authorization", authorization)], Bytes::new()).await.status
    }

    fn hang_up(&self) {
        let pid = self.process.pid().unwrap().cast_signed();
        kill(Pid::from_raw(pid), Signal::SIGHUP).unwrap();
    }

    fn run(&self, args: &[&str]) -> Output {
        let config = self.process.config_file();
        Command::new(env!("CARGO_BIN_EXE_roadstead"))
            .args(args)
            .arg("--config")
            .arg(config)
            .env_clear()
            .output()
            .unwrap()
    }
}

fn text(output: &Output) -> (bool, String) {
    let text = [&output.stdout[..], &output.stderr].concat();
    (output.status.success(), String::from_utf8(text).unwrap())
}

#[tokio::test]
async fn changed_rules_are_in_force_after_a_signal() {
    let mut running = Running::start();
    let (ann, bob) = (login("ann"), login("bob"));
    let query = "/auth/token?scope=repository:team/app:pull,push";
    let answer = running.client.get_with(&running.process.url(query), &[("Authorization", &bob)]).await;
    let token = super::bearer(&answer);
    assert_eq!((running.push(&ann).await, running.push(&bob).await, running.push(&token).await), (202, 403, 403));
    running.process.configure(&rules("bob"));
    assert_eq!((running.push(&ann).await, running.push(&bob).await), (202, 403), "nothing changes by itself");
    running.hang_up();
    until("the rules are read", async || running.process.log().contains("read the configuration again")).await;
    assert_eq!((running.push(&ann).await, running.push(&bob).await, running.push(&token).await), (403, 202, 202));
    // A mistake changes nothing, and is said once.
    let file = running.process.config_file();
    let right = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, format!("{right}\n[[auth.rule]]\nwho = \"group:none\"\non = \"**\"\nmay = \"pull\"\n"))
        .unwrap();
    let failures = || running.process.log().matches("the rules stay as they are").count();
    running.hang_up();
    until("the mistake is said", async || failures() == 1).await;
    assert!(running.process.log().contains("no group is called"), "{}", running.process.log());
    assert_eq!((running.push(&ann).await, running.push(&bob).await), (403, 202));
    std::fs::remove_file(&file).unwrap();
    running.hang_up();
    until("the missing file is said", async || failures() == 2).await;
    assert_eq!((running.push(&ann).await, running.push(&bob).await), (403, 202));
}

#[tokio::test]
async fn the_command_says_what_is_in_force_and_what_needs_a_restart() {
    let mut running = Running::start();
    // The port is open before the socket for commands. A response says that the server has started.
    assert_eq!(running.push(&login("ann")).await, 202);
    assert_eq!(text(&running.run(&["reload"])), (true, "1 rule is in force\n".to_owned()));
    running.process.configure(&format!("[cache]\ntag_ttl = \"5s\"\n[metrics]\nauth = false\n{}", rules("bob")));
    let (succeeded, said) = text(&running.run(&["reload"]));
    let expected = "1 rule is in force\nchanged settings that need a restart: cache\n";
    assert_eq!((succeeded, &*said), (true, expected));
    assert_eq!((running.push(&login("ann")).await, running.push(&login("bob")).await), (403, 202));
    let (_, explained) = text(&running.run(&["explain", "--as", "bob", "team/app"]));
    assert!(explained.contains("bob may push: the rule at"), "{explained}");
    // Without the table, the rules stay in force: nothing becomes open by accident.
    let file = running.process.config_file();
    let all = std::fs::read_to_string(&file).unwrap();
    let mut without: toml::Table = all.parse().unwrap();
    without.remove("auth");
    std::fs::write(&file, without.to_string()).unwrap();
    let (succeeded, said) = text(&running.run(&["reload"]));
    assert!(succeeded && said.ends_with("need a restart: cache, auth\n"), "{said}");
    assert_eq!((running.push("").await, running.push(&login("ann")).await), (401, 403));
    let records = std::fs::read_to_string(&running.audit).unwrap();
    let admin = "\"event\":\"admin\",\"how\":\"socket\",\"reference\":\"reload\",\"outcome\":\"done\"";
    assert_eq!(records.matches(admin).count(), 3, "{records}");
    std::fs::write(&file, all).unwrap();
    running.process.stop();
    let (succeeded, said) = text(&running.run(&["reload"]));
    assert!(!succeeded && said.contains("no server runs in the data folder"), "{said}");
}

#[tokio::test]
async fn a_reload_that_cannot_end_does_not_keep_the_server_from_stopping() {
    let mut running = Running::start();
    assert_eq!(running.push(&login("ann")).await, 202);
    let file = running.process.config_file();
    std::fs::remove_file(&file).unwrap();
    assert!(Command::new("mkfifo").arg(&file).status().unwrap().success());
    for _ in 0..3 {
        running.hang_up();
    }
    assert_eq!(running.push(&login("ann")).await, 202);
    assert!(running.process.stop().unwrap().success(), "{}", running.process.log());
}

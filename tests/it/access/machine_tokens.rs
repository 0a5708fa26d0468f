//! Machine tokens: made and revoked by the command, and used as passwords.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

use super::{Access, basic, login};

const PROGRAM: &str = env!("CARGO_BIN_EXE_roadstead");
const TAGS: &str = "/v2/team/app/tags/list";
const PUSH: &str = "?scope=repository:team/app:pull,push&service=x";
const RULE: &str =
    "[[auth.rule]]\nwho = [\"token:ci\", \"token:nightly-*\"]\non = \"team/**\"\nmay = [\"pull\", \"push\"]\n";

async fn start() -> Access {
    let access = Access::start(&format!("{}{RULE}", super::RULES)).await;
    let config = access.folder.path().join("roadstead.toml");
    std::fs::write(config, access.server.settings().to_toml()).unwrap();
    access
}

/// Runs `roadstead token` with the configuration in this folder.
async fn token(folder: &Path, args: &[&str]) -> Output {
    let mut command = Command::new(PROGRAM);
    command.env_clear().arg("token").args(args).arg("--config").arg(folder.join("roadstead.toml"));
    tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap()
}

fn text(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn error(output: &Output) -> String {
    let error = String::from_utf8(output.stderr.clone()).unwrap();
    assert!(!output.status.success() && output.stdout.is_empty() && error.lines().count() == 1, "{error}");
    error
}

#[tokio::test]
async fn a_token_is_made_used_and_revoked_while_the_server_runs() {
    let access = start().await;
    let folder = access.folder.path();
    let made = text(&token(folder, &["create", "ci"]).await);
    let secret = made.lines().next().unwrap();
    assert!(secret.starts_with("rst_") && secret.len() == 53, "{made}");
    assert!(made.contains("It does not expire") && made.contains("the rules that give it rights are at "), "{made}");
    let list = text(&token(folder, &["list"]).await);
    assert!(list.lines().nth(1).unwrap().starts_with("ci ") && list.ends_with("never       never\n"), "{list}");
    assert!(!list.contains(secret));
    // As Basic on each request, and for a token of ours.
    let basic_login = basic("anything", secret);
    assert_eq!(access.get("/v2/", &basic_login).await.status, 200);
    assert_eq!(access.push("team/app", &basic_login).await, 201);
    assert_eq!(access.push("base/os", &basic_login).await, 403);
    let labels = [("how", "machine_token"), ("result", "accepted")];
    assert!(access.server.metric("roadstead_auth_attempts_total", &labels).await > 0.0);
    let bearer = access.token(PUSH, &basic_login).await;
    assert_eq!(access.push("team/app", &bearer).await, 201);
    let list = text(&token(folder, &["list"]).await);
    assert!(!list.ends_with("never\n"), "it shows the last use: {list}");
    // A typing mistake is told.
    let mistyped = secret.replacen("rst_", "rst_A", 1);
    let answer = access.get("/v2/", &basic("ci", &mistyped[..53])).await;
    assert!(answer.status == 401 && answer.text().contains("typing mistake"), "{}", answer.text());
    // Only its hash is kept.
    let file = access.server.data_dir().join("state/machine-tokens.json");
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o7777, 0o600);
    assert!(!std::fs::read_to_string(&file).unwrap().contains(&secret[4..47]));

    assert_eq!(text(&token(folder, &["revoke", "ci"]).await), "revoked token:ci\n");
    let answer = access.get("/v2/", &basic_login).await;
    assert!(answer.status == 401 && answer.text().contains("it may have been revoked"), "{}", answer.text());
    let answer = access.get(TAGS, &bearer).await;
    assert!(answer.header("www-authenticate").ends_with("error=\"invalid_token\""), "{answer:?}");
    assert!(text(&token(folder, &["list"]).await).starts_with("there is no machine token"));
    // The name may be used again, and the old token stays refused.
    text(&token(folder, &["create", "ci"]).await);
    assert_eq!(access.get("/v2/", &basic_login).await.status, 401);
    assert_eq!(access.get(TAGS, &bearer).await.status, 401);
    assert_eq!(access.get("/v2/", &login("ann")).await.status, 200);
}

#[tokio::test]
async fn tokens_survive_a_restart_and_expire() {
    let mut access = start().await;
    let folder = access.folder.path().to_owned();
    let made: Value = serde_json::from_str(&text(
        &token(&folder, &["create", "nightly-1", "--expires", "90d", "--output", "json"]).await,
    ))
    .unwrap();
    assert_eq!(made["identity"], "token:nightly-1");
    assert_eq!(made["rules"].as_array().unwrap().len(), 1);
    let days = (made["expires"].as_u64().unwrap() - std::time::UNIX_EPOCH.elapsed().unwrap().as_secs()) / 86_400;
    assert!((89..=90).contains(&days), "{made}");
    let short: Value = serde_json::from_str(&text(
        &token(&folder, &["create", "nightly-2", "--expires", "2s", "--output", "json"]).await,
    ))
    .unwrap();
    let [long, short] = [&made, &short].map(|made| basic("x", made["token"].as_str().unwrap()));
    access.server.restart().await;
    assert_eq!(access.push("team/app", &long).await, 201);
    let bearer = access.token("", &short).await;
    while access.get("/v2/", &bearer).await.status == 200 {
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    let answer = access.get("/v2/", &short).await;
    assert!(answer.status == 401 && answer.text().contains("it has expired"), "{}", answer.text());
    // Without a server, the command works on the data folder.
    access.server.stop_running().await;
    assert!(text(&token(&folder, &["list"]).await).contains("nightly-1"));
    text(&token(&folder, &["revoke", "nightly-1"]).await);
    let other: Value =
        serde_json::from_str(&text(&token(&folder, &["create", "ci", "--output", "json"]).await)).unwrap();
    access.server.restart().await;
    assert_eq!(access.get("/v2/", &long).await.status, 401);
    assert_eq!(access.push("team/app", &basic("x", other["token"].as_str().unwrap())).await, 201);
}

#[tokio::test]
async fn mistakes_of_the_command_are_told() {
    let access = start().await;
    let folder = access.folder.path();
    text(&token(folder, &["create", "ci"]).await);
    for (args, expected) in [
        (&["create", "ci"][..], "there is a machine token called \"ci\" already"),
        (&["create", "a:b"], "\"a:b\" cannot be the name of a machine token"),
        (&["create", "late", "--expires", "0s"], "would have expired already; give it a time such as 90d"),
        (&["revoke", "none"], "no machine token is called \"none\"; `roadstead token list` shows them"),
    ] {
        let error = error(&token(folder, args).await);
        assert!(error.contains(expected), "{error}");
    }
    let useless = text(&token(folder, &["create", "other"]).await);
    assert!(useless.contains("no rule gives it any right yet: write one with who = \"token:other\""), "{useless}");
    // Without users, a token would have no meaning.
    let server = crate::support::TestServer::builder().start().await;
    std::fs::write(folder.join("roadstead.toml"), server.settings().to_toml()).unwrap();
    let error = error(&token(folder, &["create", "ci"]).await);
    assert!(error.contains("the configuration has no [auth]"), "{error}");
    let secret = basic("x", useless.lines().next().unwrap());
    assert_eq!(server.get_with("/v2/", &[("Authorization", &secret)]).await.status, 200);
}

#[tokio::test]
async fn a_damaged_file_stops_the_start_with_the_remedy() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("data/state/machine-tokens.json");
    let toml = format!(
        "default_upstream = \"none\"\n[server]\nlisten = \"127.0.0.1:0\"\n[storage]\npath = {:?}\n{RULE}",
        folder.path().join("data")
    );
    let start = async || {
        let config = roadstead::config::Config::from_toml(&toml, "test").unwrap();
        roadstead::server::start(config).await
    };
    start().await.unwrap().stop().await;
    std::fs::create_dir_all(file.parent().unwrap()).unwrap();
    std::fs::write(&file, "{\"version\":1,").unwrap();
    let error = start().await.err().unwrap().to_string();
    assert!(
        error.starts_with("cannot use the machine tokens in state/machine-tokens.json of the data folder: EOF"),
        "{error}"
    );
    assert!(error.ends_with("restore the file from a backup, or remove it, which revokes all of them"), "{error}");
    std::fs::remove_file(&file).unwrap();
    start().await.unwrap().stop().await;
}

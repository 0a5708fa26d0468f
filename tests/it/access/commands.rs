//! The commands about users.

use std::io::Write;
use std::process::{Command, Output, Stdio};

use super::{Access, RULES};

const PROGRAM: &str = env!("CARGO_BIN_EXE_roadstead");

fn run(args: &[&str], input: &str) -> Output {
    let mut command = Command::new(PROGRAM);
    command.args(args).env_clear().stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    // It may have ended before it has read everything.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    child.wait_with_output().unwrap()
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

#[test]
fn a_printed_line_is_one_of_the_file() {
    let hashed = run(&["hash-password", "--user", "ann"], "secret\n");
    let line = text(&hashed.stdout);
    let hash = line.strip_prefix("ann:").and_then(|line| line.strip_suffix('\n')).unwrap();
    assert!(hash.starts_with("$2b$10$") && bcrypt::verify("secret", hash).unwrap(), "{line}");
    let alone = run(&["hash-password"], "secret");
    assert!(bcrypt::verify("secret", text(&alone.stdout).trim_end()).unwrap());
    for (args, input, error) in [
        (&["hash-password"][..], "\n", "the password is empty"),
        (&["hash-password"], "secret\nsecret\n", "more than one line"),
        (&["hash-password"], &*"x".repeat(73), "more than 72 bytes"),
        (&["hash-password", "--user", "a:b"], "secret", "cannot be the name of a user"),
    ] {
        let output = run(args, input);
        let stderr = text(&output.stderr);
        assert!(!output.status.success() && stderr.contains(error) && output.stdout.is_empty(), "{stderr}");
        assert_eq!(stderr.lines().count(), 1, "{stderr}");
    }
}

#[tokio::test]
async fn explain_names_the_rule_that_allows_or_that_none_does() {
    let ci = "[[auth.rule]]\nwho = [\"cert:spiffe://cluster/*\", \"ci\"]\non = \"team/**\"\nmay = \"push\"\n";
    let access = Access::start(&format!("{RULES}{ci}")).await;
    assert_eq!(access.push("team/app", &super::login("ann")).await, 201);
    let config = access.folder.path().join("roadstead.toml");
    std::fs::write(&config, access.server.settings().to_toml()).unwrap();
    let explain = async |user: &str, image: &str| {
        let config = config.to_str().unwrap().to_owned();
        let (user, image) = (user.to_owned(), image.to_owned());
        let output =
            tokio::task::spawn_blocking(move || run(&["explain", "--as", &user, &image, "--config", &config], ""));
        let output = output.await.unwrap();
        assert!(output.status.success(), "{}", text(&output.stderr));
        text(&output.stdout).lines().filter(|line| line.contains(" may ")).map(str::to_owned).collect::<Vec<_>>()
    };
    let ann = explain("ann", "team/app:v1").await;
    assert!(ann[0].starts_with("access      ann may pull: the rule at "), "{ann:?}");
    assert!(
        ann[1].starts_with("            ann may push: the rule at ") && ann[2].contains("ann may delete"),
        "{ann:?}"
    );
    let eve = explain("eve", "team/app:v1").await;
    assert_eq!(eve[0], "access      eve may not pull: no rule allows it");
    assert_eq!(eve.len(), 3);
    let node = explain("cert:spiffe://cluster/node", "team/app:v1").await;
    assert_eq!(node[0], "access      cert:spiffe://cluster/node may not pull: no rule allows it");
    assert!(node[1].starts_with("            cert:spiffe://cluster/node may push: the rule at "), "{node:?}");
    let nobody = explain("anonymous", "docker.io/library/alpine").await;
    assert!(nobody.len() == 1 && nobody[0].starts_with("access      anonymous may pull: the rule at "), "{nobody:?}");
}

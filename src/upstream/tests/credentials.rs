//! Sources of credentials: files that change, programs, and rules for repositories.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use futures_util::future::join_all;
use parking_lot::Mutex;
use tempfile::TempDir;

use super::server::{Reply, Seen, Server};
use super::{Fixture, Kind, UpstreamError, blob, manifest, request, soon, with_password as password_of};
use crate::config::{CredentialConfig, CredentialSource, Namespace, UpstreamConfig};
use crate::tasks::Tasks;
use crate::telemetry::Metrics;
use crate::upstream::Upstream;

/// A program in its own folder. It prints the file `says` and adds a line to `runs` for each run.
struct Program {
    folder: TempDir,
}

impl Program {
    fn new(says: &str) -> Self {
        Self::running(says, "cat \"$folder/says\"")
    }

    fn running(says: &str, then: &str) -> Self {
        let program = Self { folder: tempfile::tempdir().unwrap() };
        program.says(says);
        let script = format!("#!/bin/sh\nfolder='{}'\necho >> \"$folder/runs\"\n{then}\n", program.path("").display());
        fs::write(program.path("program"), script).unwrap();
        fs::set_permissions(program.path("program"), fs::Permissions::from_mode(0o700)).unwrap();
        program
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn says(&self, text: &str) {
        write(&self.path("says"), text);
    }

    fn runs(&self) -> usize {
        fs::read_to_string(self.path("runs")).map_or(0, |runs| runs.lines().count())
    }

    fn source(&self, username: Option<&str>, lifetime: Duration) -> CredentialSource {
        let command = vec![self.path("program").to_str().unwrap().to_owned()];
        CredentialSource::Exec { command, username: username.map(str::to_owned), lifetime }
    }
}

/// Replaces the file by rename, as secret managers do.
fn write(path: &Path, text: &str) {
    let new = path.with_extension("new");
    fs::write(&new, text).unwrap();
    fs::rename(new, path).unwrap();
}

fn basic(username: &str, password: &str) -> String {
    format!("Basic {}", BASE64_STANDARD.encode(format!("{username}:{password}")))
}

fn fixture(server: &Server, source: CredentialSource) -> Fixture {
    Fixture::configured(&[server], |config| config.credentials = vec![CredentialConfig::new(source)])
}

/// A registry whose password can be changed. It sends `refusal` for any other password.
async fn with_password(password: &Arc<Mutex<&'static str>>, refusal: u16) -> Server {
    let password = password.clone();
    Server::start(move |seen| match seen.authorization() {
        Some(shown) if shown == basic("AWS", *password.lock()) => Reply::ok("content"),
        Some(_) if refusal == 403 => Reply::new(403),
        _ => Reply::new(401).header("www-authenticate", r#"Basic realm="ecr",service="ecr.amazonaws.com""#),
    })
    .await
}

#[tokio::test]
async fn password_file_is_reread_after_a_denial() {
    for refusal in [401, 403] {
        let password = Arc::new(Mutex::new("one"));
        let server = with_password(&password, refusal).await;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("password");
        write(&path, "one\n");
        let fixture = fixture(&server, CredentialSource::File { username: "AWS".to_owned(), path: path.clone() });
        assert_eq!(fixture.get(manifest()).await.unwrap(), "content");
        *password.lock() = "two";
        assert!(matches!(fixture.get(manifest()).await, Err(UpstreamError::Denied { .. })));
        write(&path, "two\n");
        assert_eq!(fixture.get(manifest()).await.unwrap(), "content");
        // While the file is missing or empty, the last valid password is used.
        fs::write(&path, "").unwrap();
        assert_eq!(fixture.get(manifest()).await.unwrap(), "content");
        fs::remove_file(&path).unwrap();
        tokio::time::sleep(Duration::from_millis(2100)).await;
        assert_eq!(fixture.get(manifest()).await.unwrap(), "content");
    }
}

#[tokio::test]
async fn changed_password_file_is_reread() {
    let server = Server::start(|seen| match seen.authorization() {
        Some(shown) => Reply::ok(shown),
        None => Reply::new(401).header("www-authenticate", "Basic realm=x"),
    })
    .await;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("key.json");
    write(&path, "{\n \"key\": 1\n}\n");
    let fixture = fixture(&server, CredentialSource::File { username: "_json_key".to_owned(), path: path.clone() });
    assert_eq!(
        fixture.get(manifest()).await.unwrap(),
        basic("_json_key", "{\n \"key\": 1\n}"),
        "a JSON key is used completely"
    );
    write(&path, "{}");
    tokio::time::sleep(Duration::from_millis(2100)).await;
    assert_eq!(fixture.get(manifest()).await.unwrap(), basic("_json_key", "{}"));
}

#[tokio::test]
async fn program_runs_once_and_again_after_a_denial() {
    let password = Arc::new(Mutex::new("one"));
    let server = with_password(&password, 403).await;
    let program = Program::new("one\n");
    let fixture = fixture(&server, program.source(Some("AWS"), Duration::from_secs(20)));
    let all = join_all((0..16).map(|_| fixture.get(blob()))).await;
    assert!(all.into_iter().all(|body| body.unwrap() == "content"));
    assert_eq!(program.runs(), 1);

    *password.lock() = "two";
    program.says("two\n");
    // A tenth of its lifetime: before, a refused password does not make the program run again.
    tokio::time::sleep(Duration::from_millis(2100)).await;
    let all = join_all((0..16).map(|_| fixture.get(blob()))).await;
    assert!(all.into_iter().all(|body| body.unwrap() == "content"), "ECR says 403 to an expired password");
    assert!(program.runs() <= 3, "{}", program.runs());
}

#[tokio::test]
async fn program_is_not_run_for_every_denied_request() {
    let password = Arc::new(Mutex::new("never"));
    let server = with_password(&password, 401).await;
    let program = Program::new("wrong\n");
    let fixture = fixture(&server, program.source(Some("AWS"), Duration::from_secs(3600)));
    for _ in 0..5 {
        assert!(matches!(fixture.get(blob()).await, Err(UpstreamError::Denied { .. })));
    }
    assert_eq!(program.runs(), 1);
}

#[tokio::test]
async fn credentials_outlive_a_failing_program() {
    let password = Arc::new(Mutex::new("one"));
    let server = with_password(&password, 401).await;
    let program = Program::running(
        r#"{"Username":"AWS","Secret":"one"}"#,
        r#"if [ -e "$folder/broken" ]; then cat "$folder/says"; cat "$folder/says" >&2; exit 7; fi; cat "$folder/says""#,
    );
    let fixture = fixture(&server, program.source(None, Duration::from_secs(6)));
    assert_eq!(fixture.get(blob()).await.unwrap(), "content");
    fs::write(program.path("broken"), "").unwrap();
    tokio::time::sleep(Duration::from_millis(3100)).await;
    assert_eq!(
        fixture.get(blob()).await.unwrap(),
        "content",
        "the program runs again, and the previous password is used"
    );
    while program.runs() < 2 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    tokio::time::sleep(Duration::from_millis(3000)).await;
    let error = fixture.get(blob()).await.unwrap_err();
    assert!(matches!(error, UpstreamError::Credentials { .. }) && error.is_upstream_failure(), "{error}");
    let text = format!("{error} {error:?}");
    assert!(text.contains("program failed") && !text.contains("one\""), "{text}");
    assert_eq!(program.runs(), 2, "a program that has just failed is not run again");
}

#[tokio::test]
async fn token_server_gets_the_newer_password() {
    let password = Arc::new(Mutex::new("one"));
    let current = password.clone();
    let server = Server::start(move |seen| {
        if !seen.target.starts_with("/token") {
            let granted = seen.authorization() == Some(&format!("Bearer {}", current.lock()));
            return if granted { Reply::ok("content") } else { Reply::bearer(&seen.here("/token"), "") };
        }
        let password = *current.lock();
        match seen.authorization() {
            Some(shown) if shown == basic("oauth2accesstoken", password) => Reply::token(password),
            _ => Reply::new(401),
        }
    })
    .await;
    let program = Program::new("one");
    let fixture = fixture(&server, program.source(Some("oauth2accesstoken"), Duration::from_secs(20)));
    assert_eq!(fixture.get(blob()).await.unwrap(), "content");
    *password.lock() = "two";
    program.says("two");
    // A tenth of its lifetime: before, a refused password does not make the program run again.
    tokio::time::sleep(Duration::from_millis(2100)).await;
    assert_eq!(fixture.get(blob()).await.unwrap(), "content");
}

/// Issues tokens that contain the account, for a scope without a repository.
fn naming(seen: &Seen) -> Reply {
    if seen.target.starts_with("/token") {
        let account = seen.authorization().unwrap_or("nobody").replace(' ', "-");
        return Reply::token(&account);
    }
    match seen.authorization() {
        Some(shown) => Reply::ok(shown),
        None => Reply::bearer(&seen.here("/token"), r#"scope="*""#),
    }
}

#[tokio::test]
async fn first_matching_rule_is_used_for_each_repository() {
    let server = Server::start(naming).await;
    let rule = |pattern: Option<&str>, username: &str| CredentialConfig {
        repository: pattern.map(|pattern| Namespace::parse(pattern).unwrap()),
        source: CredentialSource::password(username, "hunter2"),
    };
    let rules = vec![rule(Some("org/secret/*"), "one"), rule(Some("org/**"), "two")];
    let mut with_rest = rules.clone();
    with_rest.push(rule(None, "rest"));
    for (rules, rest) in [(rules, None), (with_rest, Some("rest"))] {
        let fixture = Fixture::configured(&[&server], |config| config.credentials = rules);
        for (repository, username) in
            [("org/app", Some("two")), ("org/secret/app", Some("one")), ("other/app", rest), ("org/app", Some("two"))]
        {
            let account = username.map_or("nobody".to_owned(), |username| basic(username, "hunter2"));
            let shown = fixture.get(request(Kind::Tags, repository, "tags/list")).await.unwrap();
            assert_eq!(shown, format!("Bearer {}", account.replace(' ', "-")), "{repository}");
            let repository = repository.parse().unwrap();
            assert_eq!(fixture.upstream.has_credentials(&repository), username.is_some(), "{repository}");
        }
        let id = |repository: &str| fixture.upstream.credential(&repository.parse().unwrap());
        assert_ne!(id("org/app"), id("org/secret/app"));
        assert_ne!(id("org/app"), id("other/app"));
        assert_eq!(id("org/app"), id("org/other"));
    }
}

#[tokio::test]
async fn docker_logins_are_used_by_host_and_reread() {
    let server = Server::start(naming).await;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("config.json");
    let host = format!("127.0.0.1:{}", server.port());
    let logins = |host: &str, password: &str| {
        let auth = BASE64_STANDARD.encode(format!("ann:{password}"));
        write(&path, &format!(r#"{{"auths":{{"http://{host}":{{"auth":"{auth}"}}}}}}"#));
    };
    logins("other.example", "one");
    let fixture = fixture(&server, CredentialSource::Docker { path: path.clone() });
    assert_eq!(fixture.get(manifest()).await.unwrap(), "Bearer nobody");
    assert!(!fixture.upstream.has_credentials(&manifest().repository));
    logins(&host, "two");
    tokio::time::sleep(Duration::from_millis(2100)).await;
    let shown = format!("Bearer {}", basic("ann", "two").replace(' ', "-"));
    assert_eq!(fixture.get(manifest()).await.unwrap(), shown);
    assert!(fixture.upstream.has_credentials(&manifest().repository));

    let token = format!(r#"{{"auths":{{"{host}":{{"registrytoken":"registry"}}}}}}"#);
    write(&path, &token);
    tokio::time::sleep(Duration::from_millis(2100)).await;
    assert_eq!(fixture.get(manifest()).await.unwrap(), "Bearer registry", "no token server is asked");
}

#[tokio::test]
async fn upstream_and_errors_contain_no_secret() {
    let canary = "hunter2";
    let server = Server::start(|_| Reply::new(401).header("www-authenticate", "Basic realm=x")).await;
    let program = Program::running(canary, "cat \"$folder/says\"; cat \"$folder/says\" >&2; exit 1");
    let folder = tempfile::tempdir().unwrap();
    let broken = folder.path().join("config.json");
    write(&broken, &format!("{{\"auths\":{{\"{canary}\":{canary}}}}}"));
    for source in [
        CredentialSource::password("ann", canary),
        program.source(Some("ann"), Duration::from_secs(60)),
        CredentialSource::Docker { path: broken },
    ] {
        let fixture = fixture(&server, source.clone());
        let error = fixture.get(blob()).await.unwrap_err();
        let text = format!("{error} {error:?} {:?} {source:?}", fixture.upstream);
        assert!(!text.contains(canary), "{text}");
    }
}

/// An upstream that is named after the server `own`, with a password, and a mirror before it.
fn with_mirror(mirror: &Server, own: &Server) -> Upstream {
    let name = format!("127.0.0.1:{}", own.port());
    let mut config = UpstreamConfig::new(name.as_str(), vec![mirror.url(), own.url()]);
    config.credentials = password_of("ann", "hunter2");
    Upstream::new(&config, "roadstead-test", Arc::new(Metrics::new(&[&name])), Tasks::new()).unwrap()
}

#[tokio::test]
async fn a_mirror_gets_no_password_and_its_refusal_does_not_count() {
    let challenge = |status| Reply::new(status).header("www-authenticate", "Basic realm=\"x\"");
    for status in [401, 403, 404, 503] {
        let mirror = Server::start(move |_| challenge(status)).await;
        let own = Server::start(move |seen| match seen.authorization() {
            Some(_) => Reply::ok("content"),
            None => challenge(401),
        })
        .await;
        for request in [blob(), manifest()] {
            let answer = with_mirror(&mirror, &own).send(request, soon()).await.unwrap();
            assert_eq!(answer.body.collect(100, soon()).await.unwrap(), "content", "{status}");
        }
        assert!(mirror.seen().iter().all(|seen| seen.authorization().is_none()), "{status}");
        assert!(own.seen().iter().any(|seen| seen.authorization().is_some()), "{status}");
    }
}

#[tokio::test]
async fn the_upstream_itself_decides_what_a_mirror_lacks() {
    let cases = [(404, 404, "not found"), (404, 503, "an outage"), (401, 404, "not found"), (404, 403, "denied")];
    for (mirrored, own, expected) in cases {
        let mirror = Server::start(move |_| Reply::new(mirrored)).await;
        let own = Server::start(move |_| Reply::new(own).header("retry-after", "600")).await;
        let error = with_mirror(&mirror, &own).send(blob(), soon()).await.unwrap_err();
        let found = match error {
            UpstreamError::NotFound { .. } => "not found",
            UpstreamError::Denied { .. } => "denied",
            _ => "an outage",
        };
        assert_eq!(found, expected, "{mirrored}: {error}");
    }
}

/// Docker's file with logins by path, each with its user's name as password.
fn logins_by_path(host: &str, logins: &[(&str, &str)]) -> String {
    let entry = |(path, user): &(&str, &str)| {
        let auth = BASE64_STANDARD.encode(format!("{user}:{user}"));
        format!("\"{host}{path}\": {{\"auth\": \"{auth}\"}}")
    };
    format!("{{\"auths\": {{{}}}}}", logins.iter().map(entry).collect::<Vec<_>>().join(","))
}

#[tokio::test]
async fn repositories_share_only_with_the_same_login_of_a_docker_file() {
    let server = Server::start(naming).await;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("config.json");
    let host = format!("127.0.0.1:{}", server.port());
    write(&path, &logins_by_path(&host, &[("/corp", "ann"), ("/other", "bob")]));
    let fixture = fixture(&server, CredentialSource::Docker { path: path.clone() });
    let id = |repository: &str| fixture.upstream.credential(&repository.parse().unwrap());
    let read = async || fixture.upstream.read_credentials(&"corp/app".parse().unwrap(), soon()).await;
    assert_ne!(id("corp/app"), id("corp/tool"), "nothing is shared before the file is read");
    read().await;
    assert_eq!(id("corp/app"), id("corp/tool"));
    assert_eq!(id("free/app"), id("free/tool"), "both are anonymous");
    for other in ["other/app", "free/app"] {
        assert_ne!(id("corp/app"), id(other), "{other}");
    }
    let before = id("corp/app");
    write(&path, &logins_by_path(&host, &[("/corp", "eve"), ("/other", "bob")]));
    tokio::time::sleep(Duration::from_millis(2100)).await;
    read().await;
    assert_ne!(id("corp/app"), before, "another account under the same key");
    assert_eq!(id("corp/app"), id("corp/tool"));
}

#[tokio::test]
async fn an_unreadable_docker_file_shares_nothing() {
    let server = Server::start(naming).await;
    let fixture = fixture(&server, CredentialSource::Docker { path: "/nonexistent/config.json".into() });
    let names = ["corp/app", "corp/tool"].map(|name| name.parse().unwrap());
    for name in &names {
        fixture.upstream.read_credentials(name, soon()).await;
    }
    let [one, two] = names.map(|name| fixture.upstream.credential(&name));
    assert_ne!(one, two);
}

#[tokio::test]
async fn limit_of_one_login_of_a_docker_file_does_not_affect_the_others() {
    let server = Server::start(|seen| match (seen.target.contains("/corp/"), seen.authorization()) {
        (_, None) => Reply::new(401).header("www-authenticate", "Basic realm=\"x\""),
        (true, Some(_)) => Reply::new(429).header("retry-after", "60"),
        (false, Some(_)) => Reply::ok("content"),
    })
    .await;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("config.json");
    write(&path, &logins_by_path(&format!("127.0.0.1:{}", server.port()), &[("/corp", "ann"), ("/other", "bob")]));
    let fixture = fixture(&server, CredentialSource::Docker { path });
    let get = async |repository: &str| fixture.get(request(Kind::Tags, repository, "tags/list")).await;
    for repository in ["corp/app", "corp/tool"] {
        assert!(matches!(get(repository).await, Err(UpstreamError::RateLimited { .. })), "{repository}");
    }
    assert_eq!(server.count("/v2/corp/tool"), 0, "the same login is paused");
    assert_eq!(get("other/app").await.unwrap(), "content");
}

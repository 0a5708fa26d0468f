//! The audit log and the metrics of logins.

use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value;
use tokio::io::AsyncWriteExt as _;

use super::{Access, RULES, basic, login};
use crate::support::Content;

/// A server with its audit log in a file.
struct Audited {
    access: Access,
    file: PathBuf,
    _folder: tempfile::TempDir,
}

impl Audited {
    async fn start(rules: &str, toml: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("audit.log");
        let access = Access::configured(rules, &format!("[audit]\nfile = {file:?}\n{toml}")).await;
        Self { access, file, _folder: folder }
    }

    /// The records as text and as JSON, when there are this many.
    async fn records(&self, count: usize) -> Vec<Value> {
        let deadline = std::time::Instant::now() + Duration::from_secs(10);
        loop {
            let text = std::fs::read_to_string(&self.file).unwrap();
            if text.lines().count() >= count || std::time::Instant::now() > deadline {
                assert!(!text.contains("password\"") || !text.contains("-password"), "{text}");
                let records: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
                assert_eq!(records.len(), count, "{text}");
                return records;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

/// The values of these fields, with `-` for those that a record lacks.
fn fields(record: &Value, names: &[&str]) -> String {
    names.iter().map(|name| record[name].as_str().unwrap_or("-")).collect::<Vec<_>>().join(" ")
}

#[tokio::test]
async fn logins_pushes_tags_deletes_and_refusals_have_records() {
    let audited = Audited::start(RULES, "").await;
    let access = &audited.access;
    let token = access.token("?scope=repository:team/app:pull,push,delete", &login("ann")).await;
    assert_eq!(access.push("team/app", &token).await, 201);
    let image = &access.image;
    let path = format!("/v2/team/app/manifests/{}?tag=a&tag=b", image.digest());
    let headers = [("Authorization", &*token), ("Content-Type", &image.manifest.media_type), ("User-Agent", "a/1")];
    let put = access.server.send("PUT", &path, &headers, image.manifest.bytes.clone()).await;
    assert_eq!(put.status, 201);
    assert_eq!(access.send("DELETE", "/v2/team/app/manifests/a", &login("bob")).await.status, 202);
    assert_eq!(access.send("GET", "/v2/team/app/manifests/b", &login("eve")).await.status, 403);
    // A pull and a request that changes nothing have none.
    assert_eq!(access.send("GET", "/v2/library/alpine/manifests/1", "").await.status, 200);
    assert_eq!(access.send("DELETE", "/v2/team/app/manifests/none", &login("bob")).await.status, 404);
    assert_eq!(access.send("POST", "/v2/team/app/blobs/uploads/", &token).await.status, 202);
    let blobs = image.blobs().count();
    let records = audited.records(1 + blobs + 1 + 3 + 2 + 2).await;
    let of = |record: &Value| fields(record, &["event", "who", "how", "scope", "repository", "reference", "outcome"]);
    let digest = image.digest();
    assert_eq!(of(&records[0]), "login ann password - - - accepted");
    for (record, Content { digest, .. }) in records[1..].iter().zip(image.blobs()) {
        assert_eq!(of(record), "push ann token local team/app - done");
        assert_eq!(record["digest"], *digest);
    }
    let rest: Vec<String> = records[1 + blobs..].iter().map(of).collect();
    assert_eq!(
        rest,
        [
            "push ann token local team/app v1 done".to_owned(),
            format!("push ann token local team/app {digest} done"),
            "tag ann token local team/app a done".to_owned(),
            "tag ann token local team/app b done".to_owned(),
            "login bob password - - - accepted".to_owned(),
            "delete bob password local team/app a done".to_owned(),
            "login eve password - - - accepted".to_owned(),
            "denied eve password local team/app b may not pull".to_owned(),
        ]
    );
    let push = &records[2 + blobs];
    assert_eq!(
        (&push["digest"], &push["agent"], &push["client"]),
        (&digest.into(), &"a/1".into(), &"127.0.0.1".into())
    );
    assert!(push["rule"].as_str().unwrap().contains("test:") && push["request_id"].is_string(), "{push}");
    let metrics = access.server.metrics().await;
    for (labels, count) in [
        ([("how", "password"), ("result", "accepted")], 3.0),
        ([("how", "password"), ("result", "refused")], 0.0),
        ([("how", "cert"), ("result", "accepted")], 0.0),
    ] {
        assert_eq!(metrics.sum("roadstead_auth_attempts_total", &labels), count, "{labels:?}");
    }
    assert_eq!(metrics.sum("roadstead_auth_denied_total", &[("action", "pull")]), 1.0);
}

#[tokio::test]
async fn failed_logins_are_recorded_once_and_without_names_that_are_no_users() {
    let audited = Audited::start(RULES, "").await;
    let access = &audited.access;
    for _ in 0..3 {
        for (name, password) in [("ann", "wrong"), ("my-secret-passphrase", "wrong")] {
            assert_eq!(access.send("GET", "/auth/token", &basic(name, password)).await.status, 401);
        }
    }
    // The login of a mirror client for another registry.
    access.token("?scope=repository:library/alpine:pull", &basic("hub-user", "hub-password")).await;
    assert_eq!(access.send("GET", "/v2/team/app/manifests/v1", "Bearer x").await.status, 401);
    let records = audited.records(3).await;
    let all: Vec<_> = records.iter().map(|record| fields(record, &["event", "who", "how", "outcome"])).collect();
    let unknown = "login_failed - password refused";
    assert_eq!(all, ["login_failed ann password refused", unknown, unknown]);
    let text = std::fs::read_to_string(&audited.file).unwrap();
    assert!(!text.contains("secret") && !text.contains("hub-"), "{text}");
    let metrics = access.server.metrics().await;
    let attempts = |how, result| metrics.sum("roadstead_auth_attempts_total", &[("how", how), ("result", result)]);
    assert_eq!((attempts("password", "refused"), attempts("token", "refused")), (3.0, 1.0));
}

#[tokio::test]
async fn floods_are_bounded_and_counted() {
    let audited = Audited::start(RULES, "").await;
    let access = &audited.access;
    for number in 0..50 {
        assert!(access.send("GET", "/auth/token", &basic("bob", &number.to_string())).await.status >= 400);
        assert_eq!(access.send("GET", "/v2/team/app/manifests/v1", &login("eve")).await.status, 403);
    }
    let metrics = access.server.metrics().await;
    let attempts = |result| metrics.sum("roadstead_auth_attempts_total", &[("how", "password"), ("result", result)]);
    assert_eq!((attempts("refused"), attempts("throttled")), (10.0, 40.0));
    assert_eq!(metrics.sum("roadstead_auth_denied_total", &[("action", "pull")]), 50.0);
    // Ten of each, and one login. A stop says how many are missing.
    let records = audited.records(21).await;
    assert_eq!(records.iter().filter(|record| record["event"] == "denied").count(), 10);
    let Audited { access, file, _folder } = audited;
    access.server.stop().await;
    let text = std::fs::read_to_string(file).unwrap();
    for event in ["denied", "login_failed"] {
        let left_out = |line: &str| line.contains(&format!("\"event\":\"{event}\",\"outcome\":\"40 more like this"));
        assert!(text.lines().any(left_out), "{text}");
    }
}

#[tokio::test]
async fn hostile_text_stays_on_its_line() {
    let audited = Audited::start(RULES, "").await;
    let access = &audited.access;
    let agent = format!("x\t\"}}{{\"event\":\"push\",\"who\":\"admin\"}}{}", "a".repeat(5000));
    for path in ["/v2/team/app/manifests/v1", "/v2/team/app/tags/list"] {
        let headers = [("Authorization", &*login("eve")), ("User-Agent", &agent), ("X-Request-Id", "{\"x\":1}")];
        assert_eq!(access.server.get_with(path, &headers).await.status, 403);
    }
    let records = audited.records(3).await;
    assert!(records.iter().all(|record| record["event"] != "push"));
    let sent = records[1]["agent"].as_str().unwrap();
    assert!(sent.len() <= 256 && agent.starts_with(sent), "{sent}");
    assert_eq!(records[1]["request_id"], "{\"x\":1}");
}

#[tokio::test]
async fn an_upload_whose_client_left_has_no_record() {
    let audited = Audited::start(RULES, "").await;
    let access = &audited.access;
    let mut stream = tokio::net::TcpStream::connect(access.server.addr()).await.unwrap();
    let login = login("ann");
    let request = format!(
        "PUT /v2/team/app/manifests/v1 HTTP/1.1\r\nHost: x\r\nAuthorization: {login}\r\nContent-Length: 10\r\n\r\n{{"
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    audited.records(1).await;
    drop(stream);
    assert_eq!(access.push("team/b", &login).await, 201);
    let records = audited.records(1 + access.image.blobs().count() + 1).await;
    assert!(records.iter().all(|record| record["repository"] != "team/app"), "{records:?}");
}

#[tokio::test]
async fn pulls_are_recorded_if_that_is_wanted() {
    let audited = Audited::start(RULES, "pulls = true").await;
    let access = &audited.access;
    let manifest = "/v2/library/alpine/manifests/1";
    let layer = format!("/v2/library/alpine/blobs/{}", access.image.layers[0].digest);
    // The second one would be answered by the fast path.
    for path in [manifest, manifest, &layer] {
        assert_eq!(access.send("GET", path, "").await.status, 200);
    }
    assert_eq!(access.send("HEAD", manifest, "").await.status, 200);
    let foreign = basic("hub-user", "x");
    assert_eq!(access.send("GET", manifest, &foreign).await.status, 200);
    let records = audited.records(4).await;
    for record in &records {
        let found = fields(record, &["event", "who", "how", "scope", "repository", "outcome"]);
        assert_eq!(found, "pull anonymous anonymous docker.io library/alpine done");
    }
    assert_eq!(
        (&records[1]["reference"], &records[2]["digest"]),
        (&"1".into(), &(*access.image.layers[0].digest).into())
    );
}

#[tokio::test]
async fn without_users_nothing_is_recorded_or_counted() {
    let server = crate::support::TestServer::builder().start().await;
    let metrics = server.get("/metrics").await;
    assert!(!metrics.text().contains("roadstead_auth_"), "{}", metrics.text());
}

//! Request ids: which responses carry one, and where a client's report of one leads in the log.

use serde_json::Value;

use crate::scene::{pushed_and_mirrored, until};
use crate::support::process::ServerProcess;
use crate::support::settings::Settings;
use crate::support::{Client, Image, Reply, Upstream, digest_of};

const ID: &str = "x-request-id";

#[tokio::test]
async fn a_hit_returns_the_id_only_if_the_client_sent_one() {
    let (_upstream, server, image) = pushed_and_mirrored().await;
    for repo in ["team/app", "org/app"] {
        for path in ["manifests/v1".to_owned(), format!("blobs/{}", image.layers[0].digest)] {
            let path = format!("/v2/{repo}/{path}");
            server.get(&path).await;
            let without = server.get(&path).await;
            let with = server.get_with(&path, &[(ID, "from-the-client")]).await;
            assert_eq!((without.status, without.header(ID)), (200, ""), "{path}");
            assert_eq!((with.status, with.header(ID)), (200, "from-the-client"), "{path}");
        }
    }
}

#[tokio::test]
async fn every_error_has_an_id_in_its_details_and_in_a_header() {
    let (_upstream, server, image) = pushed_and_mirrored().await;
    let missing = digest_of(b"stored nowhere");
    for (method, path) in [
        ("GET", "/v2/team/app/manifests/none".to_owned()),
        ("GET", format!("/v2/team/app/blobs/{missing}")),
        ("GET", "/v2/a%2Fb/tags/list".to_owned()),
        ("GET", "/v2/team/app/tags/list?n=x".to_owned()),
        ("GET", "/v2/org/app/manifests/v1?ns=registry.example".to_owned()),
        ("PATCH", "/v2/team/app/blobs/uploads/none".to_owned()),
        ("PUT", format!("/v2/library/app/manifests/{}", image.digest())),
        ("POST", "/v2/team/app/manifests/v1".to_owned()),
    ] {
        let answer = server.send(method, &path, &[], "").await;
        let id = answer.json()["errors"][0]["detail"]["request_id"].as_str().unwrap_or_default().to_owned();
        assert!(answer.status >= 400 && id.len() == 32, "{method} {path}: {answer:?}");
        assert_eq!(answer.header(ID), id, "{method} {path}");
        let sent = server.send(method, &path, &[(ID, "mine")], "").await;
        assert_eq!(sent.json()["errors"][0]["detail"]["request_id"], "mine", "{method} {path}");
        assert_eq!(sent.header(ID), "mine", "{method} {path}");
    }
    for path in ["/metrics", "/healthz", "/readyz"] {
        let answer = server.send("DELETE", path, &[], "").await;
        let id = answer.json()["errors"][0]["detail"]["request_id"].as_str().unwrap_or_default().to_owned();
        assert_eq!(
            (answer.status, answer.header(ID), answer.header("allow")),
            (405, id.as_str(), "GET, HEAD"),
            "{path}"
        );
        assert_eq!(id.len(), 32, "{path}");
    }
    let head = server.head("/v2/team/app/manifests/none").await;
    assert_eq!((head.status, head.header(ID).len()), (404, 32), "a HEAD has no body");
}

#[tokio::test]
async fn an_id_that_a_header_or_log_should_not_hold_is_replaced() {
    let (_upstream, server, _image) = pushed_and_mirrored().await;
    let long = "x".repeat(129);
    for id in ["two words", long.as_str()] {
        let answer = server.get_with("/v2/team/app/manifests/none", &[(ID, id)]).await;
        assert_eq!(answer.header(ID).len(), 32, "{id}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_log_line_of_an_error_has_its_id() {
    let upstream = Upstream::start().await;
    let image = Image::new(1, &[10]);
    upstream.add_image("library/app", "v1", &image);
    upstream.always("*", "/v2/library/app/manifests/v1", Reply::status(500));
    let settings = Settings::new()
        .upstream("docker.io", &upstream)
        .default_upstream("docker.io")
        .config("[log]\nformat = \"json\"");
    let process = tokio::task::spawn_blocking(|| ServerProcess::start(settings)).await.unwrap();
    let url = process.url("/v2/library/app/manifests/v1");
    let failed = Client::new().get_with(&url, &[(ID, "report-7")]).await;
    assert_eq!(failed.status, 502);
    let lines = || -> Vec<Value> { process.log().lines().filter_map(|line| serde_json::from_str(line).ok()).collect() };
    let of_the_error = |line: &Value| line["request_id"] == "report-7" && line["status"] == 502;
    until("the error is logged", async || lines().iter().any(of_the_error)).await;
    // The engine's own line about the upstream is in the span of the request that asked.
    let in_the_span = |line: &Value| line["level"] == "WARN" && line["span"]["id"] == "report-7";
    assert!(lines().iter().any(in_the_span), "{}", process.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn text_of_a_client_adds_no_lines_to_the_log() {
    // A server without upstreams would ignore `ns`.
    let settings = Settings::new().upstream_url("quay.io", "http://127.0.0.1:1");
    let process = tokio::task::spawn_blocking(|| ServerProcess::start(settings)).await.unwrap();
    let url = process.url("/v2/team/app/blobs/uploads/?ns=%0aFORGED%20line%0d%1b%5b31mred%c2%9b");
    assert_eq!(Client::new().send("POST", &url, &[], "").await.status, 404);
    until("the refusal is logged", async || process.log().contains("FORGED")).await;
    let log = process.log();
    let line = log.lines().find(|line| line.contains("FORGED")).unwrap();
    assert!(line.contains(r"for \nFORGED line\r\u{1b}[31mred\u{9b}"), "{line}");
    assert!(!log.chars().any(|character| character.is_control() && character != '\n'), "{log}");
}

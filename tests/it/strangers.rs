//! Text of clients and images is escaped in the log, on the operator's terminal, and in headers that repeat it.

use roadstead::printable::is_unprintable;
use serde_json::{Value, json};

use crate::operator::{CommandOutput, roadstead};
use crate::support::process::ServerProcess;
use crate::support::settings::Settings;
use crate::support::{Client, Conn, Content, Image, TestServer, Upstream};

/// Characters that a terminal or a reader of logs would interpret.
const STEERING: [&str; 6] = [
    "\u{1b}[31mRED\u{7}",
    "\u{1b}]0;title\u{7}\nFORGED LINE",
    "\r\u{8}\u{7f}FORGED",
    "\u{9b}2J\u{85}FORGED",
    "\u{2028}FORGED\u{2029}",
    "\u{202e}gpj.exe\u{2066}\u{200f}",
];

fn assert_printable(output: &CommandOutput, what: &str) {
    for line in output.out.lines().chain(output.err.lines()) {
        assert!(!line.contains(is_unprintable), "{what}: {line:?}");
        assert!(!line.starts_with("FORGED"), "{what}: {output:?}");
    }
}

#[tokio::test]
async fn explain_prints_foreign_media_types_escaped() {
    let upstream = Upstream::start().await;
    let image = Image::new(1, &[10]);
    for (number, text) in STEERING.iter().enumerate() {
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": format!("application/x{text}"),
            "config": { "mediaType": text, "digest": image.config.digest, "size": image.config.bytes.len() },
            "layers": [{ "mediaType": format!("a{text}b"), "digest": image.layers[0].digest, "size": 10 }],
        });
        let manifest = Content::json("application/vnd.oci.image.manifest.v1+json", &manifest);
        upstream.add_manifest("library/a", &manifest);
        upstream.tag("library/a", &format!("v{number}"), &manifest.digest);
    }
    let server = TestServer::mirror_of(&upstream).await;
    for (number, steering) in STEERING.iter().enumerate() {
        let tag = format!("v{number}");
        let status = server.get(&format!("/v2/library/a/manifests/{tag}")).await.status;
        let image = format!("docker.io/library/a:{tag}");
        let text = roadstead(server.data_dir(), &["explain", &image]).await;
        assert_printable(&text, &tag);
        let output = roadstead(server.data_dir(), &["explain", &image, "--output", "json"]).await;
        assert_printable(&output, &tag);
        if status == 200 {
            assert_eq!(output.json()["manifest"]["children"][0]["media_type"], *steering, "JSON keeps the text");
        }
    }
}

#[tokio::test]
async fn commands_print_requested_names_escaped() {
    let upstream = Upstream::start().await;
    let server = TestServer::mirror_of(&upstream).await;
    for text in STEERING.iter().copied().chain([format!("a{}", "A".repeat(60_000)).as_str()]) {
        let encoded: String = url::form_urlencoded::byte_serialize(text.as_bytes()).collect();
        for request in [format!("/v2/a/manifests/v1?ns={encoded}"), format!("team/app:{text}"), format!("{text}/app")] {
            for format in ["text", "json"] {
                let output = roadstead(server.data_dir(), &["explain", &request, "--output", format]).await;
                assert_printable(&output, &request);
                assert!(output.err.len() < 4096, "{}", output.err.len());
            }
        }
    }
    let odd = server.data_dir().join("none\u{1b}[2J");
    for command in ["du", "scrub", "gc"] {
        assert_printable(&roadstead(&odd, &[command]).await, command);
    }
}

#[tokio::test]
async fn log_lines_of_requests_are_single_printable_and_short() {
    for format in ["text", "json"] {
        let upstream = Upstream::start().await;
        let settings = Settings::new().upstream("quay.io", &upstream);
        let server = ServerProcess::start(settings.config(&format!("[log]\nformat = \"{format}\"")));
        let long = "A".repeat(60_000);
        for text in STEERING.iter().copied().chain([long.as_str()]) {
            let encoded: String = url::form_urlencoded::byte_serialize(text.as_bytes()).collect();
            let ns = format!("\n2026-01-01T00:00:00.000000Z  INFO FORGED{encoded}");
            let ns: String = url::form_urlencoded::byte_serialize(ns.as_bytes()).collect();
            for ns in [encoded, ns] {
                let push = server.url(&format!("/v2/a/blobs/uploads/?ns={ns}"));
                assert_eq!(Client::new().send("POST", &push, &[], "").await.status, 404);
                let put = server.url(&format!("/v2/a/manifests/v1?ns={ns}"));
                assert_eq!(Client::new().send("PUT", &put, &[("content-type", "x/y")], "{}").await.status, 404);
            }
        }
        let log = server.log();
        assert!(log.matches("refused a push").count() >= 2 * STEERING.len(), "{log}");
        for line in log.lines() {
            assert!(!line.contains(is_unprintable) && line.len() < 8192, "{format}: {line:?}");
            assert!(!line.starts_with("2026-01-01T00:00:00"), "{line}");
            if format == "json" {
                assert!(serde_json::from_str::<Value>(line).is_ok(), "{line}");
            }
        }
    }
}

#[tokio::test]
async fn headers_that_repeat_a_request_are_short() {
    let upstream = Upstream::start().await;
    let server = TestServer::mirror_of(&upstream).await;
    server.client().push_image(&server.url(""), "team/app", "v1", &Image::new(1, &[10])).await;
    for (port, echoed) in [("5000", true), (&"5".repeat(9000), false)] {
        let path = format!("/v2/team/app/manifests/v1?ns=localhost%3A{port}");
        let conn = Conn::get(server.addr(), &path).await;
        let expected = if echoed { format!("localhost:{port}") } else { String::new() };
        assert_eq!((conn.status, conn.header("oci-namespace")), (200, expected.as_str()));
        assert!(conn.headers.values().all(|value| value.len() < 4096));
    }
}

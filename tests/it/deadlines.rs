//! Malformed HTTP and slow clients: every wait on a connection has a deadline.

use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::scene::until;
use crate::support::image::OCI_LAYER;
use crate::support::{Conn, Content, Gate, Image, Reply, TestServer, Upstream, random_bytes};

/// Far above the deadlines configured here, far below the default ones.
const TEST_TIMEOUT: Duration = Duration::from_secs(10);

/// Sends these bytes and returns everything that the server sends until it closes the connection.
async fn full_response(server: &TestServer, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(server.addr()).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    let mut response = Vec::new();
    // A reset also ends the connection.
    let end = timeout(TEST_TIMEOUT, stream.read_to_end(&mut response)).await;
    assert!(end.is_ok(), "the connection is still open after {:?}", String::from_utf8_lossy(&response));
    String::from_utf8_lossy(&response).into_owned()
}

#[tokio::test]
async fn malformed_http_gets_an_http_error() {
    let server = TestServer::builder().start().await;
    let client_hello = [b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".as_slice(), &random_bytes(1, 506)].concat();
    for (what, bytes) in [
        ("a TLS ClientHello", client_hello.as_slice()),
        ("garbage", b"\x00\x01\x02\xff\xfe\r\n\r\n"),
        ("no version", b"GET /v2/\r\n\r\n"),
        ("an unknown version", b"GET /v2/ HTTP/9.9\r\n\r\n"),
        ("no target", b"GET  HTTP/1.1\r\n\r\n"),
        ("a header without a name", b"GET /v2/ HTTP/1.1\r\n: x\r\n\r\n"),
        ("a target with a space", b"GET /v2/a b/tags/list HTTP/1.1\r\n\r\n"),
        ("two lengths", b"PUT /v2/a/manifests/b HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxx"),
        ("an invalid length", b"PUT /v2/a/manifests/b HTTP/1.1\r\nContent-Length: -1\r\n\r\n"),
        ("SSH", b"SSH-2.0-OpenSSH_9.9\r\n"),
    ] {
        let response = full_response(&server, bytes).await;
        assert!(response.starts_with("HTTP/1.1 400 ") || response.starts_with("HTTP/1.0 400 "), "{what}: {response}");
    }
    assert_eq!(server.get("/v2/").await.status, 200);
}

#[tokio::test]
async fn unfinished_request_headers_end_at_their_deadline() {
    let builder = TestServer::builder().config("[server]\nhead_timeout = \"300ms\"\nkeep_alive = \"300ms\"");
    let server = builder.start().await;
    for begun in ["", "G", "GET /v2/ HTTP/1.1\r\n", "GET /v2/ HTTP/1.1\r\nHost: x\r\nX-Slow: a"] {
        assert_eq!(full_response(&server, begun.as_bytes()).await, "", "{begun:?}");
    }
    // A byte now and then does not restart the clock.
    let mut stream = TcpStream::connect(server.addr()).await.unwrap();
    let drip = async {
        for byte in "GET /v2/ HTTP/1.1\r\nX-Slow: ".bytes().chain(std::iter::repeat(b'x')) {
            if stream.write_all(&[byte]).await.is_err() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(TEST_TIMEOUT, drip).await.expect("the server closes the connection");
    // A connection that is idle after a complete response is closed, too.
    let response = full_response(&server, b"GET /v2/ HTTP/1.1\r\nHost: x\r\n\r\n").await;
    assert!(response.starts_with("HTTP/1.1 200 ") && response.ends_with("{}"), "{response}");
}

#[tokio::test]
async fn a_request_in_progress_outlives_the_idle_deadline() {
    let upstream = Upstream::start().await;
    let image = Image::new(1, &[300_000]);
    upstream.add_image("library/a", "1", &image);
    let gate = Gate::new();
    let blob = format!("/v2/library/a/blobs/{}", image.layers[0].digest);
    upstream.script("GET", &blob, [Reply::normal().wait_after(200_000, &gate)]);
    let builder = TestServer::builder().upstream("docker.io", &upstream).default_upstream("docker.io");
    let deadlines = "[server]\nhead_timeout = \"100ms\"\nkeep_alive = \"100ms\"\nprogress_timeout = \"100ms\"";
    let server = builder.config(deadlines).start().await;
    let mut conn = Conn::get(server.addr(), &blob).await;
    conn.take(1000).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    gate.open();
    assert_eq!(conn.rest().await.0, image.layers[0].bytes[1000..]);
}

#[tokio::test]
async fn a_stalled_upload_ends_and_its_session_resumes() {
    let server = TestServer::builder().config("[server]\nprogress_timeout = \"300ms\"").start().await;
    let content = Content::new(OCI_LAYER, random_bytes(1, 100));
    let location = server.client().start_upload(&server.url(""), "team/app").await;
    let path = location.replace(&server.url(""), "");
    let head = format!("PATCH {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n");
    let response = full_response(&server, &[head.as_bytes(), &content.bytes[..40]].concat()).await;
    assert!(response.starts_with("HTTP/1.1 400 ") && response.contains("BLOB_UPLOAD_INVALID"), "{response}");
    assert_eq!(server.client().get(&location).await.header("range"), "0-39");
    let url = format!("{location}?digest={}", content.digest);
    assert_eq!(server.client().send("PUT", &url, &[], content.bytes.slice(40..)).await.status, 201);
    let manifest = "PUT /v2/team/app/manifests/1 HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{";
    assert!(full_response(&server, manifest.as_bytes()).await.starts_with("HTTP/1.1 400 "));
}

#[tokio::test]
async fn a_client_that_stops_reading_is_disconnected() {
    let server = TestServer::builder().config("[server]\nprogress_timeout = \"300ms\"").start().await;
    let content = Content::new(OCI_LAYER, random_bytes(1, 32 << 20));
    server.client().push_blob(&server.url(""), "team/app", &content).await;
    let request = format!("GET /v2/team/app/blobs/{} HTTP/1.1\r\nHost: x\r\n\r\n", content.digest);
    let conn = Conn::ask_with_small_buffer(server.addr(), &request).await.unwrap();
    let blobs = [("handler", "blob")];
    until("no request is in flight", async || server.metric("registry_http_in_flight_requests", &blobs).await == 0.0)
        .await;
    drop(conn);
}

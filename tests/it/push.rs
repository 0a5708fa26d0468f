//! Push sessions: every way in which clients send a blob, and the responses to them.

use bytes::Bytes;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

use crate::disk::{blob_file, files_below, wait_until_idle};
use crate::scene::until;
use crate::support::client::chunked;
use crate::support::image::OCI_LAYER;
use crate::support::push::absolute;
use crate::support::{Answer, Content, Gate, TestServer, digest_of, random_bytes};

const REPO: &str = "team/app";

fn layer(seed: u64, size: usize) -> Content {
    Content::new(OCI_LAYER, random_bytes(seed, size))
}

fn blob_path(content: &Content) -> String {
    format!("/v2/{REPO}/blobs/{}", content.digest)
}

async fn open(server: &TestServer) -> String {
    server.client().start_upload(&server.url(""), REPO).await
}

async fn patch(server: &TestServer, location: &str, range: &str, bytes: impl Into<reqwest::Body>) -> Answer {
    let mut headers = vec![("Content-Type", "application/octet-stream")];
    headers.extend(Some(("Content-Range", range)).filter(|_| !range.is_empty()));
    server.client().send("PATCH", location, &headers, bytes).await
}

async fn put(server: &TestServer, location: &str, digest: &str, bytes: impl Into<reqwest::Body>) -> Answer {
    server.client().send("PUT", &format!("{location}?digest={digest}"), &[], bytes).await
}

fn next(server: &TestServer, answer: &Answer) -> String {
    absolute(&server.url(""), answer.header("location"))
}

async fn assert_pushed(server: &TestServer, answer: &Answer, content: &Content) {
    assert_eq!(answer.status, 201, "{}", answer.text());
    assert_eq!(answer.header("location"), blob_path(content));
    assert_eq!(answer.header("docker-content-digest"), content.digest);
    assert_eq!(std::fs::read(blob_file(server.data_dir(), &content.digest)).unwrap(), content.bytes);
    let got = server.get(&blob_path(content)).await;
    assert_eq!((got.status, &got.body), (200, &content.bytes));
    wait_until_idle(server.data_dir()).await;
}

fn assert_error(answer: &Answer, status: u16, code: &str) {
    assert_eq!((answer.status, answer.error_code().as_str()), (status, code), "{}", answer.text());
}

#[tokio::test]
async fn a_layer_is_pushed_the_way_docker_does() {
    let server = TestServer::builder().start().await;
    let content = layer(1, 1_500_000);
    assert_eq!(server.head(&blob_path(&content)).await.status, 404);
    let started = server.send("POST", &format!("/v2/{REPO}/blobs/uploads/"), &[], Bytes::new()).await;
    assert_eq!((started.status, started.header("range"), started.body.len()), (202, "0-0", 0));
    let id = started.header("docker-upload-uuid");
    assert!(!id.is_empty() && started.header("location").ends_with(id));
    let received = patch(&server, &next(&server, &started), "", chunked(&content.bytes, 32 * 1024)).await;
    assert_eq!((received.status, received.header("range")), (202, "0-1499999"));
    let answer = put(&server, &next(&server, &received), &content.digest, Bytes::new()).await;
    assert_pushed(&server, &answer, &content).await;
    assert_eq!(server.head(&blob_path(&content)).await.header("content-length"), "1500000");
}

#[tokio::test]
async fn a_layer_is_pushed_in_one_put_or_in_one_post() {
    let server = TestServer::builder().start().await;
    for (seed, size) in [(1, 0), (2, 1), (3, 700_000)] {
        let content = layer(seed, size);
        let location = open(&server).await;
        assert_pushed(&server, &put(&server, &location, &content.digest, content.bytes.clone()).await, &content).await;
        let other = layer(seed + 10, size + 5);
        let path = format!("/v2/{REPO}/blobs/uploads/?digest={}", other.digest);
        assert_pushed(&server, &server.send("POST", &path, &[], other.bytes.clone()).await, &other).await;
    }
    // Empty content has no first byte to request.
    let range = server.get_with(&blob_path(&layer(1, 0)), &[("Range", "bytes=0-")]).await;
    assert_eq!((range.status, range.header("content-range")), (416, "bytes */0"));
}

#[tokio::test]
async fn a_chunk_must_start_at_the_session_offset() {
    let server = TestServer::builder().start().await;
    let content = layer(1, 300);
    let location = open(&server).await;
    let part = |range: std::ops::Range<usize>| content.bytes.slice(range);
    assert_eq!(patch(&server, &location, "0-99", part(0..100)).await.header("range"), "0-99");
    for (range, status) in [("0-99", 416), ("101-200", 416), ("200-299", 416), ("99-0", 400), ("x", 400), ("-1-5", 400)]
    {
        let refused = patch(&server, &location, range, part(0..100)).await;
        assert_error(&refused, status, "BLOB_UPLOAD_INVALID");
        if status == 416 {
            assert_eq!(refused.header("range"), "0-99", "{range}: the offset to resume from");
            assert_eq!(next(&server, &refused), location);
        }
    }
    let status = server.client().get(&location).await;
    assert_eq!((status.status, status.header("range"), next(&server, &status)), (204, "0-99", location.clone()));
    assert_eq!(patch(&server, &location, "bytes 100-199/300", part(100..200)).await.header("range"), "0-199");
    let url = format!("{location}?digest={}", content.digest);
    let early = server.client().send("PUT", &url, &[("Content-Range", "100-299")], part(200..300)).await;
    assert_error(&early, 416, "BLOB_UPLOAD_INVALID");
    let answer = server.client().send("PUT", &url, &[("Content-Range", "200-299")], part(200..300)).await;
    assert_pushed(&server, &answer, &content).await;
}

#[tokio::test]
async fn a_session_can_be_queried_and_cancelled() {
    let server = TestServer::builder().start().await;
    let location = open(&server).await;
    patch(&server, &location, "", Bytes::from_static(b"half")).await;
    let elsewhere = location.replace(REPO, "team/other");
    assert_error(&server.client().get(&elsewhere).await, 404, "BLOB_UPLOAD_UNKNOWN");
    assert_eq!(server.client().send("DELETE", &location, &[], Bytes::new()).await.status, 204);
    wait_until_idle(server.data_dir()).await;
    for method in ["GET", "PATCH", "DELETE"] {
        let answer = server.client().send(method, &location, &[], Bytes::new()).await;
        assert_error(&answer, 404, "BLOB_UPLOAD_UNKNOWN");
    }
    assert_error(&put(&server, &location, &digest_of(b"half"), Bytes::new()).await, 404, "BLOB_UPLOAD_UNKNOWN");
}

#[tokio::test]
async fn content_with_a_wrong_digest_is_not_stored() {
    let server = TestServer::builder().start().await;
    let (content, other) = (layer(1, 1000), layer(2, 1000));
    let location = open(&server).await;
    assert_error(&put(&server, &location, &other.digest, content.bytes.clone()).await, 400, "DIGEST_INVALID");
    let path = format!("/v2/{REPO}/blobs/uploads/?digest={}", other.digest);
    assert_error(&server.send("POST", &path, &[], content.bytes.clone()).await, 400, "DIGEST_INVALID");
    for content in [&content, &other] {
        assert_error(&server.get(&blob_path(content)).await, 404, "BLOB_UNKNOWN");
    }
    wait_until_idle(server.data_dir()).await;
    assert!(files_below(&server.data_dir().join("blobs")).is_empty());
    let location = open(&server).await;
    assert_error(&server.client().send("PUT", &location, &[], content.bytes.clone()).await, 400, "UNSUPPORTED");
    assert_error(&put(&server, &location, "sha256:12", content.bytes.clone()).await, 400, "DIGEST_INVALID");
    // The session survives an invalid request.
    assert_pushed(&server, &put(&server, &location, &content.digest, content.bytes.clone()).await, &content).await;
}

#[tokio::test]
async fn sha512_is_accepted_with_or_without_announcement() {
    use sha2::Digest as _;
    let server = TestServer::builder().start().await;
    for (seed, announce) in [(1, ""), (2, "?digest-algorithm=sha512")] {
        let bytes = random_bytes(seed, 5000);
        let hex: String = sha2::Sha512::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
        let content = Content { media_type: OCI_LAYER.to_owned(), digest: format!("sha512:{hex}"), bytes };
        let started = server.send("POST", &format!("/v2/{REPO}/blobs/uploads/{announce}"), &[], Bytes::new()).await;
        let answer = put(&server, &next(&server, &started), &content.digest, content.bytes.clone()).await;
        assert_pushed(&server, &answer, &content).await;
        assert_error(
            &server.get(&format!("/v2/{REPO}/blobs/{}", digest_of(&content.bytes))).await,
            404,
            "BLOB_UNKNOWN",
        );
    }
}

#[tokio::test]
async fn a_session_survives_a_restart_with_its_bytes() {
    let mut server = TestServer::builder().start().await;
    let content = layer(1, 400_000);
    let location = open(&server).await;
    patch(&server, &location, "", content.bytes.slice(..150_000)).await;
    let path = location.replace(&server.url(""), "");
    server.restart().await;
    let location = server.url(&path);
    assert_eq!(server.client().get(&location).await.header("range"), "0-149999");
    assert_eq!(patch(&server, &location, "150000-299999", content.bytes.slice(150_000..300_000)).await.status, 202);
    server.restart().await;
    let answer = put(&server, &server.url(&path), &content.digest, content.bytes.slice(300_000..)).await;
    assert_pushed(&server, &answer, &content).await;
}

#[tokio::test]
async fn two_writers_of_one_session_do_not_mix() {
    let server = TestServer::builder().start().await;
    let content = layer(1, 200_000);
    let location = open(&server).await;
    // The first writer sends half of its chunk and waits. The second writer starts meanwhile.
    let gate = Gate::new();
    let (first, held) = (content.bytes.slice(..50_000), content.bytes.slice(50_000..100_000));
    let body = futures_util::stream::unfold(0, {
        let gate = gate.clone();
        move |step| {
            let (gate, first, held) = (gate.clone(), first.clone(), held.clone());
            async move {
                match step {
                    0 => Some((Ok::<_, std::io::Error>(first), 1)),
                    1 => {
                        gate.pass().await;
                        Some((Ok(held), 2))
                    }
                    _ => None,
                }
            }
        }
    });
    let (client, url) = (server.client().clone(), location.clone());
    let writer = tokio::spawn(async move { client.send("PATCH", &url, &[], reqwest::Body::wrap_stream(body)).await });
    gate.reached(1).await;
    crate::scene::until("the first writer has the session", async || {
        server.client().get(&location).await.status == 409
    })
    .await;
    for method in ["PATCH", "PUT", "DELETE"] {
        let url = format!("{location}?digest={}", content.digest);
        let refused = server.client().send(method, &url, &[], content.bytes.clone()).await;
        assert_error(&refused, 409, "BLOB_UPLOAD_INVALID");
    }
    gate.open();
    assert_eq!(writer.await.unwrap().header("range"), "0-99999");
    let answer = put(&server, &location, &content.digest, content.bytes.slice(100_000..)).await;
    assert_pushed(&server, &answer, &content).await;
}

#[tokio::test]
async fn an_interrupted_upload_leaves_a_resumable_session() {
    let server = TestServer::builder().start().await;
    let content = layer(1, 100_000);
    let location = open(&server).await;
    let path = location.replace(&server.url(""), "");
    let mut stream = TcpStream::connect(server.addr()).await.unwrap();
    let head = format!("PATCH {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n");
    stream.write_all(&[head.as_bytes(), &content.bytes[..60_000]].concat()).await.unwrap();
    let uploads = server.data_dir().join("uploads");
    let received = || files_below(&uploads).iter().map(|file| std::fs::metadata(file).unwrap().len()).max();
    until("the bytes are stored", async || received() == Some(60_000)).await;
    drop(stream);
    until("the session is no longer in use", async || server.client().get(&location).await.status == 204).await;
    assert_eq!(server.client().get(&location).await.header("range"), "0-59999");
    let answer = put(&server, &location, &content.digest, content.bytes.slice(60_000..)).await;
    assert_pushed(&server, &answer, &content).await;
}

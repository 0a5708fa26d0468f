//! Edge cases of push sessions: empty content, wrong lengths, earlier locations and abandoned sessions.

use std::time::{Duration, SystemTime};

use bytes::Bytes;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

use crate::disk::{blob_file, files_below, wait_until_idle};
use crate::scene::until;
use crate::support::client::chunked;
use crate::support::image::OCI_LAYER;
use crate::support::push::absolute;
use crate::support::{Answer, Content, TestServer, digest_of, random_bytes};

const REPO: &str = "team/app";
const EMPTY: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

async fn open(server: &TestServer) -> String {
    server.client().start_upload(&server.url(""), REPO).await
}

async fn send(server: &TestServer, method: &str, url: &str, range: &str, bytes: impl Into<reqwest::Body>) -> Answer {
    let headers = [("Content-Range", range)];
    let headers = if range.is_empty() { &headers[..0] } else { &headers[..] };
    server.client().send(method, url, headers, bytes).await
}

fn assert_error(answer: &Answer, status: u16, code: &str, what: &str) {
    assert_eq!((answer.status, answer.error_code().as_str()), (status, code), "{what}: {}", answer.text());
}

#[tokio::test]
async fn empty_content_can_be_pushed_and_pulled_every_way() {
    let server = TestServer::builder().start().await;
    let client = server.client();
    let blob = format!("/v2/{REPO}/blobs/{EMPTY}");
    let uploads = server.url(&format!("/v2/{REPO}/blobs/uploads/"));
    for way in ["POST", "PUT", "PATCH and PUT", "chunked PATCH and PUT", "mount"] {
        let answer = match way {
            "POST" => client.send("POST", &format!("{uploads}?digest={EMPTY}"), &[], "").await,
            "mount" => {
                let other = format!("{}?mount={EMPTY}&from={REPO}", uploads.replace(REPO, "team/other"));
                client.push_blob(&server.url(""), REPO, &Content::new(OCI_LAYER, "")).await;
                let answer = client.send("POST", &other, &[], "").await;
                assert_eq!(server.get(&blob.replace(REPO, "team/other")).await.status, 200);
                answer
            }
            way => {
                let location = open(&server).await;
                if way != "PUT" {
                    let body = if way.starts_with("chunked") { chunked(&Bytes::new(), 1) } else { "".into() };
                    let answer = send(&server, "PATCH", &location, "", body).await;
                    assert_eq!((answer.status, answer.header("range")), (202, "0-0"), "{way}");
                }
                client.send("PUT", &format!("{location}?digest={EMPTY}"), &[("Content-Length", "0")], "").await
            }
        };
        assert_eq!((answer.status, answer.header("docker-content-digest")), (201, EMPTY), "{way}");
        let got = server.get(&blob).await;
        assert_eq!((got.status, got.header("content-length"), got.body.len()), (200, "0", 0), "{way}");
        assert_eq!(server.head(&blob).await.header("content-length"), "0", "{way}");
        for range in ["bytes=0-", "bytes=-1", "bytes=0-0,0-0"] {
            let part = server.get_with(&blob, &[("Range", range)]).await;
            assert_eq!((part.status, part.header("content-range")), (416, "bytes */0"), "{way} {range}");
        }
        wait_until_idle(server.data_dir()).await;
        assert_eq!(server.delete(&blob).await.status, 202, "{way}");
        assert_eq!(server.get(&blob).await.status, 404, "{way}");
    }
}

#[tokio::test]
async fn an_earlier_location_still_leads_to_the_session() {
    let server = TestServer::builder().start().await;
    let bytes = random_bytes(1, 3072);
    let first = open(&server).await;
    let mut latest = first.clone();
    for n in 0..2 {
        let (start, end) = (n * 1024, (n + 1) * 1024);
        let range = format!("{start}-{}", end - 1);
        let answer = send(&server, "PATCH", &latest, &range, bytes.slice(start..end)).await;
        assert_eq!((answer.status, answer.header("range")), (202, &*format!("0-{}", end - 1)));
        latest = absolute(&server.url(""), answer.header("location"));
        // The same chunk again, to its own location and to the next one.
        for url in [&first, &latest] {
            let again = send(&server, "PATCH", url, &range, bytes.slice(start..end)).await;
            assert_error(&again, 416, "BLOB_UPLOAD_INVALID", "again");
            assert_eq!(again.header("range"), format!("0-{}", end - 1));
            let location = absolute(&server.url(""), again.header("location"));
            let status = server.client().get(&location).await;
            assert_eq!((status.status, status.header("range")), (204, &*format!("0-{}", end - 1)));
        }
    }
    let url = format!("{first}?digest={}", digest_of(&bytes));
    assert_error(
        &send(&server, "PUT", &url, "1024-2047", bytes.slice(1024..2048)).await,
        416,
        "BLOB_UPLOAD_INVALID",
        "",
    );
    assert_eq!(send(&server, "PUT", &url, "2048-3071", bytes.slice(2048..)).await.status, 201);
    assert_eq!(server.get(&format!("/v2/{REPO}/blobs/{}", digest_of(&bytes))).await.body, bytes);
}

#[tokio::test]
async fn a_chunk_of_wrong_length_is_refused_and_the_session_survives() {
    let server = TestServer::builder().start().await;
    let bytes = random_bytes(2, 100);
    let location = open(&server).await;
    let digest = digest_of(&bytes);
    for (method, range, body) in
        [("PATCH", "0-99", 0..50), ("PATCH", "0-9", 0..50), ("PATCH", "0-0", 0..0), ("PUT", "0-98", 0..100)]
    {
        let url = format!("{location}?digest={digest}");
        let answer = send(&server, method, &url, range, bytes.slice(body)).await;
        assert_error(&answer, 400, "SIZE_INVALID", range);
        assert_eq!(server.client().get(&location).await.header("range"), "0-0", "{range}");
    }
    // Without a Content-Length any length is accepted.
    let answer = send(&server, "PATCH", &location, "0-49", chunked(&bytes.slice(..50), 7)).await;
    assert_eq!((answer.status, answer.header("range")), (202, "0-49"));
    assert_eq!(
        send(&server, "PUT", &format!("{location}?digest={digest}"), "50-99", bytes.slice(50..)).await.status,
        201
    );
}

#[tokio::test]
async fn an_abandoned_session_expires_and_an_active_one_stays() {
    let mut server = TestServer::builder().start().await;
    let [old, young, finished] = [open(&server).await, open(&server).await, open(&server).await];
    let bytes = random_bytes(3, 500);
    for location in [&old, &young] {
        send(&server, "PATCH", location, "", bytes.slice(..100)).await;
    }
    let url = format!("{finished}?digest={}", digest_of(&bytes));
    assert_eq!(send(&server, "PUT", &url, "", bytes.clone()).await.status, 201);
    let folder = |location: &str| server.data_dir().join("uploads").join(location.rsplit('/').next().unwrap());
    let long_ago = SystemTime::now() - Duration::from_secs(2 * 24 * 60 * 60);
    let folders = [folder(&old), folder(&young)];
    for file in files_below(&folders[0]).into_iter().chain([folders[0].clone()]) {
        std::fs::File::open(file).unwrap().set_modified(long_ago).unwrap();
    }
    let (base, data) = (server.url(""), server.data_dir().to_owned());
    // Expired sessions are removed at the start, and every hour.
    server.restart().await;
    until("the old session is removed", async || !folders[0].exists()).await;
    let [old, young] = [&old, &young].map(|location| location.replace(&base, &server.url("")));
    assert_error(&server.client().get(&old).await, 404, "BLOB_UPLOAD_UNKNOWN", "expired");
    assert_eq!(server.client().get(&young).await.header("range"), "0-99");
    let url = format!("{young}?digest={}", digest_of(&bytes));
    assert_eq!(send(&server, "PUT", &url, "100-499", bytes.slice(100..)).await.status, 201);
    assert!(blob_file(&data, &digest_of(&bytes)).exists());
    wait_until_idle(&data).await;
}

#[tokio::test]
async fn an_interrupted_single_post_push_leaves_nothing() {
    let server = TestServer::builder().start().await;
    let bytes = random_bytes(4, 100_000);
    let path = format!("/v2/{REPO}/blobs/uploads/?digest={}", digest_of(&bytes));
    for sent in [0, 1, 60_000, 99_999] {
        let mut stream = TcpStream::connect(server.addr()).await.unwrap();
        let head = format!("POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n");
        stream.write_all(&[head.as_bytes(), &bytes[..sent]].concat()).await.unwrap();
        until("the session exists", async || !files_below(&server.data_dir().join("uploads")).is_empty()).await;
        drop(stream);
        wait_until_idle(server.data_dir()).await;
    }
    assert_eq!(server.send("POST", &path, &[], bytes.clone()).await.status, 201);
    assert_eq!(server.get(&format!("/v2/{REPO}/blobs/{}", digest_of(&bytes))).await.body, bytes);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_leaves_after_sending_all_leaves_no_session() {
    let server = TestServer::builder().start().await;
    let bytes = random_bytes(5, 300_000);
    let path = format!("/v2/{REPO}/blobs/uploads/?digest={}", digest_of(&bytes));
    let head = format!("POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 300000\r\n\r\n");
    for _ in 0..40 {
        let mut stream = TcpStream::connect(server.addr()).await.unwrap();
        stream.write_all(&[head.as_bytes(), &bytes].concat()).await.unwrap();
        drop(stream);
    }
    wait_until_idle(server.data_dir()).await;
    let found = server.get(&format!("/v2/{REPO}/blobs/{}", digest_of(&bytes))).await;
    assert!(found.status == 404 || found.body == bytes, "the complete blob or nothing");
}

/// The length that a session has, once no request uses it.
async fn received(server: &TestServer, location: &str) -> String {
    let mut range = String::new();
    until("the session is free", async || {
        let answer = server.client().get(location).await;
        range = answer.header("range").to_owned();
        answer.status == 204
    })
    .await;
    range
}

/// The id of the session in a location.
fn url_id(location: &str) -> &str {
    location.split('?').next().and_then(|path| path.rsplit('/').next()).unwrap()
}

/// Sends the headers of a request and a part of its body to a session with `before` bytes, and disconnects when that
/// part has arrived.
async fn send_cut(server: &TestServer, method: &str, url: &str, bytes: &Bytes, before: usize, sent: usize) {
    let path = url.replace(&server.url(""), "");
    let mut stream = TcpStream::connect(server.addr()).await.unwrap();
    let head = format!("{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n", bytes.len());
    stream.write_all(&[head.as_bytes(), &bytes[..sent]].concat()).await.unwrap();
    let data = server.data_dir().join("uploads").join(url_id(url)).join("data");
    let length = || data.metadata().ok().map(|data| data.len());
    until("the bytes have arrived", async || length() == Some((before + sent) as u64)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_put_that_is_cut_leaves_the_session_as_it_was() {
    let server = TestServer::builder().start().await;
    let bytes = random_bytes(6, 300_000);
    for (before, sent) in [(0, 1), (0, 150_000), (0, 299_999), (100, 150_000), (100, 200_000)] {
        let location = open(&server).await;
        if before > 0 {
            send(&server, "PATCH", &location, "", bytes.slice(..before)).await;
        }
        let rest = bytes.slice(before..);
        let target = format!("{location}?digest={}", digest_of(&bytes));
        for _ in 0..2 {
            send_cut(&server, "PUT", &target, &rest, before, sent).await;
            let range = received(&server, &location).await;
            assert_eq!(range, format!("0-{}", before.saturating_sub(1)), "{before} {sent}");
        }
        assert_eq!(send(&server, "PUT", &target, "", rest).await.status, 201, "{before} {sent}");
        assert_eq!(server.get(&format!("/v2/{REPO}/blobs/{}", digest_of(&bytes))).await.body, bytes);
    }
    wait_until_idle(server.data_dir()).await;
}

#[tokio::test]
async fn a_put_that_a_kill_cut_leaves_the_session_as_it_was() {
    let mut server = TestServer::builder().start().await;
    let bytes = random_bytes(6, 1000);
    let location = open(&server).await;
    send(&server, "PATCH", &location, "", bytes.slice(..100)).await;
    let (base, path) = (server.url(""), location.replace(&server.url(""), ""));
    assert!(location.starts_with(&base));
    server.stop_running().await;
    // As a killed process leaves it while it receives the last chunk.
    let folder = server.data_dir().join("uploads").join(path.rsplit('/').next().unwrap());
    std::fs::write(folder.join("data"), &bytes[..700]).unwrap();
    std::fs::write(folder.join("undo"), "100\n").unwrap();
    server.restart().await;
    assert_eq!(server.get(&path).await.header("range"), "0-99");
    let target = server.url(&format!("{path}?digest={}", digest_of(&bytes)));
    assert_eq!(send(&server, "PUT", &target, "100-999", bytes.slice(100..)).await.status, 201);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_patch_that_is_cut_keeps_what_arrived() {
    let server = TestServer::builder().start().await;
    let bytes = random_bytes(7, 300_000);
    let location = open(&server).await;
    for (before, sent, range) in [(0, 100_000, "0-99999"), (100_000, 50_000, "0-149999")] {
        send_cut(&server, "PATCH", &location, &bytes.slice(..200_000), before, sent).await;
        assert_eq!(received(&server, &location).await, range);
    }
}

#[tokio::test]
async fn a_final_put_that_is_sent_again_is_created_again() {
    let server = TestServer::builder().start().await;
    let bytes = random_bytes(8, 100_000);
    let digest = digest_of(&bytes);
    let location = open(&server).await;
    let target = format!("{location}?digest={digest}");
    for body in [bytes.clone(), bytes.clone(), Bytes::new()] {
        let answer = send(&server, "PUT", &target, "", body).await;
        assert_eq!((answer.status, answer.header("docker-content-digest")), (201, digest.as_str()));
        assert_eq!(answer.header("location"), format!("/v2/{REPO}/blobs/{digest}"));
    }
    let other = digest_of(b"never pushed");
    let refused = send(&server, "PUT", &format!("{location}?digest={other}"), "", bytes.clone()).await;
    assert_error(&refused, 404, "BLOB_UPLOAD_UNKNOWN", "content that the repository does not have");
    let elsewhere = target.replace(REPO, "team/other");
    assert_error(&send(&server, "PUT", &elsewhere, "", bytes.clone()).await, 404, "BLOB_UPLOAD_UNKNOWN", "elsewhere");
    assert_eq!(server.delete(&format!("/v2/{REPO}/blobs/{digest}")).await.status, 202);
    assert_error(&send(&server, "PUT", &target, "", bytes).await, 404, "BLOB_UPLOAD_UNKNOWN", "deleted since");
}

#[tokio::test(flavor = "multi_thread")]
async fn unfinished_uploads_beyond_their_bounds_give_way_to_new_ones() {
    for bounds in ["max_unfinished = 3", "max_unfinished_size = \"3KiB\""] {
        let server = TestServer::builder().config(&format!("[push]\n{bounds}")).start().await;
        let (mut idle, bytes) = (Vec::new(), random_bytes(9, 1024));
        for _ in 0..5 {
            let location = open(&server).await;
            assert_eq!(send(&server, "PATCH", &location, "", bytes.clone()).await.status, 202);
            idle.push(location);
        }
        let blob = Content::new(OCI_LAYER, random_bytes(10, 10_000));
        server.client().push_blob(&server.url(""), REPO, &blob).await;
        let mut statuses = Vec::new();
        for location in &idle {
            statuses.push(server.client().get(location).await.status);
        }
        // Oldest first, and no more than necessary.
        let gone = statuses.iter().take_while(|status| **status == 404).count();
        assert!((2..=3).contains(&gone) && statuses[gone..].iter().all(|status| *status == 204), "{statuses:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn many_empty_uploads_do_not_end_those_of_another_client() {
    for bytes in ["", "x"] {
        let server = TestServer::builder().config("[push]\nmax_unfinished = 8").start().await;
        let location = open(&server).await;
        let part = random_bytes(11, 1000);
        assert_eq!(send(&server, "PATCH", &location, "", part.clone()).await.status, 202);
        // So long that it may give way.
        tokio::time::sleep(Duration::from_millis(2500)).await;
        for _ in 0..12 {
            let other = server.client().start_upload(&server.url(""), "team/other").await;
            if !bytes.is_empty() {
                assert_eq!(send(&server, "PATCH", &other, "", bytes).await.status, 202);
            }
        }
        let answer = send(&server, "PATCH", &location, "1000-1999", part.clone()).await;
        assert_eq!(answer.status, 202, "{bytes:?}: {}", answer.text());
    }
}

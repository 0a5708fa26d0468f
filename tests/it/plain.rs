//! Connections that mix pulls with other requests: the fast path serves pulls and hyper the rest, without a visible
//! difference.

use std::fs::OpenOptions;
use std::time::Duration;

use bytes::Bytes;
use rustix::fs::{Advice, CWD, FileType, Mode, fadvise, mknodat};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::{sleep, timeout};

use crate::disk::blob_file;
use crate::scene::settle;
use crate::support::{Conn, Content, Ended, Image, TestServer, Upstream, digest_of};

/// A server with `org/app` cached, its layer of `length` bytes, and the path of that layer.
async fn cached(length: usize) -> (Upstream, TestServer, Content, String) {
    let upstream = Upstream::start().await;
    let image = Image::new(1, &[length]);
    upstream.add_image("org/app", "v1", &image);
    let server = TestServer::mirror_of(&upstream).await;
    assert_eq!(server.get("/v2/org/app/manifests/v1").await.status, 200);
    let layer = image.layers[0].clone();
    let path = format!("/v2/org/app/blobs/{}", layer.digest);
    assert_eq!(server.get(&path).await.body, layer.bytes);
    // The client has all bytes before the fill has renamed its file.
    settle(&server).await;
    (upstream, server, layer, path)
}

fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: registry\r\n\r\n")
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_order() {
    let (_upstream, server, layer, path) = cached(3_000_000).await;
    let push = "POST /v2/team/app/blobs/uploads/ HTTP/1.1\r\nHost: registry\r\nContent-Length: 0\r\n\r\n";
    let head = format!("HEAD {path} HTTP/1.1\r\nHost: registry\r\n\r\n");
    let part = format!("GET {path} HTTP/1.1\r\nHost: registry\r\nRange: bytes=100000-199999\r\n\r\n");
    let none = get("/v2/org/app/blobs/nonsense");
    let (base, whole) = (get("/v2/"), get(&path));
    let all = [base.as_str(), &whole, &part, &none, push, &whole, &head].concat();
    let mut conn = Conn::ask(server.addr(), &all).await.unwrap();
    let mut answers = Vec::new();
    for _ in 0..6 {
        let status = conn.status;
        let (body, ended) = conn.rest().await;
        assert_eq!(ended, Ended::Complete);
        answers.push((status, body));
        conn = conn.then("").await.unwrap();
    }
    let statuses: Vec<u16> = answers.iter().map(|(status, _)| *status).collect();
    assert_eq!(statuses, [200, 200, 206, 400, 202, 200]);
    assert_eq!(answers[0].1, Bytes::from_static(b"{}"));
    for at in [1, 5] {
        assert!(answers[at].1 == layer.bytes, "{at}");
    }
    assert!(answers[2].1 == layer.bytes[100_000..200_000]);
    assert_eq!((conn.status, conn.header("content-length")), (200, "3000000"));
}

#[tokio::test]
async fn one_connection_can_alternate_pulls_and_pushes() {
    let (_upstream, server, layer, path) = cached(100_000).await;
    let mut conn = Conn::ask(server.addr(), &get(&path)).await.unwrap();
    assert!(conn.rest().await == (layer.bytes.clone(), Ended::Complete));
    let body = "x".repeat(50);
    let digest = digest_of(body.as_bytes());
    let push = format!(
        "POST /v2/team/app/blobs/uploads/?digest={digest} HTTP/1.1\r\nHost: registry\r\nContent-Length: 50\r\n\r\n{body}"
    );
    let mut conn = conn.then(&push).await.unwrap();
    assert_eq!((conn.status, conn.rest().await.1), (201, Ended::Complete));
    let mut conn = conn.then(&get(&format!("/v2/team/app/blobs/{digest}"))).await.unwrap();
    assert!(conn.status == 200 && conn.rest().await == (Bytes::from(body), Ended::Complete));
}

#[tokio::test]
async fn connection_close_is_honoured() {
    let (_upstream, server, layer, path) = cached(100_000).await;
    let last = format!("GET {path} HTTP/1.1\r\nHost: registry\r\nConnection: close\r\n\r\n");
    let mut conn = Conn::ask(server.addr(), &last).await.unwrap();
    assert_eq!(conn.header("connection"), "close");
    assert!(conn.rest().await == (layer.bytes, Ended::Complete));
    assert!(conn.then(&get("/v2/")).await.is_err(), "the connection is closed after it");
}

#[tokio::test]
async fn a_truncated_file_fails_one_response_and_is_refetched() {
    let (_upstream, server, layer, path) = cached(64 << 20).await;
    let mut conn = Conn::ask_with_small_buffer(server.addr(), &get(&path)).await.unwrap();
    assert!(conn.take(1000).await == layer.bytes[..1000]);
    let file = OpenOptions::new().write(true).open(blob_file(server.data_dir(), &layer.digest)).unwrap();
    file.set_len(40 << 20).unwrap();
    let (rest, ended) = conn.rest().await;
    assert_ne!(ended, Ended::Complete);
    assert!(
        rest.len() < layer.bytes.len() - 1000 && layer.bytes[1000..].starts_with(&rest),
        "the bytes that were sent are correct"
    );
    assert!(server.get(&path).await.body == layer.bytes, "the truncated file was detected and fetched again");
}

#[tokio::test]
async fn content_evicted_from_the_page_cache_is_sent_correctly() {
    let (_upstream, server, layer, path) = cached(64 << 20).await;
    let mut conn = Conn::ask_with_small_buffer(server.addr(), &get(&path)).await.unwrap();
    assert!(conn.take(1000).await == layer.bytes[..1000]);
    let file = OpenOptions::new().write(true).open(blob_file(server.data_dir(), &layer.digest)).unwrap();
    file.sync_all().unwrap();
    fadvise(&file, 0, None, Advice::DontNeed).unwrap();
    // So long that residency in the page cache is checked again.
    sleep(Duration::from_millis(300)).await;
    let (rest, ended) = conn.rest().await;
    assert_eq!(ended, Ended::Complete);
    assert!(rest == layer.bytes[1000..]);
}

#[tokio::test]
async fn responses_of_any_length_are_correct() {
    let (_upstream, server, layer, path) = cached(5 << 20).await;
    let around = [1, 32 << 10, 64 << 10, 128 << 10, 512 << 10, 2 << 20, 4 << 20].map(|length| [length, length + 1]);
    let ranges: Vec<(usize, usize)> = around.concat().into_iter().map(|length| (length / 7, length)).collect();
    let ask = |(first, length): &(usize, usize)| {
        let last = first + length - 1;
        format!("GET {path} HTTP/1.1\r\nHost: registry\r\nRange: bytes={first}-{last}\r\n\r\n")
    };
    let all: String = ranges.iter().map(ask).collect();
    let mut conn = Conn::ask(server.addr(), &all).await.unwrap();
    for (at, (first, length)) in ranges.iter().enumerate() {
        assert_eq!((conn.status, conn.header("content-length")), (206, length.to_string().as_str()));
        let (body, ended) = conn.rest().await;
        assert_eq!(ended, Ended::Complete);
        assert!(body == layer.bytes[*first..first + length], "{length} bytes from {first}");
        if at + 1 < ranges.len() {
            conn = conn.then("").await.unwrap();
        }
    }
}

#[tokio::test]
async fn a_manually_deleted_file_is_fetched_again() {
    let (upstream, server, layer, path) = cached(100_000).await;
    upstream.forget();
    assert!(server.get(&path).await.body == layer.bytes);
    assert_eq!(upstream.requests().len(), 0, "the file is stored and open");
    std::fs::remove_file(blob_file(server.data_dir(), &layer.digest)).unwrap();
    assert!(server.get(&path).await.body == layer.bytes);
    assert_eq!(upstream.requests().len(), 1, "an open file without a name is not served");
}

#[tokio::test]
async fn a_pipe_in_place_of_a_blob_does_not_block() {
    let (_upstream, server, layer, path) = cached(100_000).await;
    let file = blob_file(server.data_dir(), &layer.digest);
    std::fs::remove_file(&file).unwrap();
    mknodat(CWD, &file, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
    let again = timeout(Duration::from_secs(20), server.get(&path)).await;
    if again.is_err() {
        // Unblocks a reader that waits for the pipe, or the test would never end.
        drop(OpenOptions::new().read(true).write(true).open(&file));
    }
    assert!(again.expect("the request does not wait for the pipe").body == layer.bytes);
}

#[tokio::test]
async fn if_none_match_takes_precedence_over_range() {
    let (_upstream, server, layer, path) = cached(1000).await;
    let etag = format!("\"{}\"", layer.digest);
    let answer = server.get_with(&path, &[("If-None-Match", &etag), ("Range", "bytes=2000-")]).await;
    assert_eq!(answer.status, 304);
}

#[tokio::test]
async fn a_half_closed_connection_gets_every_response() {
    let (_upstream, server, layer, path) = cached(100_000).await;
    let (read, mut write) = TcpStream::connect(server.addr()).await.unwrap().into_split();
    write.write_all(get(&path).repeat(3).as_bytes()).await.unwrap();
    write.shutdown().await.unwrap();
    let mut response = Vec::new();
    tokio::io::BufReader::new(read).read_to_end(&mut response).await.unwrap();
    assert!(response.len() > 3 * layer.bytes.len() && response.ends_with(&layer.bytes), "{} bytes", response.len());
}

#[tokio::test]
async fn bytes_after_the_last_request_do_not_cut_its_response() {
    let (_upstream, server, layer, path) = cached(2_000_000).await;
    let last = format!("GET {path} HTTP/1.1\r\nHost: registry\r\nConnection: close\r\n\r\n");
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(64 << 10).unwrap();
    let mut stream = socket.connect(server.addr()).await.unwrap();
    stream.write_all(last.as_bytes()).await.unwrap();
    // The response has started, so the server has read none of the bytes that follow.
    stream.readable().await.unwrap();
    stream.write_all(get("/v2/").repeat(100).as_bytes()).await.unwrap();
    let mut response = Vec::new();
    stream.read_to_end(&mut response).await.unwrap();
    assert!(response.ends_with(&layer.bytes), "{} bytes", response.len());
}

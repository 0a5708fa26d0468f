//! Followers on plain HTTP/1.1 connections. The bytes of a running fill go from its file to the socket by sendfile.

use std::fs::OpenOptions;
use std::net::SocketAddr;

use bytes::Bytes;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::scene::{HELD_BACK_TAIL_BYTES, KIB, MIB, Scene, until};
use crate::support::{Conn, Ended, Gate, Reply, random_bytes};

/// More than the socket buffers of a client that stops reading.
const RECEIVED: usize = 12 * MIB;
const SIZE: usize = 16 * MIB;

/// A scene whose fill waits for a gate as long as a busy machine needs.
async fn scene(size: usize, server: &str) -> Scene {
    let toml = format!("[server]\n{server}\n[upstream.\"docker.io\"]\nidle_timeout = \"10m\"");
    Scene::configured(size, &toml).await
}

/// The requests for blobs that are in progress.
async fn in_flight(scene: &Scene) -> f64 {
    scene.server.metric("registry_http_in_flight_requests", &[("handler", "blob")]).await
}

async fn bytes_sent(scene: &Scene) -> f64 {
    scene.server.metric("registry_proxy_pushed_bytes_total", &[("type", "blob")]).await
}

fn request(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: registry\r\n\r\n")
}

async fn get_range(addr: SocketAddr, path: &str, first: usize, end: usize) -> Conn {
    Conn::get_with(addr, path, &[("Range", &format!("bytes={first}-{}", end - 1))]).await
}

/// The upstream sends `bytes` bytes of the blob and waits for the gate.
fn hold_after(scene: &Scene, bytes: usize) -> Gate {
    let gate = Gate::new();
    scene.upstream.script("GET", &scene.path(), [Reply::normal().wait_after(bytes as u64, &gate)]);
    gate
}

#[tokio::test(flavor = "multi_thread")]
async fn every_byte_is_correct_while_the_fill_runs() {
    const CLIENTS: usize = 3;
    let scene = scene(9 * MIB + 4321, "").await;
    let ends = [1, 100_001, MIB + 7, 3 * MIB + 4097, 8 * MIB - 1];
    let gates = ends.map(|_| Gate::new());
    let steps = ends.iter().zip(&gates);
    let reply = steps.fold(Reply::normal(), |reply, (&end, gate)| reply.wait_after(end as u64, gate));
    scene.upstream.script("GET", &scene.path(), [reply]);
    let mut clients = Vec::new();
    for _ in 0..CLIENTS {
        clients.push(Conn::get(scene.server.addr(), &scene.path()).await);
    }
    let mut start = 0;
    for (&end, gate) in ends.iter().zip(&gates) {
        for client in &mut clients {
            assert!(client.take(end - start).await == scene.bytes()[start..end], "{start}..{end}");
        }
        start = end;
        gate.open();
    }
    for client in &mut clients {
        assert!(client.rest().await == (scene.bytes().slice(start..), Ended::Complete));
    }
    assert_eq!(scene.fetches(), 1);
    let all = (CLIENTS * scene.bytes().len()) as f64;
    until("every byte is counted once", async || bytes_sent(&scene).await == all).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_of_two_generations_are_never_mixed() {
    const RANGE_BYTES: usize = HELD_BACK_TAIL_BYTES - 1;
    let scene = scene(SIZE, "").await;
    let (wrong, gate, again) = (random_bytes(99, SIZE), Gate::new(), Gate::new());
    let first = Reply::normal().body(wrong.clone()).wait_after(SIZE as u64 - 1, &gate);
    let second = Reply::normal().wait_after(8 * MIB as u64, &again);
    scene.upstream.script("GET", &scene.path(), [first, second]);
    let addr = scene.server.addr();
    let mut waiting = Conn::get(addr, &scene.path()).await;
    let readable = SIZE - HELD_BACK_TAIL_BYTES;
    assert!(waiting.take(readable).await == wrong[..readable]);
    // It has some bytes of the first generation, and all others are readable.
    let mut slow = Conn::ask_with_small_buffer(addr, &request(&scene.path())).await.unwrap();
    assert!(slow.take(KIB).await == wrong[..KIB]);
    // Nothing of this range is readable before verification.
    let path = scene.path();
    let without_bytes = get_range(addr, &path, SIZE - RANGE_BYTES, SIZE);
    let joined = async {
        until("three requests are in progress", async || in_flight(&scene).await == 3.0).await;
        gate.open();
        again.reached(1).await;
        again.open();
    };
    let (mut without_bytes, ()) = tokio::join!(without_bytes, joined);
    assert_eq!((without_bytes.status, without_bytes.header("content-length")), (206, &*RANGE_BYTES.to_string()));
    assert!(without_bytes.rest().await == (scene.bytes().slice(SIZE - RANGE_BYTES..), Ended::Complete));
    let (rest, ended) = waiting.rest().await;
    assert!(rest.is_empty() && ended != Ended::Complete, "{ended:?} after {} more bytes", rest.len());
    let (rest, ended) = slow.rest().await;
    assert!(ended != Ended::Complete && wrong[KIB..readable].starts_with(&rest), "{ended:?} after {}", rest.len());
    assert!(scene.server.get(&scene.path()).await.body == scene.bytes());
    assert_eq!(scene.fetches(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_fill_cuts_the_responses_of_its_followers() {
    let scene = scene(4 * MIB, "").await;
    let gate = hold_after(&scene, 2 * MIB);
    let mut client = Conn::get(scene.server.addr(), &scene.path()).await;
    assert!(client.take(2 * MIB).await == scene.bytes()[..2 * MIB]);
    scene.upstream.always("GET", &scene.path(), Reply::error(404, "BLOB_UNKNOWN"));
    scene.upstream.go_down().await;
    scene.upstream.come_back().await;
    gate.open();
    let (rest, ended) = client.rest().await;
    assert!(rest.is_empty() && ended != Ended::Complete, "{ended:?} after {} more bytes", rest.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_truncated_spool_cuts_a_response_and_is_an_error_before_it() {
    const KEPT: usize = 8 * MIB;
    let scene = scene(SIZE, "").await;
    let _gate = hold_after(&scene, RECEIVED);
    let addr = scene.server.addr();
    let mut slow = Conn::ask_with_small_buffer(addr, &request(&scene.path())).await.unwrap();
    assert!(slow.take(KIB).await == scene.bytes()[..KIB]);
    let mut fast = Conn::get(addr, &scene.path()).await;
    assert!(fast.take(RECEIVED).await == scene.bytes()[..RECEIVED]);
    let spool: Vec<_> = std::fs::read_dir(scene.server.data_dir().join("spool")).unwrap().collect();
    assert_eq!(spool.len(), 1);
    let file = OpenOptions::new().write(true).open(spool[0].as_ref().unwrap().path()).unwrap();
    file.set_len(KEPT as u64).unwrap();
    let (rest, ended) = slow.rest().await;
    assert_ne!(ended, Ended::Complete);
    assert!(scene.bytes()[KIB..KEPT].starts_with(&rest), "the bytes that were sent are correct");
    let refused = get_range(addr, &scene.path(), RECEIVED - MIB, RECEIVED).await;
    assert_eq!(refused.status, 500);
    // A range that the file still has is not affected.
    let mut kept = get_range(addr, &scene.path(), KEPT - MIB, KEPT).await;
    assert!(kept.rest().await == (scene.bytes().slice(KEPT - MIB..KEPT), Ended::Complete));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_client_of_a_running_fill_delays_no_other() {
    let scene = scene(SIZE, "").await;
    let gate = hold_after(&scene, RECEIVED);
    let addr = scene.server.addr();
    let mut slow = Conn::ask_with_small_buffer(addr, &request(&scene.path())).await.unwrap();
    assert!(slow.take(KIB).await == scene.bytes()[..KIB]);
    let mut fast = Conn::get(addr, &scene.path()).await;
    assert!(fast.take(RECEIVED).await == scene.bytes()[..RECEIVED]);
    assert!(slow.take(RECEIVED - KIB).await == scene.bytes()[KIB..RECEIVED]);
    gate.open();
    for client in [&mut fast, &mut slow] {
        assert!(client.rest().await == (scene.bytes().slice(RECEIVED..), Ended::Complete));
    }
    assert_eq!(scene.fetches(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_client_that_accepts_nothing_is_disconnected() {
    let scene = scene(SIZE, "progress_timeout = \"300ms\"").await;
    let gate = hold_after(&scene, RECEIVED);
    let addr = scene.server.addr();
    // This client has all readable bytes and waits for the fill for much longer than the timeout.
    let mut waits = Conn::get(addr, &scene.path()).await;
    assert!(waits.take(RECEIVED).await == scene.bytes()[..RECEIVED]);
    let stalled = Conn::ask_with_small_buffer(addr, &request(&scene.path())).await.unwrap();
    until("the stalled client was disconnected", async || in_flight(&scene).await == 1.0).await;
    gate.open();
    assert!(waits.rest().await == (scene.bytes().slice(RECEIVED..), Ended::Complete));
    drop(stalled);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_half_closes_gets_the_rest_of_a_fill() {
    let scene = scene(2 * MIB, "").await;
    let gate = hold_after(&scene, MIB);
    let (mut read, mut write) = TcpStream::connect(scene.server.addr()).await.unwrap().into_split();
    write.write_all(request(&scene.path()).as_bytes()).await.unwrap();
    write.shutdown().await.unwrap();
    let mut response = Vec::new();
    while response.len() < MIB {
        assert_ne!(read.read_buf(&mut response).await.unwrap(), 0, "after {} bytes", response.len());
    }
    gate.open();
    read.read_to_end(&mut response).await.unwrap();
    assert!(response.ends_with(scene.bytes()), "{} bytes", response.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_range_of_a_running_fill_ends_beyond_the_mark() {
    let scene = scene(8 * MIB, "").await;
    let gate = hold_after(&scene, 4 * MIB);
    let (first, end) = (MIB - 5000, 6 * MIB + 5000);
    let mut part = get_range(scene.server.addr(), &scene.path(), first, end).await;
    assert_eq!((part.status, part.header("content-length")), (206, &*(end - first).to_string()));
    assert!(part.take(4 * MIB - first).await == scene.bytes()[first..4 * MIB]);
    gate.open();
    assert!(part.rest().await == (scene.bytes().slice(4 * MIB..end), Ended::Complete));
    until("every byte is counted once", async || bytes_sent(&scene).await == (end - first) as f64).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_http10_client_gets_a_running_fill_at_its_end() {
    let scene = scene(4 * MIB, "").await;
    let gate = hold_after(&scene, 2 * MIB);
    let path = scene.path();
    let opened = async {
        gate.reached(1).await;
        gate.open();
    };
    let (mut client, ()) = tokio::join!(Conn::get_http10(scene.server.addr(), &path), opened);
    assert_eq!(client.header("content-length"), (4 * MIB).to_string());
    assert!(client.rest().await == (scene.bytes().clone(), Ended::Complete));
    assert!(client.then(&request("/v2/")).await.is_err(), "the connection is closed after the response");
}

#[tokio::test(flavor = "multi_thread")]
async fn head_during_a_fill_has_no_body() {
    let scene = scene(4 * MIB, "").await;
    let gate = hold_after(&scene, 2 * MIB);
    let mut client = Conn::get(scene.server.addr(), &scene.path()).await;
    assert!(client.take(2 * MIB).await == scene.bytes()[..2 * MIB]);
    let head = format!("HEAD {} HTTP/1.1\r\nHost: registry\r\n\r\n", scene.path());
    let mut beside = Conn::ask(scene.server.addr(), &head).await.unwrap();
    assert_eq!((beside.status, beside.header("content-length")), (200, &*(4 * MIB).to_string()));
    assert_eq!(beside.rest().await, (Bytes::new(), Ended::Complete));
    // The next response on that connection begins where a body would be.
    let mut beside = beside.then(&request(&scene.path())).await.unwrap();
    assert!(beside.take(2 * MIB).await == scene.bytes()[..2 * MIB]);
    gate.open();
    for client in [&mut client, &mut beside] {
        assert!(client.rest().await == (scene.bytes().slice(2 * MIB..), Ended::Complete));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_leaves_ends_its_own_response_only() {
    let scene = scene(SIZE, "").await;
    let gate = hold_after(&scene, RECEIVED);
    let mut stays = Conn::get(scene.server.addr(), &scene.path()).await;
    assert!(stays.take(RECEIVED).await == scene.bytes()[..RECEIVED]);
    // One leaves while bytes are sent to it, the other one while its response waits for the fill.
    let mut reads = Conn::ask_with_small_buffer(scene.server.addr(), &request(&scene.path())).await.unwrap();
    assert!(reads.take(KIB).await == scene.bytes()[..KIB]);
    let mut waits = Conn::get(scene.server.addr(), &scene.path()).await;
    assert!(waits.take(RECEIVED - 1).await == scene.bytes()[..RECEIVED - 1]);
    until("all three are in progress", async || in_flight(&scene).await == 3.0).await;
    reads.reset();
    waits.reset();
    until("the clients that left are noticed", async || in_flight(&scene).await == 1.0).await;
    gate.open();
    assert!(stays.rest().await == (scene.bytes().slice(RECEIVED..), Ended::Complete));
    assert_eq!(scene.fetches(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_behind_a_running_fill_is_answered_after_it() {
    let scene = scene(4 * MIB, "").await;
    let gate = hold_after(&scene, 2 * MIB);
    let both = [request(&scene.path()), request("/v2/")].concat();
    let mut conn = Conn::ask(scene.server.addr(), &both).await.unwrap();
    assert!(conn.take(2 * MIB).await == scene.bytes()[..2 * MIB]);
    gate.open();
    assert!(conn.rest().await == (scene.bytes().slice(2 * MIB..), Ended::Complete));
    let mut conn = conn.then(&request(&scene.path())).await.unwrap();
    assert_eq!(conn.rest().await, (Bytes::from_static(b"{}"), Ended::Complete));
    let mut conn = conn.then("").await.unwrap();
    assert!(conn.rest().await == (scene.bytes().clone(), Ended::Complete));
}

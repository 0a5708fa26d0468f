//! More connections than places: unused ones are closed for new ones, busy ones stay, and health checks are always
//! answered.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::scene::{Scene, until};
use crate::support::http2::{Http2, tls};
use crate::support::{Authority, Client, Conn, Ended, Gate, Reply, TestServer};

/// A time far below every configured deadline of a connection.
const TEST_TIMEOUT: Duration = Duration::from_secs(10);
const PLACES: usize = 4;
const BOUND: &str = "[server]\nmax_connections = 4";

async fn open(addr: SocketAddr, sent: &str) -> TcpStream {
    let mut stream = TcpStream::connect(addr).await.unwrap();
    stream.write_all(sent.as_bytes()).await.unwrap();
    stream
}

/// Everything that the server still sends until it closes the connection.
async fn rest(stream: &mut TcpStream) -> String {
    let mut rest = Vec::new();
    let _ = timeout(TEST_TIMEOUT, stream.read_to_end(&mut rest)).await.expect("the server closes the connection");
    String::from_utf8_lossy(&rest).into_owned()
}

async fn is_open(stream: &mut TcpStream) -> bool {
    // Bytes of an earlier response may be unread.
    let mut bytes = [0; 1024];
    loop {
        match timeout(Duration::from_millis(50), stream.read(&mut bytes)).await {
            Err(_) => return true,
            Ok(Ok(read)) if read > 0 => {}
            Ok(_) => return false,
        }
    }
}

/// A response to a new client, which must not have to wait for any deadline.
async fn newcomer(addr: SocketAddr, request: &str) -> Conn {
    timeout(TEST_TIMEOUT, Conn::ask(addr, request)).await.expect("an answer without a wait").expect("an answer")
}

fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n")
}

#[tokio::test]
async fn unused_connections_never_keep_a_newcomer_out() {
    let server = TestServer::builder().config(BOUND).start().await;
    let answered = get("/v2/");
    let by_hyper = "OPTIONS /v2/ HTTP/1.1\r\nHost: x\r\n\r\n";
    for (what, sent) in [
        ("silent", ""),
        ("a byte", "G"),
        ("half headers", "GET /v2/ HTTP/1.1\r\nHost: x\r\nX-Slow: "),
        ("half headers of a push", "PUT /v2/a/manifests/1 HTTP/1.1\r\nHost: x\r\nContent-"),
        ("idle", answered.as_str()),
        ("idle after pipelined requests", &answered.repeat(3)),
        ("idle after a request that hyper served", by_hyper),
        ("half headers after a request that hyper served", &format!("{by_hyper}GET /v2/ HTT")),
    ] {
        let mut held = Vec::new();
        for _ in 0..3 * PLACES {
            held.push(open(server.addr(), sent).await);
        }
        for path in ["/v2/", "/healthz"] {
            assert_eq!(newcomer(server.addr(), &get(path)).await.status, 200, "{path} beside connections: {what}");
        }
    }
}

#[tokio::test]
async fn the_longest_unused_connection_gives_way_first() {
    let server = TestServer::builder().config(BOUND).start().await;
    let mut held = Vec::new();
    for _ in 0..PLACES {
        let mut stream = open(server.addr(), &get("/v2/")).await;
        stream.read_exact(&mut [0; 12]).await.unwrap();
        held.push(stream);
    }
    // The first one is used again, so the second one is the oldest.
    until("all responses have been read", async || !held.is_empty()).await;
    held[0].write_all(get("/v2/").as_bytes()).await.unwrap();
    assert!(is_open(&mut held[0]).await);
    let first = newcomer(server.addr(), &get("/v2/")).await;
    rest(&mut held[1]).await;
    let second = newcomer(server.addr(), &get("/v2/")).await;
    rest(&mut held[2]).await;
    assert!(is_open(&mut held[0]).await && is_open(&mut held[3]).await);
    assert_eq!((first.status, second.status), (200, 200));
}

/// Requests in progress take all places.
async fn all_busy(scene: &Scene, gate: &Gate) -> Vec<Conn> {
    let mut busy = Vec::new();
    scene.upstream.script("GET", &scene.path(), [Reply::normal().wait_after(200_000, gate)]);
    for _ in 0..PLACES {
        let mut conn = Conn::get(scene.server.addr(), &scene.path()).await;
        conn.take(1000).await;
        busy.push(conn);
    }
    busy
}

#[tokio::test]
async fn without_a_free_place_only_health_checks_are_answered() {
    let scene = Scene::configured(300_000, BOUND).await;
    let (gate, addr) = (Gate::new(), scene.server.addr());
    let mut busy = all_busy(&scene, &gate).await;
    // More than the reserved places: unused connections at these give way as well.
    let mut silent = Vec::new();
    for _ in 0..20 {
        silent.push(TcpStream::connect(addr).await.unwrap());
    }
    for method in ["GET", "HEAD"] {
        for (path, status) in [("/healthz", 200), ("/readyz", 200), ("/v2/", 503), ("/metrics", 503), ("/", 503)] {
            let mut conn = newcomer(addr, &format!("{method} {path} HTTP/1.1\r\nHost: x\r\n\r\n")).await;
            assert_eq!((conn.status, conn.header("connection")), (status, "close"), "{method} {path}");
            assert_eq!(conn.header("retry-after").is_empty(), status == 200, "{method} {path}");
            assert_eq!(conn.rest().await.1, Ended::Complete);
        }
    }
    for method in ["POST", "OPTIONS"] {
        let request = format!("{method} /v2/a/blobs/uploads/ HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n");
        let conn = newcomer(addr, &request).await;
        assert_eq!((conn.status, conn.header("connection"), conn.header("retry-after")), (503, "close", "5"));
    }
    drop(silent);
    gate.open();
    for conn in &mut busy {
        let (bytes, ended) = conn.rest().await;
        assert_eq!((bytes.len(), ended), (300_000 - 1000, Ended::Complete), "a request in progress stays");
    }
    until("the finished connections give way", async || newcomer(addr, &get("/v2/")).await.status == 200).await;
}

#[tokio::test]
async fn unfinished_handshakes_and_idle_encrypted_connections_give_way() {
    let authority = Authority::new();
    let server = TestServer::builder().config(&format!("{}{BOUND}", authority.config("one"))).start().await;
    let (addr, client) = (server.addr(), Client::trusting(&authority.ca, None));
    let url = format!("https://{addr}/v2/");
    let hello = "\u{16}\u{3}\u{1}\u{2}\u{0}\u{1}\u{0}\u{1}";
    for sent in ["", "\u{16}", hello] {
        let mut held = Vec::new();
        for _ in 0..2 * PLACES {
            held.push(open(addr, sent).await);
        }
        let answer = timeout(TEST_TIMEOUT, client.get(&url)).await.expect("an answer without a wait");
        assert_eq!(answer.status, 200, "{sent:?}");
        rest(&mut held[0]).await;
    }
    for alpn in ["h2", "http/1.1"] {
        let mut held = Vec::new();
        for _ in 0..2 * PLACES {
            held.push(tls(addr, &authority.ca, &[alpn]).await.unwrap());
        }
        let client = Client::trusting(&authority.ca, None);
        let answer = timeout(TEST_TIMEOUT, client.get(&url)).await.expect("an answer without a wait");
        assert_eq!(answer.status, 200, "{alpn}");
    }
    let mut held = Vec::new();
    for _ in 0..2 * PLACES {
        let connection = Http2::connect(addr, &authority.ca).await;
        assert_eq!(connection.get("/v2/").await.unwrap().status(), 200);
        held.push(connection);
    }
    // The first ones gave way to the last ones.
    until("idle HTTP/2 connections end", async || held[..PLACES].iter().all(|it| it.connection.is_finished())).await;
    assert!(held[PLACES..].iter().all(|it| !it.connection.is_finished()));
}

#[tokio::test]
async fn health_is_answered_over_http2_when_every_connection_is_busy() {
    let authority = Authority::new();
    let scene = Scene::configured(300_000, &format!("{}{BOUND}", authority.config("one"))).await;
    let (gate, addr) = (Gate::new(), scene.server.addr());
    scene.upstream.script("GET", &scene.path(), [Reply::normal().wait_after(200_000, &gate)]);
    let mut busy = Vec::new();
    for _ in 0..PLACES {
        let connection = Http2::connect(addr, &authority.ca).await;
        let response = connection.get(&scene.path()).await.unwrap();
        busy.push((connection, response));
    }
    for (path, status) in [("/readyz", 200), ("/v2/", 503)] {
        let mut connection = Http2::connect(addr, &authority.ca).await;
        let response = timeout(TEST_TIMEOUT, connection.get(path)).await.expect("an answer without a wait").unwrap();
        assert_eq!(response.status(), status, "{path}");
        drop(response);
        let ended = timeout(TEST_TIMEOUT, &mut connection.connection).await;
        assert!(ended.is_ok(), "a reserved connection serves one request");
    }
    gate.open();
    assert!(busy.iter().all(|(connection, _)| !connection.connection.is_finished()));
}

/// All faults of a client at once. The connections stay open until they are dropped.
async fn misbehave(server: &TestServer, blob: &str) -> Vec<TcpStream> {
    let addr = server.addr();
    let mut held = Vec::new();
    for _ in 0..4 {
        for sent in [
            String::new(),
            "GET /v2/ HTTP/1.1\r\nHost: x\r\nX-Slow: ".to_owned(),
            "GET /v2/ HTTP/1.1\r\n\r\n".to_owned(),
            "\u{16}\u{3}\u{1}".to_owned(),
            "POST /v2/team/bad/blobs/uploads/ HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\nhalf".to_owned(),
            "PUT /v2/team/bad/manifests/1 HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n9\r\nhal".to_owned(),
            // Many requests at once, and responses that are never read.
            get("/v2/").repeat(200),
            get(blob).repeat(50),
            format!("HEAD {blob} HTTP/1.1\r\nHost: x\r\n\r\n").repeat(200),
        ] {
            let mut stream = TcpStream::connect(addr).await.unwrap();
            // The server may already have closed it.
            let _ = timeout(Duration::from_millis(100), stream.write_all(sent.as_bytes())).await;
            held.push(stream);
        }
    }
    held
}

/// The responses to well-behaved clients: the status and length of each, in order.
async fn seen(scene: &Scene, pushed: &str) -> Vec<(u16, usize)> {
    let mut seen = Vec::new();
    for path in ["/healthz", "/v2/", &scene.path(), pushed, "/v2/team/none/manifests/1", "/v2/team/app/tags/list"] {
        let answer = scene.server.get(path).await;
        seen.push((answer.status, answer.body.len()));
    }
    seen
}

#[tokio::test]
async fn a_client_that_misbehaves_in_every_way_changes_nothing_for_others() {
    let scene = Scene::configured(300_000, "[server]\nmax_connections = 64").await;
    let blob = crate::scene::blob(2, 200_000);
    scene.server.client().push_blob(&scene.server.url(""), "team/app", &blob).await;
    let pushed = crate::scene::blob_path("team/app", &blob);
    let before = seen(&scene, &pushed).await;
    assert_eq!(before.iter().map(|(status, _)| *status).collect::<Vec<_>>(), [200, 200, 200, 200, 404, 200]);
    let mut held = Vec::new();
    for _ in 0..3 {
        held.extend(misbehave(&scene.server, &pushed).await);
        assert_eq!(seen(&scene, &pushed).await, before);
    }
    assert_eq!(scene.fetches(), 1);
    drop(held);
    assert_eq!(seen(&scene, &pushed).await, before);
}

#[tokio::test]
async fn requests_whose_client_has_ended_its_side_give_way() {
    let scene = Scene::configured(10, BOUND).await;
    assert_eq!(scene.server.get(&scene.path()).await.status, 200);
    let gate = Gate::new();
    scene.upstream.always("*", "/v2/org/slow/*", Reply::normal().wait_before_head(&gate));
    let mut waiting = Vec::new();
    for n in 0..PLACES {
        let mut client = open(scene.server.addr(), &get(&format!("/v2/org/slow/manifests/{n}"))).await;
        client.shutdown().await.unwrap();
        waiting.push(client);
    }
    gate.reached(PLACES).await;
    for _ in 0..2 {
        let cached = newcomer(scene.server.addr(), &get(&scene.path())).await;
        assert_eq!(cached.status, 200);
    }
    // Those that did not have to give way get their responses.
    gate.open();
    let mut answered = 0;
    for client in &mut waiting {
        answered += usize::from(rest(client).await.starts_with("HTTP/1.1 404"));
    }
    assert_eq!(answered, PLACES - 1, "one place was needed, and the newcomers used it in turn");
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_of_clients_that_left_are_bounded() {
    let scene = Scene::with_blob(10).await;
    let gate = Gate::new();
    scene.upstream.always("*", "/v2/org/slow/*", Reply::normal().wait_before_head(&gate));
    let slow = || scene.upstream.requests().iter().filter(|seen| seen.path.contains("/org/slow/")).count();
    let mut clients = JoinSet::new();
    for n in 0..200 {
        let (client, url) = (Client::new(), scene.server.url(&format!("/v2/org/slow/manifests/{n}")));
        clients.spawn(async move { client.get(&url).await });
    }
    let mut refused = 0;
    until("each request was sent on or refused", async || {
        while let Some(answer) = clients.try_join_next() {
            let answer = answer.unwrap();
            assert!(answer.status == 503 && !answer.header("retry-after").is_empty(), "{}", answer.text());
            refused += 1;
        }
        slow() + refused >= 200
    })
    .await;
    clients.abort_all();
    assert!(slow() <= 128, "{} requests of one repository", slow());
    // Other repositories of the upstream are served.
    assert_eq!(scene.server.get(&scene.path()).await.status, 200);
    assert_eq!(scene.server.get("/v2/org/other/manifests/1").await.status, 404);
    gate.open();
}

//! Which host a request names, conditional requests in several lines, and clients that end their side early.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::scene::{Scene, pushed_and_mirrored, until};
use crate::support::http2::tls;
use crate::support::{Authority, Conn, Gate, Image, Reply, TestServer, Upstream};

/// Everything that the server sends to these bytes, after which the client ends its side.
async fn after_half_close(mut stream: TcpStream, request: &str) -> String {
    stream.write_all(request.as_bytes()).await.unwrap();
    stream.shutdown().await.unwrap();
    let mut response = Vec::new();
    stream.read_to_end(&mut response).await.unwrap();
    String::from_utf8_lossy(&response).into_owned()
}

async fn two_upstreams(toml: &str) -> (TestServer, [Upstream; 2], [Image; 2]) {
    let (upstreams, images) =
        ([Upstream::start().await, Upstream::start().await], [Image::new(1, &[10]), Image::new(2, &[10])]);
    for (upstream, image) in upstreams.iter().zip(&images) {
        upstream.add_image("org/app", "1", image);
    }
    let config = format!("[server]\nhost_routes = [\"cache.test\"]\n{toml}");
    let builder = TestServer::builder().upstream("a.test", &upstreams[0]).upstream("b.test", &upstreams[1]);
    (builder.config(&config).start().await, upstreams, images)
}

#[tokio::test]
async fn a_request_must_name_exactly_one_host() {
    let (server, ..) = two_upstreams("").await;
    let (a, b) = ("a-test.cache.test", "b-test.cache.test");
    for (what, lines) in [
        ("none", String::new()),
        ("two", format!("Host: {a}\r\nHost: {b}\r\n")),
        ("the same twice", format!("Host: {a}\r\nHost: {a}\r\n")),
        ("two, one of them later", format!("Host: {a}\r\nAccept: */*\r\nhost: {b}\r\n")),
        ("an empty one", "Host:\r\n".to_owned()),
        ("a list", format!("Host: {a}, {b}\r\n")),
        ("a user", format!("Host: {b}@{a}\r\n")),
        ("a path", format!("Host: {a}/{b}\r\n")),
        ("no port", format!("Host: {a}:x\r\n")),
        ("a port too large", format!("Host: {a}:70000\r\n")),
        ("half an address", "Host: [::1\r\n".to_owned()),
    ] {
        for (method, path) in
            [("GET", "/v2/org/app/manifests/1"), ("HEAD", "/v2/"), ("GET", "/healthz"), ("DELETE", "/v2/a/manifests/1")]
        {
            let request = format!("{method} {path} HTTP/1.1\r\n{lines}\r\n");
            let conn = Conn::ask(server.addr(), &request).await.unwrap();
            assert_eq!((conn.status, conn.header("connection")), (400, "close"), "{what}: {method} {path}");
        }
    }
    let http10 = Conn::ask(server.addr(), "GET /healthz HTTP/1.0\r\n\r\n").await.unwrap();
    assert_eq!(http10.status, 200, "HTTP/1.0 has no Host");
}

#[tokio::test]
async fn the_host_of_an_absolute_target_counts() {
    let (server, _upstreams, images) = two_upstreams("").await;
    let path = "/v2/org/app/manifests/1";
    for (target, host, image) in [
        (path.to_owned(), "a-test.cache.test", &images[0]),
        (format!("http://b-test.cache.test{path}"), "a-test.cache.test", &images[1]),
        (format!("http://b-test.cache.test:5000{path}"), "other.test", &images[1]),
        (format!("http://A-Test.cache.test{path}"), "b-test.cache.test", &images[0]),
    ] {
        let request = format!("GET {target} HTTP/1.1\r\nHost: {host}\r\n\r\n");
        let conn = Conn::ask(server.addr(), &request).await.unwrap();
        assert_eq!((conn.status, conn.header("docker-content-digest")), (200, image.digest()), "{target} {host}");
    }
    let with_user = format!("GET http://a@b-test.cache.test{path} HTTP/1.1\r\nHost: b-test.cache.test\r\n\r\n");
    assert_eq!(Conn::ask(server.addr(), &with_user).await.unwrap().status, 400);
}

#[tokio::test]
async fn the_authority_of_http2_counts() {
    let authority = Authority::new();
    let (server, _upstreams, images) = two_upstreams(&authority.config("one")).await;
    let stream = tls(server.addr(), &authority.ca, &["h2"]).await.unwrap();
    let builder = hyper::client::conn::http2::Builder::new(hyper_util::rt::TokioExecutor::new());
    let (mut requests, connection) = builder.handshake(hyper_util::rt::TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    for (hosts, status, digest) in [
        (&[][..], 200, images[1].digest()),
        (&["a-test.cache.test"], 200, images[1].digest()),
        (&["a-test.cache.test", "b-test.cache.test"], 400, ""),
        (&["a b"], 400, ""),
    ] {
        let mut request = http::Request::get("https://b-test.cache.test/v2/org/app/manifests/1");
        for host in hosts {
            request = request.header("host", *host);
        }
        let request = request.body(http_body_util::Empty::<bytes::Bytes>::new()).unwrap();
        let response = requests.send_request(request).await.unwrap();
        let found = response.headers().get("docker-content-digest").map_or("", |digest| digest.to_str().unwrap());
        assert_eq!((response.status().as_u16(), found), (status, digest), "{hosts:?}");
    }
}

#[tokio::test]
async fn head_of_a_blob_honours_if_none_match_in_several_lines() {
    let (_upstream, server, image) = pushed_and_mirrored().await;
    let digest = &image.layers[0].digest;
    server.get(&format!("/v2/org/app/blobs/{digest}")).await;
    for repository in ["team/app", "org/app"] {
        for (path, etag) in [
            (format!("/v2/{repository}/blobs/{digest}"), format!("\"{digest}\"")),
            (format!("/v2/{repository}/manifests/{}", image.digest()), format!("\"{}\"", image.digest())),
        ] {
            for (lines, status) in [
                (format!("If-None-Match: {etag}\r\n"), 304),
                (format!("If-None-Match: W/{etag}\r\n"), 304),
                ("If-None-Match: *\r\n".to_owned(), 304),
                (format!("If-None-Match: \"other\"\r\nIf-None-Match: {etag}\r\n"), 304),
                (format!("If-None-Match: \"a\", \"b\"\r\nAccept: */*\r\nIf-None-Match: \"c\", {etag}\r\n"), 304),
                ("If-None-Match: \"other\"\r\nIf-None-Match: \"more\"\r\n".to_owned(), 200),
            ] {
                for method in ["GET", "HEAD"] {
                    let request = format!("{method} {path} HTTP/1.1\r\nHost: x\r\n{lines}\r\n");
                    let conn = Conn::ask(server.addr(), &request).await.unwrap();
                    assert_eq!((conn.status, conn.header("etag")), (status, etag.as_str()), "{method} {path} {lines}");
                }
            }
        }
    }
    let absent = format!("/v2/team/app/blobs/sha256:{}", "0".repeat(64));
    let request = format!("HEAD {absent} HTTP/1.1\r\nHost: x\r\nIf-None-Match: *\r\n\r\n");
    assert_eq!(Conn::ask(server.addr(), &request).await.unwrap().status, 404);
}

#[tokio::test]
async fn a_client_that_ends_its_side_after_the_request_gets_the_response() {
    let scene = Scene::with_blob(300_000).await;
    let (addr, path, gate) = (scene.server.addr(), scene.path(), Gate::new());
    for request in ["GET /v2/", "GET /healthz", "OPTIONS /v2/", "DELETE /v2/team/app/manifests/1"] {
        let sent = format!("{request} HTTP/1.1\r\nHost: x\r\n\r\n");
        let response = after_half_close(TcpStream::connect(addr).await.unwrap(), &sent).await;
        assert!(response.starts_with("HTTP/1.1 "), "{request}");
    }
    // A cold fill whose upstream does not answer until the client has ended its side, then stalls in the middle.
    scene.upstream.script("GET", &path, [Reply::normal().wait_after(200_000, &gate).wait_before_head(&gate)]);
    let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n");
    let client = tokio::spawn(async move { after_half_close(TcpStream::connect(addr).await.unwrap(), &request).await });
    until("the fill has started", async || scene.fetches() == 1).await;
    gate.open();
    let response = client.await.unwrap();
    assert!(response.starts_with("HTTP/1.1 200 ") && response.len() > 300_000, "{}", response.len());
    // A push in one request.
    let blob = crate::scene::blob(3, 1000);
    let mut stream = TcpStream::connect(addr).await.unwrap();
    let head = format!(
        "POST /v2/team/app/blobs/uploads/?digest={} HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n",
        blob.digest
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(&blob.bytes).await.unwrap();
    assert!(after_half_close(stream, "").await.starts_with("HTTP/1.1 201 "));
}

#[tokio::test]
async fn a_half_closed_encrypted_connection_gets_its_response() {
    let authority = Authority::new();
    let scene = Scene::configured(300_000, &authority.config("one")).await;
    let (gate, path) = (Gate::new(), scene.path());
    scene.upstream.script("GET", &path, [Reply::normal().wait_before_head(&gate)]);
    let mut stream = tls(scene.server.addr(), &authority.ca, &["http/1.1"]).await.unwrap();
    stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes()).await.unwrap();
    stream.shutdown().await.unwrap();
    until("the fill has started", async || scene.fetches() == 1).await;
    gate.open();
    let mut response = Vec::new();
    stream.read_to_end(&mut response).await.unwrap();
    assert!(response.starts_with(b"HTTP/1.1 200 ") && response.len() > 300_000);
}

//! HTTP/2 over TLS: protocol selection by ALPN, and the deadlines of streams and connections.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::scene::{KIB, MIB, blob, blob_path, until};
use crate::support::http2::{Http2, tls};
use crate::support::metrics::Metrics;
use crate::support::{Authority, Client, Content, Gate, Reply, TestServer, Upstream};

const TEST_TIMEOUT: Duration = Duration::from_secs(10);

struct Scene {
    authority: Authority,
    server: TestServer,
    client: Client,
}

impl Scene {
    async fn start(more: &str) -> Self {
        let authority = Authority::new();
        let config = format!("{}{more}", authority.config("one"));
        let server = TestServer::builder().config(&config).start().await;
        let client = Client::trusting(&authority.ca, None);
        Self { authority, server, client }
    }

    fn url(&self, path: &str) -> String {
        format!("https://{}{path}", self.server.addr())
    }

    async fn push(&self, blob: &Content) -> String {
        self.client.push_blob(&self.url(""), "team/app", blob).await;
        blob_path("team/app", blob)
    }

    async fn http2(&self) -> Http2 {
        Http2::connect(self.server.addr(), &self.authority.ca).await
    }

    async fn blobs_in_flight(&self) -> f64 {
        let answer = self.client.get(&self.url("/metrics")).await;
        Metrics::parse(answer.text()).sum("registry_http_in_flight_requests", &[("handler", "blob")])
    }
}

async fn read_all(body: Incoming) -> hyper::Result<Bytes> {
    body.collect().await.map(|body| body.to_bytes())
}

#[tokio::test]
async fn alpn_chooses_http2_or_http1() {
    let scene = Scene::start("").await;
    let answer = scene.client.start("GET", &scene.url("/v2/"), &[], "").await.unwrap();
    assert_eq!((answer.version(), answer.status().as_u16()), (http::Version::HTTP_2, 200));
    for alpn in [&["http/1.1"][..], &[]] {
        let mut stream = tls(scene.server.addr(), &scene.authority.ca, alpn).await.unwrap();
        stream.write_all(b"GET /v2/ HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await.unwrap();
        let mut response = String::new();
        stream.read_to_string(&mut response).await.unwrap();
        assert!(response.starts_with("HTTP/1.1 200 ") && response.ends_with("{}"), "{response}");
    }
}

#[tokio::test]
async fn a_response_to_head_has_the_length_and_no_body() {
    let scene = Scene::start("").await;
    let blob = scene.push(&blob(1, KIB)).await;
    let paths = ["/v2/", "/v2/_catalog", "/v2/team/app/tags/list", "/v2/team/app/manifests/none", "/v2/a%00/b", &blob];
    for path in paths {
        let mut lengths = Vec::new();
        for method in ["GET", "HEAD"] {
            let answer = scene.client.start(method, &scene.url(path), &[("x-request-id", "same")], "").await.unwrap();
            assert_eq!(answer.version(), http::Version::HTTP_2);
            lengths.push(answer.headers().get("content-length").map(|length| length.to_str().unwrap().to_owned()));
            // The client's HTTP/2 library reports a body after HEAD as an error.
            let body = answer.bytes().await.unwrap();
            assert_eq!(body.is_empty(), method == "HEAD", "{method} {path}");
            lengths.push(Some(body.len().to_string()).filter(|_| method == "GET"));
        }
        let [_, body, head, _] = &lengths[..] else { panic!("{lengths:?}") };
        assert_eq!(head, body, "{path}");
    }
}

#[tokio::test]
async fn many_blobs_are_pulled_over_one_connection() {
    let scene = Scene::start("").await;
    let contents: Vec<Content> = (0..30).map(|seed| blob(seed, MIB + seed as usize)).collect();
    let mut paths = Vec::new();
    for content in &contents {
        paths.push(scene.push(content).await);
    }
    let http2 = scene.http2().await;
    let pulls = paths.iter().map(async |path| read_all(http2.get(path).await.unwrap().into_body()).await.unwrap());
    let pulled = futures_util::future::join_all(pulls).await;
    assert!(pulled.iter().zip(&contents).all(|(pulled, content)| *pulled == content.bytes));
}

#[tokio::test]
async fn a_stalled_stream_is_reset_and_others_continue() {
    let scene = Scene::start("[server]\nprogress_timeout = \"3s\"").await;
    let (large, small) = (blob(1, 4 * MIB), blob(2, MIB));
    let (large_path, small_path) = (scene.push(&large).await, scene.push(&small).await);
    let http2 = scene.http2().await;
    let stalled = http2.get(&large_path).await.unwrap();
    until("no request is in flight", async || scene.blobs_in_flight().await == 0.0).await;
    assert_eq!(read_all(http2.get(&small_path).await.unwrap().into_body()).await.unwrap(), small.bytes);
    let error = read_all(stalled.into_body()).await.expect_err("the stream was reset");
    assert!(error.to_string().contains("error reading"), "{error}");
    // A client that reads a little now and then is served to its end, beyond the deadline.
    let mut body = http2.get(&large_path).await.unwrap().into_body();
    let (mut taken, mut pauses) = (Vec::new(), 0);
    while let Some(frame) = body.frame().await {
        taken.extend_from_slice(&frame.unwrap().into_data().unwrap());
        if pauses < 24 && taken.len() > pauses * 64 * KIB {
            tokio::time::sleep(Duration::from_millis(150)).await;
            pauses += 1;
        }
    }
    assert_eq!(Bytes::from(taken), large.bytes);
}

#[tokio::test]
async fn a_response_waiting_for_its_upstream_is_not_reset() {
    let (authority, upstream) = (Authority::new(), Upstream::start().await);
    let (content, gate) = (blob(1, 300_000), crate::support::Gate::new());
    upstream.add_blob("library/a", &content);
    let path = blob_path("library/a", &content);
    upstream.script("GET", &path, [Reply::normal().wait_after(200_000, &gate)]);
    let config = format!("{}[server]\nprogress_timeout = \"100ms\"", authority.config("one"));
    let builder = TestServer::builder().upstream("docker.io", &upstream).default_upstream("docker.io");
    let server = builder.config(&config).start().await;
    let http2 = Http2::connect(server.addr(), &authority.ca).await;
    let mut body = http2.get(&path).await.unwrap().into_body();
    let first = body.frame().await.unwrap().unwrap().into_data().unwrap();
    let rest = tokio::spawn(read_all(body));
    tokio::time::sleep(Duration::from_millis(600)).await;
    gate.open();
    assert_eq!(rest.await.unwrap().unwrap(), content.bytes[first.len()..]);
}

#[tokio::test]
async fn a_failed_transfer_resets_its_stream() {
    let (authority, upstream) = (Authority::new(), Upstream::start().await);
    let content = blob(1, MIB);
    upstream.add_blob("library/a", &content);
    let path = blob_path("library/a", &content);
    let gate = Gate::new();
    upstream.script("GET", &path, [Reply::normal().wait_after(512 * KIB as u64, &gate).flip(MIB as u64 - 1)]);
    let builder = TestServer::builder().upstream("docker.io", &upstream).default_upstream("docker.io");
    let server = builder.config(&authority.config("one")).start().await;
    let http2 = Http2::connect(server.addr(), &authority.ca).await;
    let answer = http2.get(&path).await.unwrap();
    assert_eq!(answer.status(), 200);
    // A client without bytes could still be given a second generation.
    let mut body = answer.into_body();
    assert!(body.frame().await.unwrap().is_ok());
    gate.open();
    assert!(read_all(body).await.is_err());
}

#[tokio::test]
async fn a_connection_serves_at_most_100_requests_at_once() {
    let scene = Scene::start("").await;
    let path = scene.push(&blob(1, MIB)).await;
    let http2 = scene.http2().await;
    let mut held = Vec::new();
    for _ in 0..100 {
        held.push(http2.get(&path).await.unwrap());
    }
    assert_eq!(scene.blobs_in_flight().await, 100.0);
    let one_more = http2.get(&path);
    let mut one_more = std::pin::pin!(one_more);
    assert!(timeout(Duration::from_millis(300), &mut one_more).await.is_err(), "it waits");
    held.pop();
    assert_eq!(
        timeout(TEST_TIMEOUT, one_more).await.expect("the request is served in its turn").unwrap().status(),
        200
    );
}

#[tokio::test]
async fn an_idle_connection_is_closed() {
    let scene =
        Scene::start("[server]\nhead_timeout = \"300ms\"\nkeep_alive = \"300ms\"\nprogress_timeout = \"300ms\"").await;
    let http2 = scene.http2().await;
    assert_eq!(http2.get("/v2/").await.unwrap().status(), 200);
    let ended = timeout(TEST_TIMEOUT, http2.connection).await.expect("the connection is closed").unwrap();
    assert!(ended.is_ok(), "a clean close: {ended:?}");
    // A connection without a request, and one without the HTTP/2 preface.
    let unused = scene.http2().await;
    timeout(TEST_TIMEOUT, unused.connection).await.expect("the connection is closed").unwrap().unwrap();
    let mut mute = tls(scene.server.addr(), &scene.authority.ca, &["h2"]).await.unwrap();
    let _ = timeout(TEST_TIMEOUT, mute.read_to_end(&mut Vec::new())).await.expect("the connection is closed");
}

/// A push of an unfinished body, and a sender that ends the body when it is dropped.
async fn unfinished_push(scene: &Scene, bytes: usize) -> (http::Response<Incoming>, mpsc::Sender<Bytes>) {
    let stream = tls(scene.server.addr(), &scene.authority.ca, &["h2"]).await.unwrap();
    let builder = hyper::client::conn::http2::Builder::new(TokioExecutor::new());
    let (mut requests, connection) = builder.handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let (sender, receiver) = mpsc::channel::<Bytes>(1);
    let chunks = futures_util::stream::unfold(receiver, async |mut receiver| {
        let bytes = receiver.recv().await?;
        Some((Ok::<_, std::convert::Infallible>(Frame::data(bytes)), receiver))
    });
    let url = scene.url("/v2/team/app/manifests/v1?digest=none");
    let request = http::Request::put(url).header("content-type", "text/html").body(StreamBody::new(Box::pin(chunks)));
    let response = tokio::spawn(requests.send_request(request.unwrap()));
    sender.send(Bytes::from(vec![b'x'; bytes])).await.unwrap();
    (response.await.unwrap().unwrap(), sender)
}

#[tokio::test]
async fn the_response_to_a_refused_body_ends_after_the_body() {
    let scene = Scene::start("[push]\nenabled = false").await;
    for bytes in [1, 100 * KIB, 3 * MIB] {
        let (response, sender) = unfinished_push(&scene, bytes).await;
        assert_eq!(response.status(), 405);
        let mut body = response.into_body();
        let error = body.frame().await.unwrap().unwrap().into_data().unwrap();
        assert!(error.starts_with(b"{\"errors\""), "{error:?}");
        // Sending more of the body is no error for the client.
        sender.send(Bytes::from_static(b"more")).await.unwrap();
        drop(sender);
        assert!(read_all(body).await.unwrap().is_empty());
    }
}

#[tokio::test]
async fn the_wait_for_the_end_of_a_refused_body_is_bounded() {
    let scene = Scene::start("[push]\nenabled = false").await;
    let (response, _sender) = unfinished_push(&scene, 100).await;
    let status = response.status();
    let body = timeout(2 * TEST_TIMEOUT, read_all(response.into_body())).await.expect("the response ends");
    assert!(status == 405 && body.is_ok_and(|body| body.starts_with(b"{\"errors\"")));
}

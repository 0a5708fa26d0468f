//! HTTP/2 over TLS: what ALPN chooses, and that nobody holds a stream, or a connection, for ever.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::timeout;

use crate::scene::{KIB, MIB, blob, blob_path, until};
use crate::support::http2::{Http2, tls};
use crate::support::metrics::Metrics;
use crate::support::{Authority, Client, Content, Gate, Reply, TestServer, Upstream};

const PATIENCE: Duration = Duration::from_secs(10);

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

async fn whole(body: Incoming) -> hyper::Result<Bytes> {
    body.collect().await.map(|body| body.to_bytes())
}

#[tokio::test]
async fn alpn_chooses_http2_and_who_does_not_ask_for_it_gets_http1() {
    let scene = Scene::start("").await;
    let answer = scene.client.start("GET", &scene.url("/v2/"), &[], "").await.unwrap();
    assert_eq!((answer.version(), answer.status().as_u16()), (http::Version::HTTP_2, 200));
    for alpn in [&["http/1.1"][..], &[]] {
        let mut stream = tls(scene.server.addr(), &scene.authority.ca, alpn).await.unwrap();
        stream.write_all(b"GET /v2/ HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await.unwrap();
        let mut said = String::new();
        stream.read_to_string(&mut said).await.unwrap();
        assert!(said.starts_with("HTTP/1.1 200 ") && said.ends_with("{}"), "{said}");
    }
}

#[tokio::test]
async fn many_blobs_come_at_once_over_one_connection() {
    let scene = Scene::start("").await;
    let contents: Vec<Content> = (0..30).map(|seed| blob(seed, MIB + seed as usize)).collect();
    let mut paths = Vec::new();
    for content in &contents {
        paths.push(scene.push(content).await);
    }
    let http2 = scene.http2().await;
    let pulls = paths.iter().map(async |path| whole(http2.get(path).await.unwrap().into_body()).await.unwrap());
    let pulled = futures_util::future::join_all(pulls).await;
    assert!(pulled.iter().zip(&contents).all(|(pulled, content)| *pulled == content.bytes));
}

#[tokio::test]
async fn a_stream_whose_client_takes_nothing_is_reset_and_the_others_go_on() {
    let scene = Scene::start("[server]\nprogress_timeout = \"1s\"").await;
    let (large, small) = (blob(1, 4 * MIB), blob(2, MIB));
    let (large_path, small_path) = (scene.push(&large).await, scene.push(&small).await);
    let http2 = scene.http2().await;
    let stalled = http2.get(&large_path).await.unwrap();
    until("nobody is being served", async || scene.blobs_in_flight().await == 0.0).await;
    assert_eq!(whole(http2.get(&small_path).await.unwrap().into_body()).await.unwrap(), small.bytes);
    let error = whole(stalled.into_body()).await.expect_err("it was cut");
    assert!(error.to_string().contains("error reading"), "{error}");
    // One that takes a little now and then is served to its end, for longer than the deadline.
    let mut body = http2.get(&large_path).await.unwrap().into_body();
    let (mut taken, mut pauses) = (Vec::new(), 0);
    while let Some(frame) = body.frame().await {
        taken.extend_from_slice(&frame.unwrap().into_data().unwrap());
        if pauses < 16 && taken.len() > pauses * 64 * KIB {
            tokio::time::sleep(Duration::from_millis(150)).await;
            pauses += 1;
        }
    }
    assert_eq!(Bytes::from(taken), large.bytes);
}

#[tokio::test]
async fn an_answer_that_waits_for_its_upstream_has_no_deadline_of_its_stream() {
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
    let rest = tokio::spawn(whole(body));
    tokio::time::sleep(Duration::from_millis(600)).await;
    gate.open();
    assert_eq!(rest.await.unwrap().unwrap(), content.bytes[first.len()..]);
}

#[tokio::test]
async fn a_transfer_that_goes_wrong_is_reset_and_never_just_ends() {
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
    // A client that has nothing yet could be given what is fetched afresh.
    let mut body = answer.into_body();
    assert!(body.frame().await.unwrap().is_ok());
    gate.open();
    assert!(whole(body).await.is_err());
}

#[tokio::test]
async fn no_more_than_a_hundred_requests_are_served_at_once_on_one_connection() {
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
    assert_eq!(timeout(PATIENCE, one_more).await.expect("its turn comes").unwrap().status(), 200);
}

#[tokio::test]
async fn a_connection_that_nobody_uses_is_closed() {
    let scene =
        Scene::start("[server]\nhead_timeout = \"300ms\"\nkeep_alive = \"300ms\"\nprogress_timeout = \"300ms\"").await;
    let http2 = scene.http2().await;
    assert_eq!(http2.get("/v2/").await.unwrap().status(), 200);
    let ended = timeout(PATIENCE, http2.connection).await.expect("it is closed").unwrap();
    assert!(ended.is_ok(), "in good order: {ended:?}");
    // One that never sends a request, or not even what HTTP/2 begins with.
    let unused = scene.http2().await;
    timeout(PATIENCE, unused.connection).await.expect("it is closed").unwrap().unwrap();
    let mut mute = tls(scene.server.addr(), &scene.authority.ca, &["h2"]).await.unwrap();
    let _ = timeout(PATIENCE, mute.read_to_end(&mut Vec::new())).await.expect("it is closed");
}

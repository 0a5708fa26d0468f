//! Ten thousand mutated requests, as a broken or malicious client would send them.
//!
//! The seed is fixed, so a failure names a request that can be repeated. The test fails for a 5xx (a panic is a 500), for a
//! file that no response mentioned, and for a server that does not work afterwards.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use fastrand::Rng;
use futures_util::stream::{self, StreamExt as _};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::scene::{entry_count, until};
use crate::support::mutants::Ingredients;
use crate::support::{Image, TestServer, Upstream};

const REQUESTS: u64 = 10_000;
const CONCURRENT_REQUESTS: usize = 32;
/// How long a response may take, and how long to wait for the response to an incomplete request.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(20);
const INCOMPLETE_TIMEOUT: Duration = Duration::from_millis(50);

/// The headers of the responses, in order. A client that announced a wrong length sends no more after `wait`. Then the
/// server need not answer, but it may have answered by then.
async fn send(addr: SocketAddr, bytes: &[u8], cut: bool, wait: Duration) -> String {
    let mut stream = TcpStream::connect(addr).await.expect("the server accepts");
    // The server may respond before it has read everything.
    let _ = stream.write_all(bytes).await;
    if cut {
        let _ = stream.shutdown().await;
    }
    let mut answer = Vec::new();
    if timeout(wait, read_head(&mut stream, &mut answer)).await.is_err() {
        let _ = stream.shutdown().await;
        let _ = timeout(RESPONSE_TIMEOUT, read_head(&mut stream, &mut answer)).await;
    }
    let text = String::from_utf8_lossy(&answer);
    text.split_once("\r\n\r\n").map_or("", |(head, _)| head).to_ascii_lowercase()
}

async fn read_head(stream: &mut TcpStream, answer: &mut Vec<u8>) {
    while !is_complete(answer) && stream.read_buf(answer).await.is_ok_and(|n| n > 0) {}
}

/// Whether the headers of the final response have arrived, after any 100 Continue.
fn is_complete(answer: &[u8]) -> bool {
    !answer.starts_with(b"HTTP/1.1 100") && answer.windows(4).any(|window| window == b"\r\n\r\n")
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_malformed_requests_break_nothing() {
    let upstream = Upstream::start().await;
    let image = Image::new(1, &[1500]);
    upstream.add_image("org/app", "v1", &image);
    let server = TestServer::mirror_of(&upstream).await;
    let (client, base) = (server.client(), server.url(""));
    client.push_image(&base, "team/app", "v1", &image).await;
    let session = client.start_upload(&base, "team/app").await.replace(&base, "");
    let mut reported = BTreeSet::from([session.rsplit('/').next().unwrap().to_owned()]);
    let ingredients = Arc::new(Ingredients { image: image.clone(), session });
    let addr = server.addr();
    let answers = stream::iter(0..REQUESTS).map(|seed| {
        let ingredients = ingredients.clone();
        async move {
            let mut rng = Rng::with_seed(seed);
            let request = ingredients.mutated(&mut rng);
            let mut bytes = request.to_bytes();
            let cut = rng.u8(..6) == 0;
            if cut {
                bytes.truncate(rng.usize(..bytes.len()));
            }
            let wait = if request.framing.is_incomplete() { INCOMPLETE_TIMEOUT } else { RESPONSE_TIMEOUT };
            (seed, request, send(addr, &bytes, cut, wait).await)
        }
    });
    let mut answers = answers.buffer_unordered(CONCURRENT_REQUESTS);
    let mut answered = 0;
    while let Some((seed, request, head)) = answers.next().await {
        let status: u16 = head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
        let what = || format!("request {seed}: {} {} ({:?})\n{head}", request.method, request.target, request.framing);
        assert!(status < 500 || matches!(status, 501 | 505 | 508), "{}", what());
        answered += u64::from(status != 0);
        let uuid = head.lines().find_map(|line| line.strip_prefix("docker-upload-uuid: "));
        reported.extend(uuid.filter(|_| status == 202).map(str::to_owned));
    }
    drop(answers);
    assert!(answered > REQUESTS / 2, "{answered} of {REQUESTS} were answered");

    until("the spool is empty", async || entry_count(&server.data_dir().join("spool")) == 0).await;
    let open = std::fs::read_dir(server.data_dir().join("uploads")).unwrap();
    let open: BTreeSet<String> = open.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    let unreported: Vec<_> = open.difference(&reported).collect();
    assert!(unreported.is_empty(), "sessions that no response named: {unreported:?}");

    let next = Image::new(2, &[3000, 0]);
    client.push_image(&base, "team/app", "next", &next).await;
    assert_eq!(server.get("/v2/team/app/manifests/next").await.body, next.manifest.bytes);
    for (repo, image) in [("team/app", &next), ("org/app", &image), ("team/app", &image)] {
        for blob in image.blobs() {
            let got = server.get(&format!("/v2/{repo}/blobs/{}", blob.digest)).await;
            assert_eq!((got.status, &got.body), (200, &blob.bytes), "{repo}");
        }
    }
    assert_eq!(server.get("/v2/org/app/manifests/v1").await.body, image.manifest.bytes);
    assert_eq!(server.metric("registry_http_requests_total", &[("code", "500")]).await, 0.0);
}

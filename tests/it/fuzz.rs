//! Ten thousand requests that were good once, sent by a client that is broken or means harm.
//!
//! The seed is fixed, so a failure names the request that can be sent again. What is looked for: an answer that blames the
//! server, a panic (which is a 500), a file that nobody was told of, and a server that is not itself afterwards.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use fastrand::Rng;
use futures_util::stream::{self, StreamExt as _};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::scene::{files_below, until};
use crate::support::mutants::Ingredients;
use crate::support::{Image, TestServer, Upstream};

const REQUESTS: u64 = 10_000;
const AT_ONCE: usize = 32;
/// How long an answer may take, and how long to wait for one to a request that has not ended.
const PATIENCE: Duration = Duration::from_secs(20);
const PATIENCE_WITH_LIES: Duration = Duration::from_millis(50);

/// The head of every answer that came, one after the other; a client that lied does not wait for ever.
async fn send(addr: SocketAddr, bytes: &[u8], cut: bool, wait: Duration) -> String {
    let mut stream = TcpStream::connect(addr).await.expect("the server accepts");
    // It may have said no before it has heard all.
    let _ = stream.write_all(bytes).await;
    if cut {
        let _ = stream.shutdown().await;
    }
    let mut answer = Vec::new();
    let read = async { while !is_complete(&answer) && stream.read_buf(&mut answer).await.is_ok_and(|n| n > 0) {} };
    let _ = timeout(wait, read).await;
    let text = String::from_utf8_lossy(&answer);
    text.split_once("\r\n\r\n").map_or("", |(head, _)| head).to_ascii_lowercase()
}

/// Whether the head is there that matters: what comes before it says only that the body may come.
fn is_complete(answer: &[u8]) -> bool {
    !answer.starts_with(b"HTTP/1.1 100") && answer.windows(4).any(|window| window == b"\r\n\r\n")
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_broken_requests_leave_nothing_broken() {
    let upstream = Upstream::start().await;
    let image = Image::new(1, &[1500]);
    upstream.add_image("org/app", "v1", &image);
    let server = TestServer::mirror_of(&upstream).await;
    let (client, base) = (server.client(), server.url(""));
    client.push_image(&base, "team/app", "v1", &image).await;
    let session = client.start_upload(&base, "team/app").await.replace(&base, "");
    let mut told = BTreeSet::from([session.rsplit('/').next().unwrap().to_owned()]);
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
            let wait = if request.framing.lies() { PATIENCE_WITH_LIES } else { PATIENCE };
            (seed, request, send(addr, &bytes, cut, wait).await)
        }
    });
    let mut answers = answers.buffer_unordered(AT_ONCE);
    let mut answered = 0;
    while let Some((seed, request, head)) = answers.next().await {
        let status: u16 = head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
        let what = || format!("request {seed}: {} {} ({:?})\n{head}", request.method, request.target, request.framing);
        assert!(status < 500 || matches!(status, 501 | 505 | 508), "{}", what());
        answered += u64::from(status != 0);
        let uuid = head.lines().find_map(|line| line.strip_prefix("docker-upload-uuid: "));
        told.extend(uuid.filter(|_| status == 202).map(str::to_owned));
    }
    drop(answers);
    assert!(answered > REQUESTS / 2, "{answered} of {REQUESTS} were answered");

    until("nothing is left in the spool", async || files_below(&server.data_dir().join("spool")) == 0).await;
    let open = std::fs::read_dir(server.data_dir().join("uploads")).unwrap();
    let open: BTreeSet<String> = open.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    let untold: Vec<_> = open.difference(&told).collect();
    assert!(untold.is_empty(), "sessions of which nobody was told: {untold:?}");

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

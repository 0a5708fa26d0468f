//! Five hundred pulls while upstreams fail in every way at once.
//!
//! Failures are drawn from a seed, which is printed; `ROADSTEAD_TEST_SEED` sets it. Clients retry like dockerd: first from
//! where they were, then from zero. An upstream fails at most three times for a blob and is unreachable once, so five
//! attempts must suffice. Guaranteed at all times: no complete wrong body, no wrong file, no response without headers, no
//! 404, and no leftover file.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use fastrand::Rng;
use futures_util::stream::{self, StreamExt as _};

use crate::disk::blob_file;
use crate::scene::{HELD_BACK_TAIL_BYTES, MIB, blob_path, entry_count, settle};
use crate::support::{Conn, Content, Ended, Image, Reply, TestServer, Upstream, digest_of, random_bytes};

const UPSTREAMS: usize = 4;
const BLOBS: usize = 100;
const PULLS: usize = 500;
const CONCURRENT_PULLS: usize = 100;
const MAX_BAD_REPLIES: usize = 3;
const MAX_ATTEMPTS: usize = 5;
/// Longer than a failure is shared with other requests.
const RETRY_PAUSE: Duration = Duration::from_millis(1100);
/// Responses with Retry-After that a client obeys before it counts them as a failure.
const MAX_WAITS: usize = 20;

const CONFIG: &str = "
[cache]
answer_within = \"10s\"
max_fills = 16
";
const UPSTREAM_CONFIG: &str = "
max_fills = 6
header_timeout = \"500ms\"
idle_timeout = \"500ms\"
min_rate = \"4KiB\"
";

#[tokio::test(flavor = "multi_thread")]
async fn five_hundred_pulls_from_failing_upstreams_succeed() {
    let seed = match std::env::var("ROADSTEAD_TEST_SEED") {
        Ok(seed) => seed.parse().expect("ROADSTEAD_TEST_SEED is a number"),
        Err(_) => fastrand::u64(..),
    };
    println!("ROADSTEAD_TEST_SEED={seed}");
    let mut rng = Rng::with_seed(seed);
    let upstreams = futures_util::future::join_all((0..UPSTREAMS).map(|_| Upstream::start())).await;
    let builder = upstreams.iter().zip(0..).fold(TestServer::builder().config(CONFIG), |builder, (upstream, n)| {
        builder.upstream(&name(n), upstream).config(&format!("[upstream.{:?}]{UPSTREAM_CONFIG}", name(n)))
    });
    let server = builder.start().await;
    let blobs = stock(&server, &upstreams, &mut rng).await;

    let mut order: Vec<usize> = (0..PULLS).map(|pull| pull % BLOBS).collect();
    rng.shuffle(&mut order);
    let requests = Arc::new(AtomicUsize::new(0));
    let pulls = order.iter().map(|&blob| {
        let (path, content) = &blobs[blob];
        let client = Client { server: &server, path, content, requests: requests.clone(), rng: rng.fork() };
        client.pull()
    });
    let pulls: Vec<_> = pulls.collect();
    let outages = upstreams.iter().map(|upstream| outage(upstream, Duration::from_millis(rng.u64(100..3000))));
    let outages = futures_util::future::join_all(outages.collect::<Vec<_>>());
    let ended: (Vec<()>, _) = tokio::join!(stream::iter(pulls).buffer_unordered(CONCURRENT_PULLS).collect(), outages);
    assert_eq!(ended.0.len(), PULLS);

    settle(&server).await;
    let metrics = server.metrics().await;
    let sum = |name: &str| metrics.sum(name, &[("type", "blob")]) as usize;
    let (hits, misses) = (sum("registry_proxy_hits_total"), sum("registry_proxy_misses_total"));
    let requests = requests.load(Ordering::Relaxed);
    assert_eq!(
        (sum("registry_proxy_requests_total"), hits + misses),
        (requests, requests),
        "each GET is a hit or a miss"
    );
    for metric in ["roadstead_fill_resumes_total", "roadstead_digest_mismatches_total"] {
        assert!(metrics.sum(metric, &[]) > 0.0, "{metric}");
    }
    assert_eq!(metrics.sum("registry_http_in_flight_requests", &[("handler", "blob")]), 0.0);

    let data = server.stop_and_keep().await;
    assert_eq!(entry_count(&data.path().join("spool")), 0);
    for (_, content) in &blobs {
        let kept = std::fs::read(blob_file(data.path(), &content.digest)).unwrap();
        assert_eq!(digest_of(&kept), content.digest, "the stored file is wrong");
    }
}

fn name(upstream: usize) -> String {
    format!("chaos-{upstream}.test")
}

/// Adds blobs of many sizes in many repositories, each with scripted failures, some with a known manifest. Returns each
/// with its path at the server.
async fn stock(server: &TestServer, upstreams: &[Upstream], rng: &mut Rng) -> Vec<(String, Content)> {
    let mut blobs = Vec::new();
    for n in 0..BLOBS {
        let size = match rng.u8(..4) {
            0 => rng.usize(1..1000),
            1 => rng.usize(HELD_BACK_TAIL_BYTES - 2..HELD_BACK_TAIL_BYTES + 3),
            2 => rng.usize(1000..HELD_BACK_TAIL_BYTES * 3),
            _ => rng.usize(HELD_BACK_TAIL_BYTES..MIB),
        };
        let image = Image::for_platform("linux/amd64", vec![Content::new("x/y", random_bytes(rng.u64(..), size))]);
        let (upstream, repository) = (&upstreams[n % UPSTREAMS], format!("org/app-{}", n % 11));
        let at = format!("{}/{repository}", name(n % UPSTREAMS));
        upstream.add_image(&repository, &format!("v{n}"), &image);
        if rng.bool() {
            server.get(&format!("/v2/{at}/manifests/v{n}")).await;
        }
        let content = image.layers[0].clone();
        upstream.script("GET", &blob_path(&repository, &content), bad_replies(&content, rng));
        blobs.push((blob_path(&at, &content), content));
    }
    blobs
}

fn bad_replies(content: &Content, rng: &mut Rng) -> Vec<Reply> {
    let mut replies = Vec::new();
    let wanted = rng.usize(..=MAX_BAD_REPLIES);
    while replies.len() < wanted {
        replies.extend(failure(content, rng));
    }
    replies.truncate(MAX_BAD_REPLIES);
    replies
}

/// One failure, as one reply or two.
fn failure(content: &Content, rng: &mut Rng) -> Vec<Reply> {
    let (bytes, normal) = (&content.bytes, Reply::normal());
    let size = bytes.len() as u64;
    let at = rng.u64(..size);
    let reply = match rng.u8(..20) {
        0 => normal.cut_after(at),
        1 => normal.reset_after(at),
        2 => normal.silent_after(at),
        3 => normal.flip(at),
        4 => normal.flip(at).chunked(),
        5 => normal.body(bytes.slice(..at as usize)),
        6 => normal.body(bytes.slice(..at as usize)).chunked(),
        7 => normal.body([&bytes[..], b"and more"].concat()),
        8 => normal.declare_length(size + 1 + at),
        9 => normal.header("Docker-Content-Digest", &digest_of(b"other")).flip(at),
        10 => normal.claims_gzip(),
        11 => normal.pace(size.max(1000)),
        12 => Reply::error(503, "UNAVAILABLE"),
        13 => Reply::error(500, "UNKNOWN"),
        14 => Reply::error(429, "TOOMANYREQUESTS").header("Retry-After", "1"),
        15 => Reply::hang_up(),
        16 => Reply::never(),
        17 => return vec![normal.clone().cut_after(at), normal.ignore_range()],
        18 => return vec![normal.clone().cut_after(at), normal.ignore_range().flip(0)],
        _ => return vec![normal.clone().cut_after(at), normal.header("Content-Range", "bytes 0-0/1")],
    };
    vec![reply]
}

async fn outage(upstream: &Upstream, after: Duration) {
    tokio::time::sleep(after).await;
    upstream.go_down().await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    upstream.come_back().await;
}

struct Client<'a> {
    server: &'a TestServer,
    path: &'a str,
    content: &'a Content,
    requests: Arc<AtomicUsize>,
    rng: Rng,
}

/// How one attempt ended.
enum Attempt {
    Complete(Bytes),
    /// The bytes so far are kept to resume from.
    CutShort(BytesMut),
    /// The response had Retry-After.
    Later,
    Failed,
}

impl Client<'_> {
    async fn pull(mut self) {
        let (mut have, mut waits, mut attempts) = (BytesMut::new(), 0, 0);
        while attempts < MAX_ATTEMPTS {
            let leaves = self.rng.u8(..10) == 0 && attempts == 0;
            attempts += 1;
            match self.attempt(&mut have, leaves).await {
                Attempt::Complete(bytes) if digest_of(&bytes) == self.content.digest => return,
                // Bytes of a range may be wrong, so the client starts from zero.
                Attempt::Complete(_) => {}
                Attempt::CutShort(bytes) => have = bytes,
                Attempt::Later if waits < MAX_WAITS => {
                    waits += 1;
                    attempts -= 1;
                }
                Attempt::Later | Attempt::Failed => {}
            }
            tokio::time::sleep(RETRY_PAUSE).await;
        }
        panic!("{} with {} bytes did not arrive within {MAX_ATTEMPTS} attempts", self.path, self.content.bytes.len());
    }

    async fn attempt(&self, have: &mut BytesMut, leaves: bool) -> Attempt {
        let mut kept = std::mem::take(have);
        let range = if kept.is_empty() { String::new() } else { format!("Range: bytes={}-\r\n", kept.len()) };
        let request = format!("GET {} HTTP/1.1\r\nHost: x\r\n{range}\r\n", self.path);
        let conn = Conn::ask(self.server.addr(), &request).await;
        let mut conn = conn.expect("every response has headers");
        self.requests.fetch_add(1, Ordering::Relaxed);
        if leaves && conn.status == 200 {
            let some = conn.take(self.content.bytes.len() / 2).await;
            return Attempt::CutShort(BytesMut::from(&some[..]));
        }
        let (body, ended) = conn.rest().await;
        match (conn.status, ended) {
            (200, Ended::Complete) => {
                assert_eq!(digest_of(&body), self.content.digest, "a complete wrong body of {}", self.path);
                Attempt::Complete(body)
            }
            (200, _) => Attempt::CutShort(BytesMut::from(&body[..])),
            (206, ended) => {
                let content_range = conn.header("content-range").to_owned();
                assert!(content_range.starts_with(&format!("bytes {}-", kept.len())), "{content_range}");
                kept.extend_from_slice(&body);
                if ended == Ended::Complete { Attempt::Complete(kept.freeze()) } else { Attempt::CutShort(kept) }
            }
            // More bytes had arrived than the blob has.
            (416, _) => Attempt::Failed,
            (429 | 503, _) if !conn.header("retry-after").is_empty() => Attempt::Later,
            (status, _) => {
                assert!(matches!(status, 429 | 502..=504), "{status} for {}", self.path);
                Attempt::Failed
            }
        }
    }
}

//! Five hundred pulls while upstreams misbehave in every way at once.
//!
//! What goes wrong is drawn from a seed, which is printed; `ROADSTEAD_TEST_SEED` sets it. Clients retry as dockerd does:
//! on from where they were, and from zero where that came to nothing. An upstream is bad to a blob three times at most and
//! out of reach once, so that five tries must do. What is promised at all times: no whole wrong body, no wrong file, no
//! answer without a head, no 404, and nothing that stays behind.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use fastrand::Rng;
use futures_util::stream::{self, StreamExt as _};

use crate::scene::{HELD_BACK, MIB, blob_path, files_below, settle};
use crate::support::{Conn, Content, Ended, Image, Reply, TestServer, Upstream, digest_of, random_bytes};

const UPSTREAMS: usize = 4;
const BLOBS: usize = 100;
const PULLS: usize = 500;
const AT_ONCE: usize = 100;
const BAD_REPLIES: usize = 3;
const TRIES: usize = 5;
/// Longer than a failure is shared.
const PAUSE: Duration = Duration::from_millis(1100);
/// Answers with Retry-After that a client obeys before it takes them for a failure.
const MOST_WAITS: usize = 20;

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
async fn five_hundred_pulls_in_bad_weather_end_right() {
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
    let asked = Arc::new(AtomicUsize::new(0));
    let pulls = order.iter().map(|&blob| {
        let (path, content) = &blobs[blob];
        let client = Client { server: &server, path, content, asked: asked.clone(), rng: rng.fork() };
        client.pull()
    });
    let pulls: Vec<_> = pulls.collect();
    let outages = upstreams.iter().map(|upstream| outage(upstream, Duration::from_millis(rng.u64(100..3000))));
    let outages = futures_util::future::join_all(outages.collect::<Vec<_>>());
    let ended: (Vec<()>, _) = tokio::join!(stream::iter(pulls).buffer_unordered(AT_ONCE).collect(), outages);
    assert_eq!(ended.0.len(), PULLS);

    settle(&server).await;
    let metrics = server.metrics().await;
    let sum = |name: &str| metrics.sum(name, &[("type", "blob")]) as usize;
    let (hits, misses) = (sum("registry_proxy_hits_total"), sum("registry_proxy_misses_total"));
    let asked = asked.load(Ordering::Relaxed);
    assert_eq!((sum("registry_proxy_requests_total"), hits + misses), (asked, asked), "each GET is a hit or a miss");
    for metric in ["roadstead_fill_resumes_total", "roadstead_digest_mismatches_total"] {
        assert!(metrics.sum(metric, &[]) > 0.0, "{metric}");
    }
    assert_eq!(metrics.sum("registry_http_in_flight_requests", &[("handler", "blob")]), 0.0);

    let data = server.stop_and_keep().await;
    assert_eq!(files_below(&data.path().join("spool")), 0);
    for (_, content) in &blobs {
        let hex = content.digest.strip_prefix("sha256:").unwrap();
        let kept = std::fs::read(data.path().join("blobs/sha256").join(&hex[..2]).join(hex)).unwrap();
        assert_eq!(digest_of(&kept), content.digest, "what is kept is wrong");
    }
}

fn name(upstream: usize) -> String {
    format!("chaos-{upstream}.test")
}

/// Blobs of many sizes in many repositories, each with what its upstream will say at first; of some the manifest is
/// known. The path at the server comes with each.
async fn stock(server: &TestServer, upstreams: &[Upstream], rng: &mut Rng) -> Vec<(String, Content)> {
    let mut blobs = Vec::new();
    for n in 0..BLOBS {
        let size = match rng.u8(..4) {
            0 => rng.usize(1..1000),
            1 => rng.usize(HELD_BACK - 2..HELD_BACK + 3),
            2 => rng.usize(1000..HELD_BACK * 3),
            _ => rng.usize(HELD_BACK..MIB),
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
    let wanted = rng.usize(..=BAD_REPLIES);
    while replies.len() < wanted {
        replies.extend(bad_luck(content, rng));
    }
    replies.truncate(BAD_REPLIES);
    replies
}

/// One thing that goes wrong, in one reply or in two.
fn bad_luck(content: &Content, rng: &mut Rng) -> Vec<Reply> {
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
    asked: Arc<AtomicUsize>,
    rng: Rng,
}

/// How one try ended.
enum Tried {
    Whole(Bytes),
    /// With what came of it, to go on from.
    Short(BytesMut),
    /// It was told when to come again.
    Later,
    Failed,
}

impl Client<'_> {
    async fn pull(mut self) {
        let (mut have, mut waits, mut tries) = (BytesMut::new(), 0, 0);
        while tries < TRIES {
            let leaves = self.rng.u8(..10) == 0 && tries == 0;
            tries += 1;
            match self.try_once(&mut have, leaves).await {
                Tried::Whole(bytes) if digest_of(&bytes) == self.content.digest => return,
                // Ranges are outside of the promise: it begins anew.
                Tried::Whole(_) => {}
                Tried::Short(bytes) => have = bytes,
                Tried::Later if waits < MOST_WAITS => {
                    waits += 1;
                    tries -= 1;
                }
                Tried::Later | Tried::Failed => {}
            }
            tokio::time::sleep(PAUSE).await;
        }
        panic!("{} of {} bytes did not come within {TRIES} tries", self.path, self.content.bytes.len());
    }

    async fn try_once(&self, have: &mut BytesMut, leaves: bool) -> Tried {
        let mut kept = std::mem::take(have);
        let range = if kept.is_empty() { String::new() } else { format!("Range: bytes={}-\r\n", kept.len()) };
        let request = format!("GET {} HTTP/1.1\r\nHost: x\r\n{range}\r\n", self.path);
        let conn = Conn::ask(self.server.addr(), &request).await;
        let mut conn = conn.expect("every answer has a head");
        self.asked.fetch_add(1, Ordering::Relaxed);
        if leaves && conn.status == 200 {
            let some = conn.take(self.content.bytes.len() / 2).await;
            return Tried::Short(BytesMut::from(&some[..]));
        }
        let (body, ended) = conn.rest().await;
        match (conn.status, ended) {
            (200, Ended::Whole) => {
                assert_eq!(digest_of(&body), self.content.digest, "a whole wrong body of {}", self.path);
                Tried::Whole(body)
            }
            (200, _) => Tried::Short(BytesMut::from(&body[..])),
            (206, ended) => {
                let content_range = conn.header("content-range").to_owned();
                assert!(content_range.starts_with(&format!("bytes {}-", kept.len())), "{content_range}");
                kept.extend_from_slice(&body);
                if ended == Ended::Whole { Tried::Whole(kept.freeze()) } else { Tried::Short(kept) }
            }
            // What had come was more than there is.
            (416, _) => Tried::Failed,
            (429 | 503, _) if !conn.header("retry-after").is_empty() => Tried::Later,
            (status, _) => {
                assert!(matches!(status, 429 | 502..=504), "{status} for {}", self.path);
                Tried::Failed
            }
        }
    }
}

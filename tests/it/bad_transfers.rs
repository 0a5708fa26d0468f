//! Every failure of a transfer in one table: what clients receive, what the upstream is asked, and what is counted.
//!
//! Each case runs for one client and for fifty. Of the fifty, one reads slowly and one leaves. Sizes lie around that of
//! the held-back tail.

use std::ops::RangeInclusive;
use std::time::Duration;

use crate::disk::blob_file;
use crate::scene::{HELD_BACK_TAIL_BYTES, KIB, MIB, REPO, blob_path, entry_count, settle, until};
use crate::support::{Conn, Content, Ended, Gate, Image, Reply, TestServer, Upstream, digest_of, random_bytes};

const CONCURRENT_CLIENTS: usize = 50;

struct Case {
    name: &'static str,
    /// The upstream's responses to the first GETs. Later ones are normal.
    replies: fn(&Blob) -> Vec<Reply>,
    prepared: Prepared,
    expected: Expectation,
    gets: RangeInclusive<usize>,
    resumes: RangeInclusive<usize>,
    mismatches: usize,
}

#[derive(Clone, Copy, PartialEq)]
enum Prepared {
    Nothing,
    /// The manifest was pulled before, so the length is known.
    Manifest,
    Idle,
    /// The blob is also at a second URL, and the first URL fails after its scripted replies.
    SecondUrl,
}

/// What every client must receive. A complete wrong body is never allowed.
#[derive(Clone, Copy)]
enum Expectation {
    /// The complete correct blob.
    Correct,
    /// The complete correct blob up to this size. Beyond it, a client that has received bytes may be cut short.
    CorrectUpTo(usize),
    /// 502 up to this size. Beyond it, a client that has received bytes is cut short.
    ErrorUpTo(usize),
}

/// What a client received.
#[derive(Debug, PartialEq)]
enum Outcome {
    Correct,
    CutShort,
    Error(u16),
}

struct Blob {
    content: Content,
    half: u64,
}

impl Blob {
    fn len(&self) -> u64 {
        self.content.bytes.len() as u64
    }

    fn with_extra_bytes(&self) -> Vec<u8> {
        [&self.content.bytes[..], &[7; 100]].concat()
    }
}

fn cut(blob: &Blob) -> Reply {
    Reply::normal().cut_after(blob.half)
}

/// 206 with these bytes, announced as `first..=last`.
fn part(blob: &Blob, bytes: RangeInclusive<u64>, first: u64, last: u64) -> Reply {
    let body = blob.content.bytes.slice(*bytes.start() as usize..=*bytes.end() as usize);
    Reply::normal().body(body).header("Content-Range", &format!("bytes {first}-{last}/{}", blob.len()))
}

fn with_other_digest(reply: Reply) -> Reply {
    reply.header("Docker-Content-Digest", &digest_of(b"something else"))
}

const CASES: [Case; 25] = [
    Case { name: "cut", replies: |blob| vec![cut(blob)], ..RESUMED },
    Case { name: "cut at once", replies: |_| vec![Reply::normal().cut_after(0)], ..RESUMED },
    Case {
        name: "cut one byte before its end",
        replies: |blob| vec![Reply::normal().cut_after(blob.len() - 1)],
        ..RESUMED
    },
    Case { name: "reset", replies: |blob| vec![Reply::normal().reset_after(blob.half)], ..RESUMED },
    Case { name: "503 once", replies: |_| vec![Reply::error(503, "UNAVAILABLE")], resumes: 0..=0, ..RESUMED },
    Case { name: "hung up once", replies: |_| vec![Reply::hang_up()], resumes: 0..=0, ..RESUMED },
    Case {
        name: "silence",
        replies: |blob| vec![Reply::normal().silent_after(blob.half)],
        prepared: Prepared::Idle,
        // On a busy machine a resumed transfer may run into the same time-out.
        gets: 2..=4,
        resumes: 1..=3,
        ..RESUMED
    },
    Case {
        name: "cut on resume",
        replies: |blob| vec![cut(blob), Reply::normal().cut_after(blob.half / 2)],
        gets: 3..=3,
        resumes: 2..=2,
        ..RESUMED
    },
    Case { name: "200 for 206", replies: |blob| vec![cut(blob), Reply::normal().ignore_range()], ..RESUMED },
    Case {
        name: "200 for 206, cut before the resume offset",
        replies: |blob| vec![cut(blob), Reply::normal().ignore_range().cut_after(blob.half / 2)],
        gets: 3..=3,
        ..RESUMED
    },
    Case {
        name: "206 with less than requested",
        replies: |blob| vec![cut(blob), part(blob, blob.half..=blob.half + 5, blob.half, blob.half + 5)],
        gets: 3..=3,
        resumes: 2..=2,
        ..RESUMED
    },
    Case {
        name: "second URL",
        replies: |blob| vec![cut(blob)],
        prepared: Prepared::SecondUrl,
        // The first URL is asked again where its last transfer made progress.
        gets: 2..=3,
        ..RESUMED
    },
    Case {
        name: "206 from elsewhere",
        // The complete blob is requested then, and compared with what was received.
        replies: |blob| vec![cut(blob), part(blob, 0..=blob.half, 0, blob.half)],
        gets: 3..=3,
        ..RESUMED
    },
    Case {
        name: "changed content on resume",
        replies: |blob| vec![cut(blob), Reply::normal().ignore_range().flip(0)],
        gets: 3..=3,
        ..WRONG
    },
    Case {
        name: "other content on resume",
        replies: |blob| vec![cut(blob), Reply::normal().flip(0)],
        gets: 3..=3,
        resumes: 1..=1,
        ..WRONG
    },
    Case { name: "wrong bytes", replies: |blob| vec![Reply::normal().flip(blob.half)], ..WRONG },
    Case { name: "a wrong last byte", replies: |blob| vec![Reply::normal().flip(blob.len() - 1)], ..WRONG },
    Case {
        name: "short",
        replies: |blob| vec![Reply::normal().body(blob.content.bytes.slice(..blob.half as usize))],
        ..WRONG
    },
    Case {
        name: "short, in chunks",
        replies: |blob| vec![Reply::normal().body(blob.content.bytes.slice(..blob.half as usize)).chunked()],
        ..WRONG
    },
    Case {
        name: "over-long",
        replies: |blob| vec![Reply::normal().body(blob.with_extra_bytes())],
        expected: Expectation::CorrectUpTo(HELD_BACK_TAIL_BYTES - 1),
        ..WRONG
    },
    Case {
        name: "over-long, in chunks",
        replies: |blob| vec![Reply::normal().body(blob.with_extra_bytes()).chunked()],
        ..WRONG
    },
    Case {
        name: "a Content-Length beyond the descriptor's",
        replies: |blob| vec![Reply::normal().declare_length(blob.len() + 10)],
        prepared: Prepared::Manifest,
        expected: Expectation::Correct,
        gets: 3..=3,
        ..WRONG
    },
    Case {
        name: "a Content-Length below the descriptor's",
        replies: |blob| vec![Reply::normal().declare_length(blob.len() - 10)],
        prepared: Prepared::Manifest,
        expected: Expectation::Correct,
        ..WRONG
    },
    Case {
        name: "another digest in the header, and in the bytes",
        replies: |blob| vec![with_other_digest(Reply::normal().flip(blob.half))],
        expected: Expectation::Correct,
        ..WRONG
    },
    Case {
        name: "another digest in the header only",
        replies: |_| vec![with_other_digest(Reply::normal())],
        gets: 1..=1,
        resumes: 0..=0,
        ..RESUMED
    },
];

/// The cases of 16 MiB that run with many clients, as each of them transfers a gigabyte: those that differ most.
const LARGE_CONCURRENT_CASES: [&str; 6] =
    ["cut", "silence", "second URL", "changed content on resume", "wrong bytes", "another digest in the header only"];

const TWICE: Case = Case {
    name: "wrong bytes twice",
    replies: |blob| vec![Reply::normal().flip(blob.half); 2],
    expected: Expectation::ErrorUpTo(HELD_BACK_TAIL_BYTES),
    mismatches: 2,
    ..WRONG
};

/// A transfer that breaks off and is resumed, unnoticed by clients.
const RESUMED: Case = Case {
    name: "",
    replies: |_| Vec::new(),
    prepared: Prepared::Nothing,
    expected: Expectation::Correct,
    gets: 2..=2,
    resumes: 1..=1,
    mismatches: 0,
};

/// A transfer with wrong content. It is fetched again for clients that have received nothing yet.
const WRONG: Case =
    Case { expected: Expectation::CorrectUpTo(HELD_BACK_TAIL_BYTES), resumes: 0..=0, mismatches: 1, ..RESUMED };

#[tokio::test(flavor = "multi_thread")]
async fn bad_transfers_of_1_kib() {
    run_all(KIB, 4).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_transfers_of_exactly_the_held_back_tail() {
    run_all(HELD_BACK_TAIL_BYTES, 4).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_transfers_of_one_byte_more_than_the_held_back_tail() {
    run_all(HELD_BACK_TAIL_BYTES + 1, 4).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_transfers_of_16_mib() {
    run_all(16 * MIB, 2).await;
}

/// Runs the cases on several servers in parallel. Each server runs one case after another, each with its own upstream.
async fn run_all(size: usize, servers: usize) {
    let cases = CASES.iter().chain([&TWICE]).flat_map(|case| [(case, 1), (case, CONCURRENT_CLIENTS)]);
    let cases =
        cases.filter(|(case, clients)| size < MIB || *clients == 1 || LARGE_CONCURRENT_CASES.contains(&case.name));
    let mut scenes = Vec::new();
    for (number, (case, clients)) in cases.enumerate() {
        scenes.push(Scene::new(case, size, clients, number).await);
    }
    let lanes = (0..servers).map(|lane| run_some(scenes.iter().skip(lane).step_by(servers)));
    futures_util::future::join_all(lanes).await;
}

async fn run_some(scenes: impl Iterator<Item = &Scene> + Clone) {
    let builder = TestServer::builder();
    let server = scenes.clone().fold(builder, |builder, scene| builder.config(&scene.config())).start().await;
    for scene in scenes {
        scene.run(&server).await;
    }
}

/// One case with its upstream.
struct Scene {
    case: &'static Case,
    /// Describes the case in messages of failures.
    what: String,
    name: String,
    image: Image,
    upstreams: [Upstream; 2],
    gate: Gate,
    clients: usize,
}

impl Scene {
    async fn new(case: &'static Case, size: usize, clients: usize, number: usize) -> Self {
        let layer = Content::new("application/x-test", random_bytes(number as u64, size));
        let image = Image::for_platform("linux/amd64", vec![layer]);
        let scene = Self {
            case,
            what: format!("{}, {size} bytes, {clients} clients", case.name),
            name: format!("case-{number}.test"),
            image,
            upstreams: [Upstream::start().await, Upstream::start().await],
            gate: Gate::new(),
            clients,
        };
        let mut replies = (case.replies)(&Blob { content: scene.blob().clone(), half: size as u64 / 2 });
        replies[0] = replies[0].clone().wait_before_head(&scene.gate);
        let [first, second] = &scene.upstreams;
        let at_upstream = blob_path(REPO, scene.blob());
        first.script("GET", &at_upstream, replies);
        if case.prepared == Prepared::SecondUrl {
            first.always("GET", &at_upstream, Reply::hang_up());
        }
        for upstream in [first, second] {
            upstream.add_image(REPO, "v1", &scene.image);
        }
        scene
    }

    fn blob(&self) -> &Content {
        &self.image.layers[0]
    }

    fn config(&self) -> String {
        let urls = self.upstreams.each_ref().map(|upstream| upstream.url(""));
        let urls = if self.case.prepared == Prepared::SecondUrl { &urls[..] } else { &urls[..1] };
        let idle = if self.case.prepared == Prepared::Idle { "idle_timeout = \"2s\"" } else { "" };
        // No deadline ends a request before all of them are in flight.
        format!(
            "[cache]\nanswer_within = \"600s\"\n[upstream.{:?}]\nurl = {urls:?}\nheader_timeout = \"600s\"\n{idle}",
            self.name
        )
    }

    async fn run(&self, server: &TestServer) {
        let Self { case, what, .. } = self;
        let repository = format!("{}/{REPO}", self.name);
        let (path, bytes) = (blob_path(&repository, self.blob()), &self.blob().bytes);
        if case.prepared == Prepared::Manifest {
            server.get(&format!("/v2/{repository}/manifests/v1")).await;
        }
        let pulls = (0..self.clients).map(|n| pull(server, &path, bytes, n));
        let (outcome, ()) = tokio::join!(futures_util::future::join_all(pulls), async {
            // Every request is in flight before the first byte arrives.
            let blobs = [("handler", "blob")];
            until("every request is in flight", async || {
                server.metric("registry_http_in_flight_requests", &blobs).await == self.clients as f64
            })
            .await;
            self.gate.open();
        });
        for outcome in outcome.into_iter().flatten() {
            case.expected.check(&outcome, bytes.len(), what);
        }
        settle(server).await;
        self.check_counts(server).await;

        // Afterwards the next request succeeds. A failure is shared for one second.
        if matches!(case.expected, Expectation::ErrorUpTo(_)) {
            tokio::time::sleep(Duration::from_millis(1050)).await;
        }
        assert_eq!(pull(server, &path, bytes, 0).await, Some(Outcome::Correct), "{what}");
        settle(server).await;
        let kept = std::fs::read(blob_file(server.data_dir(), &self.blob().digest)).unwrap();
        assert!(&kept == bytes, "{what}: the stored file is wrong");
        assert_eq!(entry_count(&server.data_dir().join("spool")), 0, "{what}");
    }

    async fn check_counts(&self, server: &TestServer) {
        let Self { case, what, clients, .. } = self;
        let path = blob_path(REPO, self.blob());
        let gets: usize = self.upstreams.iter().map(|upstream| upstream.count("GET", &path)).sum();
        assert!(case.gets.contains(&gets), "{what}: {gets} GETs");
        let metrics = server.metrics().await;
        let sum = |name| metrics.sum(name, &[("upstream", &self.name)]) as usize;
        let resumes = sum("roadstead_fill_resumes_total");
        assert!(case.resumes.contains(&resumes), "{what}: {resumes} resumes");
        assert_eq!(sum("roadstead_digest_mismatches_total"), case.mismatches, "{what}");
        let blobs = |name| metrics.sum(name, &[("type", "blob"), ("upstream", &self.name)]) as usize;
        let (hits, misses) = (blobs("registry_proxy_hits_total"), blobs("registry_proxy_misses_total"));
        assert_eq!((blobs("registry_proxy_requests_total"), hits + misses), (*clients, *clients), "{what}");
        let total: usize = self.upstreams.iter().map(Upstream::total).sum();
        assert_eq!(sum("roadstead_upstream_requests_total"), total, "{what}: both sides count the same requests");
    }
}

impl Expectation {
    fn check(self, outcome: &Outcome, size: usize, what: &str) {
        let fits = match self {
            Self::Correct => *outcome == Outcome::Correct,
            Self::CorrectUpTo(limit) if size <= limit => *outcome == Outcome::Correct,
            Self::CorrectUpTo(_) => matches!(outcome, Outcome::Correct | Outcome::CutShort),
            Self::ErrorUpTo(limit) if size <= limit => *outcome == Outcome::Error(502),
            Self::ErrorUpTo(_) => matches!(outcome, Outcome::CutShort | Outcome::Error(502)),
        };
        assert!(fits, "{what}: {outcome:?}");
    }
}

/// Client 1 reads slowly. Client 2 leaves after the first byte and reports nothing.
async fn pull(server: &TestServer, path: &str, expected: &[u8], n: usize) -> Option<Outcome> {
    let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n");
    let slow = n == 1;
    let requested = match slow {
        true => Conn::ask_with_small_buffer(server.addr(), &request).await,
        false => Conn::ask(server.addr(), &request).await,
    };
    let mut client = requested.expect("every response has headers");
    if n == 2 && client.status == 200 {
        client.take(1).await;
        return None;
    }
    let (length, same, ended) = if slow {
        let (body, ended) = client.rest_slowly(256 * KIB, Duration::from_millis(2)).await;
        (body.len(), body == expected, ended)
    } else {
        client.compare(expected).await
    };
    match (client.status, ended) {
        (200, Ended::Complete) => {
            assert!(same, "a complete wrong body of {length} bytes");
            Some(Outcome::Correct)
        }
        (200, _) => Some(Outcome::CutShort),
        (status, _) => Some(Outcome::Error(status)),
    }
}

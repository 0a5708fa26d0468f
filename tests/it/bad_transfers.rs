//! Every way in which a transfer goes wrong, in one table: what clients see, what the upstream is asked, what is counted.
//!
//! Each case runs for one client and for fifty, one of which reads slowly and one of which leaves, and for sizes around
//! what is held back.

use std::ops::RangeInclusive;
use std::time::Duration;

use crate::scene::{HELD_BACK, KIB, MIB, REPO, blob_path, files_below, settle, until};
use crate::support::{Conn, Content, Ended, Gate, Image, Reply, TestServer, Upstream, digest_of, random_bytes};

const CROWD: usize = 50;

struct Case {
    name: &'static str,
    /// What the upstream says to the first GETs; after them it is well.
    replies: fn(&Blob) -> Vec<Reply>,
    prepared: Prepared,
    sees: Sees,
    gets: RangeInclusive<usize>,
    resumes: RangeInclusive<usize>,
    mismatches: usize,
}

#[derive(Clone, Copy, PartialEq)]
enum Prepared {
    Nothing,
    /// Somebody has pulled the manifest, which tells the length.
    Manifest,
    Idle,
    /// The blob is at a second URL, too, and the first one is gone after its replies.
    SecondUrl,
}

/// What every client must see. A whole wrong body is never among it.
#[derive(Clone, Copy)]
enum Sees {
    /// All of it, and right.
    Right,
    /// The same up to this size; beyond it, who has had bytes already may be cut short.
    RightUpTo(usize),
    /// 502 up to this size; beyond it, who has had bytes already is cut short.
    ErrorUpTo(usize),
}

/// What a client saw.
#[derive(Debug, PartialEq)]
enum Saw {
    Right,
    Short,
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

    fn but_more(&self) -> Vec<u8> {
        [&self.content.bytes[..], &[7; 100]].concat()
    }
}

fn cut(blob: &Blob) -> Reply {
    Reply::normal().cut_after(blob.half)
}

/// 206 with these bytes, which are called `first..=last`.
fn part(blob: &Blob, bytes: RangeInclusive<u64>, first: u64, last: u64) -> Reply {
    let body = blob.content.bytes.slice(*bytes.start() as usize..=*bytes.end() as usize);
    Reply::normal().body(body).header("Content-Range", &format!("bytes {first}-{last}/{}", blob.len()))
}

fn with_other_digest(reply: Reply) -> Reply {
    reply.header("Docker-Content-Digest", &digest_of(b"something else"))
}

const CASES: [Case; 25] = [
    Case { name: "cut", replies: |blob| vec![cut(blob)], ..TAKEN_UP },
    Case { name: "cut at once", replies: |_| vec![Reply::normal().cut_after(0)], ..TAKEN_UP },
    Case {
        name: "cut one byte before its end",
        replies: |blob| vec![Reply::normal().cut_after(blob.len() - 1)],
        ..TAKEN_UP
    },
    Case { name: "reset", replies: |blob| vec![Reply::normal().reset_after(blob.half)], ..TAKEN_UP },
    Case { name: "503 once", replies: |_| vec![Reply::error(503, "UNAVAILABLE")], resumes: 0..=0, ..TAKEN_UP },
    Case { name: "hung up once", replies: |_| vec![Reply::hang_up()], resumes: 0..=0, ..TAKEN_UP },
    Case {
        name: "silence",
        replies: |blob| vec![Reply::normal().silent_after(blob.half)],
        prepared: Prepared::Idle,
        // Two busy cores may be silent, too.
        gets: 2..=4,
        resumes: 1..=3,
        ..TAKEN_UP
    },
    Case {
        name: "cut on resume",
        replies: |blob| vec![cut(blob), Reply::normal().cut_after(blob.half / 2)],
        gets: 3..=3,
        resumes: 2..=2,
        ..TAKEN_UP
    },
    Case { name: "200 for 206", replies: |blob| vec![cut(blob), Reply::normal().ignore_range()], ..TAKEN_UP },
    Case {
        name: "200 for 206, cut within what is here",
        replies: |blob| vec![cut(blob), Reply::normal().ignore_range().cut_after(blob.half / 2)],
        gets: 3..=3,
        ..TAKEN_UP
    },
    Case {
        name: "206 with less than was asked for",
        replies: |blob| vec![cut(blob), part(blob, blob.half..=blob.half + 5, blob.half, blob.half + 5)],
        gets: 3..=3,
        resumes: 2..=2,
        ..TAKEN_UP
    },
    Case {
        name: "second URL",
        replies: |blob| vec![cut(blob)],
        prepared: Prepared::SecondUrl,
        // The first one is asked once more where it has brought something.
        gets: 2..=3,
        ..TAKEN_UP
    },
    Case {
        name: "206 from elsewhere",
        replies: |blob| vec![cut(blob), part(blob, 0..=blob.half, 0, blob.half)],
        gets: 3..=3,
        ..WRONG
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
        replies: |blob| vec![Reply::normal().body(blob.but_more())],
        sees: Sees::RightUpTo(HELD_BACK - 1),
        ..WRONG
    },
    Case {
        name: "over-long, in chunks",
        replies: |blob| vec![Reply::normal().body(blob.but_more()).chunked()],
        ..WRONG
    },
    Case {
        name: "a Content-Length beyond the descriptor's",
        replies: |blob| vec![Reply::normal().declare_length(blob.len() + 10)],
        prepared: Prepared::Manifest,
        sees: Sees::Right,
        gets: 3..=3,
        ..WRONG
    },
    Case {
        name: "a Content-Length below the descriptor's",
        replies: |blob| vec![Reply::normal().declare_length(blob.len() - 10)],
        prepared: Prepared::Manifest,
        sees: Sees::Right,
        ..WRONG
    },
    Case {
        name: "another digest in the header, and in the bytes",
        replies: |blob| vec![with_other_digest(Reply::normal().flip(blob.half))],
        sees: Sees::Right,
        ..WRONG
    },
    Case {
        name: "another digest in the header only",
        replies: |_| vec![with_other_digest(Reply::normal())],
        gets: 1..=1,
        resumes: 0..=0,
        ..TAKEN_UP
    },
];

/// Of 16 MiB, what a crowd gets is looked at where it differs; it is a gigabyte each time.
const OF_CROWDS: [&str; 6] =
    ["cut", "silence", "second URL", "changed content on resume", "wrong bytes", "another digest in the header only"];

const TWICE: Case = Case {
    name: "wrong bytes twice",
    replies: |blob| vec![Reply::normal().flip(blob.half); 2],
    sees: Sees::ErrorUpTo(HELD_BACK),
    mismatches: 2,
    ..WRONG
};

/// A transfer that breaks and is taken up: nobody notices.
const TAKEN_UP: Case = Case {
    name: "",
    replies: |_| Vec::new(),
    prepared: Prepared::Nothing,
    sees: Sees::Right,
    gets: 2..=2,
    resumes: 1..=1,
    mismatches: 0,
};

/// A transfer that turns out wrong: fetched afresh for who has had nothing yet.
const WRONG: Case = Case { sees: Sees::RightUpTo(HELD_BACK), resumes: 0..=0, mismatches: 1, ..TAKEN_UP };

#[tokio::test(flavor = "multi_thread")]
async fn a_blob_of_1_kib() {
    run_all(KIB, 4).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blob_of_what_is_held_back() {
    run_all(HELD_BACK, 4).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blob_of_one_byte_more_than_is_held_back() {
    run_all(HELD_BACK + 1, 4).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blob_of_16_mib() {
    run_all(16 * MIB, 2).await;
}

/// A server does one case after the other, each at an upstream of its own; several servers do so at once.
async fn run_all(size: usize, servers: usize) {
    let cases = CASES.iter().chain([&TWICE]).flat_map(|case| [(case, 1), (case, CROWD)]);
    let cases = cases.filter(|(case, clients)| size < MIB || *clients == 1 || OF_CROWDS.contains(&case.name));
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

/// One case at one upstream.
struct Scene {
    case: &'static Case,
    /// What it is about, for who has to find out why it failed.
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
        let idle = if self.case.prepared == Prepared::Idle { "idle_timeout = \"700ms\"" } else { "" };
        format!("[upstream.{:?}]\nurl = {urls:?}\n{idle}", self.name)
    }

    async fn run(&self, server: &TestServer) {
        let Self { case, what, .. } = self;
        let repository = format!("{}/{REPO}", self.name);
        let (path, bytes) = (blob_path(&repository, self.blob()), &self.blob().bytes);
        if case.prepared == Prepared::Manifest {
            server.get(&format!("/v2/{repository}/manifests/v1")).await;
        }
        let everybody = (0..self.clients).map(|n| pull(server, &path, bytes, n));
        let (saw, ()) = tokio::join!(futures_util::future::join_all(everybody), async {
            // All have asked before the first of it comes.
            let blobs = [("handler", "blob")];
            until("all have asked", async || {
                server.metric("registry_http_in_flight_requests", &blobs).await == self.clients as f64
            })
            .await;
            self.gate.open();
        });
        for saw in saw.into_iter().flatten() {
            case.sees.check(&saw, bytes.len(), what);
        }
        settle(server).await;
        self.check_counts(server).await;

        // Whatever happened, the next request has it. Failures are shared for a second.
        if matches!(case.sees, Sees::ErrorUpTo(_)) {
            tokio::time::sleep(Duration::from_millis(1050)).await;
        }
        assert_eq!(pull(server, &path, bytes, 0).await, Some(Saw::Right), "{what}");
        settle(server).await;
        let kept = std::fs::read(file_of(server, self.blob())).unwrap();
        assert!(&kept == bytes, "{what}: what is kept is wrong");
        assert_eq!(files_below(&server.data_dir().join("spool")), 0, "{what}");
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
        assert_eq!(sum("roadstead_upstream_requests_total"), total, "{what}: it counts what the upstream counts");
    }
}

impl Sees {
    fn check(self, saw: &Saw, size: usize, what: &str) {
        let fits = match self {
            Self::Right => *saw == Saw::Right,
            Self::RightUpTo(limit) if size <= limit => *saw == Saw::Right,
            Self::RightUpTo(_) => matches!(saw, Saw::Right | Saw::Short),
            Self::ErrorUpTo(limit) if size <= limit => *saw == Saw::Error(502),
            Self::ErrorUpTo(_) => matches!(saw, Saw::Short | Saw::Error(502)),
        };
        assert!(fits, "{what}: {saw:?}");
    }
}

/// The second one reads slowly, and the third one leaves with the first byte and has seen nothing.
async fn pull(server: &TestServer, path: &str, expected: &[u8], n: usize) -> Option<Saw> {
    let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n");
    let slow = n == 1;
    let asked = match slow {
        true => Conn::ask_with_small_buffer(server.addr(), &request).await,
        false => Conn::ask(server.addr(), &request).await,
    };
    let mut client = asked.expect("every answer has a head");
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
        (200, Ended::Whole) => {
            assert!(same, "a whole wrong body of {length} bytes");
            Some(Saw::Right)
        }
        (200, _) => Some(Saw::Short),
        (status, _) => Some(Saw::Error(status)),
    }
}

fn file_of(server: &TestServer, blob: &Content) -> std::path::PathBuf {
    let hex = blob.digest.strip_prefix("sha256:").expect("a sha256 digest");
    server.data_dir().join("blobs/sha256").join(&hex[..2]).join(hex)
}

//! Pushes: a session, the bytes, and the end of it; each answered with 201 before the next.

use std::fs;
use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::case::Case;
use super::load::Load;
use super::sample::{Sample, Unit};
use super::scene::Scene;
use super::servers::Traced;
use super::subject::Subject::{self, Pushed, Registry};
use super::support::client::{Answer, Conn};
use super::support::stage::MIB;
use super::support::tests::{digest_of, random_bytes};

/// How the bytes go.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Manner {
    /// POST, PATCH, PUT: docker and podman.
    Patch,
    /// POST, PUT: containerd, buildkit, skopeo.
    Put,
}

/// The same bytes but for the first eight.
struct Bodies {
    base: bytes::Bytes,
    of_each: Vec<([u8; 8], String)>,
}

pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (manner, how) in [(Manner::Patch, ""), (Manner::Put, " in one PUT")] {
        for (mib, at_once, pushes) in [(1, 1, 50), (1, 10, 200), (100, 1, 2), (100, 4, 8), (100, 10, 10)] {
            let name = format!("push of {mib} MiB{how}, {at_once} at a time");
            cases.push(Case::new(name, Unit::Bytes, &[Registry, Pushed], move |scene, subject, round| {
                let seed = round * 1000 + mib * 100 + at_once * 10 + u64::from(manner == Manner::Put);
                let bodies = Bodies::new(seed, mib as usize * MIB, pushes);
                let (_, registry, roadstead) = scene.fresh(round);
                let (address, pids) = match subject {
                    Registry => (registry.address(), registry.pids()),
                    _ => (([127, 0, 0, 1], roadstead.port()).into(), roadstead.pid().into_iter().collect()),
                };
                let warm = Bodies::new(seed + 500, MIB, 1);
                push_all(address, &warm, manner, 1);
                Sample::take(&pids, Unit::Bytes, || push_all(address, &bodies, manner, at_once as usize))
            }));
        }
    }
    cases
}

/// How often each server syncs something to the disk for one push: of the first into a repository, and on average of five
/// more. What Roadstead's index syncs by itself every five seconds is no part of it.
pub fn syncs(scene: &Scene) -> Vec<(Subject, usize, f64)> {
    let folder = scene.folder().join("syncs");
    let servers = [
        (Registry, Traced::registry(&folder.join("registry"))),
        (Pushed, Traced::roadstead(&folder.join("roadstead"), &scene.upstream.url(""))),
    ];
    let count = |server: &Traced| {
        thread::sleep(Duration::from_millis(300));
        let trace = fs::read_to_string(&server.trace).unwrap_or_default();
        trace.lines().filter(|line| line.contains("sync") && line.contains('(') && !line.contains("/index/")).count()
    };
    let counted = servers.into_iter().map(|(subject, server)| {
        let before = count(&server);
        push_all(server.address, &Bodies::new(1, MIB, 1), Manner::Patch, 1);
        let first = count(&server);
        push_all(server.address, &Bodies::new(2, MIB, 5), Manner::Patch, 1);
        (subject, first - before, (count(&server) - first) as f64 / 5.0)
    });
    counted.collect()
}

/// Over so many connections, until all are pushed.
fn push_all(address: SocketAddr, bodies: &Bodies, manner: Manner, at_once: usize) -> Load {
    let queue = Mutex::new(bodies.of_each.iter());
    let next = || queue.lock().next();
    let client = || {
        let (mut conn, mut times) = (Conn::open(address), Vec::new());
        while let Some((start, digest)) = next() {
            let begun = Instant::now();
            push(&mut conn, &[start, &bodies.base[8..]], digest, manner);
            times.push(begun.elapsed());
        }
        times
    };
    let begun = Instant::now();
    let times: Vec<Duration> = thread::scope(|scope| {
        let clients: Vec<_> = (0..at_once).map(|_| scope.spawn(client)).collect();
        clients.into_iter().flat_map(|client| client.join().expect("a client ends")).collect()
    });
    Load::of(times, (bodies.of_each.len() * bodies.base.len()) as f64, begun.elapsed())
}

fn push(conn: &mut Conn, body: &[&[u8]], digest: &str, manner: Manner) {
    let mut ask = |method: &str, path: &str, body: &[&[u8]], status: u16| {
        conn.send(method, path, &[("Content-Type", "application/octet-stream")], body);
        let answer = conn.answer(false);
        assert_eq!(answer.status, status, "{method} {path}: {}", String::from_utf8_lossy(&answer.body));
        location(&answer)
    };
    let mut session = ask("POST", "/v2/team/pushed/blobs/uploads/", &[], 202);
    let mut last = body;
    if manner == Manner::Patch {
        session = ask("PATCH", &session, body, 202);
        last = &[];
    }
    let mark = if session.contains('?') { '&' } else { '?' };
    ask("PUT", &format!("{session}{mark}digest={digest}"), last, 201);
}

/// The path of where to go on.
fn location(answer: &Answer) -> String {
    let location = answer.header("Location");
    let path = location.find("/v2/").expect("a place in the API");
    location[path..].to_owned()
}

impl Bodies {
    fn new(seed: u64, bytes: usize, count: usize) -> Self {
        let base = random_bytes(seed, bytes);
        let mut rng = fastrand::Rng::with_seed(seed);
        let mut body = base.to_vec();
        let of_each = (0..count).map(|_| {
            let start = rng.u64(..).to_le_bytes();
            body[..8].copy_from_slice(&start);
            (start, digest_of(&body))
        });
        Self { of_each: of_each.collect(), base }
    }
}

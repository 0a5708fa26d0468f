//! Pushes: open a session, send the bytes, finish it. Each push gets 201 before the next one starts.

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

pub const PUSH_OF_A_GIB: &str = "push of 1024 MiB, 1 at a time";

/// The sequence of requests of a push.
#[derive(Clone, Copy, PartialEq, Eq)]
enum PushSequence {
    /// POST, PATCH, PUT: docker and podman.
    Patch,
    /// POST, PUT: containerd, buildkit, skopeo.
    Put,
}

/// Bodies that differ only in their first eight bytes.
struct Bodies {
    base: bytes::Bytes,
    of_each: Vec<([u8; 8], String)>,
}

pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (sequence, how) in [(PushSequence::Patch, ""), (PushSequence::Put, " in one PUT")] {
        for (mib, at_once, pushes) in [(1, 1, 50), (1, 10, 200), (100, 1, 2), (100, 4, 8), (100, 10, 10), (1024, 1, 1)]
        {
            let name = format!("push of {mib} MiB{how}, {at_once} at a time");
            cases.push(Case::new(name, Unit::Bytes, &[Registry, Pushed], move |scene, subject, round| {
                let seed = round * 1000 + mib * 100 + at_once * 10 + u64::from(sequence == PushSequence::Put);
                let bodies = Bodies::new(seed, mib as usize * MIB, pushes);
                let (_, registry, roadstead) = scene.fresh(round);
                let (address, pids) = match subject {
                    Registry => (registry.address(), registry.pids()),
                    _ => (([127, 0, 0, 1], roadstead.port()).into(), roadstead.pid().into_iter().collect()),
                };
                let warm = Bodies::new(seed + 500, MIB, 1);
                push_all(address, &warm, sequence, 1);
                Sample::take(&pids, Unit::Bytes, || push_all(address, &bodies, sequence, at_once as usize))
            }));
        }
    }
    cases
}

/// The number of syncs of each server for one push: for the first one into a repository, and the average of five more.
/// The periodic syncs of Roadstead's index, every five seconds, do not count.
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
        push_all(server.address, &Bodies::new(1, MIB, 1), PushSequence::Patch, 1);
        let first = count(&server);
        push_all(server.address, &Bodies::new(2, MIB, 5), PushSequence::Patch, 1);
        (subject, first - before, (count(&server) - first) as f64 / 5.0)
    });
    counted.collect()
}

/// Pushes all bodies over this many connections.
fn push_all(address: SocketAddr, bodies: &Bodies, sequence: PushSequence, at_once: usize) -> Load {
    let queue = Mutex::new(bodies.of_each.iter());
    let next = || queue.lock().next();
    let client = || {
        let (mut conn, mut times) = (Conn::open(address), Vec::new());
        while let Some((start, digest)) = next() {
            let begun = Instant::now();
            push(&mut conn, &[start, &bodies.base[8..]], digest, sequence);
            times.push(begun.elapsed());
        }
        times
    };
    let begun = Instant::now();
    let times: Vec<Duration> = thread::scope(|scope| {
        let clients: Vec<_> = (0..at_once).map(|_| scope.spawn(client)).collect();
        clients.into_iter().flat_map(|client| client.join().expect("a client thread ends")).collect()
    });
    Load::of(times, (bodies.of_each.len() * bodies.base.len()) as f64, begun.elapsed())
}

fn push(conn: &mut Conn, body: &[&[u8]], digest: &str, sequence: PushSequence) {
    let mut ask = |method: &str, path: &str, body: &[&[u8]], status: u16| {
        conn.send(method, path, &[("Content-Type", "application/octet-stream")], body);
        let answer = conn.answer(false);
        assert_eq!(answer.status, status, "{method} {path}: {}", String::from_utf8_lossy(&answer.body));
        location(&answer)
    };
    let mut session = ask("POST", "/v2/team/pushed/blobs/uploads/", &[], 202);
    let mut last = body;
    if sequence == PushSequence::Patch {
        session = ask("PATCH", &session, body, 202);
        last = &[];
    }
    let mark = if session.contains('?') { '&' } else { '?' };
    ask("PUT", &format!("{session}{mark}digest={digest}"), last, 201);
}

/// The path of the next request.
fn location(answer: &Answer) -> String {
    let location = answer.header("Location");
    let path = location.find("/v2/").expect("a path of the API");
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

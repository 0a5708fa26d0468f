//! Hits: repeated requests for stored content.

use std::time::{Duration, Instant};

use super::case::Case;
use super::cores::{CoreAssignment, Cores};
use super::load::{Load, Wrk, heads};
use super::sample::{Sample, Unit};
use super::scene::{PAGED_ENTRIES, Scene, TAGGED};
use super::subject::Subject::{self, Mirrored, MirroredTls, Nginx, NginxTls, Pushed, Registry};
use super::support::client::{ACCEPT, Conn};
use super::support::stage::MIB;
use super::support::tests::Content;

pub const APART: &str = "blob of 100 MiB, 4 connections, a core for each side";
pub const RANGES: &str = "ranges of 64 KiB, 64 connections";
pub const HTTPS_MANIFEST: &str = "HTTPS: manifest by tag, 32 connections";
pub const HTTPS_BLOB: &str = "HTTPS: blob of 1 MiB, 16 connections";
const JUST_WRITTEN: &str = ", just written";

const RANGE_BYTES: usize = 64 << 10;
/// Seconds for which each round measures a case with a goal.
const GOAL_SECONDS: u64 = 2;
const OTHER_SECONDS: u64 = 1;
/// Seconds for the cases of CPU time: the share of work that the kernel charges to the server varies within seconds.
const CPU_SECONDS: u64 = 6;

pub fn manifests() -> Vec<Case> {
    let mut cases = Vec::new();
    for connections in [1, 32, 64] {
        let seconds = if connections == 32 { GOAL_SECONDS } else { OTHER_SECONDS };
        let mut add = |what: &str, run: fn(&Scene, Subject, usize, u64) -> Load| {
            let name = format!("{what}, {}", connected(connections));
            cases.push(Case::new(
                name,
                Unit::Requests,
                &[Nginx, Registry, Pushed, Mirrored],
                move |scene, subject, _| {
                    Sample::take(&scene.pids(subject), Unit::Requests, || run(scene, subject, connections, seconds))
                },
            ));
        };
        add("manifest by tag", |scene, subject, connections, seconds| {
            let wrk = Wrk { headers: accept(), ..Wrk::new(connections, seconds) };
            wrk.run(scene.address(subject), &manifest(subject, "v1"))
        });
        add("manifest by digest", |scene, subject, connections, seconds| {
            let wrk = Wrk { headers: accept(), ..Wrk::new(connections, seconds) };
            wrk.run(scene.address(subject), &manifest(subject, scene.image.digest()))
        });
        add("HEAD of a manifest", |scene, subject, connections, seconds| {
            let path = manifest(subject, "v1");
            let request = format!("HEAD {path} HTTP/1.1\r\nHost: figures\r\nAccept: {ACCEPT}\r\n\r\n");
            heads(scene.address(subject), &request, connections, seconds)
        });
        add("304 of a manifest", |scene, subject, connections, seconds| {
            let path = manifest(subject, "v1");
            let etag = etag(scene, subject, &path);
            let headers = [accept(), vec![format!("If-None-Match: {etag}")]].concat();
            Wrk { headers, ..Wrk::new(connections, seconds) }.run(scene.address(subject), &path)
        });
    }
    cases
}

pub fn blobs() -> Vec<Case> {
    let mut cases = Vec::new();
    let sizes = [("4 KiB", &[1, 16, 64][..]), ("1 MiB", &[1, 16, 64]), ("100 MiB", &[1, 4, 16, 64])];
    for (layer, (size, of_connections)) in sizes.into_iter().enumerate() {
        for &connections in of_connections {
            let has_goal = matches!((layer, connections), (1, 16) | (2, 4));
            let unit = if layer == 0 { Unit::Requests } else { Unit::Bytes };
            let subjects = &[Nginx, Registry, Pushed, Mirrored][..if layer == 1 { 4 } else { 3 }];
            let wrk = move || {
                let seconds = if has_goal { GOAL_SECONDS } else { OTHER_SECONDS };
                Wrk::new(connections, seconds)
            };
            let name = format!("blob of {size}, {}", connected(connections));
            cases.push(Case::new(name, unit, subjects, move |scene, subject, _| {
                let path = blob(scene, subject, layer);
                Sample::take(&scene.pids(subject), unit, || wrk().run(scene.address(subject), &path))
            }));
        }
    }
    for (when, path) in [("", read_back as Path), (JUST_WRITTEN, written)] {
        if let Some(cores) = Cores::two() {
            cases.push(apart(cores, &format!("{APART}{when}"), path));
        }
        cases.push(ranges(&format!("{RANGES}{when}"), path));
    }
    cases
}

fn apart(cores: Cores, name: &str, path: Path) -> Case {
    Case::new(name, Unit::Bytes, &[Nginx, Registry, Pushed], move |scene, subject, _| {
        let (path, pids) = (path(scene, subject), scene.pids(subject));
        let wrk = Wrk::new(4, CPU_SECONDS);
        let _cores = CoreAssignment::keep(&pids, cores);
        Sample::take(&pids, Unit::Bytes, || wrk.run(scene.address(subject), &path))
    })
}

fn ranges(name: &str, path: Path) -> Case {
    Case::new(name, Unit::Requests, &[Nginx, Registry, Pushed], move |scene, subject, _| {
        // See nginx.conf.
        let path = if subject == Nginx { "/ranges" } else { "" }.to_owned() + &path(scene, subject);
        let ranges = Some((RANGE_BYTES, 100 * MIB));
        let wrk = Wrk { ranges, ..Wrk::new(64, GOAL_SECONDS) };
        Sample::take(&scene.pids(subject), Unit::Requests, || wrk.run(scene.address(subject), &path))
    })
}

/// Hits over HTTPS.
pub fn https() -> Vec<Case> {
    let case = |name: &str, unit, connections, headers: Vec<String>, path: fn(&Scene, Subject) -> String| {
        Case::new(name, unit, &[NginxTls, MirroredTls], move |scene, subject, _| {
            let wrk = Wrk { scheme: "https", headers: headers.clone(), ..Wrk::new(connections, GOAL_SECONDS) };
            Sample::take(&scene.pids(subject), unit, || wrk.run(scene.address(subject), &path(scene, subject)))
        })
    };
    vec![
        case(HTTPS_MANIFEST, Unit::Requests, 32, accept(), |_, subject| manifest(subject, "v1")),
        case(HTTPS_BLOB, Unit::Bytes, 16, Vec::new(), |scene, subject| blob(scene, subject, 1)),
    ]
}

/// Pages from the middle of long lists, for one client.
pub fn lists() -> Vec<Case> {
    let middle = PAGED_ENTRIES / 2;
    [
        ("catalog page of 100", format!("/v2/_catalog?n=100&last=pages/r{middle:05}"), "\"pages/"),
        ("tags page of 100", format!("/v2/{TAGGED}/tags/list?n=100&last=t{middle:05}"), "\"t0"),
    ]
    .map(|(name, path, entry)| {
        Case::new(name, Unit::Requests, &[Registry, Pushed], move |scene, subject, _| {
            let mut conn = Conn::open(scene.address(subject));
            conn.send("GET", &path, &[], &[]);
            let body = conn.answer(false).body;
            let entries = String::from_utf8_lossy(&body).matches(entry).count();
            // docker-registry does not page tags: its response has all of them.
            assert!(
                entries == 100 || (entries == PAGED_ENTRIES && subject == Registry),
                "a page has {entries} entries"
            );
            Sample::take(&scene.pids(subject), Unit::Requests, || {
                again(|| {
                    conn.send("GET", &path, &[], &[]);
                    assert_eq!(conn.answer(false).body.len(), body.len(), "the list is unchanged");
                })
            })
        })
    })
    .into()
}

/// Repeats the work for [`GOAL_SECONDS`] seconds, at least once.
pub fn again(mut work: impl FnMut()) -> Load {
    let (begun, mut times) = (Instant::now(), Vec::new());
    while begun.elapsed() < Duration::from_secs(GOAL_SECONDS) {
        let sent = Instant::now();
        work();
        times.push(sent.elapsed());
    }
    Load::of(times, 0.0, begun.elapsed())
}

fn connected(connections: usize) -> String {
    format!("{connections} connection{}", if connections == 1 { "" } else { "s" })
}

fn accept() -> Vec<String> {
    vec![format!("Accept: {ACCEPT}")]
}

fn manifest(subject: Subject, reference: &str) -> String {
    format!("/v2/{}/manifests/{reference}", subject.repository())
}

/// The path of a blob of 100 MiB on one of these servers.
type Path = fn(&Scene, Subject) -> String;

fn read_back(scene: &Scene, subject: Subject) -> String {
    blob(scene, subject, 2)
}

fn written(scene: &Scene, subject: Subject) -> String {
    path_of(subject, &scene.written.layers[0])
}

fn blob(scene: &Scene, subject: Subject, layer: usize) -> String {
    path_of(subject, &scene.blobs.layers[layer])
}

fn path_of(subject: Subject, blob: &Content) -> String {
    format!("/v2/{}/blobs/{}", subject.repository(), blob.digest)
}

/// The ETag of this content, checked with one 304.
fn etag(scene: &Scene, subject: Subject, path: &str) -> String {
    let mut conn = Conn::open(scene.address(subject));
    conn.send("HEAD", path, &[("Accept", ACCEPT)], &[]);
    let etag = conn.answer(true).header("ETag").to_owned();
    conn.send("GET", path, &[("Accept", ACCEPT), ("If-None-Match", &etag)], &[]);
    assert_eq!(conn.answer(false).status, 304, "{} knows {etag}", subject.name());
    etag
}

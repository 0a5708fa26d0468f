//! Complete images, cold blobs, and many streams at once.

use std::thread;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::case::Case;
use super::load::Load;
use super::reads::again;
use super::sample::{Sample, Unit};
use super::scene::{Scene, small_repository};
use super::servers::{FILES, SEGMENTED};
use super::subject::Subject::{
    self, Mirrored, MirroredTls, Nginx, NginxCache, Proxy, Pushed, Registry, Segmented, Upstream,
};
use super::support::client::{ACCEPT, Conn, Got, together};
use super::support::process::memory;
use super::support::stage::MIB;
use super::support::tests::Reply;
use super::tls;

const STREAMS: usize = 100;
/// How long a freshly started server needs until it is idle.
const START_PAUSE: Duration = Duration::from_secs(1);

/// Like containerd: the digest of the tag, the manifest by digest, its config, and the layers in parallel.
pub fn image() -> Case {
    let subjects = [Nginx, Registry, Pushed, Mirrored];
    Case::new("image pull, 8 layers of 8 MiB", Unit::Requests, &subjects, |scene, subject, _| {
        let (address, repository, image) = (scene.address(subject), subject.repository(), &scene.image);
        let mut conns: Vec<Conn> = image.layers.iter().map(|_| Conn::open(address)).collect();
        Sample::take(&scene.pids(subject), Unit::Requests, || {
            again(|| {
                let first = &mut conns[0];
                first.send("HEAD", &format!("/v2/{repository}/manifests/v1"), &[("Accept", ACCEPT)], &[]);
                assert_eq!(first.answer(true).status, 200, "the tag exists");
                let manifest = format!("/v2/{repository}/manifests/{}", image.digest());
                assert!(first.get(&manifest, &image.manifest.bytes).correct, "the manifest is correct");
                let blob = |digest: &str| format!("/v2/{repository}/blobs/{digest}");
                assert!(first.get(&blob(&image.config.digest), &image.config.bytes).correct, "the config is correct");
                thread::scope(|scope| {
                    for (conn, layer) in conns.iter_mut().zip(&image.layers) {
                        scope.spawn(move || assert!(conn.get(&blob(&layer.digest), &layer.bytes).correct));
                    }
                });
            })
        })
    })
}

/// Blobs that the upstream sends at a limited rate, for one client and for many at once.
pub fn cold() -> Vec<Case> {
    let paced = |name: &'static str, (mib, rate): (usize, u64), clients: usize, subjects: &[Subject]| {
        Case::new(name, Unit::Bytes, subjects, move |scene, subject, round| {
            let (path, blob) = scene.cold(name, round, mib * MIB);
            scene.upstream.always("GET", &path, Reply::normal().pace(rate << 20));
            let path = if subject == Segmented { of_upstream(&path, SEGMENTED) } else { path };
            let (address, mut got) = (scene.address(subject), Vec::new());
            let sample = Sample::take(&scene.pids(subject), Unit::Bytes, || {
                got = together(clients, address, &path, &blob.bytes);
                assert!(got.iter().all(|got| got.correct), "{} sends the correct bytes", subject.name());
                load(&got, mib * MIB)
            });
            let first = got.iter().map(|got| got.first_byte).max().map(|time| time.as_secs_f64() * 1e3);
            Sample { first_byte: first, ..sample }
        })
    };
    vec![
        paced(COLD_ONE, (100, 100), 1, &[Upstream, Proxy, Mirrored]),
        paced(COLD_MANY, (100, 100), 64, &[Mirrored]),
        paced(SLOW_ONE, (256, 16), 1, &[Mirrored]).at_most(2),
        paced(SLOW_MANY, (256, 16), 64, &[Mirrored]).at_most(2),
        paced(SEGMENTS, (1024, 20), 1, &[Upstream, Segmented]).at_most(1),
    ]
}

/// Blobs that the upstream, nginx, sends as fast as it can.
pub fn unpaced() -> Vec<Case> {
    let case = |name: &'static str, mib: usize| {
        Case::new(name, Unit::Bytes, &[Nginx, NginxCache, Mirrored], move |scene, subject, round| {
            let (path, blob) = scene.unpaced(name, round, mib * MIB);
            let path = if subject == Mirrored { of_upstream(&path, FILES) } else { path };
            let address = scene.address(subject);
            Sample::take(&scene.pids(subject), Unit::Bytes, || {
                let got = together(1, address, &path, &blob.bytes);
                assert!(got[0].correct, "{} sends the correct bytes", subject.name());
                load(&got, blob.bytes.len())
            })
        })
    };
    vec![case(UNPACED, 1024), case("cold 100 MiB, unpaced, 1 client", 100), tls_crowd()]
}

/// Many HTTPS clients that follow one fill.
fn tls_crowd() -> Case {
    Case::new(TLS_CROWD, Unit::Bytes, &[MirroredTls], |scene, subject, round| {
        let (path, blob) = scene.unpaced(TLS_CROWD, round, 1024 * MIB);
        let (address, ca) = (scene.address(subject), scene.authority.ca.clone());
        Sample::take(&scene.pids(subject), Unit::Bytes, || {
            let begun = Instant::now();
            let times = tls::together(TLS_CLIENTS, address, &ca, &of_upstream(&path, FILES), &blob.bytes);
            Load::of(times, (TLS_CLIENTS * blob.bytes.len()) as f64, begun.elapsed())
        })
    })
    .at_most(1)
}

/// The path at Roadstead of what this upstream has under `path`.
fn of_upstream(path: &str, upstream: &str) -> String {
    path.replacen("/v2/", &format!("/v2/{upstream}/"), 1)
}

/// As many images as a day of a build farm has: what an image costs beside its bytes.
pub fn small_images() -> Case {
    Case::new(SMALL, Unit::Requests, &[Proxy, Mirrored], |scene, subject, round| {
        let (address, pids) = match subject {
            // A server of its own: the memory of the other one is measured with the blobs that its store began with.
            Mirrored => {
                let (_, _, roadstead) = scene.fresh(round);
                (([127, 0, 0, 1], roadstead.port()).into(), roadstead.pid().into_iter().collect())
            }
            _ => (scene.address(subject), scene.pids(subject)),
        };
        let images = Mutex::new(scene.small_images(round).iter().enumerate());
        let next = || images.lock().next();
        let client = || {
            let (mut conn, mut times) = (Conn::open(address), Vec::new());
            while let Some((n, image)) = next() {
                let begun = Instant::now();
                let at = |kind: &str, name: &str| format!("/v2/{}/{kind}/{name}", small_repository(n));
                let manifest = at("manifests", &format!("r{round}"));
                assert!(conn.get(&manifest, &image.manifest.bytes).correct, "the manifest is correct");
                for blob in image.blobs() {
                    assert!(conn.get(&at("blobs", &blob.digest), &blob.bytes).correct, "the blob is correct");
                }
                times.push(begun.elapsed());
            }
            times
        };
        Sample::take(&pids, Unit::Requests, || {
            let begun = Instant::now();
            let times = thread::scope(|scope| {
                let clients: Vec<_> = (0..SMALL_CLIENTS).map(|_| scope.spawn(client)).collect();
                clients.into_iter().flat_map(|client| client.join().expect("a client thread ends")).collect()
            });
            Load::of(times, 0.0, begun.elapsed())
        })
    })
}

const SMALL_CLIENTS: usize = 8;
const TLS_CLIENTS: usize = 200;

pub const UNPACED: &str = "cold 1 GiB, unpaced, 1 client";
pub const TLS_CROWD: &str = "HTTPS: cold 1 GiB, unpaced, 200 clients";
pub const SMALL: &str = "1000 small cold images, 8 clients";
pub const COLD_ONE: &str = "cold 100 MiB at 100 MiB/s, 1 client";
pub const COLD_MANY: &str = "cold 100 MiB at 100 MiB/s, 64 clients";
pub const SLOW_ONE: &str = "cold 256 MiB at 16 MiB/s, 1 client";
pub const SLOW_MANY: &str = "cold 256 MiB at 16 MiB/s, 64 clients";
pub const SEGMENTS: &str = "cold 1 GiB at 20 MiB/s for each connection, 1 client";
pub const MEMORY: &str = "200 streams of 100 MiB, 100 of them stalled";

/// Half of the clients read, and half send a request and read nothing. Each server is freshly started.
pub fn streams() -> Case {
    Case::new(MEMORY, Unit::Bytes, &[Nginx, Registry, Pushed], |scene, subject, _| {
        restart(scene, subject);
        thread::sleep(START_PAUSE);
        let (address, blob) = (scene.address(subject), &scene.blobs.layers[2]);
        let (path, pids) = (format!("/v2/{}/blobs/{}", subject.repository(), blob.digest), scene.pids(subject));
        let idle = memory(&pids, "RssAnon");
        let sample = Sample::take(&pids, Unit::Bytes, || {
            let open = |_| Conn::with_receive_buffer(address, 4096);
            let mut stalled: Vec<Conn> = (0..STREAMS).map(open).collect();
            stalled.iter_mut().for_each(|conn| conn.ask(&path));
            let got = together(STREAMS, address, &path, &blob.bytes);
            assert!(got.iter().all(|got| got.correct), "{} sends the correct bytes", subject.name());
            load(&got, blob.bytes.len())
        });
        Sample { idle: Some(idle), ..sample }
    })
}

fn restart(scene: &mut Scene, subject: Subject) {
    match subject {
        Nginx => scene.nginx.restart(),
        Registry => scene.registry.restart(),
        _ => scene.restart_roadstead(),
    }
}

fn load(got: &[Got], bytes: usize) -> Load {
    let times: Vec<Duration> = got.iter().map(|got| got.last_byte).collect();
    let last = times.iter().max().copied().unwrap_or_default();
    Load::of(times, (got.len() * bytes) as f64, last)
}

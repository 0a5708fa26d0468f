//! Complete images, cold blobs, and many streams at once.

use std::thread;
use std::time::Duration;

use super::case::Case;
use super::load::Load;
use super::reads::again;
use super::sample::{Sample, Unit};
use super::scene::Scene;
use super::subject::Subject::{self, Mirrored, Nginx, Proxy, Pushed, Registry, Upstream};
use super::support::client::{ACCEPT, Conn, Got, together};
use super::support::process::memory;
use super::support::stage::MIB;
use super::support::tests::Reply;

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
    ]
}

pub const COLD_ONE: &str = "cold 100 MiB at 100 MiB/s, 1 client";
pub const COLD_MANY: &str = "cold 100 MiB at 100 MiB/s, 64 clients";
pub const SLOW_ONE: &str = "cold 256 MiB at 16 MiB/s, 1 client";
pub const SLOW_MANY: &str = "cold 256 MiB at 16 MiB/s, 64 clients";
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

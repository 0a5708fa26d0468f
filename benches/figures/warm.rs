//! Hits: upstream requests (none), and speed, for orientation.

use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::support::stage::{MIB, REPOSITORY, Stage};
use super::support::table::Table;

const REPETITIONS: usize = 100;
const MEASUREMENT_TIME: Duration = Duration::from_secs(3);

pub fn upstream_requests(stage: &Stage, table: &mut Table) {
    let blob = stage.prepare(100, MIB);
    let manifest = &blob.image.manifest;
    let by_digest = format!("/v2/{REPOSITORY}/manifests/{}", manifest.digest);
    let mut conn = stage.connect();
    assert!(conn.get(&blob.layer, blob.bytes()).correct, "the blob is fetched");
    let cases = [
        ("manifest by digest", &by_digest, &manifest.bytes[..]),
        ("blob", &blob.layer, blob.bytes()),
        ("tag within its ttl", &blob.tag, &manifest.bytes[..]),
    ];
    for (what, path, expected) in cases {
        stage.forget();
        assert!((0..REPETITIONS).all(|_| conn.get(path, expected).correct), "the {what} is served");
        let sent = stage.upstream.total() as f64;
        table.exactly(&format!("a warm {what}, {REPETITIONS} times: upstream requests"), 0.0, "", &[sent]);
    }
}

pub fn speed(stage: &Stage, table: &mut Table) {
    let (small, large) = (stage.prepare(200, MIB), stage.prepare(200, 100 * MIB));
    for blob in [&small, &large] {
        assert!(stage.connect().get(&blob.layer, blob.bytes()).correct, "the blob is fetched");
    }
    let manifest = &small.image.manifest;
    let by_digest = format!("/v2/{REPOSITORY}/manifests/{}", manifest.digest);
    for clients in [1, 16] {
        let (rate, cpu) = load(stage, clients, &by_digest, &manifest.bytes);
        let value = format!("{rate:.0}/s, {:.1} CPU µs each", cpu * 1e6);
        table.note(&format!("a warm manifest, {clients} connections"), &value);
        for (mib, blob) in [(1.0, &small), (100.0, &large)] {
            let (rate, cpu) = load(stage, clients, &blob.layer, blob.bytes());
            let value = format!("{:.0} MiB/s, {:.2} CPU s per GiB", rate * mib, cpu / mib * 1024.0);
            table.note(&format!("a warm {mib} MiB blob, {clients} connections"), &value);
        }
    }
}

/// Responses per second, and CPU seconds of the server for each. Clients send the next request after each response.
fn load(stage: &Stage, clients: usize, path: &str, expected: &[u8]) -> (f64, f64) {
    let answers = AtomicU64::new(0);
    let (start, cpu) = (Instant::now(), stage.cpu());
    thread::scope(|scope| {
        for _ in 0..clients {
            scope.spawn(|| {
                let mut conn = stage.connect();
                while start.elapsed() < MEASUREMENT_TIME {
                    assert!(conn.get(path, expected).correct, "{path} is served");
                    answers.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
    });
    let answers = answers.into_inner() as f64;
    (answers / start.elapsed().as_secs_f64(), (stage.cpu() - cpu) / answers)
}

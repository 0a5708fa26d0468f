//! A store of a million blobs: `make million`. Measures the start, a rebuild of the index, and the latency of hits while a
//! tenth of the store is evicted. The files are sparse: they take inodes, but no space.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a measurement that fails ends the run")]

#[path = "../support/mod.rs"]
mod support;

use std::fs::{self, File};
use std::path::Path;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};
use support::stage::{MIB, Prepared, Stage};
use support::table::Table;

const BLOBS: u64 = 1_000_000;
const BLOB_BYTES: u64 = 64 << 10;
const EVICTED: u64 = 100_000;
const SAMPLE_INTERVAL: Duration = Duration::from_millis(20);
/// Samples between two scrapes of the metrics, which show the end of each phase.
const SAMPLES_PER_SCRAPE: u32 = 12;
/// How long hits are timed on an otherwise idle server.
const IDLE_TIME: Duration = Duration::from_secs(10);
const PHASE_TIMEOUT: Duration = Duration::from_secs(600);

struct Watched {
    /// The time of each hit.
    times: Vec<Duration>,
    /// The peak memory of the server, in MiB.
    memory: f64,
    took: Duration,
}

fn main() -> ExitCode {
    if cfg!(debug_assertions) {
        eprintln!("nothing is measured in a debug build: make million");
        return ExitCode::SUCCESS;
    }
    let mut table = Table::new();
    let mut stage = Stage::new("[cache]\nmax_size = \"200GiB\"\nmin_free = \"0B\"");
    let hot = stage.prepare(1, MIB);
    stage.server.stop();
    fill(&stage.server.data_dir().join("blobs/sha256"));
    fs::remove_dir_all(stage.server.data_dir().join("index")).expect("the server had an index");

    let begun = Instant::now();
    stage.server.begin();
    stage.connect().get(&hot.tag, &hot.image.manifest.bytes);
    table.at_most("without an index: start to the first answer", 3.0, " s", &[begun.elapsed().as_secs_f64()]);
    let rebuild = watch(&stage, &hot, || is_ready(&stage));
    let rate = BLOBS as f64 / rebuild.took.as_secs_f64();
    table
        .note("rebuild of the index from the files", &format!("{rate:.0} blobs/s (goal: 30000 where the disk allows)"));
    table.at_most("peak RssAnon during the rebuild", 300.0, " MiB", &[rebuild.memory]);
    table.note("hits during the rebuild", &describe(&rebuild.times));

    stage.server.stop();
    let begun = Instant::now();
    stage.server.begin();
    stage.connect().get(&hot.tag, &hot.image.manifest.bytes);
    table.at_most("after a clean stop: start to the first answer", 3.0, " s", &[begun.elapsed().as_secs_f64()]);
    let restore = watch(&stage, &hot, || is_ready(&stage));
    table.note(
        "until eviction is possible",
        &format!("{:.1} s, RssAnon at most {:.0} MiB", restore.took.as_secs_f64(), restore.memory),
    );

    let quiet = undisturbed(&stage, &hot);
    table.note("hits on an otherwise idle server", &describe(&quiet.times));
    stage.server.stop();
    // Eviction continues down to the low mark, a twentieth below the size.
    let size = (BLOBS - EVICTED) * BLOB_BYTES / 19 * 20;
    stage.server.configure(&format!("[cache]\nmax_size = \"{size}B\""));
    stage.server.begin();
    while !is_ready(&stage) {
        thread::sleep(SAMPLE_INTERVAL);
    }
    let evicting = watch(&stage, &hot, || evicted(&stage) >= EVICTED as f64 * 0.99);
    let rate = EVICTED as f64 / evicting.took.as_secs_f64();
    table.note(&format!("eviction of {EVICTED} blobs"), &format!("{rate:.0} blobs/s"));
    table.note("hits meanwhile", &describe(&evicting.times));
    let after = undisturbed(&stage, &hot);
    table.note("hits after the eviction", &describe(&after.times));
    let [before, during, after] =
        [quiet, evicting, after].map(|watched| percentile(&watched.times, 0.99).as_secs_f64());
    let ratio = during / f64::midpoint(before, after);
    table.at_most("p99 of hits during the eviction, of that before and after", 2.0, " x", &[ratio]);
    if table.all_reached() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Creates sparse files with the names of cached blobs.
fn fill(blobs: &Path) {
    for n in 0..BLOBS {
        let hex: String = Sha256::digest(n.to_be_bytes()).iter().map(|byte| format!("{byte:02x}")).collect();
        let file = File::create_new(blobs.join(&hex[..2]).join(&hex)).expect("a new file");
        file.set_len(BLOB_BYTES).expect("a sparse file");
    }
}

/// Times hits on an otherwise idle server, with the same scrapes of metrics as in the other phases.
fn undisturbed(stage: &Stage, hot: &Prepared) -> Watched {
    let until = Instant::now() + IDLE_TIME;
    watch(stage, hot, || is_ready(stage) && Instant::now() > until)
}

/// Requests a hot manifest repeatedly and samples the memory of the server, until `done`.
fn watch(stage: &Stage, hot: &Prepared, done: impl Fn() -> bool) -> Watched {
    let (begun, stop) = (Instant::now(), AtomicBool::new(false));
    let manifest = &hot.image.manifest;
    thread::scope(|scope| {
        let hits = scope.spawn(|| {
            let (mut conn, mut times) = (stage.connect(), Vec::new());
            while !stop.load(Ordering::Relaxed) {
                let got = conn.get(&hot.tag, &manifest.bytes);
                assert!(got.correct, "the server responds meanwhile");
                times.push(got.last_byte);
                thread::sleep(Duration::from_micros(200));
            }
            times
        });
        let mut memory: f64 = 0.0;
        // A scrape occupies a worker for longer than a hit: with one for each sample, scrapes would determine the p99.
        while !done() {
            assert!(begun.elapsed() < PHASE_TIMEOUT, "the phase ends");
            for _ in 0..SAMPLES_PER_SCRAPE {
                memory = memory.max(stage.memory("RssAnon"));
                thread::sleep(SAMPLE_INTERVAL);
            }
        }
        let took = begun.elapsed();
        stop.store(true, Ordering::Relaxed);
        Watched { times: hits.join().expect("every hit was correct"), memory, took }
    })
}

fn is_ready(stage: &Stage) -> bool {
    stage.metric("roadstead_index_ready", &[]) == 1.0
}

fn evicted(stage: &Stage) -> f64 {
    stage.metric("roadstead_evictions_total", &[])
}

fn describe(times: &[Duration]) -> String {
    let ms = |part| percentile(times, part).as_secs_f64() * 1e3;
    format!("p50 {:.2} ms, p99 {:.2} ms, of {}", ms(0.5), ms(0.99), times.len())
}

fn percentile(times: &[Duration], part: f64) -> Duration {
    let mut sorted = times.to_vec();
    sorted.sort_unstable();
    sorted.get((sorted.len() as f64 * part) as usize).copied().unwrap_or_default()
}

//! A store of a million blobs: `make million`. What its start takes, what a rebuild of its index takes, and whether anybody
//! notices when a tenth of it is evicted. The files are sparse: they take inodes, and no space.

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
const SAMPLE: Duration = Duration::from_millis(20);
/// Between looks at the metrics, with which each phase sees its end.
const SAMPLES_A_LOOK: u32 = 12;
/// How long hits are timed while nothing else goes on.
const QUIET: Duration = Duration::from_secs(10);
const PATIENCE: Duration = Duration::from_secs(600);

struct Watched {
    /// Of each hit.
    times: Vec<Duration>,
    /// The most that the server ever had, in MiB.
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
        "until it may evict",
        &format!("{:.1} s, RssAnon at most {:.0} MiB", restore.took.as_secs_f64(), restore.memory),
    );

    let quiet = undisturbed(&stage, &hot);
    table.note("hits while nothing else goes on", &describe(&quiet.times));
    stage.server.stop();
    // The low mark, to which it evicts, is a twentieth below the size.
    let size = (BLOBS - EVICTED) * BLOB_BYTES / 19 * 20;
    stage.server.configure(&format!("[cache]\nmax_size = \"{size}B\""));
    stage.server.begin();
    while !is_ready(&stage) {
        thread::sleep(SAMPLE);
    }
    let evicting = watch(&stage, &hot, || evicted(&stage) >= EVICTED as f64 * 0.99);
    let rate = EVICTED as f64 / evicting.took.as_secs_f64();
    table.note(&format!("eviction of {EVICTED} blobs"), &format!("{rate:.0} blobs/s"));
    table.note("hits meanwhile", &describe(&evicting.times));
    let after = undisturbed(&stage, &hot);
    table.note("hits when it is over", &describe(&after.times));
    let [before, during, after] =
        [quiet, evicting, after].map(|watched| percentile(&watched.times, 0.99).as_secs_f64());
    let ratio = during / f64::midpoint(before, after);
    table.at_most("p99 of hits during the eviction, of that before and after", 2.0, " x", &[ratio]);
    if table.all_reached() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Files as a cache has them, with nothing in them.
fn fill(blobs: &Path) {
    for n in 0..BLOBS {
        let hex: String = Sha256::digest(n.to_be_bytes()).iter().map(|byte| format!("{byte:02x}")).collect();
        let file = File::create_new(blobs.join(&hex[..2]).join(&hex)).expect("a new file");
        file.set_len(BLOB_BYTES).expect("a sparse file");
    }
}

/// What hits take while nothing else goes on, but for the look at the metrics with which the other phases see their end.
fn undisturbed(stage: &Stage, hot: &Prepared) -> Watched {
    let until = Instant::now() + QUIET;
    watch(stage, hot, || is_ready(stage) && Instant::now() > until)
}

/// Asks for a hot manifest again and again, and looks at the server's memory, until `done`.
fn watch(stage: &Stage, hot: &Prepared, done: impl Fn() -> bool) -> Watched {
    let (begun, stop) = (Instant::now(), AtomicBool::new(false));
    let manifest = &hot.image.manifest;
    thread::scope(|scope| {
        let hits = scope.spawn(|| {
            let (mut conn, mut times) = (stage.connect(), Vec::new());
            while !stop.load(Ordering::Relaxed) {
                let got = conn.get(&hot.tag, &manifest.bytes);
                assert!(got.right, "it serves meanwhile");
                times.push(got.last_byte);
                thread::sleep(Duration::from_micros(200));
            }
            times
        });
        let mut memory: f64 = 0.0;
        // To gather the metrics takes a worker longer than a hit: asked as often as memory is looked at, they would be the p99.
        while !done() {
            assert!(begun.elapsed() < PATIENCE, "it comes to an end");
            for _ in 0..SAMPLES_A_LOOK {
                memory = memory.max(stage.memory("RssAnon"));
                thread::sleep(SAMPLE);
            }
        }
        let took = begun.elapsed();
        stop.store(true, Ordering::Relaxed);
        Watched { times: hits.join().expect("every hit was right"), memory, took }
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

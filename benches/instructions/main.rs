//! Instructions per hit, counted by callgrind: `make instructions`. It fails if a hit takes over a tenth more than in
//! benches/instructions.txt; `make instructions ARGS=--write` updates that file.
//!
//! A hit is a GET that is answered in this process and read to its end: the work of the program without socket I/O and
//! without the kernel. A run of 1100 hits minus one of 100 hits leaves a thousand hits without the start. The build is that
//! of the tests, optimised: it checks overflows, and inlines less of its dependencies than a release build. So the figures
//! can only be compared with each other.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a measurement that fails ends the run")]

#[path = "../support/mod.rs"]
mod support;

use std::collections::BTreeMap;
use std::io::{Read as _, Seek as _};
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};
use std::{fs, thread};

use support::hot::{BLOB_BYTES, Hot};
use tokio::runtime::{Builder, Runtime};

const COMMITTED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/instructions.txt");
const CASES: [&str; 4] = ["manifest-by-digest", "manifest-by-tag", "blob-of-1-MiB", WITH_TOKEN];
/// A manifest by digest for a user, whose token was verified before.
const WITH_TOKEN: &str = "manifest-with-token";
/// The functions whose instructions count: the hits, and their tasks on the blocking pool. Background threads of the index
/// would add noise.
const COUNTED: [&str; 2] = ["--toggle-collect=*counted_hits*", "--toggle-collect=*task::raw::poll*"];
const FEW_HITS: u64 = 100;
const MANY_HITS: u64 = 1100;
/// How often each case is counted.
const REPETITIONS: usize = 3;
const MAX_RATIO: f64 = 1.1;
/// Far above the seconds that a run takes, also on a busy machine.
const TIMEOUT: Duration = Duration::from_secs(300);
const POLL_INTERVAL: Duration = Duration::from_millis(20);
/// How often a run that does not end is started.
const ATTEMPTS: usize = 3;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => compare(),
        ["--write"] => write(),
        ["hits", what, number] => {
            hits(what, number.parse().expect("a number"));
            ExitCode::SUCCESS
        }
        _ => {
            eprintln!("make instructions, or make instructions ARGS=--write");
            ExitCode::FAILURE
        }
    }
}

/// The process that callgrind observes.
fn hits(what: &str, number: u64) {
    let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
    let hot = runtime.block_on(async {
        match what {
            WITH_TOKEN => Hot::with_token().await,
            _ => Hot::new().await,
        }
    });
    let (path, at_least) = match what {
        "manifest-by-digest" | WITH_TOKEN => (&hot.by_digest, 1),
        "manifest-by-tag" => (&hot.by_tag, 1),
        _ => (&hot.blob, BLOB_BYTES),
    };
    counted_hits(&runtime, &hot, path, at_least, number);
    runtime.block_on(hot.store.close());
}

/// Its name is in [`COUNTED`].
#[inline(never)]
fn counted_hits(runtime: &Runtime, hot: &Hot, path: &str, at_least: usize, number: u64) {
    runtime.block_on(async {
        for _ in 0..number {
            assert!(hot.get(path).await >= at_least, "{path} is complete");
        }
    });
}

fn compare() -> ExitCode {
    let text = fs::read_to_string(COMMITTED).expect("the committed figures");
    let committed = text.lines().filter_map(|line| line.split_once(' '));
    let committed: BTreeMap<&str, f64> =
        committed.filter_map(|(what, count)| Some((what, count.trim().parse().ok()?))).collect();
    let mut grown = false;
    for what in CASES {
        let known = *committed.get(what).unwrap_or_else(|| panic!("{COMMITTED} has no {what}"));
        let (count, spread) = count(what);
        let ratio = count / known;
        grown |= ratio > MAX_RATIO;
        println!("{what}: {count:.0} instructions (spread {spread:.2} %), committed {known:.0}: {ratio:.3}");
    }
    if grown {
        eprintln!(
            "A hit takes over a tenth more instructions than committed. If that is intended: make instructions ARGS=--write"
        );
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

fn write() -> ExitCode {
    let lines = CASES.map(|what| {
        let (count, spread) = count(what);
        println!("{what}: {count:.0} instructions (spread {spread:.2} %)");
        format!("{what} {count:.0}\n")
    });
    let head = "# Instructions of a hit, by callgrind: written by `make instructions ARGS=--write`, compared by CI.\n";
    fs::write(COMMITTED, head.to_owned() + &lines.concat()).expect("the figures can be written");
    ExitCode::SUCCESS
}

/// The minimum count of one hit, and by how many percent the maximum exceeds it.
fn count(what: &str) -> (f64, f64) {
    let mut counts: Vec<f64> = (0..REPETITIONS)
        .map(|_| (run(what, MANY_HITS) - run(what, FEW_HITS)) / (MANY_HITS - FEW_HITS) as f64)
        .collect();
    counts.sort_by(f64::total_cmp);
    // If callgrind does not find the function, it counts nothing.
    assert!(
        counts[0] > 1000.0,
        "{what} takes {} instructions: callgrind does not find the functions in COUNTED",
        counts[0]
    );
    (counts[0], (counts[REPETITIONS - 1] / counts[0] - 1.0) * 100.0)
}

/// Instructions of a complete run.
fn run(what: &str, number: u64) -> f64 {
    for attempt in 1..=ATTEMPTS {
        if let Some(text) = observed(what, number) {
            let collected = text.lines().find_map(|line| line.split_once("Collected : "));
            let (_, collected) = collected.unwrap_or_else(|| panic!("callgrind counts: {text}"));
            return collected.trim().parse().expect("a number");
        }
        eprintln!("{what}: valgrind did not end within {} s (attempt {attempt} of {ATTEMPTS})", TIMEOUT.as_secs());
    }
    panic!("{what}: valgrind does not end");
}

/// What callgrind prints about a run; `None` if it does not end in time.
fn observed(what: &str, number: u64) -> Option<String> {
    let program = std::env::current_exe().expect("this program");
    let mut printed = tempfile::tempfile().expect("a temporary file");
    let mut valgrind = Command::new("valgrind")
        // Valgrind runs one thread at a time. Without this, a thread that spins may keep the others from running.
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null", "--fair-sched=try"])
        .args(COUNTED)
        .arg(program)
        .args(["hits", what, &number.to_string()])
        .stderr(printed.try_clone().expect("a descriptor"))
        .spawn()
        .expect("valgrind is installed: apt-get install valgrind");
    let started = Instant::now();
    let status = loop {
        match valgrind.try_wait().expect("the process can be waited for") {
            Some(status) => break Some(status),
            None if started.elapsed() > TIMEOUT => break None,
            None => thread::sleep(POLL_INTERVAL),
        }
    };
    if status.is_none() {
        valgrind.kill().and_then(|()| valgrind.wait()).expect("the process can be killed");
    }
    let mut text = String::new();
    printed.rewind().and_then(|()| printed.read_to_string(&mut text)).expect("the output can be read");
    let status = status?;
    assert!(status.success(), "{text}");
    Some(text)
}

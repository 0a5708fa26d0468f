//! How many instructions a hit takes, by callgrind: `make instructions`. It fails when one takes a tenth more than
//! benches/instructions.txt says; `make instructions ARGS=--write` says so there.
//!
//! A hit is a GET that is answered in this process, read to its end: what the program does for one, without reading and
//! writing of sockets, and without the kernel's part. A run of 1100 hits less one of 100 leaves a thousand of them, without
//! the start. The build is that of the tests, optimised: checks of overflow are in, and code of dependencies is not inlined
//! as in a release. So the figures are for comparing with themselves.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a measurement that fails ends the run")]

#[path = "../support/mod.rs"]
mod support;

use std::collections::BTreeMap;
use std::fs;
use std::process::{Command, ExitCode};

use support::hot::{BLOB, Hot};
use tokio::runtime::{Builder, Runtime};

const COMMITTED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/instructions.txt");
const WHATS: [&str; 3] = ["manifest-by-digest", "manifest-by-tag", "blob-of-1-MiB"];
/// Where instructions count: in the hits, and in what they give to the blocking pool. The index has threads of its own,
/// which do now this and now that.
const COUNTED: [&str; 2] = ["--toggle-collect=*counted_hits*", "--toggle-collect=*task::raw::poll*"];
const FEW: u64 = 100;
const MANY: u64 = 1100;
/// Each is counted so often.
const TIMES: usize = 3;
const ALLOWED: f64 = 1.1;

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

/// What callgrind looks at.
fn hits(what: &str, number: u64) {
    let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
    let hot = runtime.block_on(Hot::new());
    let (path, at_least) = match what {
        "manifest-by-digest" => (&hot.by_digest, 1),
        "manifest-by-tag" => (&hot.by_tag, 1),
        _ => (&hot.blob, BLOB),
    };
    counted_hits(&runtime, &hot, path, at_least, number);
    runtime.block_on(hot.store.close());
}

/// Named by [`COUNTED`].
#[inline(never)]
fn counted_hits(runtime: &Runtime, hot: &Hot, path: &str, at_least: usize, number: u64) {
    runtime.block_on(async {
        for _ in 0..number {
            assert!(hot.get(path).await >= at_least, "{path} is all there");
        }
    });
}

fn compare() -> ExitCode {
    let text = fs::read_to_string(COMMITTED).expect("the committed figures");
    let committed = text.lines().filter_map(|line| line.split_once(' '));
    let committed: BTreeMap<&str, f64> =
        committed.filter_map(|(what, count)| Some((what, count.trim().parse().ok()?))).collect();
    let mut grown = false;
    for what in WHATS {
        let known = *committed.get(what).unwrap_or_else(|| panic!("{COMMITTED} has no {what}"));
        let (count, spread) = count(what);
        let ratio = count / known;
        grown |= ratio > ALLOWED;
        println!("{what}: {count:.0} instructions (spread {spread:.2} %), committed {known:.0}: {ratio:.3}");
    }
    if grown {
        eprintln!("A hit takes over a tenth more than it did. If it has to: make instructions ARGS=--write");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

fn write() -> ExitCode {
    let lines = WHATS.map(|what| {
        let (count, spread) = count(what);
        println!("{what}: {count:.0} instructions (spread {spread:.2} %)");
        format!("{what} {count:.0}\n")
    });
    let head = "# Instructions of a hit, by callgrind: written by `make instructions ARGS=--write`, compared by CI.\n";
    fs::write(COMMITTED, head.to_owned() + &lines.concat()).expect("the figures can be written");
    ExitCode::SUCCESS
}

/// Of one hit, the least that was counted, and by how many percent the most was above it.
fn count(what: &str) -> (f64, f64) {
    let mut counts: Vec<f64> = (0..TIMES).map(|_| (run(what, MANY) - run(what, FEW)) / (MANY - FEW) as f64).collect();
    counts.sort_by(f64::total_cmp);
    // Not found under its name, it would count nothing.
    assert!(counts[0] > 1000.0, "{what} takes {} instructions, and callgrind cannot see it", counts[0]);
    (counts[0], (counts[TIMES - 1] / counts[0] - 1.0) * 100.0)
}

/// Instructions of a whole run.
fn run(what: &str, number: u64) -> f64 {
    let program = std::env::current_exe().expect("this program");
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .args(COUNTED)
        .arg(program)
        .args(["hits", what, &number.to_string()])
        .output()
        .expect("valgrind is installed: apt-get install valgrind");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    let collected = said.lines().find_map(|line| line.split_once("Collected : "));
    let (_, collected) = collected.unwrap_or_else(|| panic!("callgrind counts: {said}"));
    collected.trim().parse().expect("a number")
}

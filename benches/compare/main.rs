//! Roadstead beside nginx and docker-registry: `make bench`, for docs/benchmarks.md.
//!
//! Each server is a program of its own, with the same content on the same disk, under the same load on the same cores.
//! In every round each case is measured on all of them, one right after the other, and ratios are within a round: what
//! else the machine does meets all alike. The upstream and some of the clients are this process; wrk is the others.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a measurement that fails ends the run")]

mod case;
mod cores;
mod goals;
mod load;
mod options;
mod programs;
mod pulls;
mod pushes;
mod reads;
mod report;
mod sample;
mod scene;
mod servers;
mod subject;
#[path = "../support/mod.rs"]
mod support;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};
use std::{fs, io, thread};

use case::Case;
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::{Pid, getpgid, getpgrp};
use options::{Options, USAGE};
use sample::Samples;
use scene::Scene;
use support::process::children;
use tokio::runtime::Runtime;
use tokio::signal::unix::{SignalKind, signal};

/// Of a file system that is memory (`statfs`).
const TMPFS: i64 = 0x0102_1994;

fn main() -> ExitCode {
    if cfg!(debug_assertions) {
        eprintln!("nothing is measured in a debug build: make bench");
        return ExitCode::SUCCESS;
    }
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(problem) => {
            eprintln!("{problem}");
            ExitCode::FAILURE
        }
    }
}

/// Whether every goal was reached.
fn run() -> Result<bool, String> {
    let options = Options::parse(std::env::args().skip(1)).map_err(|problem| format!("{problem}\n{USAGE}"))?;
    let groups = [reads::manifests(), reads::blobs(), vec![pulls::image()], reads::lists(), pushes::cases()];
    let slow = [pulls::cold(), vec![pulls::streams()]];
    let cases: Vec<Case> = groups.into_iter().chain(slow).flatten().filter(|case| options.wants(&case.name)).collect();
    if cases.is_empty() {
        return Err("no case has that in its name; --list says which there are".to_owned());
    }
    if options.list {
        cases.iter().for_each(|case| println!("{}", case.name));
        return Ok(true);
    }
    programs::check()?;
    if let Some(file) = &options.write {
        report::check(file)?;
    }
    // Beside the build, not in /tmp: that may be memory.
    let parent = Path::new(env!("CARGO_TARGET_TMPDIR"));
    if rustix::fs::statfs(parent).is_ok_and(|found| found.f_type == TMPFS) {
        return Err(format!("{} is memory, and not a disk", parent.display()));
    }
    let folder = tempfile::Builder::new().prefix("bench-").tempdir_in(parent).map_err(|error| error.to_string())?;
    let interrupts = stop_all_when_interrupted(folder.path().to_owned());

    let begun = Instant::now();
    let say = |what: &str| eprintln!("[{:>4} s] {what}", begun.elapsed().as_secs());
    say("starting and filling the servers");
    let mut scene = Scene::new(folder);
    let mut samples = Samples::default();
    for round in 0..options.rounds as u64 {
        for case in cases.iter().filter(|case| round < case.rounds as u64) {
            say(&format!("round {} of {}: {}", round + 1, options.rounds, case.name));
            for subject in case.order(round) {
                samples.add(&case.name, subject, (case.run)(&mut scene, subject, round));
            }
        }
    }
    let figures = goals::figures(&samples);
    let mut tables = format!(
        "{}\n\n{}\n{}",
        report::machine(options.rounds),
        report::cases(&cases, &samples),
        report::goals(&figures)
    );
    if options.wants("push") {
        say("counting syncs");
        tables += &format!("\n{}", report::syncs(&pushes::syncs(&scene)));
    }
    drop(scene);
    drop(interrupts);
    say("done");
    print!("{tables}");
    if let Some(file) = &options.write {
        report::write(file, &tables)?;
    }
    let missed = figures.iter().filter(|figure| !figure.is_reached()).count();
    if missed > 0 {
        eprintln!("{missed} of {} goals were missed", figures.len());
    }
    Ok(missed == 0)
}

/// On an interrupt ends what this process has started, by its number, and leaves nothing in the folder.
fn stop_all_when_interrupted(folder: PathBuf) -> Runtime {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    let runtime = runtime.expect("a runtime");
    let _entered = runtime.enter();
    let [mut interrupt, mut terminate, mut hangup] =
        [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()]
            .map(|kind| signal(kind).expect("signals can be waited for"));
    runtime.spawn(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
        }
        // Whoever has started this may not be there any more to read it.
        let _ = writeln!(io::stderr(), "interrupted: taking everything away");
        // Whoever misses what is ended now waits for the end, too, and says nothing.
        std::panic::set_hook(Box::new(|_| {
            loop {
                thread::park();
            }
        }));
        for child in children(std::process::id()) {
            let child = Pid::from_raw(child.cast_signed());
            // Servers lead a group with their workers; an error means that it has ended already.
            let _ = match getpgid(Some(child)) {
                Ok(group) if group != getpgrp() => killpg(group, Signal::SIGKILL),
                _ => kill(child, Signal::SIGKILL),
            };
        }
        if let Err(error) = remove(&folder) {
            let _ = writeln!(io::stderr(), "{} is left: {error}", folder.display());
        }
        std::process::exit(130);
    });
    runtime
}

/// Removes a folder though somebody, here or in a program that is ending, may still be writing to it.
fn remove(folder: &Path) -> io::Result<()> {
    const TRIES: usize = 50;
    let mut tries = 0;
    loop {
        match fs::remove_dir_all(folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) if tries == TRIES => return Err(error),
            // Also after it has gone: whoever fills it may just have made it anew.
            _ => thread::sleep(Duration::from_millis(50)),
        }
        tries += 1;
    }
}

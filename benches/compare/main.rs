//! Roadstead beside nginx and docker-registry: `make bench`, for docs/benchmarks.md.
//!
//! Each server is a separate process, with the same content on the same disk, under the same load on the same cores. Each
//! round measures each case on all servers, one directly after another, and ratios are computed within a round: so other
//! load of the machine affects all alike. The upstream and some clients are this process, the other clients are wrk.

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
mod tls;

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

/// The magic number of tmpfs in `statfs`.
const TMPFS_MAGIC: i64 = 0x0102_1994;

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
    let hits = [reads::manifests(), reads::blobs(), reads::https(), vec![pulls::image()], reads::lists()];
    let groups = hits.into_iter().chain([pushes::cases()]);
    let slow = [pulls::cold(), pulls::unpaced(), vec![pulls::small_images(), pulls::streams()]];
    let cases: Vec<Case> = groups.chain(slow).flatten().filter(|case| options.wants(&case.name)).collect();
    if cases.is_empty() {
        return Err("no case has a name with this word; --list prints the names".to_owned());
    }
    if options.list {
        cases.iter().for_each(|case| println!("{}", case.name));
        return Ok(true);
    }
    programs::check()?;
    if let Some(file) = &options.write {
        report::check(file)?;
    }
    // In the build folder, as /tmp may be in memory.
    let parent = Path::new(env!("CARGO_TARGET_TMPDIR"));
    if rustix::fs::statfs(parent).is_ok_and(|found| found.f_type == TMPFS_MAGIC) {
        return Err(format!("{} is in memory: set CARGO_TARGET_DIR to a folder on a disk", parent.display()));
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

/// On an interrupt, ends every process that this one has started, and removes the folder.
fn stop_all_when_interrupted(folder: PathBuf) -> Runtime {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    let runtime = runtime.expect("a runtime");
    let _entered = runtime.enter();
    let [mut interrupt, mut terminate, mut hangup] =
        [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()]
            .map(|kind| signal(kind).expect("signals can be handled"));
    runtime.spawn(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
        }
        // An error means that the terminal is closed.
        let _ = writeln!(io::stderr(), "interrupted: stopping the servers and removing their data");
        // A measurement that fails because its server is killed waits for the exit, without a panic message.
        std::panic::set_hook(Box::new(|_| {
            loop {
                thread::park();
            }
        }));
        for child in children(std::process::id()) {
            let child = Pid::from_raw(child.cast_signed());
            // Each server leads a process group with its workers. An error means that the group has ended.
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

/// Removes a folder to which an ending process may still write.
fn remove(folder: &Path) -> io::Result<()> {
    const MAX_ATTEMPTS: usize = 50;
    let mut attempts = 0;
    loop {
        match fs::remove_dir_all(folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) if attempts == MAX_ATTEMPTS => return Err(error),
            // A writer may just have created it again.
            _ => thread::sleep(Duration::from_millis(50)),
        }
        attempts += 1;
    }
}

//! CPU time and memory of a server's processes, from the kernel.

use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

/// `/proc` counts times in hundredths of a second, whatever the tick of the kernel.
const TICKS_PER_SECOND: f64 = 100.0;
const SAMPLE_INTERVAL: Duration = Duration::from_millis(5);

/// A process and its descendants.
pub fn family(pid: u32) -> Vec<u32> {
    let mut found = vec![pid];
    let mut next = 0;
    while let Some(&parent) = found.get(next) {
        found.extend(children(parent));
        next += 1;
    }
    found
}

pub fn children(parent: u32) -> Vec<u32> {
    let entries = fs::read_dir("/proc").expect("Linux").flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    // A process that has ended meanwhile has no parent.
    pids.filter(|pid| fields(*pid).is_some_and(|fields| fields.get(1) == Some(&f64::from(parent)))).collect()
}

/// User and system time so far, in seconds.
pub fn cpu(pids: &[u32]) -> f64 {
    let time = |pid: &u32| fields(*pid).and_then(|fields| Some(fields.get(11)? + fields.get(12)?));
    pids.iter().map(|pid| time(pid).expect("the server is running")).sum::<f64>() / TICKS_PER_SECOND
}

/// Resident memory in MiB: `RssAnon` is anonymous memory, without the program file and the page cache; `VmHWM` is the peak
/// of all kinds.
pub fn memory(pids: &[u32], field: &str) -> f64 {
    let of = |pid: &u32| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("the server is running");
        let line = status.lines().find_map(|line| line.strip_prefix(field)).expect("Linux 4.5 or later");
        line.trim_matches([':', '\t', ' ', 'k', 'B']).parse::<f64>().expect("a number") / 1024.0
    };
    pids.iter().map(of).sum()
}

/// The result of `work`, and the peak of anonymous memory during it, in MiB.
pub fn peak_memory<T>(pids: &[u32], work: impl FnOnce() -> T) -> (T, f64) {
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let sampler = scope.spawn(|| {
            let mut peak = memory(pids, "RssAnon");
            while !done.load(Ordering::Relaxed) {
                thread::sleep(SAMPLE_INTERVAL);
                peak = peak.max(memory(pids, "RssAnon"));
            }
            peak
        });
        let end = Ended(&done);
        let given = work();
        drop(end);
        (given, sampler.join().expect("the sampler ends"))
    })
}

/// Stops the sampler however the work ends, as its thread is joined.
struct Ended<'a>(&'a AtomicBool);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// The fields of `/proc/PID/stat` from the state on: index 1 is the parent, indices 11 and 12 are the times.
fn fields(pid: u32) -> Option<Vec<f64>> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name, in parentheses, may contain spaces.
    let (_, fields) = stat.rsplit_once(')')?;
    Some(fields.split_whitespace().map(|field| field.parse().unwrap_or_default()).collect())
}

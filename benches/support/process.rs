//! What the kernel says of a server's processes: the time that they took, and the memory.

use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

/// `/proc` counts times in hundredths of a second, whatever the kernel's own tick.
const TICKS: f64 = 100.0;
const SAMPLE_EVERY: Duration = Duration::from_millis(5);

/// A process and those that it has started, in the order in which they were found.
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
    // One that has ended since has no parent any more.
    pids.filter(|pid| fields(*pid).is_some_and(|fields| fields.get(1) == Some(&f64::from(parent)))).collect()
}

/// User and system time so far, in seconds.
pub fn cpu(pids: &[u32]) -> f64 {
    let time = |pid: &u32| fields(*pid).and_then(|fields| Some(fields.get(11)? + fields.get(12)?));
    pids.iter().map(|pid| time(pid).expect("the server lives")).sum::<f64>() / TICKS
}

/// Resident memory in MiB: `RssAnon` is what processes take for themselves, without the program's own file and the page
/// cache, and `VmHWM` the most that one ever had of all.
pub fn memory(pids: &[u32], field: &str) -> f64 {
    let of = |pid: &u32| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("the server lives");
        let line = status.lines().find_map(|line| line.strip_prefix(field)).expect("Linux 4.5 or later");
        line.trim_matches([':', '\t', ' ', 'k', 'B']).parse::<f64>().expect("a number") / 1024.0
    };
    pids.iter().map(of).sum()
}

/// What `work` gave, and the most anonymous memory that was seen meanwhile, in MiB.
pub fn peak_memory<T>(pids: &[u32], work: impl FnOnce() -> T) -> (T, f64) {
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let sampler = scope.spawn(|| {
            let mut peak = memory(pids, "RssAnon");
            while !done.load(Ordering::Relaxed) {
                thread::sleep(SAMPLE_EVERY);
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

/// Says so however the work ends: the sampler is waited for.
struct Ended<'a>(&'a AtomicBool);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// The numbers of `/proc/PID/stat` behind the state: the parent is the second, the times are the twelfth and thirteenth.
fn fields(pid: u32) -> Option<Vec<f64>> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name, in parentheses, may hold spaces.
    let (_, fields) = stat.rsplit_once(')')?;
    Some(fields.split_whitespace().map(|field| field.parse().unwrap_or_default()).collect())
}

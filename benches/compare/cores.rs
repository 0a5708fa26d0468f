//! One core for the server and another one for its clients.
//!
//! On loopback the kernel does much of the work of both sides, and charges it to the process that runs on the core at
//! that moment. If both sides share cores, the CPU time of the server does not show its cost.

use std::fs;

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

/// Two of the cores on which this process may run.
#[derive(Clone, Copy)]
pub struct Cores {
    servers: usize,
    clients: usize,
}

impl Cores {
    /// `None` if this process may run on only one core.
    pub fn two() -> Option<Self> {
        let ours = affinity();
        let mut cores = (0..CpuSet::count()).filter(|core| ours.is_set(*core).unwrap_or_default());
        Some(Self { servers: cores.next()?, clients: cores.next()? })
    }
}

/// While this exists, the servers run on one core, and this thread and its children on another one.
pub struct CoreAssignment {
    pids: Vec<u32>,
    before: CpuSet,
}

impl CoreAssignment {
    pub fn keep(pids: &[u32], cores: Cores) -> Self {
        let apart = Self { pids: pids.to_vec(), before: affinity() };
        apart.move_servers(&only(cores.servers));
        move_thread(THIS_THREAD, &only(cores.clients));
        apart
    }

    fn move_servers(&self, cores: &CpuSet) {
        for pid in &self.pids {
            let threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
            let threads = threads.filter_map(|thread| thread.file_name().to_str()?.parse().ok());
            threads.for_each(|thread| move_thread(Pid::from_raw(thread), cores));
        }
    }
}

impl Drop for CoreAssignment {
    fn drop(&mut self) {
        self.move_servers(&self.before);
        move_thread(THIS_THREAD, &self.before);
    }
}

const THIS_THREAD: Pid = Pid::from_raw(0);

fn affinity() -> CpuSet {
    sched_getaffinity(THIS_THREAD).expect("the affinity of a thread can be read")
}

fn move_thread(thread: Pid, cores: &CpuSet) {
    // An error means that the thread has ended.
    let _ = sched_setaffinity(thread, cores);
}

fn only(core: usize) -> CpuSet {
    let mut cores = CpuSet::new();
    cores.set(core).expect("the core is from such a set");
    cores
}

//! A core for the server and another one for its clients.
//!
//! Over the loopback the kernel does much of a connection's work, on either side, in the name of whoever runs on the core
//! at that moment. Where both sides share the cores, what a server is charged with says little of what it costs.

use std::fs;

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

/// Two of the cores that we may run on.
#[derive(Clone, Copy)]
pub struct Cores {
    servers: usize,
    clients: usize,
}

impl Cores {
    /// Nothing on a machine that has no two for us.
    pub fn two() -> Option<Self> {
        let ours = affinity();
        let mut cores = (0..CpuSet::count()).filter(|core| ours.is_set(*core).unwrap_or_default());
        Some(Self { servers: cores.next()?, clients: cores.next()? })
    }
}

/// While it lives, these processes run on one core, and this thread and what it starts on another one.
pub struct Apart {
    pids: Vec<u32>,
    before: CpuSet,
}

impl Apart {
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

impl Drop for Apart {
    fn drop(&mut self) {
        self.move_servers(&self.before);
        move_thread(THIS_THREAD, &self.before);
    }
}

const THIS_THREAD: Pid = Pid::from_raw(0);

fn affinity() -> CpuSet {
    sched_getaffinity(THIS_THREAD).expect("the kernel knows where we may run")
}

fn move_thread(thread: Pid, cores: &CpuSet) {
    // An error means that it has ended.
    let _ = sched_setaffinity(thread, cores);
}

fn only(core: usize) -> CpuSet {
    let mut cores = CpuSet::new();
    cores.set(core).expect("a core that was in such a set");
    cores
}

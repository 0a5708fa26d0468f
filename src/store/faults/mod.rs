//! File operations that fail when a test wants them to: the n-th, all from the n-th on, or all that change something. A
//! test can also set the state that the disk reports.
//!
//! The runtime of a test sets the plan on each of its own threads, so tests that run at the same time are not affected.

use std::cell::RefCell;
use std::fmt;
use std::io;
use std::sync::Arc;

use parking_lot::Mutex;
use rustix::io::Errno;

use crate::store::fs::DiskState;

mod tests;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::store) enum Fault {
    Error(Errno),
    /// ENOSPC; a write has written half of its bytes by then.
    Short,
}

/// Which operations fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::store) struct Failing {
    pub(in crate::store) fault: Fault,
    /// The first to fail, counted from 0.
    pub(in crate::store) first: u64,
    /// Whether all operations after the first fail as well.
    pub(in crate::store) lasting: bool,
}

#[derive(Default)]
pub(in crate::store) struct Plan {
    counted: Mutex<State>,
    /// Every change fails with this.
    refusal: Mutex<Option<Errno>>,
    disk: Mutex<Option<Arc<AlterDisk>>>,
}

type AlterDisk = dyn Fn(DiskState) -> DiskState + Send + Sync;

#[derive(Debug, Default)]
struct State {
    failing: Option<Failing>,
    calls: u64,
}

impl Plan {
    /// Replaces the plan and counts from 0 again; with `None` nothing fails.
    pub(in crate::store) fn set(&self, failing: Option<Failing>) {
        *self.counted.lock() = State { failing, calls: 0 };
    }

    /// Operations since the plan was set.
    pub(in crate::store) fn calls(&self) -> u64 {
        self.counted.lock().calls
    }

    /// Lets every operation that changes something fail, as on a file system that became read-only; with `None` none.
    pub(in crate::store) fn refuse_changes(&self, refusal: Option<Errno>) {
        *self.refusal.lock() = refusal;
    }

    /// Replaces the state that the disk reports.
    pub(in crate::store) fn set_disk(&self, alter: impl Fn(DiskState) -> DiskState + Send + Sync + 'static) {
        *self.disk.lock() = Some(Arc::new(alter));
    }

    fn next(&self) -> Option<Fault> {
        let mut state = self.counted.lock();
        let call = state.calls;
        state.calls += 1;
        let failing = state.failing?;
        let fails = if failing.lasting { call >= failing.first } else { call == failing.first };
        fails.then_some(failing.fault)
    }
}

thread_local! {
    static PLAN: RefCell<Option<Arc<Plan>>> = const { RefCell::new(None) };
}

/// The operations of this thread follow `plan` from now on.
pub(in crate::store) fn follow(plan: &Arc<Plan>) {
    PLAN.set(Some(plan.clone()));
}

fn next() -> Option<Fault> {
    PLAN.with_borrow(|plan| plan.as_ref().and_then(|plan| plan.next()))
}

pub(in crate::store) fn pass() -> io::Result<()> {
    match next() {
        None => Ok(()),
        Some(Fault::Error(error)) => Err(error.into()),
        Some(Fault::Short) => Err(Errno::NOSPC.into()),
    }
}

pub(in crate::store) fn pass_change() -> io::Result<()> {
    refused()?;
    pass()
}

pub(in crate::store) fn pass_write(bytes: &[u8], write: impl FnOnce(&[u8]) -> io::Result<()>) -> io::Result<()> {
    refused()?;
    match next() {
        None => write(bytes),
        Some(Fault::Error(error)) => Err(error.into()),
        Some(Fault::Short) => {
            write(bytes.get(..bytes.len() / 2).unwrap_or_default())?;
            Err(Errno::NOSPC.into())
        }
    }
}

pub(in crate::store) fn alter(disk: DiskState) -> DiskState {
    let alter = PLAN.with_borrow(|plan| plan.as_ref().and_then(|plan| plan.disk.lock().clone()));
    alter.map_or(disk, |alter| alter(disk))
}

fn refused() -> io::Result<()> {
    let refusal = PLAN.with_borrow(|plan| plan.as_ref().and_then(|plan| *plan.refusal.lock()));
    refusal.map_or(Ok(()), |error| Err(error.into()))
}

impl fmt::Debug for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Plan").field("counted", &self.counted).finish_non_exhaustive()
    }
}

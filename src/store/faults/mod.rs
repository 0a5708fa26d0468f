//! File operations that fail when a test wants them to: the n-th, or all from the n-th on.
//!
//! A test's runtime sets the plan on each of its threads, so that tests beside it are left alone.

use std::cell::RefCell;
use std::io;
use std::sync::Arc;

use parking_lot::Mutex;
use rustix::io::Errno;

mod tests;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// EIO.
    Error,
    /// A write ends half way, for the disk is full (ENOSPC); anything else fails with that.
    Short,
}

/// Which operations fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Failing {
    pub(super) fault: Fault,
    /// The first to fail, counted from 0.
    pub(super) first: u64,
    /// Those after it, too.
    pub(super) lasting: bool,
}

#[derive(Debug, Default)]
pub(super) struct Plan(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    failing: Option<Failing>,
    calls: u64,
}

impl Plan {
    /// Counts from 0 again; `None`: nothing fails.
    pub(super) fn set(&self, failing: Option<Failing>) {
        *self.0.lock() = State { failing, calls: 0 };
    }

    /// Operations since.
    pub(super) fn calls(&self) -> u64 {
        self.0.lock().calls
    }

    fn next(&self) -> Option<Fault> {
        let mut state = self.0.lock();
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

/// What this thread does goes by this plan from now on.
pub(super) fn follow(plan: &Arc<Plan>) {
    PLAN.set(Some(plan.clone()));
}

fn next() -> Option<Fault> {
    PLAN.with_borrow(|plan| plan.as_ref().and_then(|plan| plan.next()))
}

pub(super) fn pass() -> io::Result<()> {
    match next() {
        None => Ok(()),
        Some(Fault::Error) => Err(Errno::IO.into()),
        Some(Fault::Short) => Err(Errno::NOSPC.into()),
    }
}

pub(super) fn pass_write(bytes: &[u8], write: impl FnOnce(&[u8]) -> io::Result<()>) -> io::Result<()> {
    match next() {
        None => write(bytes),
        Some(Fault::Error) => Err(Errno::IO.into()),
        Some(Fault::Short) => {
            write(bytes.get(..bytes.len() / 2).unwrap_or_default())?;
            Err(Errno::NOSPC.into())
        }
    }
}

//! File operations that fail when a test wants them to: the n-th, or all from the n-th on.
//!
//! The runtime of a test sets the plan on each of its own threads, so tests that run at the same time are not affected.

use std::cell::RefCell;
use std::io;
use std::sync::Arc;

use parking_lot::Mutex;
use rustix::io::Errno;

mod tests;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::store) enum Fault {
    /// EIO.
    Error,
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

#[derive(Debug, Default)]
pub(in crate::store) struct Plan(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    failing: Option<Failing>,
    calls: u64,
}

impl Plan {
    /// Replaces the plan and counts from 0 again; with `None` nothing fails.
    pub(in crate::store) fn set(&self, failing: Option<Failing>) {
        *self.0.lock() = State { failing, calls: 0 };
    }

    /// Operations since the plan was set.
    pub(in crate::store) fn calls(&self) -> u64 {
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
        Some(Fault::Error) => Err(Errno::IO.into()),
        Some(Fault::Short) => Err(Errno::NOSPC.into()),
    }
}

pub(in crate::store) fn pass_write(bytes: &[u8], write: impl FnOnce(&[u8]) -> io::Result<()>) -> io::Result<()> {
    match next() {
        None => write(bytes),
        Some(Fault::Error) => Err(Errno::IO.into()),
        Some(Fault::Short) => {
            write(bytes.get(..bytes.len() / 2).unwrap_or_default())?;
            Err(Errno::NOSPC.into())
        }
    }
}

//! The figures of docs/figures.md: `make figures`.
//!
//! Roadstead runs as its own process in a release build. The upstream (the scripted one of the tests) and all clients are
//! this process and share the machine with it, so every time is compared with one of the same round.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a measurement that fails ends the run")]

mod cold;
mod memory;
#[path = "../support/mod.rs"]
mod support;
mod warm;

use std::process::ExitCode;

use support::stage::Stage;
use support::table::Table;

/// Each round has its own content, so that it is cold.
const ROUNDS: u64 = 5;

fn main() -> ExitCode {
    if cfg!(debug_assertions) {
        eprintln!("nothing is measured in a debug build: make figures");
        return ExitCode::SUCCESS;
    }
    let mut table = Table::new();
    let stage = Stage::new("");
    cold::many_clients(&stage, &mut table);
    cold::one_client(&stage, &mut table);
    warm::upstream_requests(&stage, &mut table);
    warm::speed(&stage, &mut table);
    drop(stage);
    memory::hundred_clients(&mut table);
    if table.all_reached() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

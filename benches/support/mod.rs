//! Shared code of the benches, beside the support of the tests: a client with minimal cost, process statistics from the
//! kernel, and tables.

#![allow(dead_code, reason = "each bench uses only part of this module")]

pub mod client;
pub mod hot;
pub mod process;
pub mod stage;
pub mod table;
#[path = "../../tests/it/support/mod.rs"]
pub mod tests;

//! What the benches that start servers share, beside what the tests stand on: a client that costs next to nothing, what
//! the kernel says of a process, and the tables.

#![allow(dead_code, reason = "every helper is here for some bench, not for each of them")]

pub mod client;
pub mod hot;
pub mod process;
pub mod stage;
pub mod table;
#[path = "../../tests/it/support/mod.rs"]
pub mod tests;

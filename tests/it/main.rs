//! All integration tests in one binary: it links once, and the modules share their support.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

#[path = "../clients/mod.rs"]
mod clients;
mod fills;
mod followers;
mod readers;
mod scene;
mod support;

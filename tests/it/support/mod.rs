//! The foundation of the tests: a scripted upstream, Roadstead itself, and clients.
//!
//! `upstream` is scripted with data (see `script`). `server` starts Roadstead in this process, `process` as the real
//! program. `client` is a well-behaved client, `raw` can misbehave.

#![allow(dead_code, unused_imports, reason = "the benches include this module and use only part of it")]

pub mod artifact;
pub mod auth;
pub mod authority;
pub mod client;
pub mod daemon;
pub mod http2;
pub mod image;
pub mod metrics;
pub mod mutants;
pub mod process;
pub mod push;
pub mod raw;
mod registry;
pub mod script;
mod self_test;
pub mod server;
mod server_test;
pub mod settings;
pub mod upstream;
pub mod wire;

pub use auth::Bearer;
pub use authority::Authority;
pub use client::{Answer, Client};
pub use image::{Content, Image, Index, digest_of, random_bytes};
pub use raw::{Conn, Ended};
pub use script::{Gate, Reply};
pub use server::TestServer;
pub use upstream::Upstream;

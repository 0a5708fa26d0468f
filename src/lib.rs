//! Roadstead: a container registry that takes pushes and keeps every image a cluster pulls close to hand.

#![forbid(unsafe_code)]

pub mod access;
pub mod cli;
pub mod config;
pub mod control;
pub mod events;
pub mod evict;
pub mod file;
pub mod http;
pub mod oci;
pub mod pull;
pub mod resolve;
pub mod server;
pub mod store;
pub mod tasks;
pub mod telemetry;
pub mod upstream;

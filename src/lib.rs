//! Roadstead: a container registry that takes pushes and keeps every image a cluster pulls close to hand.

#![forbid(unsafe_code)]

pub mod cli;
pub mod config;
pub mod oci;
pub mod store;
pub mod telemetry;

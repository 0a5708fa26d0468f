//! Roadstead: a container registry for pushes, and a pull-through cache of other registries.

#![forbid(unsafe_code)]

pub mod access;
pub mod audit;
pub mod cli;
pub mod config;
pub mod control;
pub mod events;
pub mod file;
pub mod housekeeping;
pub mod http;
pub mod import;
pub mod oci;
pub mod printable;
pub mod pull;
pub mod resolve;
pub mod server;
pub mod service_manager;
pub mod store;
pub mod tasks;
pub mod telemetry;
pub mod trust;
pub mod upstream;

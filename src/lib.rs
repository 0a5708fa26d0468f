//! Roadstead: a container registry that takes pushes and keeps every image a cluster pulls close to hand.

pub mod cli;
pub mod config;
pub mod telemetry;

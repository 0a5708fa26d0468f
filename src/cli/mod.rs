//! The command line: one file for each command, and here what they share.

mod check;
pub mod explain;
mod options;
mod runtime;
mod serve;

use std::io;

use clap::{Parser, Subcommand};

use crate::config::ConfigError;
use crate::server::StartError;
use crate::telemetry::logs::LogError;

/// A container registry that takes pushes, and keeps every image a cluster pulls close to hand.
#[derive(Debug, Parser)]
#[command(name = "roadstead", version, propagate_version = true)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve images: this is the registry itself.
    Serve(options::ConfigOptions),
    /// Say what is wrong with the configuration, or what is in force.
    Check(options::ConfigOptions),
    /// Say what an image name means here, and where it would come from.
    Explain(explain::Explain),
}

/// Why a command failed: one line.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Log(#[from] LogError),
    #[error(transparent)]
    Start(#[from] StartError),
    #[error("the runtime cannot be started: {0}")]
    Runtime(io::Error),
    #[error("cannot write to the standard output: {0}")]
    Output(io::Error),
}

// === impl Cli ===

impl Cli {
    pub fn run(self) -> Result<(), CliError> {
        match self.command {
            Command::Serve(options) => serve::run(options),
            Command::Check(options) => check::run(options),
            Command::Explain(explain) => explain.run(),
        }
    }
}

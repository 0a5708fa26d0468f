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
    /// Say what an image name means here, and where it would come from. It looks into the data folder: give it the
    /// options and variables that `serve` has.
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
    #[error("{image}: {error}")]
    Image { image: String, error: String },
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

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_declared_without_contradictions() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_options_of_the_contract_are_understood() {
        let all = "--config f --listen :1 --data d --upstream a.b=http://a --upstream c.d=http://c \
                   --default-upstream none --log-format json";
        for command in ["serve", "check", "explain busybox --output json"] {
            let line = format!("roadstead {command} {all}");
            assert!(Cli::try_parse_from(line.split_whitespace()).is_ok(), "{line}");
        }
    }
}

//! The command line: one file for each command, and here what they share.

mod backup;
mod check;
mod client;
mod client_config;
mod du;
pub mod explain;
mod gc;
mod options;
mod output;
#[cfg(test)]
mod reference;
mod runtime;
mod scrub;
mod serve;
mod session;

use std::io;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::config::ConfigError;
use crate::server::StartError;
use crate::store::{OpenError, StoreError};
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
    Serve(options::ServerOptions),
    /// Say what is wrong with the configuration, or what is in force.
    Check(options::ServerOptions),
    /// Say what an image name means here, and where it would come from. A running server answers; without one, give it the
    /// options and variables that `serve` has.
    Explain(explain::Explain),
    /// Print the file that makes a client pull through this server: Docker, containerd, k3s, k3d, kind, podman, buildkit.
    ClientConfig(client_config::ClientConfig),
    /// Say what takes how much room, by upstream and repository.
    Du(du::Du),
    /// Give back the room of what was deleted and of uploads that nothing refers to.
    Gc(gc::Gc),
    /// Read everything and say what is not what it should be; 1 is the exit code if something is damaged.
    Scrub(scrub::Scrub),
    /// Keep content from being unlinked while a backup copies it.
    BackupLease(backup::BackupLease),
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
    #[error("there is no data folder {}", .0.display())]
    NoFolder(PathBuf),
    #[error("cannot use the data folder {}: {error}", path.display())]
    Folder { path: PathBuf, error: OpenError },
    #[error("the server cannot do that: {0}")]
    Server(String),
    #[error("the server refuses: {0}")]
    Refused(String),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("it ended before everything was looked at")]
    Unfinished,
    #[error(transparent)]
    Unscrubbed(Box<CliError>),
    #[error("cannot run {program}: {error}")]
    Command { program: String, error: io::Error },
    #[error("the lease was lost on the way, for the server was stopped: the copy may lack content; make it again")]
    LeaseLost,
    #[error("the runtime cannot be started: {0}")]
    Runtime(io::Error),
    #[error("cannot write to the standard output: {0}")]
    Output(io::Error),
}

// === impl Cli ===

impl Cli {
    pub fn run(self) -> Result<ExitCode, CliError> {
        match self.command {
            Command::Serve(options) => serve::run(options)?,
            Command::Check(options) => check::run(options)?,
            Command::Explain(explain) => explain.run()?,
            Command::ClientConfig(client_config) => client_config.run()?,
            Command::Du(du) => du.run()?,
            Command::Gc(gc) => gc.run()?,
            Command::Scrub(scrub) => return scrub.run(),
            Command::BackupLease(lease) => return lease.run(),
        }
        Ok(ExitCode::SUCCESS)
    }
}

// === impl CliError ===

impl CliError {
    /// 1, but where that says that something was found.
    pub fn exit_code(&self) -> ExitCode {
        match self {
            Self::Unscrubbed(_) => ExitCode::from(2),
            _ => ExitCode::FAILURE,
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
        for command in [
            "serve",
            "serve /etc/docker/registry/config.yml",
            "check",
            "explain busybox --output json",
            "client-config podman --url http://cache:5000",
            "du --output json",
            "gc --dry-run --output json",
            "scrub --repair",
            "backup-lease --for 2h",
        ] {
            let line = format!("roadstead {command} {all}");
            assert!(Cli::try_parse_from(line.split_whitespace()).is_ok(), "{line}");
        }
    }
}

//! The command line: the commands and their errors. Each command has a file. One that talks to a running server has its
//! operation in `control`.

mod backup;
mod check;
mod client;
mod client_config;
mod du;
pub mod explain;
mod gc;
mod hash_password;
mod options;
mod output;
#[cfg(test)]
mod reference;
mod reload;
mod runtime;
mod scrub;
mod serve;
mod session;
mod token;

use std::io;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::access::PasswordError;
use crate::config::ConfigError;
use crate::printable::Printable;
use crate::server::StartError;
use crate::store::{OpenError, StoreError};
use crate::telemetry::logs::LogError;

/// A container registry for pushes, and a pull-through cache of other registries.
#[derive(Debug, Parser)]
#[command(name = "roadstead", version, propagate_version = true)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the registry.
    Serve(options::ServerOptions),
    /// Check the configuration: print the effective settings, or the error.
    Check(options::ServerOptions),
    /// Explain an image name or a request: its repository, its stored content, and the requests to the upstream that a pull
    /// would cause. A running server answers. Without one, give the options and environment variables of `serve`.
    Explain(explain::Explain),
    /// Print the configuration file that makes a client pull through this server.
    ClientConfig(client_config::ClientConfig),
    /// Show the disk usage by upstream and repository.
    Du(du::Du),
    /// Remove unreferenced content now: deleted content, and uploads that no manifest refers to.
    Gc(gc::Gc),
    /// Read all content and report corrupt or missing content. Exit code: 0 no damage, 1 damage, 2 the scrub failed.
    Scrub(scrub::Scrub),
    /// Let the running server read the rules and groups of [auth] again, as SIGHUP does. Other changed settings are named; they
    /// need a restart.
    Reload(reload::Reload),
    /// Read a password from the standard input and print its hash for the file of users (auth.htpasswd).
    HashPassword(hash_password::HashPassword),
    /// Make, list and revoke machine tokens: passwords for programs, whose rights rules give to token:NAME.
    Token(token::Token),
    /// Prevent removals of content while a backup copies the data folder.
    BackupLease(backup::BackupLease),
}

/// Why a command failed. Each message is one line.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Log(#[from] LogError),
    #[error(transparent)]
    Start(#[from] StartError),
    #[error("{}: {}", Printable(.image), Printable(.error))]
    Image { image: String, error: String },
    #[error("there is no data folder {}; name it with --data or storage.path", .0.display())]
    NoFolder(PathBuf),
    #[error("no server runs in the data folder {}; name the folder with --data or storage.path, or start the server", .0.display())]
    NoServer(PathBuf),
    #[error("cannot use the data folder {}: {error}", path.display())]
    Folder { path: PathBuf, error: OpenError },
    #[error("the running server failed: {0}; its log has details")]
    Server(String),
    #[error("the running server refused the request: {0}")]
    Refused(String),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("the operation ended before it was complete; run it again")]
    Unfinished,
    /// A scrub that failed, so that damage is unknown. It has its own exit code.
    #[error(transparent)]
    ScrubFailed(Box<CliError>),
    #[error("cannot run {program}: {error}")]
    Command { program: String, error: io::Error },
    #[error(
        "the lease was lost because the server stopped or restarted; the copy may be incomplete, so repeat the backup"
    )]
    LeaseLost,
    #[error("cannot start the threads of the command: {0}")]
    Runtime(io::Error),
    #[error("\"{}\" cannot be the name of a user: it is empty, has a colon or a space, is too long or has a meaning in rules", Printable(.0))]
    UserName(String),
    #[error(transparent)]
    Password(PasswordError),
    #[error("{}", Printable(.0))]
    Token(String),
    #[error("cannot read the standard input: {0}")]
    Input(io::Error),
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
            Command::Reload(reload) => reload.run()?,
            Command::HashPassword(hash_password) => hash_password.run()?,
            Command::Token(token) => token.run()?,
            Command::BackupLease(lease) => return lease.run(),
        }
        Ok(ExitCode::SUCCESS)
    }
}

// === impl CliError ===

impl CliError {
    /// Returns 2 for a scrub that failed, because 1 means that a scrub found damage; otherwise 1.
    pub fn exit_code(&self) -> ExitCode {
        match self {
            Self::ScrubFailed(_) => ExitCode::from(2),
            _ => ExitCode::FAILURE,
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_documented_option_parses() {
        let all = "--config f --listen :1 --data d --upstream a.b=http://a --upstream c.d=http://c \
                   --default-upstream none --log-format json";
        for command in [
            "serve",
            "serve /etc/docker/registry/config.yml",
            "check",
            "explain busybox --as ann --output json",
            "client-config podman --url http://cache:5000",
            "du --output json",
            "gc --dry-run --output json",
            "scrub --repair",
            "token create ci --expires 90d --output json",
            "token list --output json",
            "token revoke ci",
            "backup-lease --for 2h",
            "reload",
        ] {
            let line = format!("roadstead {command} {all}");
            assert!(Cli::try_parse_from(line.split_whitespace()).is_ok(), "{line}");
        }
    }
}

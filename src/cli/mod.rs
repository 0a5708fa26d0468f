//! The command line: the commands, an example of each, and their errors. Each command has a file. One that talks to a
//! running server has its operation in `control`.

mod backup;
mod check;
mod client;
mod client_config;
mod completions;
mod du;
pub mod explain;
mod gc;
mod hash_password;
mod health;
mod import;
mod man;
mod options;
mod output;
mod prepare_data;
#[cfg(test)]
mod reference;
mod reload;
mod runtime;
mod scrub;
mod serve;
mod session;
mod token;

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::access::PasswordError;
use crate::config::ConfigError;
use crate::printable::Printable;
use crate::server::StartError;
use crate::store::{OpenError, StoreError};
use crate::telemetry::logs::LogError;
use client_config::HostsError;
use prepare_data::PrepareDataError;

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
    #[command(after_help = "Example:\n  roadstead serve --listen :5000 --data /srv/images")]
    Serve(options::ServerOptions),
    /// Check the configuration: print the effective settings, or the error.
    #[command(after_help = "Example:\n  roadstead check --config /etc/roadstead/roadstead.toml")]
    Check(options::ServerOptions),
    /// Explain an image name or a request: its repository, its stored content, and the requests to the upstream that a pull
    /// would cause. A running server answers. Without one, give the options and environment variables of `serve`.
    #[command(
        after_help = "Examples:\n  roadstead explain quay.io/prometheus/prometheus:v3.0.0\n  roadstead explain '/v2/library/alpine/manifests/3?ns=docker.io'"
    )]
    Explain(explain::Explain),
    /// Print the configuration file that makes a client pull through this server. For containerd, --write changes the files on
    /// this machine instead.
    #[command(
        after_help = "Examples:\n  roadstead client-config k3s --url http://10.0.0.5:5000\n  roadstead client-config containerd --url http://127.0.0.1:5000 --write /etc/containerd/certs.d"
    )]
    ClientConfig(client_config::ClientConfig),
    /// Create the data folder for a server that runs as another user. Run it as root, such as in an init container.
    #[command(after_help = "Example:\n  roadstead prepare-data --data /var/lib/registry --owner 65532:65532")]
    PrepareData(prepare_data::PrepareData),
    /// Show the disk usage by upstream and repository.
    #[command(after_help = "Example:\n  roadstead du --output json")]
    Du(du::Du),
    /// Remove unreferenced content now: deleted content, and uploads that no manifest refers to.
    #[command(after_help = "Example:\n  roadstead gc --dry-run")]
    Gc(gc::Gc),
    /// Read all content and report corrupt or missing content. Exit code: 0 no damage, 1 damage, 2 the scrub failed.
    #[command(after_help = "Example:\n  roadstead scrub --repair")]
    Scrub(scrub::Scrub),
    /// Take over images from the folder of a registry:2, an OCI layout or an archive of docker save. What is here already is
    /// not copied again, so it can be repeated. Exit code: 0 everything is here, 1 something is not, or the command failed.
    #[command(after_help = "Example:\n  roadstead import /var/lib/registry")]
    Import(import::Import),
    /// Let the running server read the rules and groups of [auth] again, as SIGHUP does. Other changed settings are named; they
    /// need a restart.
    #[command(after_help = "Example:\n  roadstead reload")]
    Reload(reload::Reload),
    /// Read a password from the standard input and print its hash for the file of users (auth.htpasswd).
    #[command(after_help = "Example:\n  roadstead hash-password --user ann")]
    HashPassword(hash_password::HashPassword),
    /// Make, list and revoke machine tokens: passwords for programs, whose rights rules give to token:NAME.
    #[command(after_help = "Examples:\n  roadstead token create ci --expires 90d\n  roadstead token revoke ci")]
    Token(token::Token),
    /// Ask whether a server is ready. Exit code: 0 it is ready, 1 it is not, and the standard error stream says why.
    #[command(after_help = "Examples:\n  roadstead health\n  roadstead health https://registry.example.com")]
    Health(health::Health),
    /// Print the completion script for a shell.
    #[command(after_help = "Example:\n  roadstead completions bash")]
    Completions(completions::Completions),
    /// Write the manual pages.
    #[command(after_help = "Example:\n  roadstead man /usr/local/share/man/man1")]
    Man(man::Man),
    /// Prevent removals of content while a backup copies the data folder.
    #[command(after_help = "Example:\n  roadstead backup-lease -- cp -a /var/lib/roadstead /backup")]
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
    #[error(
        "the data folder {} belongs to the user with the id {owner}, who could not read what you import; run the command as \
         that user, or let the running server import",
        path.display()
    )]
    NotOwner { path: PathBuf, owner: u32 },
    #[error("{}", Printable(.0))]
    Import(String),
    #[error("the running server failed: {0}; its log has details")]
    Server(String),
    #[error("the running server refused the request: {0}")]
    Refused(String),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Hosts(#[from] HostsError),
    #[error("--write is for containerd; for other clients, redirect the output to the file that it names")]
    NotWritten,
    #[error(transparent)]
    PrepareData(#[from] PrepareDataError),
    #[error("cannot wait for signals: {0}")]
    Signals(io::Error),
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
    /// The server that a health check asked is not ready.
    #[error("{} is not ready: {}", Printable(.url), Printable(.cause))]
    Unhealthy { url: String, cause: String },
    #[error("cannot write the manual pages to {}: {error}", folder.display())]
    Pages { folder: PathBuf, error: io::Error },
    #[error("cannot read the standard input: {0}")]
    Input(io::Error),
    #[error("cannot write to the standard output: {0}")]
    Output(io::Error),
}

// === impl Cli ===

impl Cli {
    /// Parses the command line. The `registry:2` image is started with its configuration file as the only argument, so a
    /// sole argument that ends in `.yml` or `.yaml` is a file to serve.
    ///
    /// # Errors
    /// With the text for the user, which is the help if that was asked for.
    pub fn from_arguments(arguments: impl IntoIterator<Item = OsString>) -> Result<Self, clap::Error> {
        let mut arguments: Vec<_> = arguments.into_iter().collect();
        if let [_, file] = arguments.as_slice()
            && Path::new(file).extension().is_some_and(|end| end == "yml" || end == "yaml")
        {
            arguments.insert(1, "serve".into());
        }
        Self::try_parse_from(arguments)
    }

    pub fn run(self) -> Result<ExitCode, CliError> {
        match self.command {
            Command::Serve(options) => serve::run(options)?,
            Command::Check(options) => check::run(options)?,
            Command::Explain(explain) => explain.run()?,
            Command::ClientConfig(client_config) => client_config.run()?,
            Command::PrepareData(prepare) => prepare.run()?,
            Command::Du(du) => du.run()?,
            Command::Gc(gc) => gc.run()?,
            Command::Scrub(scrub) => return scrub.run(),
            Command::Import(import) => return import.run(),
            Command::Reload(reload) => reload.run()?,
            Command::HashPassword(hash_password) => hash_password.run()?,
            Command::Token(token) => token.run()?,
            Command::Health(health) => health.run()?,
            Command::Completions(completions) => completions.run()?,
            Command::Man(man) => man.run()?,
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
    fn every_command_has_an_example_that_parses() {
        for command in Cli::command().get_subcommands() {
            let examples = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            let lines: Vec<_> = examples.lines().filter_map(|line| line.strip_prefix("  ")).collect();
            assert!(!lines.is_empty(), "{} has no example", command.get_name());
            for line in lines {
                let words = line.split_whitespace().map(|word| word.trim_matches('\''));
                assert_eq!(words.clone().nth(1), Some(command.get_name()), "{line}");
                assert!(Cli::try_parse_from(words).is_ok(), "{line}");
            }
        }
    }

    #[test]
    fn sole_yaml_file_is_served() {
        let parse = |line: &str| Cli::from_arguments(line.split(' ').map(OsString::from));
        for line in ["roadstead /etc/docker/registry/config.yml", "roadstead config.yaml"] {
            assert!(matches!(parse(line), Ok(Cli { command: Command::Serve(_) })), "{line}");
        }
        for line in ["roadstead config.toml", "roadstead config.yml --data /d", "roadstead yml"] {
            assert!(parse(line).is_err(), "{line}");
        }
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
            "client-config containerd --url http://cache:5000 --write d --force --until-stopped",
            "client-config containerd --write d --remove",
            "prepare-data --owner 65532:65532",
            "du --output json",
            "gc --dry-run --output json",
            "scrub --repair",
            "import /var/lib/registry --proxied docker.io --dry-run --output json",
            "import images.tar --repository team/app",
            "token create ci --expires 90d --output json",
            "token list --output json",
            "token revoke ci",
            "backup-lease --for 2h",
            "reload",
            "health http://cache:5000",
        ] {
            let line = format!("roadstead {command} {all}");
            assert!(Cli::try_parse_from(line.split_whitespace()).is_ok(), "{line}");
        }
    }
}

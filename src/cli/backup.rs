//! `roadstead backup-lease`: prevents removals of content while a backup copies the data folder.
//!
//! With a command, it takes a lease, runs the command, renews the lease, and releases it when the command has ended. If no
//! server runs, the lock of the data folder takes the place of the lease.

use std::io::{self, IsTerminal};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{ExitCode, ExitStatus};
use std::time::Duration;

use clap::Args;
use rustix::process::{Pid, Signal, kill_process};
use tokio::process::Command;
use tokio::signal::unix::{SignalKind, signal};

use super::client::Client;
use super::options::ConfigOptions;
use super::output::print;
use super::session::Session;
use super::{CliError, runtime};
use crate::config::{Config, format_duration};
use crate::control::lease::{Lease, LeaseRequest, ReleaseRequest, Released};

/// The name of the lease that is taken without a command.
const MANUAL_LEASE: &str = "backup";
/// How long the lease of a command lasts without a renewal.
const COMMAND_LEASE_TIME: Duration = Duration::from_secs(10 * 60);
const RENEWAL_INTERVAL: Duration = Duration::from_secs(10);
/// Shells report a command that a signal has ended with this plus the number of the signal.
const SIGNAL_EXIT_CODE_BASE: i32 = 128;

#[derive(Args, Debug)]
pub struct BackupLease {
    /// How long the lease lasts if no command is given. Taking it again renews it.
    #[arg(long = "for", value_name = "TIME", default_value = "1h", conflicts_with = "command",
          value_parser = humantime::parse_duration)]
    time: Duration,

    /// End the lease that was taken without a command.
    #[arg(long, conflicts_with_all = ["time", "command"])]
    release: bool,

    #[command(flatten)]
    options: ConfigOptions,

    /// The backup command. The lease lasts as long as it runs. Its exit code is returned.
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<String>,
}

// === impl BackupLease ===

impl BackupLease {
    pub(super) fn run(self) -> Result<ExitCode, CliError> {
        let config = self.options.clone().load()?;
        runtime::block_on(self.lease(&config))?
    }

    async fn lease(self, config: &Config) -> Result<ExitCode, CliError> {
        let session = Session::open(config).await?;
        let mut command = self.command.into_iter();
        match (session, command.next()) {
            (Session::Server(_), Some(program)) => under_lease(&config.storage.path, &program, command.collect()).await,
            (Session::Folder(store), Some(program)) => {
                let ended = run(&program, command.collect()).await;
                store.close().await;
                ended
            }
            (Session::Server(mut server), None) if self.release => {
                let released: Released =
                    server.call("release", &ReleaseRequest { name: MANUAL_LEASE.to_owned() }).await?;
                let text = if released.was_held { "the lease was released\n" } else { "there was no lease\n" };
                print(text).map(|()| ExitCode::SUCCESS)
            }
            (Session::Server(mut server), None) => {
                let _: Lease = server.call("lease", &lease_request(MANUAL_LEASE, self.time, false)).await?;
                let time = format_duration(self.time);
                print(&format!("no content is removed for {time}, or until backup-lease --release\n"))?;
                Ok(ExitCode::SUCCESS)
            }
            (Session::Folder(store), None) => {
                store.close().await;
                print("no server runs on this data folder, so nothing is removed until one is started\n")?;
                Ok(ExitCode::SUCCESS)
            }
        }
    }
}

async fn under_lease(data: &Path, program: &str, arguments: Vec<String>) -> Result<ExitCode, CliError> {
    let name = uuid::Uuid::new_v4().to_string();
    let _: Lease = connect(data).await?.call("lease", &lease_request(&name, COMMAND_LEASE_TIME, false)).await?;
    let mut running = std::pin::pin!(run(program, arguments));
    let mut turns = tokio::time::interval(RENEWAL_INTERVAL);
    turns.tick().await;
    let mut unbroken = true;
    let ended = loop {
        tokio::select! {
            ended = &mut running => break ended,
            _ = turns.tick() => {
                unbroken &= renew(data, &name).await.is_ok_and(|lease| lease.unbroken);
            }
        }
    };
    let released = release(data, name).await;
    // It must have been held at the end as well: a server that was restarted has no leases.
    let held = unbroken && released.is_ok_and(|released| released.was_held);
    ended.and_then(|code| if held { Ok(code) } else { Err(CliError::LeaseLost) })
}

// Each call has a connection of its own, because the server closes idle ones long before a backup ends.

async fn renew(data: &Path, name: &str) -> Result<Lease, CliError> {
    connect(data).await?.call("lease", &lease_request(name, COMMAND_LEASE_TIME, true)).await
}

async fn release(data: &Path, name: String) -> Result<Released, CliError> {
    connect(data).await?.call("release", &ReleaseRequest { name }).await
}

async fn connect(data: &Path) -> Result<Client, CliError> {
    Client::connect(data).await?.ok_or(CliError::LeaseLost)
}

fn lease_request(name: &str, time: Duration, renew: bool) -> LeaseRequest {
    LeaseRequest { name: name.to_owned(), seconds: time.as_secs(), renew }
}

/// Runs the backup command to its end. Signals are passed on to it.
async fn run(program: &str, arguments: Vec<String>) -> Result<ExitCode, CliError> {
    let failed = |error| CliError::Command { program: program.to_owned(), error };
    let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
    let mut child = Command::new(program).args(arguments).kill_on_drop(true).spawn().map_err(failed)?;
    // A terminal sends SIGINT to the command as well, and many programs take a second one as a request to stop at once.
    let by_terminal = io::stdin().is_terminal();
    loop {
        let forwarded = tokio::select! {
            status = child.wait() => return Ok(exit_code(status.map_err(failed)?)),
            _ = interrupt.recv() => (!by_terminal).then_some(Signal::INT),
            _ = terminate.recv() => Some(Signal::TERM),
        };
        let child = child.id().and_then(|id| Pid::from_raw(id.cast_signed()));
        if let (Some(forwarded), Some(child)) = (forwarded, child) {
            // The command may have ended in the meantime.
            let _ = kill_process(child, forwarded);
        }
    }
}

/// The exit code of a command; as in shells if a signal has ended it.
fn exit_code(status: ExitStatus) -> ExitCode {
    let code = status.code().or_else(|| Some(SIGNAL_EXIT_CODE_BASE + status.signal()?));
    code.and_then(|code| u8::try_from(code).ok()).map_or(ExitCode::FAILURE, ExitCode::from)
}

//! `roadstead backup-lease`: while a backup copies, no content is unlinked.
//!
//! With a command it runs that one under a lease of its own, renews it, and ends it with the command. On a folder that
//! nobody serves the lock is the lease.

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
use crate::control::lease::{Lease, Question, Release, Released};

/// The lease of who takes one and goes.
const BY_HAND: &str = "backup";
/// What a lease lasts that is renewed as long as a command runs; and how often it is.
const RENEWED: Duration = Duration::from_secs(10 * 60);
const RENEW_EVERY: Duration = Duration::from_secs(10);
/// Added to the number of the signal that ended a command.
const SIGNALLED: i32 = 128;

#[derive(Args, Debug)]
pub struct BackupLease {
    /// How long the lease lasts if no command is given; taking it again renews it.
    #[arg(long = "for", value_name = "TIME", default_value = "1h", conflicts_with = "command",
          value_parser = humantime::parse_duration)]
    time: Duration,

    /// End the lease that was taken without a command.
    #[arg(long, conflicts_with_all = ["time", "command"])]
    release: bool,

    #[command(flatten)]
    options: ConfigOptions,

    /// The backup: the lease lasts as long as it runs, and its exit code is ours.
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
                let released: Released = server.call("release", &Release { name: BY_HAND.to_owned() }).await?;
                let said = if released.was_held { "the lease has ended\n" } else { "there was no lease\n" };
                print(said).map(|()| ExitCode::SUCCESS)
            }
            (Session::Server(mut server), None) => {
                let _: Lease = server.call("lease", &question(BY_HAND, self.time, false)).await?;
                let time = format_duration(self.time);
                print(&format!("no content is unlinked for {time}, or until backup-lease --release\n"))?;
                Ok(ExitCode::SUCCESS)
            }
            (Session::Folder(store), None) => {
                store.close().await;
                print("no server runs on this data folder: nothing is unlinked as long as none is started\n")?;
                Ok(ExitCode::SUCCESS)
            }
        }
    }
}

async fn under_lease(data: &Path, program: &str, arguments: Vec<String>) -> Result<ExitCode, CliError> {
    let name = uuid::Uuid::new_v4().to_string();
    let _: Lease = connect(data).await?.call("lease", &question(&name, RENEWED, false)).await?;
    let mut running = std::pin::pin!(run(program, arguments));
    let mut turns = tokio::time::interval(RENEW_EVERY);
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
    // Renewed or not, it must have been held at the end: a server that was started anew knows nothing of it.
    let held = unbroken && released.is_ok_and(|released| released.was_held);
    ended.and_then(|code| if held { Ok(code) } else { Err(CliError::LeaseLost) })
}

// Each over a connection of its own: the server keeps none that is idle for as long as a backup takes.

async fn renew(data: &Path, name: &str) -> Result<Lease, CliError> {
    connect(data).await?.call("lease", &question(name, RENEWED, true)).await
}

async fn release(data: &Path, name: String) -> Result<Released, CliError> {
    connect(data).await?.call("release", &Release { name }).await
}

async fn connect(data: &Path) -> Result<Client, CliError> {
    Client::connect(data).await?.ok_or(CliError::LeaseLost)
}

fn question(name: &str, time: Duration, renew: bool) -> Question {
    Question { name: name.to_owned(), seconds: time.as_secs(), renew }
}

/// Runs the backup to its end. A signal to us is for it: it ends, and we with it.
async fn run(program: &str, arguments: Vec<String>) -> Result<ExitCode, CliError> {
    let failed = |error| CliError::Command { program: program.to_owned(), error };
    let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
    let mut child = Command::new(program).args(arguments).kill_on_drop(true).spawn().map_err(failed)?;
    // The terminal interrupts all that run in it, and to many programs twice means at once.
    let by_terminal = io::stdin().is_terminal();
    loop {
        let passed_on = tokio::select! {
            status = child.wait() => return Ok(exit_code(status.map_err(failed)?)),
            _ = interrupt.recv() => (!by_terminal).then_some(Signal::INT),
            _ = terminate.recv() => Some(Signal::TERM),
        };
        let child = child.id().and_then(|id| Pid::from_raw(id.cast_signed()));
        if let (Some(passed_on), Some(child)) = (passed_on, child) {
            // It may have ended just now.
            let _ = kill_process(child, passed_on);
        }
    }
}

/// As shells have it for who was ended by a signal.
fn exit_code(status: ExitStatus) -> ExitCode {
    let code = status.code().or_else(|| Some(SIGNALLED + status.signal()?));
    code.and_then(|code| u8::try_from(code).ok()).map_or(ExitCode::FAILURE, ExitCode::from)
}

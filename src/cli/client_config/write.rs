//! `client-config containerd --write DIR`: changes containerd's folder instead of printing a file. A pod does this on each
//! node of a cluster, for as long as it runs.

use std::path::{Path, PathBuf};

use clap::Args;
use tokio::signal::unix::{SignalKind, signal};

use super::containerd;
use super::hosts_folder::{Change, HostsFolder};
use super::server_url::ServerUrl;
use crate::cli::output::print;
use crate::cli::{CliError, runtime};

#[derive(Args, Debug)]
pub(super) struct WriteOptions {
    /// Write the files of containerd into this folder instead of printing them: the folder that its config_path names, such as
    /// /etc/containerd/certs.d. A file that Roadstead has not written is an error, and nothing is changed then.
    #[arg(long, value_name = "DIR")]
    write: Option<PathBuf>,

    /// With --write: remove the written files, and put back those that --force has saved. With --url, only the files for
    /// that server.
    #[arg(long, requires = "write", conflicts_with_all = ["force", "until_stopped"])]
    remove: bool,

    /// With --write: replace files that Roadstead has not written. They are saved as hosts.toml.roadstead-saved.
    #[arg(long, requires = "write")]
    force: bool,

    /// With --write: keep running, and remove the files for this server when the command is stopped (SIGTERM or SIGINT).
    #[arg(long, requires = "write")]
    until_stopped: bool,
}

// === impl WriteOptions ===

impl WriteOptions {
    /// The folder to write to; without one, the file is printed.
    pub(super) fn folder(&self) -> Option<&Path> {
        self.write.as_deref()
    }

    /// Writes or removes the files, and prints a line for each.
    pub(super) fn run(&self, folder: &Path, url: Option<&ServerUrl>) -> Result<(), CliError> {
        match url {
            _ if self.remove => remove(folder, url),
            Some(url) if self.until_stopped => runtime::block_on(self.write_until_stopped(folder, url))?,
            Some(url) => write(folder, url, self.force),
            // The command line requires a URL for everything but --remove.
            None => Ok(()),
        }
    }

    async fn write_until_stopped(&self, folder: &Path, url: &ServerUrl) -> Result<(), CliError> {
        // Before the files exist, so that no signal leaves them behind.
        let mut terminate = signal(SignalKind::terminate()).map_err(CliError::Signals)?;
        let mut interrupt = signal(SignalKind::interrupt()).map_err(CliError::Signals)?;
        let (path, server, force) = (folder.to_owned(), url.clone(), self.force);
        in_background(move || write(&path, &server, force)).await?;
        print("the files are removed when this command is stopped\n")?;
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        let (path, server) = (folder.to_owned(), url.clone());
        in_background(move || remove(&path, Some(&server))).await
    }
}

/// Runs file operations where they may block.
async fn in_background(work: impl FnOnce() -> Result<(), CliError> + Send + 'static) -> Result<(), CliError> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| Err(CliError::Runtime(error.into())))
}

fn write(folder: &Path, url: &ServerUrl, force: bool) -> Result<(), CliError> {
    report(&HostsFolder::create(folder)?.write(url, &containerd::hosts_files(url), force)?)
}

fn remove(folder: &Path, url: Option<&ServerUrl>) -> Result<(), CliError> {
    match HostsFolder::open(folder)? {
        Some(folder) => report(&folder.remove(url)?),
        None => Ok(()),
    }
}

fn report(changes: &[Change]) -> Result<(), CliError> {
    print(&changes.iter().map(|change| format!("{change}\n")).collect::<String>())
}

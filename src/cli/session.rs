//! What a command works on: the running server of a data folder, or the folder itself, which it locks.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use super::CliError;
use super::client::Client;
use crate::config::Config;
use crate::events::Events;
use crate::server;
use crate::store::{OpenError, Store, StoreError};

pub enum Session {
    /// A server runs on the data folder.
    Server(Client),
    /// No server runs: the folder is open and locked.
    Folder(Store),
}

impl Session {
    /// Connects to the server of the configured data folder, or opens the folder if no server runs.
    ///
    /// # Errors
    /// [`CliError::NoFolder`] if the folder does not exist; it is not created.
    pub async fn open(config: &Config) -> Result<Self, CliError> {
        let path = config.storage.path.clone();
        if let Some(server) = Client::connect(&path).await? {
            return Ok(Self::Server(server));
        }
        // Opening a folder would create it.
        if !path.join("blobs").is_dir() {
            return Err(CliError::NoFolder(path));
        }
        let (opening, read_only) = (path.clone(), config.storage.read_only);
        let open =
            move || if read_only { Store::open_read_only(&opening, Events::default()) } else { Store::open(&opening) };
        opened(path, open).await.map(Self::Folder)
    }

    /// As [`Session::open`], for a command that adds content: the folder is created if it does not exist, has the bounds of a
    /// server, and its index agrees with its files.
    ///
    /// # Errors
    /// [`CliError::NotOwner`] if the folder belongs to another user, who could not read what this one writes.
    pub async fn open_to_add(config: &Config) -> Result<Self, CliError> {
        let path = config.storage.path.clone();
        if let Some(server) = Client::connect(&path).await? {
            return Ok(Self::Server(server));
        }
        if config.storage.read_only {
            return Err(StoreError::ReadOnly.into());
        }
        require_owner(&path)?;
        let (opening, settings) = (path.clone(), config.clone());
        let open = move || Store::open_with(&opening, server::store_settings(&settings, Events::default()));
        let store = opened(path, open).await?;
        reconcile(&store).await?;
        Ok(Self::Folder(store))
    }
}

/// Opens a store on the blocking pool.
async fn opened(
    path: PathBuf,
    open: impl FnOnce() -> Result<Store, OpenError> + Send + 'static,
) -> Result<Store, CliError> {
    let opened = tokio::task::spawn_blocking(open).await.map_err(|error| CliError::Server(error.to_string()))?;
    opened.map_err(|error| CliError::Folder { path, error })
}

/// Makes the index of a folder agree with its files.
pub async fn reconcile(store: &Store) -> Result<(), CliError> {
    let walked = store.clone();
    let walk = tokio::task::spawn_blocking(move || {
        if walked.needs_reconcile() && !walked.is_read_only() {
            walked.reconcile(&AtomicBool::new(false));
        }
    });
    walk.await.map_err(|error| CliError::Server(error.to_string()))
}

fn require_owner(path: &Path) -> Result<(), CliError> {
    let Ok(owner) = std::fs::metadata(path).map(|folder| folder.uid()) else { return Ok(()) };
    let is_own = owner == rustix::process::geteuid().as_raw();
    if is_own { Ok(()) } else { Err(CliError::NotOwner { path: path.to_owned(), owner }) }
}

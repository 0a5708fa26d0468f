//! What a command works on: the running server of a data folder, or the folder itself, which it locks.

use super::CliError;
use super::client::Client;
use crate::config::Config;
use crate::events::Events;
use crate::store::Store;

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
        let opened = tokio::task::spawn_blocking(open).await;
        let opened = opened.map_err(|error| CliError::Server(error.to_string()))?;
        Ok(Self::Folder(opened.map_err(|error| CliError::Folder { path, error })?))
    }
}

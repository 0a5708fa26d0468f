//! `roadstead man`: writes the manual pages.

use std::path::{Path, PathBuf};

use clap::{Args, CommandFactory};

use super::{Cli, CliError};

#[derive(Args, Debug)]
pub struct Man {
    /// The folder for the pages, such as /usr/local/share/man/man1. It is created if it does not exist.
    #[arg(value_name = "DIR")]
    folder: PathBuf,
}

// === impl Man ===

impl Man {
    pub(super) fn run(self) -> Result<(), CliError> {
        write(&self.folder).map_err(|error| CliError::Pages { folder: self.folder, error })
    }
}

/// Writes a page for the program and one for each command.
fn write(folder: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(folder)?;
    clap_mangen::generate_to(Cli::command(), folder)
}

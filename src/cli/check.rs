//! `roadstead check`: what is in force on the standard output, what is worth a look on the standard error stream.

use std::io::{self, Write};

use super::CliError;
use super::options::ServerOptions;

pub fn run(options: ServerOptions) -> Result<(), CliError> {
    let config = options.load()?;
    io::stdout().write_all(config.to_toml().as_bytes()).map_err(CliError::Output)?;
    let mut stderr = io::stderr();
    for warning in config.warnings() {
        writeln!(stderr, "warning: {warning}").map_err(CliError::Output)?;
    }
    Ok(())
}

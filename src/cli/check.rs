//! `roadstead check`: prints the effective settings to the standard output, and warnings to the standard error stream. A
//! configuration or a TLS file that would prevent a start is an error.

use std::io::{self, Write};

use super::CliError;
use super::options::ServerOptions;
use super::output::print;
use crate::http::tls::Certificates;
use crate::printable;
use crate::server::StartError;

pub fn run(options: ServerOptions) -> Result<(), CliError> {
    let config = options.load()?;
    if let Some(files) = &config.server.tls {
        Certificates::load(files).map_err(StartError::Tls)?;
    }
    print(&config.to_toml())?;
    let mut stderr = io::stderr();
    for warning in config.warnings() {
        writeln!(stderr, "warning: {}", printable::lines(&warning)).map_err(CliError::Output)?;
    }
    Ok(())
}

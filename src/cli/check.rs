//! `roadstead check`: prints the effective settings to the standard output, and warnings to the standard error stream. A
//! configuration, a TLS file or a file of users that would prevent a start is an error.

use std::io::{self, Write};

use super::CliError;
use super::options::ServerOptions;
use super::output::print;
use crate::access::Login;
use crate::http::tls::Certificates;
use crate::printable;
use crate::server::StartError;
use crate::store::disk_bytes;

pub fn run(options: ServerOptions) -> Result<(), CliError> {
    let config = options.load()?;
    if let Some(files) = &config.server.tls {
        Certificates::load(files).map_err(StartError::Tls)?;
    }
    if let Some(auth) = &config.auth {
        Login::check(auth).map_err(StartError::Auth)?;
    }
    let disk_bytes = disk_bytes(&config.storage.path);
    print(&config.to_toml(disk_bytes))?;
    let mut stderr = io::stderr();
    for warning in config.warnings(disk_bytes) {
        writeln!(stderr, "warning: {}", printable::lines(&warning)).map_err(CliError::Output)?;
    }
    Ok(())
}

//! `roadstead serve`: runs the registry.

use rustix::fs::Mode;
use rustix::process::umask;

use super::options::ServerOptions;
use super::{CliError, runtime};
use crate::server;
use crate::telemetry::logs;

/// Removes all permissions of other users and none of the server's user. Without the owner's write permission, cached
/// content would look like pushed content.
const UMASK: Mode = Mode::from_raw_mode(0o077);

pub fn run(options: ServerOptions) -> Result<(), CliError> {
    umask(UMASK);
    let config = options.clone().load()?;
    let _flush = logs::init(config.log.format)?;
    Ok(runtime::block_on(server::run(config, Box::new(move || options.clone().load())))??)
}

//! `roadstead serve`: runs the registry.

use super::options::ServerOptions;
use super::{CliError, runtime};
use crate::server;
use crate::telemetry::logs;

pub fn run(options: ServerOptions) -> Result<(), CliError> {
    runtime::set_umask();
    let config = options.clone().load()?;
    let _flush = logs::init(config.log.format)?;
    Ok(runtime::block_on(server::run(config, Box::new(move || options.clone().load())))??)
}

//! `roadstead serve`: runs the registry.

use super::options::ServerOptions;
use super::{CliError, runtime};
use crate::server;
use crate::telemetry::logs;

pub fn run(options: ServerOptions) -> Result<(), CliError> {
    let config = options.load()?;
    let _flush = logs::init(config.log.format)?;
    Ok(runtime::block_on(server::run(config))??)
}

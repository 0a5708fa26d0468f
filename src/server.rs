//! A stand-in until the server is there.

use crate::config::Config;

#[derive(Debug, thiserror::Error)]
#[error("there is no server yet")]
pub struct StartError;

pub async fn run(_config: Config) -> Result<(), StartError> {
    Err(StartError)
}

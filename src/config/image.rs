//! Defaults inside the container image. They are below every file and variable, so that the settings of a container that
//! ran `registry:2` still apply.

use std::path::PathBuf;

use super::ConfigError;
use super::error::SourceLocation;
use super::layer::{Layer, Located};

/// The variable that the image sets. Any value that is not empty counts.
pub(super) const IMAGE_VARIABLE: &str = "ROADSTEAD_IMAGE";

/// All addresses, because a container is reached by its own address.
const LISTEN: &str = ":5000";

/// Where a configuration file is mounted into the image.
const CONFIG_FILES: [&str; 1] = ["/etc/roadstead/roadstead.toml"];

/// Where the images `registry:3` and `registry:2` have their configuration file, in this order.
const REGISTRY_FILES: [&str; 2] = ["/etc/distribution/config.yml", "/etc/docker/registry/config.yml"];

/// The configuration file that is mounted into the image.
pub(super) fn config_file() -> Option<PathBuf> {
    first_existing(&CONFIG_FILES)
}

/// The configuration file of `registry:2` that is mounted into the image.
pub(super) fn registry_file() -> Option<PathBuf> {
    first_existing(&REGISTRY_FILES)
}

/// A folder counts too: Docker makes one if the file to mount does not exist, and reading it then names the mistake.
fn first_existing(files: &[&str]) -> Option<PathBuf> {
    files.iter().map(PathBuf::from).find(|path| path.exists())
}

/// The lowest layer of the configuration.
///
/// # Errors
/// None that can be reached: the address is valid.
pub(super) fn layer() -> Result<Layer, ConfigError> {
    let mut layer = Layer::default();
    layer.server.listen = Some(Located::from_text(LISTEN, &SourceLocation::Variable(IMAGE_VARIABLE.to_owned()))?);
    Ok(layer)
}

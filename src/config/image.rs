//! Defaults inside the container image. They are below every file and variable, so that the settings of a container that
//! ran `registry:2` still apply.

use std::io::ErrorKind;
use std::path::PathBuf;

use super::ConfigError;
use super::error::SourceLocation;
use super::layer::{Layer, Located};

/// The variable that the image sets. Any value that is not empty counts.
pub const IMAGE_VARIABLE: &str = "ROADSTEAD_IMAGE";

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

/// Everything that is there counts, also what cannot be read: without its configuration, the server could be open to
/// everybody. Reading it then names the mistake. Docker makes a folder if the file to mount does not exist.
fn first_existing(files: &[&str]) -> Option<PathBuf> {
    let is_absent = |path: &PathBuf| {
        let error = path.symlink_metadata().err().map(|error| error.kind());
        matches!(error, Some(ErrorKind::NotFound | ErrorKind::NotADirectory))
    };
    files.iter().map(PathBuf::from).find(|path| !is_absent(path))
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

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn what_cannot_be_read_counts_as_a_configuration_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
        std::fs::write(path("file"), "").unwrap();
        symlink("nowhere", path("dangling")).unwrap();
        symlink("loop", path("loop")).unwrap();
        for name in ["file", "dangling", "loop"] {
            assert_eq!(first_existing(&[&path("absent"), &path("file/below"), &path(name)]), Some(path(name).into()));
        }
        assert_eq!(first_existing(&[&path("absent")]), None);
    }
}

//! Builds single values from their keys: defaults, hosts and files.

use std::path::PathBuf;

use super::ConfigError;
use super::error::SourceLocation;
use super::layer::Located;
use super::value::Positive;

/// The value of a key, or its default.
pub(super) fn value<T>(located: Option<Located<T>>, default: T) -> T {
    located.map_or(default, |located| located.value)
}

/// The value of a key that must not be zero, or its default.
pub(super) fn positive<T>(located: Option<Located<Positive<T>>>, default: T) -> T {
    located.map_or(default, |located| located.value.0)
}

/// Checks a list of hosts, and converts them to lower case for comparison.
pub(super) fn hosts(names: Vec<String>, location: &SourceLocation, path: &str) -> Result<Vec<String>, ConfigError> {
    match names.iter().find(|name| name.contains(['/', '@', ' '])) {
        Some(name) => {
            let message = format!("\"{name}\" is not a host; write for example \"registry.example.com\"");
            Err(ConfigError::new(location, path, message))
        }
        None => Ok(names.into_iter().map(|name| name.to_ascii_lowercase()).collect()),
    }
}

/// Checks that the file named by `key` can be opened.
pub(super) fn readable(file: Located<PathBuf>, key: &str) -> Result<PathBuf, ConfigError> {
    match crate::file::open(&file.value) {
        Ok(_) => Ok(file.value),
        Err(error) => {
            let message = format!("\"{}\" cannot be read: {error}", file.value.display());
            Err(ConfigError::new(&file.location, key, message))
        }
    }
}

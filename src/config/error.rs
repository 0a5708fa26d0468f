//! Configuration errors: one line with the source, the key, the cause and a correct value.

use std::fmt;
use std::sync::Arc;

/// Displayed as `config/roadstead.toml:12: cache.tag_ttl: "60 parsecs" is not a duration; …`.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{location}{}: {message}", KeyAfter(.location, .key))]
pub struct ConfigError {
    location: SourceLocation,
    key: String,
    message: String,
}

/// The place where a setting was written.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum SourceLocation {
    /// A line of the configuration file, counted from 1.
    File { origin: Arc<str>, line: usize },
    /// A file that cannot be read.
    WholeFile(Arc<str>),
    /// A dotted key in a configuration file of `registry:2`.
    Key { origin: Arc<str>, key: String },
    /// An environment variable.
    Variable(String),
    /// A command-line flag.
    Flag(&'static str),
}

/// Displays the key where the location does not contain it.
struct KeyAfter<'a>(&'a SourceLocation, &'a str);

// === impl ConfigError ===

impl ConfigError {
    /// `key` is the dotted key as in the file; empty if the error is not about a key.
    pub(super) fn new(location: &SourceLocation, key: impl Into<String>, message: impl Into<String>) -> Self {
        let message = message.into().trim().replace('\n', "; ");
        Self { location: location.clone(), key: key.into(), message }
    }
}

// === impl SourceLocation ===

impl fmt::Display for SourceLocation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File { origin, line } => write!(f, "{origin}:{line}"),
            Self::WholeFile(origin) => f.write_str(origin),
            Self::Key { origin, key } => write!(f, "{origin}: {key}"),
            Self::Variable(name) => f.write_str(name),
            Self::Flag(name) => f.write_str(name),
        }
    }
}

// === impl KeyAfter ===

impl fmt::Display for KeyAfter<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            // The location is already the name of the key.
            Self(
                SourceLocation::Variable(_)
                | SourceLocation::Key { .. }
                | SourceLocation::Flag(_)
                | SourceLocation::WholeFile(_),
                _,
            )
            | Self(_, "") => Ok(()),
            Self(_, key) => write!(f, ": {key}"),
        }
    }
}

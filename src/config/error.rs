//! One thing that is wrong, in one line: where it was written, which key, and what would be right.

use std::fmt;
use std::sync::Arc;

/// Prints as `config/roadstead.toml:12: cache.tag_ttl: "60 parsecs" is not a duration; …`.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{site}{}: {message}", KeyAfter(.site, .key))]
pub struct ConfigError {
    site: Site,
    key: String,
    message: String,
}

/// Where a setting was written.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Site {
    File {
        origin: Arc<str>,
        line: usize,
    },
    /// The whole file: it cannot be read.
    WholeFile(Arc<str>),
    /// A key of a file of another program.
    Key {
        origin: Arc<str>,
        key: String,
    },
    Variable(String),
    Flag(&'static str),
}

struct KeyAfter<'a>(&'a Site, &'a str);

// === impl ConfigError ===

impl ConfigError {
    /// `key` is the dotted path as the file writes it; empty when no key is to blame.
    pub(super) fn new(site: &Site, key: impl Into<String>, message: impl Into<String>) -> Self {
        let message = message.into().trim().replace('\n', "; ");
        Self { site: site.clone(), key: key.into(), message }
    }
}

// === impl Site ===

impl fmt::Display for Site {
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
            // A variable or a flag is its own key.
            Self(Site::Variable(_) | Site::Key { .. } | Site::Flag(_) | Site::WholeFile(_), _) | Self(_, "") => Ok(()),
            Self(_, key) => write!(f, ": {key}"),
        }
    }
}

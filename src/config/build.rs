//! From layers to a [`Config`].

use std::path::PathBuf;

use super::{Config, ConfigError};

/// What the command line says about configuration.
#[derive(Clone, Debug, Default)]
pub struct LoadOptions {
    pub config: Option<PathBuf>,
    pub listen: Option<String>,
    pub data: Option<PathBuf>,
    /// Each `NAME=URL`.
    pub upstreams: Vec<String>,
    pub default_upstream: Option<String>,
    pub log_format: Option<String>,
}

impl Config {
    /// One file and the defaults; no environment. `origin` is what errors call the file.
    pub fn from_toml(_text: &str, _origin: &str) -> Result<Self, ConfigError> {
        Ok(Self::default())
    }
}

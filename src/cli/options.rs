//! The options that every command takes, as they say which configuration is meant.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::Args;

use crate::config::{Config, ConfigError, LoadOptions, LogFormat};

#[derive(Args, Clone, Debug)]
pub struct ConfigOptions {
    /// The configuration file; without it none is read.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,

    /// The address to listen on, such as 127.0.0.1:5000 or :5000.
    #[arg(long, value_name = "ADDR")]
    listen: Option<String>,

    /// The folder that everything is kept in.
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,

    /// A registry to fetch from, beside those of the configuration; may be given more than once.
    #[arg(long = "upstream", value_name = "NAME=URL")]
    upstreams: Vec<String>,

    /// The upstream that a name without a host means, or none.
    #[arg(long, value_name = "NAME|none")]
    default_upstream: Option<String>,

    /// The shape of log lines; what is logged follows RUST_LOG.
    #[arg(long, value_name = "FORMAT", value_parser = LogFormat::NAMES)]
    log_format: Option<String>,
}

/// The same for a server, which may be started as the image of `registry:2` starts its own.
#[derive(Args, Clone, Debug)]
pub struct ServerOptions {
    /// A configuration file of registry:2, such as /etc/docker/registry/config.yml: what means the same here is taken.
    #[arg(value_name = "REGISTRY_YAML")]
    registry_config: Option<PathBuf>,

    #[command(flatten)]
    options: ConfigOptions,
}

// === impl ServerOptions ===

impl ServerOptions {
    pub fn load(self) -> Result<Config, ConfigError> {
        self.options.load_with(self.registry_config)
    }
}

// === impl ConfigOptions ===

impl ConfigOptions {
    /// The configuration that these options, the environment and the file make.
    pub fn load(self) -> Result<Config, ConfigError> {
        self.load_with(None)
    }

    fn load_with(self, registry_config: Option<PathBuf>) -> Result<Config, ConfigError> {
        let options = LoadOptions {
            config: self.config,
            registry_config,
            listen: self.listen,
            data: self.data,
            upstreams: self.upstreams,
            default_upstream: self.default_upstream,
            log_format: self.log_format,
        };
        // A name that is no text is not ours; a value that is none is found wrong where it is read.
        let text =
            |(name, value): (OsString, OsString)| Some((name.into_string().ok()?, value.to_string_lossy().into()));
        let variables = std::env::vars_os().filter_map(text);
        Config::load(&options, variables)
    }
}

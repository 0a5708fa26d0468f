//! The options that every command has: they name the configuration.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::Args;

use crate::config::{Config, ConfigError, LoadOptions, LogFormat};

#[derive(Args, Clone, Debug)]
pub struct ConfigOptions {
    /// Configuration file (TOML). Without this option, no file is read.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,

    /// Address to listen on, such as 127.0.0.1:5000 or :5000.
    #[arg(long, value_name = "ADDR")]
    listen: Option<String>,

    /// Data folder.
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,

    /// An upstream registry in addition to those of the configuration. May be repeated.
    #[arg(long = "upstream", value_name = "NAME=URL")]
    upstreams: Vec<String>,

    /// Upstream for image names without a host, or none.
    #[arg(long, value_name = "NAME|none")]
    default_upstream: Option<String>,

    /// Format of log lines. RUST_LOG sets what is logged.
    #[arg(long, value_name = "FORMAT", value_parser = LogFormat::NAMES)]
    log_format: Option<String>,
}

/// The options of a server. It may also be started with the arguments of the `registry:2` image.
#[derive(Args, Clone, Debug)]
pub struct ServerOptions {
    /// Configuration file of registry:2, such as /etc/docker/registry/config.yml. Settings with an equivalent are used.
    #[arg(value_name = "REGISTRY_YAML")]
    registry_config: Option<PathBuf>,

    #[command(flatten)]
    options: ConfigOptions,
}

// === impl ServerOptions ===

impl ServerOptions {
    /// As [`ConfigOptions::load`], with the configuration file of `registry:2` if one was given.
    pub fn load(self) -> Result<Config, ConfigError> {
        self.options.load_with(self.registry_config)
    }
}

// === impl ConfigOptions ===

impl ConfigOptions {
    /// Loads the configuration from these options, the environment and the file.
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
        // A variable whose name is not UTF-8 is none of ours. A value that is not UTF-8 fails where it is parsed.
        let text =
            |(name, value): (OsString, OsString)| Some((name.into_string().ok()?, value.to_string_lossy().into()));
        let variables = std::env::vars_os().filter_map(text);
        Config::load(&options, variables)
    }
}

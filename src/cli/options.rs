//! The options that every command has: they name the configuration.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use clap::Args;

use super::{Cli, Command};
use crate::config::{Config, ConfigError, IMAGE_VARIABLE, LoadOptions, LogFormat};

/// The command line of the first process of a container.
const FIRST_PROCESS: &str = "/proc/1/cmdline";

#[derive(Args, Clone, Debug, Default, PartialEq)]
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
    /// Loads the configuration from these options, the environment and the file. In the container image, a command without
    /// options has those of the server, which is the first process there.
    pub fn load(self) -> Result<Config, ConfigError> {
        let in_image = std::env::var_os(IMAGE_VARIABLE).is_some_and(|value| !value.is_empty());
        if in_image
            && self == Self::default()
            && let Some(server) = std::fs::read(FIRST_PROCESS).ok().and_then(|line| server_options(&line))
        {
            return server.load();
        }
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

/// The options of the server that was started with this command line, whose words end with a zero byte. Another program may be
/// in front of it, such as Docker's init.
fn server_options(command_line: &[u8]) -> Option<ServerOptions> {
    let words = command_line.strip_suffix(b"\0").unwrap_or(command_line).split(|byte| *byte == 0);
    let words: Vec<OsString> = words.map(|word| OsStr::from_bytes(word).to_owned()).collect();
    let program = words.iter().position(|word| Path::new(word).file_name() == Some(OsStr::new("roadstead")))?;
    match Cli::from_arguments(words[program..].iter().cloned()).ok()?.command {
        Command::Serve(options) => Some(options),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_of_the_first_process_are_those_of_a_server() {
        let data = |line: &str| server_options(line.replace(' ', "\0").as_bytes())?.options.data;
        for line in [
            "roadstead serve --data /d ",
            "/usr/bin/roadstead serve --data /d",
            "/sbin/docker-init -- roadstead serve --data /d ",
        ] {
            assert_eq!(data(line).as_deref(), Some(Path::new("/d")), "{line}");
        }
        let registry = server_options(b"roadstead\0/c.yml\0").unwrap().registry_config;
        assert_eq!(registry.as_deref(), Some(Path::new("/c.yml")));
        for line in ["", "roadstead du --data /d ", "sh -c roadstead", "/pause ", "roadstead serve --unknown "] {
            assert!(server_options(line.replace(' ', "\0").as_bytes()).is_none(), "{line}");
        }
    }
}

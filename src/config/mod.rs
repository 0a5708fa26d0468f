//! What an operator may choose, as types that are valid once they exist.
//!
//! Settings come from four places: flags, `ROADSTEAD_…` variables, the `REGISTRY_…` variables that `registry:2`
//! knows, and a TOML file. Each place fills one [`layer::Layer`], the layers are laid over each other, and
//! [`build`] turns the result into a [`Config`]: defaults, rules between keys, one line for whatever is wrong.
//!
//! Defaults live in the `Default` of each struct here and nowhere else.

mod access;
mod build;
mod build_credentials;
mod build_upstream;
mod cache;
mod credentials;
mod env;
mod error;
mod file;
mod gc;
mod layer;
mod listen;
mod load;
mod log;
mod pin;
mod registry_env;
mod registry_file;
mod scrub;
mod secret;
mod server;
mod show;
mod storage;
mod suggest;
mod units;
mod upstream;
mod upstream_url;
mod value;
mod warnings;

#[cfg(test)]
mod tests;

use std::path::PathBuf;

pub use access::{DeleteConfig, LocalConfig, Namespace, PushConfig};
pub use cache::CacheConfig;
pub use credentials::{CredentialConfig, CredentialSource};
pub use error::ConfigError;
pub use gc::GcConfig;
pub use listen::{ListenAddr, NotAnAddress};
pub use load::LoadOptions;
pub use log::{LogConfig, LogFormat};
pub use pin::Pin;
pub use scrub::ScrubConfig;
pub use secret::Secret;
pub use server::{ServerConfig, TlsConfig};
pub use storage::StorageConfig;
pub use units::format_duration;
pub use upstream::{
    BUILTIN_UPSTREAMS, ClientCertificate, DOCKER_IO, OnDenied, UpstreamConfig, builtin_upstreams, canonical_name,
};

/// The whole effective configuration.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    pub server: ServerConfig,
    pub storage: StorageConfig,
    pub cache: CacheConfig,
    pub gc: GcConfig,
    pub local: LocalConfig,
    pub push: PushConfig,
    pub delete: DeleteConfig,
    pub scrub: ScrubConfig,
    pub log: LogConfig,
    /// Docker's file of logins, for upstreams that have no credentials of their own.
    pub docker_config: Option<PathBuf>,
    /// Every upstream, built-in ones included, sorted by name.
    pub upstreams: Vec<UpstreamConfig>,
    /// Name of the upstream that a name without a host means; `None` is `"none"` in the file.
    pub default_upstream: Option<String>,
    /// Whether [`BUILTIN_UPSTREAMS`] are among `upstreams`.
    pub builtin_upstreams: bool,
    pub ignored_settings: IgnoredSettings,
}

/// What was set for `registry:2` and means nothing here: variables, and keys of its file.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct IgnoredSettings {
    /// How its clients log in: that nobody asks them here is the graver thing.
    pub auth: Vec<String>,
    pub others: Vec<String>,
}

// === impl Config ===

impl Config {
    pub fn upstream(&self, name: &str) -> Option<&UpstreamConfig> {
        self.upstreams.iter().find(|upstream| upstream.name == name)
    }

    /// Deletes are on for whoever sits on this machine, and off for a network until an operator says otherwise.
    pub fn deletes_enabled(&self) -> bool {
        self.delete.enabled.unwrap_or_else(|| self.server.listen.is_loopback())
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            server: ServerConfig::default(),
            storage: StorageConfig::default(),
            cache: CacheConfig::default(),
            gc: GcConfig::default(),
            local: LocalConfig::default(),
            push: PushConfig::default(),
            delete: DeleteConfig::default(),
            scrub: ScrubConfig::default(),
            log: LogConfig::default(),
            docker_config: None,
            upstreams: builtin_upstreams(),
            default_upstream: Some(DOCKER_IO.to_owned()),
            builtin_upstreams: true,
            ignored_settings: IgnoredSettings::default(),
        }
    }
}

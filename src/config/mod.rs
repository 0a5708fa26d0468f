//! Configuration: one struct per topic. A `Config` that exists is valid.
//!
//! Settings come from flags, `ROADSTEAD_…` variables, `REGISTRY_…` variables and the YAML file of `registry:2`, and a
//! TOML file. Each source fills one [`layer::Layer`]. The layers are merged by precedence, and [`build`] makes a
//! [`Config`] of the result: it applies defaults and checks the rules between keys. Every error is one line that names
//! the source and the key.
//!
//! Defaults are in the `Default` implementations of these structs and nowhere else.

mod access;
mod access_pattern;
mod audit;
mod auth;
mod build;
mod build_auth;
mod build_credentials;
mod build_issuer;
mod build_upstream;
mod build_value;
mod cache;
mod changes;
mod credentials;
mod env;
mod error;
mod file;
mod gc;
mod identity;
mod image;
mod ineffective;
mod issuer;
mod layer;
mod listen;
mod load;
mod log;
mod metrics;
mod pin;
#[cfg(test)]
mod reference;
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
pub use access_pattern::{AccessPattern, PatternComponent, PatternScope};
pub use audit::AuditConfig;
pub use auth::{AccessRule, AuthConfig, Right, Rights, Subject, is_user_name};
pub use cache::CacheConfig;
pub use credentials::{CredentialConfig, CredentialSource};
pub use error::ConfigError;
pub use gc::GcConfig;
pub use identity::{CERTIFICATE_PREFIX, IdentityPattern, MAX_IDENTITY_BYTES, Member, TOKEN_PREFIX};
pub use image::IMAGE_VARIABLE;
pub use issuer::{Algorithm, ClaimPattern, IssuerConfig, is_loopback, is_trustworthy};
pub use listen::{ListenAddr, ListenAddrError};
pub use load::LoadOptions;
pub use log::{LogConfig, LogFormat};
pub use metrics::MetricsConfig;
pub use pin::Pin;
pub use scrub::ScrubConfig;
pub use secret::Secret;
pub use server::{ClientAuth, ServerConfig, TlsConfig};
pub use storage::StorageConfig;
pub use units::format_duration;
pub use upstream::{
    BUILTIN_UPSTREAMS, ClientCertificate, DOCKER_IO, OnDenied, UpstreamConfig, builtin_upstreams, canonical_name,
};

/// The complete effective configuration.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// `[server]`
    pub server: ServerConfig,
    /// `[storage]`
    pub storage: StorageConfig,
    /// `[cache]`
    pub cache: CacheConfig,
    /// `[gc]`
    pub gc: GcConfig,
    /// `[local]`
    pub local: LocalConfig,
    /// `[push]`
    pub push: PushConfig,
    /// `[delete]`
    pub delete: DeleteConfig,
    /// `[auth]`. `None`: there are no users, and every client may do everything that is switched on.
    pub auth: Option<AuthConfig>,
    /// `[audit]`
    pub audit: AuditConfig,
    /// `[metrics]`
    pub metrics: MetricsConfig,
    /// `[scrub]`
    pub scrub: ScrubConfig,
    /// `[log]`
    pub log: LogConfig,
    /// Docker's `config.json`, for upstreams without credentials of their own.
    pub docker_config: Option<PathBuf>,
    /// All upstreams, including the built-in ones, sorted by name.
    pub upstreams: Vec<UpstreamConfig>,
    /// Name of the upstream for image names without a host. `None`: there is none (`"none"` in the file).
    pub default_upstream: Option<String>,
    /// Whether [`BUILTIN_UPSTREAMS`] are among `upstreams`.
    pub builtin_upstreams: bool,
    /// Settings of `registry:2` without effect, for warnings.
    pub ignored_settings: IgnoredSettings,
}

/// Settings of `registry:2` that have no effect here: variables, and keys of its file.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct IgnoredSettings {
    /// Settings about authentication of clients. They are reported separately, because the server is open without them.
    pub auth: Vec<String>,
    /// All other settings.
    pub others: Vec<String>,
}

// === impl Config ===

impl Config {
    /// The upstream of this name; aliases are not resolved.
    pub fn upstream(&self, name: &str) -> Option<&UpstreamConfig> {
        self.upstreams.iter().find(|upstream| upstream.name == name)
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
            auth: None,
            audit: AuditConfig::default(),
            metrics: MetricsConfig::default(),
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

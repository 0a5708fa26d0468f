//! The sources of credentials for an upstream, and the repositories that each is for.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use super::{Namespace, Secret};

/// A rule: credentials for some repositories of an upstream, or for all of them. The first matching rule of an upstream
/// is used.
#[derive(Clone, Debug, PartialEq)]
pub struct CredentialConfig {
    /// The repositories that the rule is for. `None`: all.
    pub repository: Option<Namespace>,
    /// Where the credentials come from.
    pub source: CredentialSource,
}

/// Where credentials come from. `Debug` shows no secret.
#[derive(Clone, PartialEq)]
pub enum CredentialSource {
    /// A user name and password in the configuration.
    Password { username: String, password: Secret },
    /// The first line of a file, which is read again when it changes.
    File { username: String, path: PathBuf },
    /// A program, run without a shell. Its output is the password of `username` or, without a `username`, a JSON object
    /// with both.
    Exec {
        command: Vec<String>,
        username: Option<String>,
        /// How long an output may be used.
        lifetime: Duration,
    },
    /// Docker's `config.json`, with credentials by host. It is read again when it changes.
    Docker { path: PathBuf },
}

// === impl CredentialConfig ===

impl CredentialConfig {
    /// A rule for all repositories.
    pub fn new(source: CredentialSource) -> Self {
        Self { repository: None, source }
    }

    /// Whether the rule is for this repository.
    pub fn is_for(&self, repository: &str) -> bool {
        self.repository.as_ref().is_none_or(|pattern| pattern.matches(repository))
    }
}

// === impl CredentialSource ===

impl CredentialSource {
    /// Default of `exec_lifetime`.
    pub const EXEC_LIFETIME: Duration = Duration::from_secs(60 * 60);

    /// A user name and password in the configuration.
    pub fn password(username: impl Into<String>, password: impl Into<String>) -> Self {
        Self::Password { username: username.into(), password: Secret::from(password.into()) }
    }

    /// Whether the source always has credentials. Docker's file may have none for a host.
    pub fn is_certain(&self) -> bool {
        !matches!(self, Self::Docker { .. })
    }
}

/// Omits the arguments of a program, which may contain secrets.
impl fmt::Debug for CredentialSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Password { username, .. } => write!(f, "password of {username}"),
            Self::File { username, path } => write!(f, "password of {username} in {}", path.display()),
            Self::Exec { command, .. } => write!(f, "output of {}", command.first().map_or("", String::as_str)),
            Self::Docker { path } => write!(f, "logins in {}", path.display()),
        }
    }
}

//! Where the credentials for an upstream come from, and for which of its repositories.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use super::{Namespace, Secret};

/// Credentials for some repositories of an upstream, or for all.
#[derive(Clone, Debug, PartialEq)]
pub struct CredentialConfig {
    /// `None`: every repository that nothing before it is for.
    pub repository: Option<Namespace>,
    pub source: CredentialSource,
}

#[derive(Clone, PartialEq)]
pub enum CredentialSource {
    Password {
        username: String,
        password: Secret,
    },
    /// Read again when the file changes.
    File {
        username: String,
        path: PathBuf,
    },
    /// A program, never a shell. Its output is the password of `username`, or without one a JSON object with both.
    Exec {
        command: Vec<String>,
        username: Option<String>,
        /// For how long an output is good.
        lifetime: Duration,
    },
    /// Docker's `config.json`: what it says for the host that is asked. Read again when the file changes.
    Docker {
        path: PathBuf,
    },
}

// === impl CredentialConfig ===

impl CredentialConfig {
    pub fn new(source: CredentialSource) -> Self {
        Self { repository: None, source }
    }

    pub fn is_for(&self, repository: &str) -> bool {
        self.repository.as_ref().is_none_or(|pattern| pattern.matches(repository))
    }
}

// === impl CredentialSource ===

impl CredentialSource {
    /// How long the output of a program is good where nothing else is configured.
    pub const EXEC_LIFETIME: Duration = Duration::from_secs(60 * 60);

    pub fn password(username: impl Into<String>, password: impl Into<String>) -> Self {
        Self::Password { username: username.into(), password: Secret::from(password.into()) }
    }

    /// Whether there are credentials for sure: Docker's file may have none for a host.
    pub fn is_certain(&self) -> bool {
        !matches!(self, Self::Docker { .. })
    }
}

/// Without the arguments of a program, which may be secrets.
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

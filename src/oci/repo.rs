//! Repositories: a name inside a scope.

use std::fmt;
use std::sync::Arc;

use super::RepoName;

/// The name of a configured upstream: the host (and port) in image names, such as `docker.io` or
/// `registry.example.com:5000`.
pub type UpstreamName = Arc<str>;

/// Where a repository's content comes from. A pushed and a mirrored repository of the same name are two repositories.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Scope {
    /// Pushed to this registry.
    Local,
    /// Mirrored from this upstream.
    Upstream(UpstreamName),
}

/// A repository: a scope, and a name in that scope.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RepoId {
    /// Where its content comes from.
    pub scope: Scope,
    /// Its name, without the upstream's host.
    pub name: RepoName,
}

impl Scope {
    /// The scope's name in paths, logs and the index: `local` or the upstream's name. `local` is not a valid upstream
    /// name.
    pub fn as_str(&self) -> &str {
        match self {
            Self::Local => "local",
            Self::Upstream(name) => name,
        }
    }

    /// Whether this is the scope of pushed content.
    pub fn is_local(&self) -> bool {
        matches!(self, Self::Local)
    }
}

impl RepoId {
    /// A repository of any scope.
    pub fn new(scope: Scope, name: RepoName) -> Self {
        Self { scope, name }
    }

    /// A repository for pushed content.
    pub fn local(name: RepoName) -> Self {
        Self::new(Scope::Local, name)
    }
}

/// As in an image name: `team/app` for a local repository, `ghcr.io/org/app` for a mirrored one.
impl fmt::Display for RepoId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.scope {
            Scope::Local => fmt::Display::fmt(&self.name, f),
            Scope::Upstream(upstream) => write!(f, "{upstream}/{}", self.name),
        }
    }
}

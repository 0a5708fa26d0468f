//! Which repository is meant: a name inside a scope.

use std::fmt;
use std::sync::Arc;

use super::RepoName;

/// The name of a configured upstream: the host that images are called by, `docker.io` or `registry.example.com:5000`.
pub type UpstreamName = Arc<str>;

/// Where a repository's content comes from. Pushed and mirrored repositories of one name are two repositories.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Scope {
    /// Pushed here.
    Local,
    /// Mirrored from this upstream.
    Upstream(UpstreamName),
}

/// A repository: its scope and its name there.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RepoId {
    pub scope: Scope,
    pub name: RepoName,
}

impl Scope {
    /// The scope's name in paths, logs and the index. `local` is not a valid upstream name.
    pub fn as_str(&self) -> &str {
        match self {
            Self::Local => "local",
            Self::Upstream(name) => name,
        }
    }

    pub fn is_local(&self) -> bool {
        matches!(self, Self::Local)
    }
}

impl RepoId {
    pub fn new(scope: Scope, name: RepoName) -> Self {
        Self { scope, name }
    }

    pub fn local(name: RepoName) -> Self {
        Self::new(Scope::Local, name)
    }
}

/// As a person would write it: `team/app` for a local one, `ghcr.io/org/app` for a mirrored one.
impl fmt::Display for RepoId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.scope {
            Scope::Local => fmt::Display::fmt(&self.name, f),
            Scope::Upstream(upstream) => write!(f, "{upstream}/{}", self.name),
        }
    }
}

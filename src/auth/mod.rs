//! Who is asking, and may they: the one gate that every handler passes first.

use crate::config::Config;
use crate::oci::{RepoName, Scope};

/// Who is asking.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Principal {
    Anonymous,
}

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    Pull,
    Push,
    Delete,
    /// Listing repositories.
    Catalog,
}

/// Why the gate stays shut.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    #[error("pushes are switched off ([push] enabled)")]
    PushDisabled,
    #[error("deletes are switched off ([delete] enabled)")]
    DeleteDisabled,
    #[error("the registry is read-only ([storage] read_only)")]
    ReadOnly,
    #[error("a mirrored repository takes no changes")]
    Mirrored,
}

/// What the configuration allows to whom.
#[derive(Clone, Debug)]
pub struct Policy {
    read_only: bool,
    push: bool,
    delete: bool,
}

impl Policy {
    pub fn new(config: &Config) -> Self {
        Self { read_only: config.storage.read_only, push: config.push.enabled, delete: config.deletes_enabled() }
    }

    /// May `principal` do this? `name` is `None` for what concerns no single repository.
    pub fn authorize(
        &self,
        principal: &Principal,
        action: Action,
        scope: &Scope,
        _name: Option<&RepoName>,
    ) -> Result<(), Refused> {
        let Principal::Anonymous = principal;
        match action {
            Action::Pull | Action::Catalog => Ok(()),
            Action::Push | Action::Delete if !scope.is_local() => Err(Refused::Mirrored),
            Action::Push | Action::Delete if self.read_only => Err(Refused::ReadOnly),
            Action::Push if !self.push => Err(Refused::PushDisabled),
            Action::Delete if !self.delete => Err(Refused::DeleteDisabled),
            Action::Push | Action::Delete => Ok(()),
        }
    }
}

//! The gate: which repository a request means, and whether its sender may do what it asks for.

use super::authenticate::{Principal, Unauthenticated, authenticate};
use super::caller::Caller;
use crate::config::Config;
use crate::oci::{RepoId, RepoName};
use crate::resolve::{PushRefused, RequestedRepo, ResolveError, Routes, Rule, Target};

/// Something that a request may ask for.
pub trait Action {
    /// What it is done with.
    type Object;
}

/// Reading from a repository, local or mirrored.
#[derive(Debug)]
pub enum Pull {}
/// Uploading to a local repository.
#[derive(Debug)]
pub enum Push {}
/// Deleting from a local repository.
#[derive(Debug)]
pub enum Delete {}
/// Listing repositories. Which of them a list shows is asked for each: see [`Gate::may_pull`].
#[derive(Debug)]
pub enum Catalog {}

impl Action for Pull {
    type Object = Target;
}

impl Action for Push {
    type Object = RepoId;
}

impl Action for Delete {
    type Object = RepoId;
}

impl Action for Catalog {
    type Object = ();
}

/// The permission for one action. Only the gate makes one.
pub struct Authorized<A: Action> {
    principal: Principal,
    object: A::Object,
}

/// Why a request may not do what it asks for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AccessError {
    #[error(transparent)]
    Unauthenticated(#[from] Unauthenticated),
    /// The sender is known, and no rule allows this.
    #[error("access denied; ask the operator of this registry for the right")]
    Denied,
    #[error(transparent)]
    SwitchedOff(#[from] SwitchedOff),
    #[error(transparent)]
    Resolve(#[from] ResolveError),
    #[error(transparent)]
    PushRefused(#[from] PushRefused),
}

/// An operation that the configuration disables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SwitchedOff {
    #[error("pushes are switched off ([push] enabled)")]
    Push,
    #[error("deletes are switched off ([delete] enabled)")]
    Delete,
    #[error("the registry is read-only ([storage] read_only)")]
    ReadOnly,
    #[error("a mirrored repository cannot be changed; push to a local one")]
    Mirrored,
}

/// What the configuration allows.
#[derive(Debug)]
pub struct Gate {
    routes: Routes,
    read_only: bool,
    push: bool,
    delete: bool,
}

// === impl Authorized ===

impl<A: Action> Authorized<A> {
    fn new(principal: &Principal, object: A::Object) -> Self {
        Self { principal: principal.clone(), object }
    }

    /// Who may do it.
    pub fn principal(&self) -> &Principal {
        &self.principal
    }
}

impl Authorized<Pull> {
    /// The repository to read from.
    pub fn repo(&self) -> &RepoId {
        &self.object.repo
    }

    /// Which rule found the repository.
    pub fn rule(&self) -> Rule {
        self.object.rule
    }
}

impl<A: Action<Object = RepoId>> Authorized<A> {
    /// The local repository to change.
    pub fn repo(&self) -> &RepoId {
        &self.object
    }
}

// === impl Gate ===

impl Gate {
    pub fn new(config: &Config) -> Self {
        Self {
            routes: Routes::new(config),
            read_only: config.storage.read_only,
            push: config.push.enabled,
            delete: config.delete.enabled,
        }
    }

    pub fn routes(&self) -> &Routes {
        &self.routes
    }

    /// Who sent a request.
    ///
    /// # Errors
    /// When the caller's credentials are not accepted.
    pub fn authenticate(&self, caller: Caller<'_>) -> Result<Principal, Unauthenticated> {
        authenticate(caller)
    }

    /// Permission to read from the repository that is meant. `is_local` says whether a local repository exists.
    pub fn pull(
        &self,
        principal: &Principal,
        requested: RequestedRepo<'_>,
        is_local: impl Fn(&RepoName) -> bool,
    ) -> Result<Authorized<Pull>, AccessError> {
        let target = self.routes.resolve(requested, is_local)?;
        if !self.may_pull(principal, &target.repo) {
            return Err(AccessError::Denied);
        }
        Ok(Authorized::new(principal, target))
    }

    /// Permission to push to the local repository that is meant.
    pub fn push(&self, principal: &Principal, requested: RequestedRepo<'_>) -> Result<Authorized<Push>, AccessError> {
        let repo = self.routes.resolve_push(requested)?;
        self.require_changes_of(&repo)?;
        if !self.push {
            return Err(SwitchedOff::Push.into());
        }
        Ok(Authorized::new(principal, repo))
    }

    /// Permission to delete from the repository that is meant. `is_local` says whether a local repository exists.
    pub fn delete(
        &self,
        principal: &Principal,
        requested: RequestedRepo<'_>,
        is_local: impl Fn(&RepoName) -> bool,
    ) -> Result<Authorized<Delete>, AccessError> {
        let repo = self.routes.resolve(requested, is_local)?.repo;
        self.require_changes_of(&repo)?;
        if !self.delete {
            return Err(SwitchedOff::Delete.into());
        }
        Ok(Authorized::new(principal, repo))
    }

    /// Permission to list repositories.
    pub fn catalog(&self, principal: &Principal) -> Result<Authorized<Catalog>, AccessError> {
        Ok(Authorized::new(principal, ()))
    }

    /// Whether the principal may read a repository: for lists, and for what is found without being named.
    pub fn may_pull(&self, principal: &Principal, _repo: &RepoId) -> bool {
        match principal {
            Principal::Anonymous => true,
        }
    }

    /// Whether anything of a repository can be changed here.
    fn require_changes_of(&self, repo: &RepoId) -> Result<(), SwitchedOff> {
        if !repo.scope.is_local() {
            return Err(SwitchedOff::Mirrored);
        }
        if self.read_only { Err(SwitchedOff::ReadOnly) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::access::Peer;

    fn gate(toml: &str) -> Gate {
        Gate::new(&Config::from_toml(toml, "test.toml").unwrap())
    }

    fn requested(name: &str) -> RequestedRepo<'_> {
        RequestedRepo { name, ..RequestedRepo::default() }
    }

    #[test]
    fn every_caller_is_anonymous_while_there_are_no_users() {
        let gate = gate("");
        let peer = Peer::at(Some("127.0.0.1:40000".parse().unwrap()));
        let mut headers = http::HeaderMap::new();
        assert_eq!(gate.authenticate(Caller::new(&peer, &headers)), Ok(Principal::Anonymous));
        headers.insert(http::header::AUTHORIZATION, http::HeaderValue::from_static("Basic ZTpw"));
        assert_eq!(gate.authenticate(Caller::new(&peer, &headers)), Ok(Principal::Anonymous));
    }

    #[test]
    fn switched_off_denied_and_unknown_are_different() {
        let anonymous = Principal::Anonymous;
        let is_local = |_: &RepoName| true;
        let gate = |toml| gate(toml);
        let push = |toml| gate(toml).push(&anonymous, requested("team/app")).map(drop);
        let delete = |toml, name| gate(toml).delete(&anonymous, requested(name), is_local).map(drop);
        assert_eq!(push("[push]\nenabled = true"), Ok(()));
        assert_eq!(push("[push]\nenabled = false"), Err(SwitchedOff::Push.into()));
        assert_eq!(push("[storage]\nread_only = true"), Err(SwitchedOff::ReadOnly.into()));
        assert_eq!(delete("[delete]\nenabled = true", "team/app"), Ok(()));
        assert_eq!(delete("[delete]\nenabled = false", "team/app"), Err(SwitchedOff::Delete.into()));
        assert_eq!(delete("[delete]\nenabled = true", "ghcr.io/a/b"), Err(SwitchedOff::Mirrored.into()));
        let of_upstream = gate("").push(&anonymous, requested("ghcr.io/a/b")).map(drop);
        assert!(matches!(of_upstream, Err(AccessError::PushRefused(PushRefused::Mirrored(_)))));
        let unknown = RequestedRepo { ns: Some("registry.example"), ..requested("a") };
        let unknown = gate("").pull(&anonymous, unknown, |_| false).map(drop);
        assert!(matches!(unknown, Err(AccessError::Resolve(ResolveError::UnknownRegistry(_)))));
    }

    #[test]
    fn a_permission_names_the_repository_that_is_meant() {
        let gate = gate("");
        let pull = gate.pull(&Principal::Anonymous, requested("ghcr.io/a/b"), |_| false).unwrap();
        assert_eq!((pull.repo().to_string().as_str(), pull.rule()), ("ghcr.io/a/b", Rule::Path));
        let push = gate.push(&Principal::Anonymous, requested("team/app")).unwrap();
        assert!(push.repo().scope.is_local() && *push.principal() == Principal::Anonymous);
    }
}

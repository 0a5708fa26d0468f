//! The gate: which repository a request means, and whether its sender may do what it asks for.
//!
//! Without users, everybody may do everything that is switched on. With users, the rules of `[auth]` decide, and a refusal
//! looks the same whether or not the repository exists: a local repository that the sender may do nothing with does not
//! exist for that sender.

use std::collections::HashSet;

use super::authenticate::{IssuedToken, Login, LoginError, Sender, Unauthenticated};
use super::caller::Caller;
use super::policy::Policy;
use super::principal::Principal;
use super::rules::Rules;
use super::token_request::TokenRequest;
use crate::config::{Config, Right};
use crate::oci::{RepoId, RepoName, Scope, UpstreamName};
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

/// What the rules say about reading a repository.
pub enum Pulling {
    Allowed(Authorized<Pull>),
    /// It may be read if everybody may read it at its upstream.
    IfPublic(PullIfPublic),
}

/// The permission to read a mirrored repository, if it is public. The credentials of this server may open private ones.
pub struct PullIfPublic {
    access: Authorized<Pull>,
    refusal: AccessError,
}

/// Why a request may not do what it asks for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AccessError {
    #[error(transparent)]
    Login(#[from] LoginError),
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
    /// The rules; `None` if there are no users.
    policy: Option<Rules>,
    /// The upstreams with credentials, which may open private repositories.
    with_credentials: HashSet<UpstreamName>,
    /// Without it, nobody can log in.
    login: Option<Login>,
    read_only: bool,
    push: bool,
    delete: bool,
    /// Whether reading metrics needs a right.
    metrics: bool,
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

// === impl PullIfPublic ===

impl PullIfPublic {
    pub fn repo(&self) -> &RepoId {
        self.access.repo()
    }

    /// The permission, if the repository is public.
    ///
    /// # Errors
    /// If it is not.
    pub fn if_public(self, is_public: bool) -> Result<Authorized<Pull>, AccessError> {
        if is_public { Ok(self.access) } else { Err(self.refusal) }
    }
}

// === impl Gate ===

impl Gate {
    /// `login` is needed to let users of `config.auth` in. Without it, only what everybody may do is allowed.
    pub fn new(config: &Config, login: Option<Login>) -> Self {
        Self {
            routes: Routes::new(config),
            policy: config.auth.as_ref().map(|auth| Rules::new(Policy::new(auth))),
            with_credentials: config
                .upstreams
                .iter()
                .filter(|upstream| !upstream.credentials.is_empty())
                .map(|upstream| upstream.name.as_str().into())
                .collect(),
            login,
            read_only: config.storage.read_only,
            push: config.push.enabled,
            delete: config.delete.enabled,
            metrics: config.metrics.auth,
        }
    }

    /// The rules in force; `None` if there are no users.
    pub fn rules(&self) -> Option<&Rules> {
        self.policy.as_ref()
    }

    pub fn routes(&self) -> &Routes {
        &self.routes
    }

    /// Whether there are users.
    pub fn has_users(&self) -> bool {
        self.policy.is_some()
    }

    /// Who sent a request, as far as that is known without verifying a password.
    ///
    /// # Errors
    /// For a token that is not valid, and for more than one header with credentials.
    pub fn identify(&self, caller: Caller<'_>) -> Result<Sender, LoginError> {
        match &self.login {
            None => Ok(Sender::Known(Principal::Anonymous)),
            Some(login) => login.identify(caller),
        }
    }

    /// Who sent a request with this token and no certificate; `None` if the token is not valid. Without users, no credentials
    /// are looked at.
    pub fn bearer(&self, token: &str) -> Option<Principal> {
        match &self.login {
            None => Some(Principal::Anonymous),
            Some(login) => login.bearer(token).ok(),
        }
    }

    /// Who sent a request whose credentials are elsewhere, and are none.
    pub fn without_credentials(&self, caller: Caller<'_>) -> Sender {
        match &self.login {
            None => Sender::Known(Principal::Anonymous),
            Some(_) => Login::without_credentials(caller),
        }
    }

    /// Who sent a request.
    ///
    /// # Errors
    /// When the sender's credentials are not accepted.
    pub async fn authenticate(&self, sender: &Sender) -> Result<Principal, LoginError> {
        match (&self.login, sender) {
            (Some(login), sender) => login.authenticate(sender).await,
            (None, Sender::Known(principal)) => Ok(principal.clone()),
            (None, _) => Err(Unauthenticated::Invalid.into()),
        }
    }

    /// A token for the sender of a request to the token endpoint.
    ///
    /// # Errors
    /// If nobody is meant and may do nothing, or the credentials are not accepted.
    pub async fn token(&self, request: &TokenRequest) -> Result<IssuedToken, LoginError> {
        match (&self.login, &self.policy) {
            (Some(login), Some(rules)) => login.token(&rules.get(), request).await,
            _ => Err(Unauthenticated::Required.into()),
        }
    }

    /// Whether the API may be used at all: a login is a test of that. A request that names an upstream may use it if
    /// everybody may pull something from there, so that a client of that mirror does not log in.
    ///
    /// # Errors
    /// If the sender has to log in.
    pub async fn ping(&self, sender: &Sender, requested: RequestedRepo<'_>) -> Result<(), AccessError> {
        let Some(rules) = &self.policy else { return Ok(()) };
        if let Some(upstream) = self.routes.named_upstream(requested)
            && rules.read().everybody_may_pull_in(&Scope::Upstream(upstream.clone()))
        {
            return Ok(());
        }
        match self.authenticate(sender).await? {
            Principal::Anonymous => Err(LoginError::from(Unauthenticated::Required).into()),
            Principal::AnonymousToken | Principal::User(_) => Ok(()),
        }
    }

    /// Permission to read from the repository that is meant. `is_local` says whether a local repository exists.
    pub fn pull(
        &self,
        principal: &Principal,
        requested: RequestedRepo<'_>,
        is_local: impl Fn(&RepoName) -> bool,
    ) -> Result<Pulling, AccessError> {
        let target = self.routes.resolve(requested, |name| self.may_know(principal, name) && is_local(name))?;
        self.require(principal, Right::Pull, &target.repo)?;
        let refusal = self.require_private(principal, &target.repo).err();
        let access = Authorized::new(principal, target);
        Ok(match refusal {
            None => Pulling::Allowed(access),
            Some(refusal) => Pulling::IfPublic(PullIfPublic { access, refusal }),
        })
    }

    /// Permission to push to the local repository that is meant.
    pub fn push(&self, principal: &Principal, requested: RequestedRepo<'_>) -> Result<Authorized<Push>, AccessError> {
        let repo = self.routes.resolve_push(requested)?;
        self.require_changes_of(&repo)?;
        if !self.push {
            return Err(SwitchedOff::Push.into());
        }
        self.require(principal, Right::Push, &repo)?;
        Ok(Authorized::new(principal, repo))
    }

    /// Permission to delete from the repository that is meant. `is_local` says whether a local repository exists.
    pub fn delete(
        &self,
        principal: &Principal,
        requested: RequestedRepo<'_>,
        is_local: impl Fn(&RepoName) -> bool,
    ) -> Result<Authorized<Delete>, AccessError> {
        let repo = self.routes.resolve(requested, |name| self.may_know(principal, name) && is_local(name))?.repo;
        self.require_changes_of(&repo)?;
        if !self.delete {
            return Err(SwitchedOff::Delete.into());
        }
        self.require(principal, Right::Delete, &repo)?;
        Ok(Authorized::new(principal, repo))
    }

    /// Permission to list repositories, those that [`Gate::may_pull`] allows.
    pub fn catalog(&self, principal: &Principal) -> Result<Authorized<Catalog>, AccessError> {
        if let Some(policy) = self.policy.as_ref().map(Rules::read)
            && !(principal.user().is_none() && policy.everybody_may_pull())
        {
            decide(principal, Right::Pull, || true)?;
        }
        Ok(Authorized::new(principal, ()))
    }

    /// Whether everybody may read metrics, known or not.
    pub fn has_open_metrics(&self) -> bool {
        !self.metrics || self.policy.is_none()
    }

    /// Permission to read metrics.
    pub fn metrics(&self, principal: &Principal) -> Result<(), AccessError> {
        let Some(policy) = self.policy.as_ref().filter(|_| self.metrics).map(Rules::read) else { return Ok(()) };
        let is_allowed = |principal: &Principal| policy.allows_on_server(principal, Right::Metrics).is_some();
        if is_allowed(&Principal::Anonymous) {
            return Ok(());
        }
        decide(principal, Right::Metrics, || is_allowed(principal))
    }

    /// Whether the principal may read a repository: for lists, and for what is found without being named.
    pub fn may_pull(&self, principal: &Principal, repo: &RepoId) -> bool {
        self.require(principal, Right::Pull, repo).is_ok()
    }

    /// The place of a rule that allows this; `None` if no rule does, or there are no users.
    pub fn rule_for(&self, principal: &Principal, right: Right, repo: &RepoId) -> Option<String> {
        self.policy.as_ref()?.read().allowed_by(principal, right, repo).map(str::to_owned)
    }

    /// Whether the principal may learn that a local repository exists.
    fn may_know(&self, principal: &Principal, name: &RepoName) -> bool {
        match &self.policy {
            None => true,
            Some(rules) => rules.read().allows_something(principal, &RepoId::local(name.clone())),
        }
    }

    /// Whether the rules allow this.
    ///
    /// # Errors
    /// If they do not. A sender whose client can get other credentials is told so, and a user is refused.
    fn require(&self, principal: &Principal, right: Right, repo: &RepoId) -> Result<(), AccessError> {
        let Some(policy) = self.policy.as_ref().map(Rules::read) else { return Ok(()) };
        if policy.allows_everybody(right, repo) {
            return Ok(());
        }
        decide(principal, right, || policy.allowed_by(principal, right, repo).is_some())
    }

    /// Whether the rules also allow to read a repository that is private at its upstream.
    ///
    /// # Errors
    /// If they do not, and the credentials of this server may open it.
    fn require_private(&self, principal: &Principal, repo: &RepoId) -> Result<(), AccessError> {
        let (Some(policy), Scope::Upstream(upstream)) = (&self.policy, &repo.scope) else { return Ok(()) };
        if !self.with_credentials.contains(upstream) {
            return Ok(());
        }
        let is_allowed = policy.read().private_allowed_by(principal, repo).is_some();
        if is_allowed && principal.user().is_none() {
            return Ok(());
        }
        decide(principal, Right::Pull, || is_allowed)
    }

    /// Whether anything of a repository can be changed here.
    fn require_changes_of(&self, repo: &RepoId) -> Result<(), SwitchedOff> {
        if !repo.scope.is_local() {
            return Err(SwitchedOff::Mirrored);
        }
        if self.read_only { Err(SwitchedOff::ReadOnly) } else { Ok(()) }
    }
}

/// What a principal may do that not everybody may. `is_allowed` says what the rules allow to a user.
///
/// # Errors
/// A sender whose client can get other credentials is told so, and a user is refused.
fn decide(principal: &Principal, right: Right, is_allowed: impl FnOnce() -> bool) -> Result<(), AccessError> {
    let missing = match principal {
        Principal::Anonymous => Unauthenticated::Required,
        Principal::AnonymousToken => Unauthenticated::InsufficientScope,
        Principal::User(_) if !is_allowed() => return Err(AccessError::Denied),
        Principal::User(_) if principal.acts(right) => return Ok(()),
        Principal::User(_) => Unauthenticated::InsufficientScope,
    };
    Err(LoginError::from(missing).into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::access::Peer;

    fn gate(toml: &str) -> Gate {
        Gate::new(&Config::from_toml(toml, "test.toml").unwrap(), None)
    }

    fn requested(name: &str) -> RequestedRepo<'_> {
        RequestedRepo { name, ..RequestedRepo::default() }
    }

    #[test]
    fn every_caller_is_anonymous_while_there_are_no_users() {
        let gate = gate("");
        let peer = Peer::at(Some("127.0.0.1:40000".parse().unwrap()));
        let mut headers = http::HeaderMap::new();
        let anonymous = || Ok(Sender::Known(Principal::Anonymous));
        assert_eq!(gate.identify(Caller::new(&peer, &headers)), anonymous());
        for _ in 0..2 {
            headers.append(http::header::AUTHORIZATION, http::HeaderValue::from_static("Basic ZTpw"));
            assert_eq!(gate.identify(Caller::new(&peer, &headers)), anonymous());
        }
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
        let Pulling::Allowed(pull) = pull else { panic!("there are no rules about private repositories") };
        assert_eq!((pull.repo().to_string().as_str(), pull.rule()), ("ghcr.io/a/b", Rule::Path));
        let push = gate.push(&Principal::Anonymous, requested("team/app")).unwrap();
        assert!(push.repo().scope.is_local() && *push.principal() == Principal::Anonymous);
    }

    /// A gate with users, and a user with this right for everything that a rule allows.
    fn with_rules(rules: &str) -> Gate {
        gate(&format!(
            "default_upstream = \"docker.io\"\n[local]\nnamespaces = [\"team/**\"]\n[delete]\nenabled = true\n\
             [auth]\nhtpasswd = \"/dev/null\"\n{rules}"
        ))
    }

    fn user(name: &str) -> Principal {
        Principal::of_password(std::sync::Arc::new(crate::access::User::new(name)))
    }

    fn token(name: &str, acts: &[Right]) -> Principal {
        Principal::of_token(std::sync::Arc::new(crate::access::User::new(name)), acts.iter().copied().collect())
    }

    fn missing(error: Unauthenticated) -> AccessError {
        AccessError::Login(error.into())
    }

    const RULES: &str = r#"
        [[auth.rule]]
        who = "anonymous"
        on = ["docker.io/library/*", "team/public"]
        may = "pull"
        [[auth.rule]]
        who = "ann"
        on = "team/**"
        may = ["pull", "push"]
        "#;

    #[test]
    fn rules_decide_and_refusals_say_what_is_missing() {
        let gate = with_rules(RULES);
        let pull = |principal: &Principal, name: &str| gate.pull(principal, requested(name), |_| false).map(drop);
        let push = |principal: &Principal, name: &str| gate.push(principal, requested(name)).map(drop);
        for who in [Principal::Anonymous, Principal::AnonymousToken, user("ann"), token("ann", &[]), user("eve")] {
            assert_eq!(pull(&who, "alpine"), Ok(()), "{who:?}");
            assert_eq!(pull(&who, "team/public"), Ok(()), "{who:?}");
        }
        for name in ["team/app", "org/app", "ghcr.io/a/b"] {
            assert_eq!(pull(&Principal::Anonymous, name), Err(missing(Unauthenticated::Required)), "{name}");
            assert_eq!(pull(&Principal::AnonymousToken, name), Err(missing(Unauthenticated::InsufficientScope)));
            assert_eq!(pull(&user("eve"), name), Err(AccessError::Denied), "{name}");
        }
        assert_eq!(pull(&user("ann"), "team/app"), Ok(()));
        assert_eq!(push(&user("ann"), "team/app"), Ok(()));
        assert_eq!(push(&token("ann", &[Right::Pull, Right::Push]), "team/app"), Ok(()));
        assert_eq!(push(&token("ann", &[Right::Pull]), "team/app"), Err(missing(Unauthenticated::InsufficientScope)));
        assert_eq!(push(&token("eve", &[Right::Pull]), "team/app"), Err(AccessError::Denied), "no token would help");
        assert_eq!(push(&Principal::Anonymous, "team/app"), Err(missing(Unauthenticated::Required)));
        let delete = gate.delete(&user("ann"), requested("team/app"), |_| true).map(drop);
        assert_eq!(delete, Err(AccessError::Denied));
    }

    #[test]
    fn a_refusal_does_not_tell_whether_a_repository_exists() {
        let gate = with_rules(RULES);
        for who in [Principal::Anonymous, user("eve"), token("ann", &[])] {
            for name in ["team/secret", "old/secret", "my.host/secret"] {
                let asked = |exists: bool| {
                    (
                        gate.pull(&who, requested(name), |_| exists).map(drop),
                        gate.delete(&who, requested(name), |_| exists).map(drop),
                        gate.push(&who, requested(name)).map(drop),
                    )
                };
                assert_eq!(asked(true), asked(false), "{name} for {who:?}");
                assert!(asked(true).0.is_err());
            }
        }
    }

    #[test]
    fn the_catalogue_needs_a_right_to_pull_something() {
        let gate = with_rules(RULES);
        for (who, allowed) in [
            (Principal::Anonymous, true),
            (Principal::AnonymousToken, true),
            (user("eve"), true),
            (token("eve", &[Right::Pull]), true),
            (token("ann", &[]), false),
        ] {
            assert_eq!(gate.catalog(&who).is_ok(), allowed, "{who:?}");
        }
        let closed = with_rules("[[auth.rule]]\nwho = \"ann\"\non = \"**\"\nmay = \"pull\"");
        assert_eq!(closed.catalog(&Principal::Anonymous).map(drop), Err(missing(Unauthenticated::Required)));
    }

    #[test]
    fn metrics_need_a_right_if_that_is_wanted() {
        assert_eq!(gate("").metrics(&Principal::Anonymous), Ok(()));
        assert_eq!(with_rules(RULES).metrics(&Principal::Anonymous), Ok(()));
        let rule = "[[auth.rule]]\nwho = \"prometheus\"\nmay = \"metrics\"\n[metrics]\nauth = true\n";
        let gate = with_rules(&format!("{RULES}{rule}"));
        assert!(!gate.has_open_metrics());
        for (who, expected) in [
            (Principal::Anonymous, Err(missing(Unauthenticated::Required))),
            (Principal::AnonymousToken, Err(missing(Unauthenticated::InsufficientScope))),
            (user("ann"), Err(AccessError::Denied)),
            (user("prometheus"), Ok(())),
            (token("prometheus", &[Right::Pull]), Err(missing(Unauthenticated::InsufficientScope))),
            (token("prometheus", &[Right::Metrics]), Ok(())),
        ] {
            assert_eq!(gate.metrics(&who), expected, "{who:?}");
        }
        // It opens nothing else.
        assert_eq!(gate.pull(&user("prometheus"), requested("team/app"), |_| true).map(drop), Err(AccessError::Denied));
    }

    #[tokio::test]
    async fn a_ping_that_names_an_upstream_is_open_if_everybody_may_pull_there() {
        let gate = with_rules(RULES);
        let ping = async |sender: Sender, prefix: Option<&str>, name: &str| {
            gate.ping(&sender, RequestedRepo { prefix, ..requested(name) }).await
        };
        let anonymous = || Sender::Known(Principal::Anonymous);
        assert_eq!(ping(anonymous(), Some("docker.io"), "").await, Ok(()));
        assert_eq!(ping(Sender::Unusable, Some("docker.io"), "").await, Ok(()));
        assert_eq!(ping(anonymous(), None, "docker.io").await, Ok(()));
        for (prefix, name) in [(None, ""), (Some("ghcr.io"), ""), (None, "ghcr.io"), (Some("none"), "")] {
            let refused = ping(anonymous(), prefix, name).await;
            assert_eq!(refused, Err(missing(Unauthenticated::Required)), "{prefix:?} {name}");
        }
        assert_eq!(ping(Sender::Unusable, None, "").await, Err(missing(Unauthenticated::Invalid)));
        assert_eq!(ping(Sender::Known(token("ann", &[])), None, "").await, Ok(()));
    }
}

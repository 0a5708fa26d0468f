//! Answering challenges: which `Authorization` a request gets, and what to do when it is refused.
//!
//! The first request to a host goes out bare; its challenge is remembered, so that later ones carry a token at once.
//! A remembered challenge with an old token may be refused in many ways (401; ECR: 403; public ECR: 400; nvcr.io: a
//! 401 with another realm that does not work). The answer is always the same and happens once: forget both, ask bare
//! again, and answer the challenge that comes then.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use http::StatusCode;
use http::header::{HeaderMap, HeaderValue};
use moka::sync::Cache;
use tokio::time::Instant;
use url::Url;

use super::challenge::{self, Bearer, Challenge};
use super::client::Wire;
use super::credentials::{Account, Credentials, Keyring};
use super::error::UpstreamError;
use super::token::{Token, TokenKey, Tokens};
use super::trust::{Origin, Trust};

const MOST_CHALLENGES: u64 = 10_000;

/// What one upstream's hosts want to see, and what we have to show.
pub(super) struct Authorizer {
    upstream: Arc<str>,
    trust: Arc<Trust>,
    keyring: Arc<Keyring>,
    tokens: Tokens,
    /// By origin; and by repository too where the challenge is good for one repository only.
    challenges: Cache<(Origin, Option<String>), Arc<Known>>,
    /// So that a token server that may not see our credentials is named in the log once.
    warned: AtomicBool,
}

/// For whom and where a request is authorized.
#[derive(Clone, Copy)]
pub(super) struct Subject<'a> {
    pub(super) url: &'a Url,
    pub(super) repository: &'a str,
    /// Whether this is the upstream itself, not a host that it redirected us to: only it may see credentials.
    pub(super) own: bool,
}

/// A challenge that was met before.
enum Known {
    Basic,
    Bearer { realm: Url, service: Option<String>, scope: Scope },
}

enum Scope {
    /// `repository:<the repository asked for>:pull`
    Pull,
    /// As it stands in the challenge (`aws`, `*`).
    Literal(String),
}

/// An `Authorization` and where it comes from.
pub(super) struct Grant {
    pub(super) header: HeaderValue,
    source: GrantSource,
}

enum GrantSource {
    Own(Arc<Credentials>),
    Token(TokenKey, Arc<Token>),
}

// === impl Authorizer ===

impl Authorizer {
    pub(super) fn new(upstream: &Arc<str>, trust: &Arc<Trust>, keyring: Arc<Keyring>, tokens: Tokens) -> Self {
        Self {
            upstream: upstream.clone(),
            trust: trust.clone(),
            keyring,
            tokens,
            challenges: Cache::new(MOST_CHALLENGES),
            warned: AtomicBool::new(false),
        }
    }

    /// What a request can carry from the start, by the challenges met so far.
    pub(super) async fn foresee(
        &self,
        wire: &Wire,
        subject: Subject<'_>,
        deadline: Instant,
    ) -> Result<Option<Grant>, UpstreamError> {
        let origin = Origin::of(subject.url);
        let narrow = self.challenges.get(&(origin.clone(), Some(subject.repository.to_owned())));
        match narrow.or_else(|| self.challenges.get(&(origin, None))) {
            Some(known) => {
                let own = self.own(subject, deadline).await?;
                self.grant(wire, subject, own, &known, deadline).await
            }
            None => Ok(None),
        }
    }

    /// The answer to the challenge in `headers`, which is remembered. `None` where there is none: no challenge that we
    /// know, or one for a password that we do not have.
    pub(super) async fn answer(
        &self,
        wire: &Wire,
        subject: Subject<'_>,
        headers: &HeaderMap,
        deadline: Instant,
    ) -> Result<Option<Grant>, UpstreamError> {
        let own = self.own(subject, deadline).await?;
        let Some((known, narrow)) = choose(subject, own.is_some(), challenge::parse(headers)) else {
            return Ok(None);
        };
        if let Known::Bearer { realm, .. } = &known {
            let checked = self.trust.check_address(realm);
            checked.map_err(|error| UpstreamError::bad(&self.upstream, error.to_string()))?;
        }
        let known = Arc::new(known);
        let key = (Origin::of(subject.url), narrow.then(|| subject.repository.to_owned()));
        self.challenges.insert(key, known.clone());
        self.grant(wire, subject, own, &known, deadline).await
    }

    /// Whether a refused request is worth asking again from scratch; if so, what it was refused for is forgotten.
    pub(super) async fn renew(
        &self,
        subject: Subject<'_>,
        grant: &Grant,
        asked: Instant,
        deadline: Instant,
        status: StatusCode,
        headers: &HeaderMap,
    ) -> bool {
        match &grant.source {
            GrantSource::Own(refused)
                if self.keyring.renew(subject.url, subject.repository, refused, deadline).await => {}
            // The same password again would only count as another wrong attempt.
            GrantSource::Own(_) if status != StatusCode::UNAUTHORIZED => return false,
            GrantSource::Own(_) if challenge::parse(headers).contains(&Challenge::Basic) => return false,
            GrantSource::Own(_) => {}
            // A token that is younger than this request is as good as tokens get.
            GrantSource::Token(_, token) if token.obtained >= asked => return false,
            GrantSource::Token(key, token) => self.tokens.reject(key, token).await,
        }
        let origin = Origin::of(subject.url);
        self.challenges.invalidate(&(origin.clone(), Some(subject.repository.to_owned())));
        self.challenges.invalidate(&(origin, None));
        true
    }

    /// Only the upstream itself sees credentials.
    async fn own(&self, subject: Subject<'_>, deadline: Instant) -> Result<Option<Arc<Credentials>>, UpstreamError> {
        if !subject.own {
            return Ok(None);
        }
        self.keyring.get(subject.url, subject.repository, deadline).await
    }

    async fn grant(
        &self,
        wire: &Wire,
        subject: Subject<'_>,
        own: Option<Arc<Credentials>>,
        known: &Known,
        deadline: Instant,
    ) -> Result<Option<Grant>, UpstreamError> {
        let (realm, own) = match (known, own) {
            (Known::Bearer { realm, .. }, own) if own.as_ref().is_none_or(|own| !own.is_bearer) => (realm, own),
            (_, own) => {
                let header =
                    |own: Arc<Credentials>| Grant { header: own.authorization.clone(), source: GrantSource::Own(own) };
                return Ok(own.map(header));
            }
        };
        let shown = own.filter(|_| self.may_see_credentials(subject.url, realm));
        let Some(refused) = shown else {
            return self.token(wire, subject, known, None, deadline).await;
        };
        match self.token(wire, subject, known, Some(&refused), deadline).await {
            Err(UpstreamError::Denied { .. })
                if self.keyring.renew(subject.url, subject.repository, &refused, deadline).await =>
            {
                let newer = self.own(subject, deadline).await?;
                self.token(wire, subject, known, newer.as_deref(), deadline).await
            }
            answer => answer,
        }
    }

    async fn token(
        &self,
        wire: &Wire,
        subject: Subject<'_>,
        known: &Known,
        shown: Option<&Credentials>,
        deadline: Instant,
    ) -> Result<Option<Grant>, UpstreamError> {
        let Known::Bearer { realm, service, scope } = known else { return Ok(None) };
        let key = TokenKey {
            origin: Origin::of(subject.url),
            realm: realm.clone(),
            service: service.clone(),
            scope: scope.of(subject.repository),
            account: shown.map_or(Account::ANONYMOUS, |credentials| credentials.account),
        };
        let token = self.tokens.get(wire, &key, shown, deadline).await?;
        Ok(Some(Grant { header: token.authorization.clone(), source: GrantSource::Token(key, token) }))
    }

    fn may_see_credentials(&self, registry: &Url, realm: &Url) -> bool {
        let may = self.trust.may_see_credentials(registry, realm);
        if !may && !self.warned.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                upstream = %self.upstream,
                token_server = realm.host_str(),
                "the credentials are not shown to a token server on another domain: \
                 pulling anonymously (token_realms allows it)",
            );
        }
        may
    }
}

/// Bearer before Basic, as far as we can answer; and whether it is good for this repository only.
fn choose(subject: Subject<'_>, has_own: bool, challenges: Vec<Challenge>) -> Option<(Known, bool)> {
    let bearer = challenges.iter().find_map(|challenge| match challenge {
        Challenge::Bearer(bearer) => Known::bearer(subject, bearer),
        Challenge::Basic => None,
    });
    let basic = || challenges.contains(&Challenge::Basic) && has_own;
    bearer.or_else(|| basic().then_some((Known::Basic, false)))
}

// === impl Known ===

impl Known {
    /// `None` for a realm that is no address. The flag: good for this repository only.
    fn bearer(subject: Subject<'_>, bearer: &Bearer) -> Option<(Self, bool)> {
        let realm = realm(subject.url, &bearer.realm)?;
        let (scope, narrow) = match &bearer.scope {
            None => (Scope::Pull, false),
            Some(scope) if *scope == pull_scope(subject.repository) => (Scope::Pull, false),
            Some(scope) => (Scope::Literal(scope.clone()), scope.starts_with("repository:")),
        };
        Some((Self::Bearer { realm, service: bearer.service.clone(), scope }, narrow))
    }
}

// === impl Scope ===

impl Scope {
    fn of(&self, repository: &str) -> String {
        match self {
            Self::Pull => pull_scope(repository),
            Self::Literal(scope) => scope.clone(),
        }
    }
}

fn pull_scope(repository: &str) -> String {
    format!("repository:{repository}:pull")
}

/// Absolute, or a path on the challenging host. A user name in it would become an `Authorization` of its own.
fn realm(challenger: &Url, realm: &str) -> Option<Url> {
    let mut url = if realm.starts_with('/') { challenger.join(realm) } else { Url::parse(realm) }.ok()?;
    url.set_fragment(None);
    (matches!(url.scheme(), "http" | "https") && url.username().is_empty() && url.password().is_none()).then_some(url)
}

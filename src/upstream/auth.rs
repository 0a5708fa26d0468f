//! Authentication towards an upstream: which `Authorization` a request gets, and what happens when it is refused.
//!
//! The first request to a host has no `Authorization`. The challenge in its response is remembered, so that later
//! requests carry a token from the start. A host that hides private names is asked for its challenge
//! (`hidden_names`). Registries refuse an expired token in different ways (401; ECR: 403; public ECR: 400; nvcr.io: a
//! 401 with a realm that does not work). The reaction is always the same and happens once: forget the token and the
//! challenge, send the request without `Authorization`, and answer the new challenge.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use http::StatusCode;
use http::header::{HeaderMap, HeaderValue};
use moka::sync::Cache;
use tokio::time::Instant;
use url::Url;

use super::allowed_hosts::{AllowedHosts, Origin};
use super::challenge::{self, Bearer, Challenge};
use super::client::HttpClients;
use super::credentials::{Account, Credentials, Keyring};
use super::error::UpstreamError;
use super::token::{Token, TokenKey, Tokens};

/// Challenges remembered per upstream, at most.
const MAX_CHALLENGES: u64 = 10_000;
/// Hosts remembered per upstream that do not challenge at `/v2/`, at most.
const MAX_HOSTS_WITHOUT_CHALLENGE: u64 = 100;
/// How long a host that does not challenge at `/v2/` is not asked for a challenge again.
const NO_CHALLENGE_PERIOD: Duration = Duration::from_secs(5 * 60);

/// Authenticates the requests of one upstream.
pub(super) struct Authorizer {
    upstream: Arc<str>,
    allowed_hosts: Arc<AllowedHosts>,
    keyring: Arc<Keyring>,
    tokens: Tokens,
    /// By origin, and also by repository if the challenge is valid for one repository only.
    challenges: Cache<(Origin, Option<String>), Arc<KnownChallenge>>,
    /// Hosts that answered `GET /v2/` without a challenge.
    without_challenge: Cache<Origin, ()>,
    /// Whether a token server that may not see the credentials was already reported, so that this is logged once.
    warned: AtomicBool,
}

/// What a request is authorized for.
#[derive(Clone, Copy)]
pub(super) struct AuthTarget<'a> {
    pub(super) url: &'a Url,
    pub(super) repository: &'a str,
    /// Whether the URL is the upstream's own rather than one it redirected to. Only the upstream itself may see
    /// credentials.
    pub(super) is_upstream: bool,
}

/// A challenge of an earlier response.
enum KnownChallenge {
    Basic,
    Bearer { realm: Url, service: Option<String>, scope: TokenScope },
}

enum TokenScope {
    /// `repository:<requested repository>:pull`
    Pull,
    /// The literal scope of the challenge, such as `aws` or `*`.
    Literal(String),
}

/// An `Authorization` header and its source.
pub(super) struct Grant {
    pub(super) header: HeaderValue,
    source: GrantSource,
}

enum GrantSource {
    Credentials(Arc<Credentials>),
    Token(TokenKey, Arc<Token>),
}

// === impl Authorizer ===

impl Authorizer {
    /// An authorizer that has seen no challenge yet.
    pub(super) fn new(
        upstream: &Arc<str>,
        allowed_hosts: &Arc<AllowedHosts>,
        keyring: Arc<Keyring>,
        tokens: Tokens,
    ) -> Self {
        Self {
            upstream: upstream.clone(),
            allowed_hosts: allowed_hosts.clone(),
            keyring,
            tokens,
            challenges: Cache::new(MAX_CHALLENGES),
            without_challenge: Cache::builder()
                .max_capacity(MAX_HOSTS_WITHOUT_CHALLENGE)
                .time_to_live(NO_CHALLENGE_PERIOD)
                .build(),
            warned: AtomicBool::new(false),
        }
    }

    /// The `Authorization` for a first request, by the challenges of earlier responses from the host. `None`: there was
    /// none.
    pub(super) async fn authorize_early(
        &self,
        clients: &HttpClients,
        target: AuthTarget<'_>,
        deadline: Instant,
    ) -> Result<Option<Grant>, UpstreamError> {
        let origin = Origin::of(target.url);
        let for_one_repository = self.challenges.get(&(origin.clone(), Some(target.repository.to_owned())));
        match for_one_repository.or_else(|| self.challenges.get(&(origin, None))) {
            Some(known) => {
                let credentials = self.credentials(target, deadline).await?;
                self.grant(clients, target, credentials, &known, deadline).await
            }
            None => Ok(None),
        }
    }

    /// Answers the challenge in `headers`, and remembers it. `None` if it requires a password and there is none, or if
    /// a storage service sends no challenge.
    ///
    /// # Errors
    /// `Challenge` if there is no challenge that can be answered; `BadResponse` if its realm has a forbidden address;
    /// otherwise those of the token server.
    pub(super) async fn answer(
        &self,
        clients: &HttpClients,
        target: AuthTarget<'_>,
        headers: &HeaderMap,
        deadline: Instant,
    ) -> Result<Option<Grant>, UpstreamError> {
        let credentials = self.credentials(target, deadline).await?;
        let challenges = challenge::parse(headers);
        // If Bearer is offered as well, an anonymous token might have been enough. A storage service sends no
        // challenge.
        let only_basic = challenges.iter().all(|challenge| *challenge == Challenge::Basic);
        let is_storage = !target.is_upstream && challenges.is_empty();
        let is_refusal = is_storage || (only_basic && !challenges.is_empty() && credentials.is_none());
        let Some((known, for_one_repository)) = choose(target, credentials.is_some(), challenges) else {
            let cannot_answer = UpstreamError::challenge(&self.upstream, headers);
            return if is_refusal { Ok(None) } else { Err(cannot_answer) };
        };
        if let KnownChallenge::Bearer { realm, .. } = &known {
            let checked = self.allowed_hosts.check_address(realm);
            checked.map_err(|error| UpstreamError::bad(&self.upstream, error.to_string()))?;
        }
        let known = Arc::new(known);
        let key = (Origin::of(target.url), for_one_repository.then(|| target.repository.to_owned()));
        self.challenges.insert(key, known.clone());
        self.grant(clients, target, credentials, &known, deadline).await
    }

    /// Whether a refused request should be sent again without `Authorization`. If so, the refused token and the
    /// challenge are forgotten.
    pub(super) async fn renew(
        &self,
        target: AuthTarget<'_>,
        grant: &Grant,
        request_started: Instant,
        deadline: Instant,
        status: StatusCode,
        headers: &HeaderMap,
    ) -> bool {
        match &grant.source {
            GrantSource::Credentials(refused)
                if self.keyring.renew(target.url, target.repository, refused, deadline).await => {}
            // Sending the same password again would count as another failed login.
            GrantSource::Credentials(_) if status != StatusCode::UNAUTHORIZED => return false,
            GrantSource::Credentials(_) if challenge::parse(headers).contains(&Challenge::Basic) => return false,
            GrantSource::Credentials(_) => {}
            // A token obtained after this request began cannot be improved.
            GrantSource::Token(_, token) if token.obtained >= request_started => return false,
            GrantSource::Token(key, token) => self.tokens.reject(key, token).await,
        }
        let origin = Origin::of(target.url);
        self.challenges.invalidate(&(origin.clone(), Some(target.repository.to_owned())));
        self.challenges.invalidate(&(origin, None));
        true
    }

    /// Whether a request has credentials, also if its host has not challenged it.
    pub(super) async fn has_credentials(
        &self,
        target: AuthTarget<'_>,
        deadline: Instant,
    ) -> Result<bool, UpstreamError> {
        Ok(self.credentials(target, deadline).await?.is_some())
    }

    /// Whether the host answered `GET /v2/` without a challenge a short time ago.
    pub(super) fn is_known_not_to_challenge(&self, origin: &Origin) -> bool {
        self.without_challenge.contains_key(origin)
    }

    /// Records that the host answered `GET /v2/` without a challenge.
    pub(super) fn note_no_challenge(&self, origin: Origin) {
        self.without_challenge.insert(origin, ());
    }

    /// The credentials for the request. `None` for a host that the upstream redirected to.
    async fn credentials(
        &self,
        target: AuthTarget<'_>,
        deadline: Instant,
    ) -> Result<Option<Arc<Credentials>>, UpstreamError> {
        if !target.is_upstream {
            return Ok(None);
        }
        self.keyring.get(target.url, target.repository, deadline).await
    }

    async fn grant(
        &self,
        clients: &HttpClients,
        target: AuthTarget<'_>,
        credentials: Option<Arc<Credentials>>,
        known: &KnownChallenge,
        deadline: Instant,
    ) -> Result<Option<Grant>, UpstreamError> {
        let (realm, credentials) = match (known, credentials) {
            (KnownChallenge::Bearer { realm, .. }, credentials)
                if credentials.as_ref().is_none_or(|own| !own.is_bearer) =>
            {
                (realm, credentials)
            }
            (_, credentials) => {
                return Ok(credentials.map(|credentials| Grant {
                    header: credentials.authorization.clone(),
                    source: GrantSource::Credentials(credentials),
                }));
            }
        };
        let allowed = credentials.filter(|_| self.may_see_credentials(target.url, realm));
        let Some(refused) = allowed else {
            return self.token(clients, target, known, None, deadline).await;
        };
        match self.token(clients, target, known, Some(&refused), deadline).await {
            Err(UpstreamError::Denied { .. })
                if self.keyring.renew(target.url, target.repository, &refused, deadline).await =>
            {
                let newer = self.credentials(target, deadline).await?;
                self.token(clients, target, known, newer.as_deref(), deadline).await
            }
            answer => answer,
        }
    }

    async fn token(
        &self,
        clients: &HttpClients,
        target: AuthTarget<'_>,
        known: &KnownChallenge,
        credentials: Option<&Credentials>,
        deadline: Instant,
    ) -> Result<Option<Grant>, UpstreamError> {
        let KnownChallenge::Bearer { realm, service, scope } = known else { return Ok(None) };
        let key = TokenKey {
            origin: Origin::of(target.url),
            realm: realm.clone(),
            service: service.clone(),
            scope: scope.of(target.repository),
            account: credentials.map_or(Account::ANONYMOUS, |credentials| credentials.account),
        };
        let token = self.tokens.get(clients, &key, credentials, deadline).await?;
        Ok(Some(Grant { header: token.authorization.clone(), source: GrantSource::Token(key, token) }))
    }

    fn may_see_credentials(&self, registry: &Url, realm: &Url) -> bool {
        let may = self.allowed_hosts.may_see_credentials(registry, realm);
        if !may && !self.warned.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                upstream = %self.upstream,
                token_server = realm.host_str(),
                "credentials are withheld from a token server on another domain, so pulls are anonymous; if it is \
                 trusted, add it to token_realms",
            );
        }
        may
    }
}

/// Chooses a challenge, Bearer before Basic. The flag says whether it is valid for this repository only. `None` if
/// there is no challenge that can be answered.
fn choose(target: AuthTarget<'_>, has_credentials: bool, challenges: Vec<Challenge>) -> Option<(KnownChallenge, bool)> {
    let bearer = challenges.iter().find_map(|challenge| match challenge {
        Challenge::Bearer(bearer) => KnownChallenge::bearer(target, bearer),
        Challenge::Basic | Challenge::BearerWithoutRealm => None,
    });
    let basic = || challenges.contains(&Challenge::Basic) && has_credentials;
    bearer.or_else(|| basic().then_some((KnownChallenge::Basic, false)))
}

// === impl KnownChallenge ===

impl KnownChallenge {
    /// Validates a Bearer challenge; `None` if its realm is not a URL. The flag says whether it is valid for this
    /// repository only.
    fn bearer(target: AuthTarget<'_>, bearer: &Bearer) -> Option<(Self, bool)> {
        let realm = realm(target.url, &bearer.realm)?;
        let (scope, for_one_repository) = match &bearer.scope {
            None => (TokenScope::Pull, false),
            Some(scope) if *scope == pull_scope(target.repository) => (TokenScope::Pull, false),
            Some(scope) => (TokenScope::Literal(scope.clone()), scope.starts_with("repository:")),
        };
        Some((Self::Bearer { realm, service: bearer.service.clone(), scope }, for_one_repository))
    }
}

// === impl TokenScope ===

impl TokenScope {
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

/// The URL of a realm, which may be a path on the challenging host. `None` if it is not HTTP or contains a user name,
/// which would become an `Authorization` of its own.
fn realm(challenger: &Url, realm: &str) -> Option<Url> {
    let mut url = if realm.starts_with('/') { challenger.join(realm) } else { Url::parse(realm) }.ok()?;
    url.set_fragment(None);
    (matches!(url.scheme(), "http" | "https") && url.username().is_empty() && url.password().is_none()).then_some(url)
}

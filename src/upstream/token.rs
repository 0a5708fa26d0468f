//! Bearer tokens: fetched from the realm in a challenge, and cached until shortly before they expire. They are kept in
//! memory only.
//!
//! Specification: <https://distribution.github.io/distribution/spec/auth/token/> and `/oauth/`.

use std::sync::Arc;
use std::time::{Duration, Instant as StdInstant, SystemTime};

use http::header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue};
use http::{Method, StatusCode};
use moka::Expiry;
use moka::future::Cache;
use serde::Deserialize;
use tokio::time::{Instant, timeout_at};
use url::{Url, form_urlencoded};

use super::allowed_hosts::{AllowedHosts, Origin};
use super::client::{ClientKind, HttpClients};
use super::credentials::{Account, Credentials};
use super::error::UpstreamError;
use super::response::read_limited;
use super::retry_after;
use super::send::{MAX_REDIRECTS, redirect, without_user};

/// The `client_id` of token requests.
const CLIENT_ID: &str = "roadstead";
/// Longest accepted response of a token server.
const MAX_TOKEN_RESPONSE_BYTES: usize = 64 * 1024;
/// The lifetime of a token without `expires_in`, and the shortest lifetime that the specification allows.
const MIN_TOKEN_LIFETIME: Duration = Duration::from_secs(60);
/// Longest time for which a token is used, so that a revoked password does not stay in use.
const MAX_TOKEN_LIFETIME: Duration = Duration::from_secs(24 * 60 * 60);
/// Cached tokens per upstream, at most.
const MAX_TOKENS: u64 = 10_000;

/// What a token is valid for.
///
/// `origin` is the host that sent the challenge. A token for one host is never sent to another, even if both name the
/// same realm.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct TokenKey {
    pub(super) origin: Origin,
    pub(super) realm: Url,
    pub(super) service: Option<String>,
    pub(super) scope: String,
    pub(super) account: Account,
}

/// A token and its lifetime.
pub(super) struct Token {
    /// `Bearer …`, marked sensitive.
    pub(super) authorization: HeaderValue,
    pub(super) obtained: Instant,
    /// How long it is used, from `obtained`.
    lifetime: Duration,
}

/// The tokens of one upstream. Concurrent requests for the same token share one fetch.
pub(super) struct Tokens {
    upstream: Arc<str>,
    allowed_hosts: Arc<AllowedHosts>,
    cache: Cache<TokenKey, Arc<Token>>,
    header_timeout: Duration,
}

/// The used fields of a token server's response. Each is missing at some registry.
#[derive(Deserialize)]
struct TokenResponse {
    token: Option<String>,
    access_token: Option<String>,
    /// Seconds. Some servers send a float or a string.
    expires_in: Option<serde_json::Value>,
    issued_at: Option<String>,
}

struct TokenExpiry;

// === impl Tokens ===

impl Tokens {
    /// `header_timeout` limits each request to a token server, with its redirects.
    pub(super) fn new(upstream: &Arc<str>, allowed_hosts: &Arc<AllowedHosts>, header_timeout: Duration) -> Self {
        let cache = Cache::builder().max_capacity(MAX_TOKENS).expire_after(TokenExpiry).build();
        Self { upstream: upstream.clone(), allowed_hosts: allowed_hosts.clone(), cache, header_timeout }
    }

    /// The token for `key`, from the cache or from its realm, with `credentials` if any.
    ///
    /// The fetch has a time limit of its own, so that a caller with a short deadline does not end it for others.
    pub(super) async fn get(
        &self,
        clients: &HttpClients,
        key: &TokenKey,
        credentials: Option<&Credentials>,
        deadline: Instant,
    ) -> Result<Arc<Token>, UpstreamError> {
        let fetch = self.cache.try_get_with_by_ref(key, self.fetch(clients, key, credentials));
        match timeout_at(deadline, fetch).await {
            Ok(token) => token.map_err(|error| UpstreamError::clone(&error)),
            Err(_) => Err(UpstreamError::timeout(&self.upstream, "waiting for a token")),
        }
    }

    /// Removes `token` from the cache, unless a newer one has replaced it.
    pub(super) async fn reject(&self, key: &TokenKey, token: &Arc<Token>) {
        if self.cache.get(key).await.is_some_and(|current| Arc::ptr_eq(&current, token)) {
            self.cache.invalidate(key).await;
        }
    }

    /// Fetches a token by GET, as Docker, podman and crane do first and every token server supports. OAuth2 POST is
    /// used for a refresh token, or if the server rejects GET.
    async fn fetch(
        &self,
        clients: &HttpClients,
        key: &TokenKey,
        credentials: Option<&Credentials>,
    ) -> Result<Arc<Token>, UpstreamError> {
        let Some(credentials) = credentials else {
            return self.exchange(clients, get(key, None)).await;
        };
        if credentials.is_identity_token() {
            return self.exchange(clients, post(key, credentials)).await;
        }
        match self.exchange(clients, get(key, Some(credentials))).await {
            Err(UpstreamError::Status { status, .. }) if get_refused(status) => {
                self.exchange(clients, post(key, credentials)).await
            }
            answer => answer,
        }
    }

    async fn exchange(&self, clients: &HttpClients, request: reqwest::Request) -> Result<Arc<Token>, UpstreamError> {
        let deadline = Instant::now() + self.header_timeout;
        let is_anonymous = request.method() == Method::GET && !request.headers().contains_key(AUTHORIZATION);
        let mut response = self.follow(clients, request, deadline).await?;
        let (status, headers) = (response.status(), response.headers().clone());
        let read = timeout_at(deadline, read_limited(&mut response, MAX_TOKEN_RESPONSE_BYTES)).await;
        let body = read.map_err(|_| UpstreamError::timeout(&self.upstream, "reading a token"))?;
        let body = body.map_err(|error| UpstreamError::interrupted(&self.upstream, error))?;
        let upstream = self.upstream.clone();
        match status {
            StatusCode::OK => {}
            // A firewall or proxy in front of the token server may refuse any request, with a page.
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN if !is_anonymous || is_json_object(body.as_deref()) => {
                return Err(UpstreamError::Denied { upstream, status });
            }
            StatusCode::TOO_MANY_REQUESTS => {
                let retry_after = retry_after::from_headers(&headers).or_else(|| retry_after::from_body(&body?));
                return Err(UpstreamError::RateLimited { upstream, retry_after });
            }
            _ => {
                let retry_after = retry_after::from_headers(&headers);
                return Err(UpstreamError::Status { upstream, status, retry_after });
            }
        }
        let bad = |reason: &str| UpstreamError::bad(&upstream, format!("its token server: {reason}"));
        let body = body.ok_or_else(|| bad("a response that is too long"))?;
        let answer: TokenResponse = serde_json::from_slice(&body).map_err(|_| bad("a response that is not a token"))?;
        let token = answer.into_token(SystemTime::now()).ok_or_else(|| bad("a response without a usable token"))?;
        Ok(Arc::new(token))
    }
}

impl Tokens {
    /// Sends a request and follows redirects, as Go's clients do.
    async fn follow(
        &self,
        clients: &HttpClients,
        mut request: reqwest::Request,
        deadline: Instant,
    ) -> Result<reqwest::Response, UpstreamError> {
        for _ in 0..=MAX_REDIRECTS {
            let again = request.try_clone();
            let response = clients.send(ClientKind::Control, "token", request, deadline).await?;
            let next = again.map(|sent| self.redirected(sent, &response)).transpose()?.flatten();
            match next {
                Some(next) => request = next,
                None => return Ok(response),
            }
        }
        Err(UpstreamError::bad(&self.upstream, format!("its token server: more than {MAX_REDIRECTS} redirects")))
    }

    /// The request that a response redirects to. `None` if it redirects to none, or would send a password in a body to
    /// another host. Another host receives no credentials, not even if it redirects back.
    fn redirected(
        &self,
        mut sent: reqwest::Request,
        response: &reqwest::Response,
    ) -> Result<Option<reqwest::Request>, UpstreamError> {
        let Some(location) = redirect(response) else { return Ok(None) };
        let bad = |reason: &str| UpstreamError::bad(&self.upstream, format!("its token server: {reason}"));
        let target = location.to_str().ok().and_then(|location| sent.url().join(location).ok());
        let target = without_user(target.ok_or_else(|| bad("a redirect with an invalid Location"))?);
        self.allowed_hosts.check_redirect(sent.url(), &target).map_err(|reason| bad(&reason))?;
        let same_host = Origin::of(&target) == Origin::of(sent.url());
        // After other statuses a client sends a GET, which would lose the form.
        let keeps_method = matches!(response.status(), StatusCode::TEMPORARY_REDIRECT | StatusCode::PERMANENT_REDIRECT);
        if sent.method() != Method::GET && !(same_host && keeps_method) {
            return Ok(None);
        }
        if !same_host && sent.headers_mut().remove(AUTHORIZATION).is_some() {
            tracing::warn!(
                upstream = %self.upstream,
                token_server = target.host_str(),
                "the token server redirects to another host, which receives no credentials, so pulls are anonymous"
            );
        }
        *sent.url_mut() = target;
        Ok(Some(sent))
    }
}

// === impl TokenResponse ===

impl TokenResponse {
    fn into_token(self, now: SystemTime) -> Option<Token> {
        let token = [self.token, self.access_token].into_iter().flatten().find(|token| !token.is_empty())?;
        let mut authorization = HeaderValue::try_from(format!("Bearer {token}")).ok()?;
        authorization.set_sensitive(true);
        let lifetime = usable_for(self.expires_in.as_ref(), self.issued_at.as_deref(), now);
        Some(Token { authorization, obtained: Instant::now(), lifetime })
    }
}

// === impl TokenExpiry ===

impl Expiry<TokenKey, Arc<Token>> for TokenExpiry {
    fn expire_after_create(&self, _: &TokenKey, token: &Arc<Token>, _: StdInstant) -> Option<Duration> {
        Some(token.lifetime)
    }
}

/// How long a token is used: the rest of its lifetime since it was issued, less a tenth (at most 15 s), so that it does
/// not expire during a request.
fn usable_for(expires_in: Option<&serde_json::Value>, issued_at: Option<&str>, now: SystemTime) -> Duration {
    let seconds = expires_in.and_then(|value| value.as_f64().or_else(|| value.as_str()?.trim().parse().ok()));
    let lifetime = seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    let lifetime = lifetime.unwrap_or_default().clamp(MIN_TOKEN_LIFETIME, MAX_TOKEN_LIFETIME);
    let issued = issued_at.and_then(|time| humantime::parse_rfc3339(time).ok());
    // A token that is already older than its lifetime points to a wrong clock, so its age is ignored.
    let age = issued.and_then(|issued| now.duration_since(issued).ok()).filter(|age| *age < lifetime);
    let left = lifetime - age.unwrap_or_default();
    left - (left / 10).min(Duration::from_secs(15))
}

fn is_json_object(body: Option<&[u8]>) -> bool {
    let parsed = body.and_then(|body| serde_json::from_slice::<serde_json::Value>(body).ok());
    parsed.is_some_and(|body| body.is_object())
}

/// Whether a status rejects the method of the request rather than the credentials.
fn get_refused(status: StatusCode) -> bool {
    matches!(
        status,
        StatusCode::BAD_REQUEST | StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED | StatusCode::NOT_IMPLEMENTED
    )
}

fn get(key: &TokenKey, credentials: Option<&Credentials>) -> reqwest::Request {
    let mut url = key.realm.clone();
    {
        let mut query = url.query_pairs_mut();
        if let Some(service) = &key.service {
            query.append_pair("service", service);
        }
        for scope in key.scope.split_ascii_whitespace() {
            query.append_pair("scope", scope);
        }
        if let Some(credentials) = credentials {
            query.append_pair("client_id", CLIENT_ID).append_pair("account", &credentials.username);
        }
    }
    let mut request = reqwest::Request::new(Method::GET, url);
    if let Some(credentials) = credentials {
        request.headers_mut().insert(AUTHORIZATION, credentials.authorization.clone());
    }
    request
}

fn post(key: &TokenKey, credentials: &Credentials) -> reqwest::Request {
    let secret = credentials.password.expose();
    let mut form = form_urlencoded::Serializer::new(String::new());
    if credentials.is_identity_token() {
        form.append_pair("grant_type", "refresh_token").append_pair("refresh_token", secret);
    } else {
        form.append_pair("grant_type", "password").append_pair("access_type", "offline");
        form.append_pair("username", &credentials.username).append_pair("password", secret);
    }
    form.append_pair("client_id", CLIENT_ID).append_pair("scope", &key.scope);
    if let Some(service) = &key.service {
        form.append_pair("service", service);
    }
    let mut request = reqwest::Request::new(Method::POST, key.realm.clone());
    let form_type = HeaderValue::from_static("application/x-www-form-urlencoded");
    request.headers_mut().insert(CONTENT_TYPE, form_type);
    *request.body_mut() = Some(form.finish().into());
    request
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn token_expires_before_its_lifetime_ends() {
        let now = humantime::parse_rfc3339("2026-01-01T00:10:00Z").unwrap();
        let table = [
            (json!({}), 54),
            (json!({"expires_in": 300}), 285),
            (json!({"expires_in": 300.9}), 285),
            (json!({"expires_in": "300"}), 285),
            (json!({"expires_in": 1}), 54),
            (json!({"expires_in": -1}), 54),
            (json!({"expires_in": 1e300}), 54),
            (json!({"expires_in": null}), 54),
            (json!({"expires_in": 31_536_000}), 24 * 3600 - 15),
            (json!({"expires_in": 300, "issued_at": "2026-01-01T00:08:20Z"}), 185),
            (json!({"expires_in": 300, "issued_at": "2026-01-01T00:08:20.5+00:00"}), 185),
            (json!({"expires_in": 300, "issued_at": "2025-01-01T00:00:00Z"}), 285),
            (json!({"expires_in": 300, "issued_at": "2027-01-01T00:00:00Z"}), 285),
            (json!({"expires_in": 300, "issued_at": "yesterday"}), 285),
        ];
        for (answer, seconds) in table {
            let parsed: TokenResponse = serde_json::from_value(answer.clone()).unwrap();
            let usable = usable_for(parsed.expires_in.as_ref(), parsed.issued_at.as_deref(), now);
            assert_eq!(usable.as_secs(), seconds, "{answer}");
        }
    }

    #[test]
    fn both_names_of_the_token_are_accepted() {
        let table = [
            (json!({"token": "t"}), Some("Bearer t")),
            (json!({"access_token": "a"}), Some("Bearer a")),
            (json!({"token": "", "access_token": "a"}), Some("Bearer a")),
            (json!({"token": "t", "access_token": "a"}), Some("Bearer t")),
            (json!({"token": "t\r\nX: y"}), None),
            (json!({"token": ""}), None),
            (json!({}), None),
        ];
        for (answer, expected) in table {
            let parsed: TokenResponse = serde_json::from_value(answer.clone()).unwrap();
            let token = parsed.into_token(SystemTime::now());
            assert_eq!(token.as_ref().map(|token| token.authorization.to_str().unwrap()), expected, "{answer}");
        }
    }
}

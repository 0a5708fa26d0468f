//! One round of a request: tries the URLs in order, answers challenges, and follows redirects.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::header::{
    ACCEPT, AUTHORIZATION, CONTENT_LENGTH, CONTENT_RANGE, HeaderMap, HeaderName, HeaderValue, IF_NONE_MATCH, IF_RANGE,
    LOCATION, RANGE, VIA,
};
use http::{Method, StatusCode};
use tokio::time::{Instant, timeout_at};
use url::Url;

use super::allowed_hosts::Origin;
use super::auth::AuthTarget;
use super::client::ClientKind;
use super::error::{UpstreamError, is_outage};
use super::hidden_names::may_hide_a_name;
use super::limits::{LimitedAccount, LimitedRequests};
use super::remote::{Connection, Remote};
use super::response::{self, UpstreamBody, UpstreamResponse};
use super::{CredentialId, Effort, Hops, Kind, UpstreamRequest, retry_after};
use crate::oci::RepoName;

/// All supported manifest types, in one header, the same for HEAD and GET. For a narrower list some registries send
/// another representation, which has another digest. Schema 1 is omitted: its digest does not cover its bytes. `*/*` is
/// omitted because it includes schema 1.
const MANIFEST_TYPES: HeaderValue = HeaderValue::from_static(
    "application/vnd.oci.image.index.v1+json, \
     application/vnd.oci.image.manifest.v1+json, \
     application/vnd.docker.distribution.manifest.list.v2+json, \
     application/vnd.docker.distribution.manifest.v2+json",
);

/// Maximum number of redirects of one request.
pub(super) const MAX_REDIRECTS: usize = 5;
/// Maximum number of bytes read of an unused body, so that its connection can be reused.
const MAX_DISCARDED_BYTES: usize = 64 * 1024;
/// Maximum time to read an unused body.
const DISCARD_TIMEOUT: Duration = Duration::from_millis(500);

/// One attempt: the caller's request, or the GET that replaces a HEAD.
#[derive(Clone, Copy)]
pub(super) struct RequestAttempt<'a> {
    pub(super) request: &'a UpstreamRequest,
    pub(super) method: &'a Method,
    pub(super) range: Option<(u64, u64)>,
    /// Whether the HEAD of a blob failed in an earlier round, so that this round sends the GET at once.
    pub(super) head_failed: bool,
    pub(super) hops: &'a Hops,
    /// The account at the URL that is asked. `round` sets it for each URL.
    pub(super) account: LimitedAccount,
    pub(super) deadline: Instant,
    /// Set if the upstream itself responded to the last request. Responses of storage and token servers do not count.
    pub(super) upstream_responded: &'a AtomicBool,
}

/// The response at the end of a chain of redirects.
struct FinalResponse {
    response: reqwest::Response,
    /// Whether it comes from another host than the upstream's own.
    other_host: bool,
}

impl Remote {
    /// Tries the URLs in order until one response is final. Each URL gets an equal share of the remaining time.
    pub(super) async fn round(
        &self,
        connection: &Connection,
        attempt: RequestAttempt<'_>,
    ) -> Result<UpstreamResponse, UpstreamError> {
        let mut failure = None;
        let urls_left = (1..=u32::try_from(self.urls.len()).unwrap_or(u32::MAX)).rev();
        let urls = self.urls.iter().enumerate().cycle().skip(attempt.request.skip_urls);
        for ((position, base), urls_left) in urls.zip(urls_left) {
            let now = Instant::now();
            let share = attempt.deadline.saturating_duration_since(now) / urls_left;
            let account = self.account_at(base, &attempt.request.repository);
            let answer = match self.admit_at(account, attempt.request) {
                Ok(()) => {
                    let attempt = RequestAttempt { account, deadline: now + share, ..attempt };
                    self.try_url(connection, base, attempt).await
                }
                Err(limited) => Err(limited),
            };
            match answer {
                Ok(response) => return Ok(UpstreamResponse { next_url: position + 1, ..response }),
                Err(error) => {
                    // A mirror that gets no credentials need not know the content. Only the other URLs decide.
                    if self.keyring.is_anonymous_at(base, attempt.request.repository.as_str()) {
                        if urls_left > 1 {
                            continue;
                        }
                        if let Some(earlier) = failure {
                            return Err(earlier);
                        }
                    }
                    let is_last = !error.is_worth_another_url() || Instant::now() >= attempt.deadline;
                    let error = match failure.take() {
                        Some(earlier) => {
                            let anonymous = !self.keyring.has(attempt.request.repository.as_str());
                            earlier.combined_with(error, anonymous)
                        }
                        None => error,
                    };
                    if is_last {
                        return Err(error);
                    }
                    failure = Some(error);
                }
            }
        }
        Err(failure.unwrap_or_else(|| UpstreamError::timeout(&self.name, "no time left for a request")))
    }

    /// The account that limits apply to, of requests for a repository to this URL.
    pub(super) fn account_at(&self, url: &Url, repository: &RepoName) -> LimitedAccount {
        let host = self.urls.iter().position(|other| host_and_port(other) == host_and_port(url)).unwrap_or_default();
        let repository = repository.as_str();
        let is_anonymous = self.keyring.is_anonymous_at(url, repository);
        let credential = if is_anonymous { CredentialId::ANONYMOUS } else { self.keyring.id(repository) };
        LimitedAccount { host, credential }
    }

    /// Whether the limits of an account allow the request. The error says when they end.
    pub(super) fn admit_at(&self, account: LimitedAccount, request: &UpstreamRequest) -> Result<(), UpstreamError> {
        let admitted = self.limits.read(account, |limits| limits.admit(request.kind, &request.method, Instant::now()));
        admitted.map_err(|left| UpstreamError::RateLimited { upstream: self.name.clone(), retry_after: Some(left) })
    }

    async fn try_url(
        &self,
        connection: &Connection,
        base: &Url,
        attempt: RequestAttempt<'_>,
    ) -> Result<UpstreamResponse, UpstreamError> {
        let request = attempt.request;
        let url = self.request_url(base, request)?;
        if request.kind != Kind::Blob || request.method != Method::HEAD {
            return self.ask_url(connection, url, attempt).await;
        }
        if attempt.head_failed {
            return self.head_by_get(connection, url, attempt).await;
        }
        match self.ask_url(connection, url.clone(), attempt).await {
            // Some registries send a length of 0 in every response to HEAD.
            Ok(response) if response.content_length().is_some_and(|length| length > 0) => Ok(response),
            // The blob exists. The GET returns its length.
            Ok(response) => Ok(self.head_by_get(connection, url, attempt).await.unwrap_or(response)),
            Err(error) if error.may_concern_head_only() && Instant::now() < attempt.deadline => {
                self.head_by_get(connection, url, attempt).await
            }
            Err(error) => Err(error),
        }
    }

    async fn ask_url(
        &self,
        connection: &Connection,
        url: Url,
        attempt: RequestAttempt<'_>,
    ) -> Result<UpstreamResponse, UpstreamError> {
        let last = self.follow(connection, url, attempt).await?;
        self.evaluate(attempt, last).await
    }

    /// Replaces HEAD by a GET of one byte, because some registries refuse HEAD, and the signed URLs of some storage
    /// services are valid for GET only. The response contains the length, if the upstream sends it.
    async fn head_by_get(
        &self,
        connection: &Connection,
        url: Url,
        attempt: RequestAttempt<'_>,
    ) -> Result<UpstreamResponse, UpstreamError> {
        let attempt = RequestAttempt { method: &Method::GET, range: Some((0, 0)), ..attempt };
        let last = self.follow(connection, url, attempt).await?;
        let headers = last.response.headers();
        let length = match meaning(last.response.status(), headers, true) {
            StatusCode::OK => response::content_length(headers),
            StatusCode::PARTIAL_CONTENT => response::content_range_total(headers),
            // The content is empty. Without its length, a 416 is only a refusal (RFC 9110, section 15.5.17).
            StatusCode::RANGE_NOT_SATISFIABLE if response::content_range_total(headers) == Some(0) => Some(0),
            _ => return self.evaluate(attempt, last).await,
        };
        let mut headers = headers.clone();
        headers.remove(CONTENT_RANGE);
        headers.remove(CONTENT_LENGTH);
        if let Some(length) = length {
            headers.insert(CONTENT_LENGTH, length.into());
        }
        self.discard(last.response, attempt.deadline).await;
        let body = self.body(attempt.request.kind, None);
        Ok(UpstreamResponse { status: StatusCode::OK, headers, body, next_url: 0 })
    }

    /// Follows redirects. After the first redirect to another host no request carries credentials, not even if it is
    /// redirected back: the other host could choose the path that the credentials are used for.
    async fn follow(
        &self,
        connection: &Connection,
        mut url: Url,
        attempt: RequestAttempt<'_>,
    ) -> Result<FinalResponse, UpstreamError> {
        let home = Origin::of(&url);
        let mut other_host = false;
        for _ in 0..=MAX_REDIRECTS {
            let repository = attempt.request.repository.as_str();
            let auth_target = AuthTarget { url: &url, repository, is_upstream: !other_host };
            let response = self.authorized(connection, auth_target, attempt).await?;
            let Some(location) = redirect(&response) else {
                return Ok(FinalResponse { response, other_host });
            };
            let target = location.to_str().ok().and_then(|location| url.join(location).ok());
            let target = target.ok_or_else(|| UpstreamError::bad(&self.name, "a redirect with an invalid Location"))?;
            let target = without_user(target);
            self.allowed_hosts
                .check_redirect(&url, &target)
                .map_err(|reason| UpstreamError::bad(&self.name, reason))?;
            self.discard(response, attempt.deadline).await;
            other_host |= Origin::of(&target) != home;
            url = target;
        }
        Err(UpstreamError::bad(&self.name, format!("more than {MAX_REDIRECTS} redirects")))
    }

    /// Requests one URL and answers its challenge. Sends at most five requests: one without and one with a token,
    /// then the same again if a cached token was refused; and one for the challenge of a host that hides private
    /// names.
    async fn authorized(
        &self,
        connection: &Connection,
        target: AuthTarget<'_>,
        attempt: RequestAttempt<'_>,
    ) -> Result<reqwest::Response, UpstreamError> {
        let (clients, auth, request_started) = (&connection.clients, &connection.auth, Instant::now());
        // This host may not require a token, so a failure of the token server matters only if the host sends a
        // challenge.
        let early = auth.authorize_early(clients, target, attempt.deadline).await;
        let (mut grant, mut early_failure) = match early {
            Ok(grant) => (grant, None),
            Err(error) => {
                tracing::debug!(upstream = %self.name, %error, "no token for the first request; sending it without one");
                (None, Some(error))
            }
        };
        let (mut renewed, mut asked_for_challenge) = (false, false);
        loop {
            if target.is_upstream {
                attempt.upstream_responded.store(false, Ordering::Relaxed);
            }
            let response =
                self.exchange(connection, target.url, attempt, grant.as_ref().map(|grant| &grant.header)).await?;
            if target.is_upstream {
                attempt.upstream_responded.store(!is_outage(response.status()), Ordering::Relaxed);
            }
            let (status, headers) = (response.status(), response.headers());
            grant = match &grant {
                None if status == StatusCode::UNAUTHORIZED => {
                    let answer = auth.answer(clients, target, headers, attempt.deadline).await;
                    match answer.map_err(|error| self.record_limit(attempt, LimitedRequests::Everything, error))? {
                        Some(grant) => Some(grant),
                        None => return Ok(response),
                    }
                }
                // With credentials, the response to an anonymous request says nothing about the content.
                None if may_hide_a_name(status) && target.is_upstream && !asked_for_challenge => {
                    asked_for_challenge = true;
                    if let Some(error) = early_failure.take()
                        && auth.has_credentials(target, attempt.deadline).await?
                    {
                        return Err(self.record_limit(attempt, LimitedRequests::Everything, error));
                    }
                    match self.authorize_hidden(connection, target, attempt.deadline).await {
                        Ok(Some(grant)) => Some(grant),
                        Ok(None) => return Ok(response),
                        Err(error) => return Err(self.record_limit(attempt, LimitedRequests::Everything, error)),
                    }
                }
                Some(refused) if may_mean_expired_token(status) && !renewed => {
                    renewed = true;
                    if !auth.renew(target, refused, request_started, attempt.deadline, status, headers).await {
                        return Ok(response);
                    }
                    None
                }
                _ => return Ok(response),
            };
            self.discard(response, attempt.deadline).await;
        }
    }

    async fn exchange(
        &self,
        connection: &Connection,
        url: &Url,
        attempt: RequestAttempt<'_>,
        authorization: Option<&HeaderValue>,
    ) -> Result<reqwest::Response, UpstreamError> {
        let mut request = reqwest::Request::new(attempt.method.clone(), url.clone());
        let headers = request.headers_mut();
        if let Some(authorization) = authorization {
            headers.insert(AUTHORIZATION, authorization.clone());
        }
        if !attempt.hops.is_empty() {
            headers.insert(VIA, attempt.hops.followed_by(&self.setup.via));
        }
        if attempt.request.kind == Kind::Manifest {
            headers.insert(ACCEPT, MANIFEST_TYPES);
        }
        if let Some((first, last)) = attempt.range {
            let range = HeaderValue::try_from(format!("bytes={first}-{last}"));
            headers.insert(RANGE, range.map_err(|_| UpstreamError::bad(&self.name, "an invalid range"))?);
        }
        for (name, etag) in [(IF_NONE_MATCH, &attempt.request.if_none_match), (IF_RANGE, &attempt.request.if_range)] {
            // An entity tag that is not valid in a header is not sent.
            if let Some(Ok(etag)) = etag.as_ref().map(HeaderValue::try_from) {
                headers.insert(name, etag);
            }
        }
        let client_kind = if attempt.request.kind == Kind::Blob { ClientKind::Blobs } else { ClientKind::Control };
        let started = Instant::now();
        let deadline = attempt.deadline.min(started + self.header_timeout);
        let response = connection.clients.send(client_kind, attempt.request.kind.as_str(), request, deadline).await?;
        self.metrics.upstream_first_byte(&self.name, started.elapsed().as_secs_f64());
        self.note_rate_limit(attempt.account, response.headers());
        Ok(response)
    }

    /// Converts the response to the caller's result.
    async fn evaluate(
        &self,
        attempt: RequestAttempt<'_>,
        last: FinalResponse,
    ) -> Result<UpstreamResponse, UpstreamError> {
        let FinalResponse { response, other_host } = last;
        let headers = response.headers();
        let status = meaning(response.status(), headers, attempt.range.is_some());
        let upstream = self.name.clone();
        let expected = match status {
            StatusCode::OK => true,
            StatusCode::PARTIAL_CONTENT => attempt.range.is_some(),
            StatusCode::NOT_MODIFIED => attempt.request.if_none_match.is_some(),
            _ => false,
        };
        if expected {
            let mut headers = headers.clone();
            if status == StatusCode::OK {
                headers.remove(CONTENT_RANGE);
            }
            let has_body = *attempt.method != Method::HEAD && status != StatusCode::NOT_MODIFIED;
            return Ok(UpstreamResponse {
                status,
                headers,
                body: self.body(attempt.request.kind, has_body.then_some(response)),
                next_url: 0,
            });
        }
        let retry_after = retry_after::from_headers(headers);
        let body = self.discard(response, attempt.deadline).await;
        // If a storage service rejects a signed URL, its 403 is a failure, not a denial. registry.k8s.io redirects
        // manifests to another registry, which may deny them.
        let is_registry = body.as_deref().is_some_and(has_registry_errors);
        let (kind, repository) = (attempt.request.kind, attempt.request.repository.as_str());
        // A proxy or firewall in front of the registry may refuse any request. Without credentials, only the
        // registry's own denial says something about the content.
        let denies =
            if other_host { kind != Kind::Blob && is_registry } else { is_registry || self.keyring.has(repository) };
        Err(match status {
            // The upstream itself redirected to the storage, so it has the content.
            StatusCode::NOT_FOUND if !other_host || is_registry => UpstreamError::NotFound { upstream },
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN if denies => UpstreamError::Denied { upstream, status },
            StatusCode::TOO_MANY_REQUESTS => {
                let body = body.unwrap_or_default();
                let covers = LimitedRequests::of(attempt.request.kind, attempt.method, other_host, &body);
                let retry_after = retry_after.or_else(|| retry_after::from_body(&body));
                self.record_limit(attempt, covers, UpstreamError::RateLimited { upstream, retry_after })
            }
            _ if status.is_client_error() || status.is_server_error() => {
                UpstreamError::Status { upstream, status, retry_after }
            }
            _ => UpstreamError::bad(&upstream, format!("{status}, which is not a response to this request")),
        })
    }

    /// The body of a response, or an empty one.
    pub(super) fn body(&self, kind: Kind, response: Option<reqwest::Response>) -> UpstreamBody {
        UpstreamBody {
            upstream: self.name.clone(),
            kind,
            idle_timeout: self.idle_timeout,
            metrics: self.metrics.clone(),
            response,
            in_flight: None,
        }
    }

    /// Reads an unused body if it is small and fast, because an HTTP/1 connection with unread bytes cannot be reused.
    /// Returns the body if it was read completely.
    pub(super) async fn discard(&self, mut response: reqwest::Response, deadline: Instant) -> Option<Bytes> {
        if response::content_length(response.headers()).is_some_and(|length| length > MAX_DISCARDED_BYTES as u64) {
            return None;
        }
        let deadline = deadline.min(Instant::now() + DISCARD_TIMEOUT);
        timeout_at(deadline, response::read_limited(&mut response, MAX_DISCARDED_BYTES)).await.ok()?.ok()?
    }

    fn request_url(&self, base: &Url, request: &UpstreamRequest) -> Result<Url, UpstreamError> {
        let base = base.as_str().trim_end_matches('/');
        let request_url = Url::parse(&format!("{base}/v2/{}/{}", request.repository, request.path));
        request_url
            .map_err(|_| UpstreamError::bad(&self.name, "a URL that cannot be combined with the path of the request"))
    }

    /// Records a 429 for the account of the request, unless it is for an extra transfer. If the response has no
    /// `Retry-After`, adds the default wait.
    fn record_limit(
        &self,
        attempt: RequestAttempt<'_>,
        covers: LimitedRequests,
        error: UpstreamError,
    ) -> UpstreamError {
        let UpstreamError::RateLimited { upstream, retry_after: requested } = error else { return error };
        if attempt.request.effort == Effort::Extra {
            return UpstreamError::RateLimited { upstream, retry_after: requested };
        }
        let (now, repository) = (Instant::now(), &attempt.request.repository);
        let hold = self.limits.change(attempt.account, now, |limits| limits.hold(covers, requested, now));
        tracing::warn!(
            %upstream, %repository, ?covers, seconds = hold.as_secs_f64(),
            "upstream returned 429; requests with the same credentials to the same host are paused"
        );
        UpstreamError::RateLimited { upstream, retry_after: requested.or(Some(hold)) }
    }

    /// Records Docker Hub's `ratelimit-limit: 100;w=21600` and `ratelimit-remaining`.
    fn note_rate_limit(&self, account: LimitedAccount, headers: &HeaderMap) {
        let text = |name| headers.get(HeaderName::from_static(name))?.to_str().ok();
        let read = |name| {
            let number = text(name)?.split(';').next()?.trim().parse().ok();
            number.filter(|number: &f64| number.is_finite())
        };
        let (limit, remaining) = (read("ratelimit-limit"), read("ratelimit-remaining"));
        if limit.is_some() || remaining.is_some() {
            self.metrics.upstream_ratelimit(&self.name, limit, remaining);
        }
        if let (Some(limit), Some(remaining)) = (limit, remaining) {
            let window = text("ratelimit-limit")
                .and_then(|value| value.split(';').find_map(|part| part.trim().strip_prefix("w=")));
            let window = window.and_then(|seconds| seconds.parse().ok()).map(Duration::from_secs);
            let now = Instant::now();
            self.limits.change(account, now, |limits| limits.note_budget(limit, remaining, window, now));
        }
    }
}

fn host_and_port(url: &Url) -> (Option<&str>, Option<u16>) {
    (url.host_str(), url.port_or_known_default())
}

/// The status without the variants of 200 that transforming proxies send: 203, 226, 201, and 206 with the complete
/// content although no range was requested. The digest decides whether the content is right.
fn meaning(status: StatusCode, headers: &HeaderMap, is_range_requested: bool) -> StatusCode {
    match status {
        StatusCode::CREATED | StatusCode::NON_AUTHORITATIVE_INFORMATION | StatusCode::IM_USED => StatusCode::OK,
        StatusCode::PARTIAL_CONTENT if !is_range_requested && response::has_complete_range(headers) => StatusCode::OK,
        status => status,
    }
}

pub(super) fn redirect(response: &reqwest::Response) -> Option<&HeaderValue> {
    let redirects = matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308);
    redirects.then(|| response.headers().get(LOCATION)).flatten()
}

/// Whether a body has the form of a registry's error (distribution-spec, "Error Codes").
fn has_registry_errors(body: &[u8]) -> bool {
    let parsed: Result<serde_json::Value, _> = serde_json::from_slice(body);
    parsed.is_ok_and(|body| body.get("errors").is_some_and(serde_json::Value::is_array))
}

/// Whether a status may mean that the token has expired. For an expired token ECR sends 403, and public ECR 400,
/// without a challenge.
fn may_mean_expired_token(status: StatusCode) -> bool {
    matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::BAD_REQUEST)
}

/// Removes user, password and fragment, because reqwest turns a user into `Authorization`. Neither call fails for an
/// http URL.
pub(super) fn without_user(mut url: Url) -> Url {
    let _ = url.set_username("");
    let _ = url.set_password(None);
    url.set_fragment(None);
    url
}

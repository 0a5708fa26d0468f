//! One round of asking, as the several requests that it takes on the wire: URLs in order, challenges, redirects.

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

use super::auth::Subject;
use super::client::Lane;
use super::error::{UpstreamError, is_outage};
use super::limits::Covers;
use super::remote::{Live, Remote};
use super::response::{self, UpstreamBody, UpstreamResponse};
use super::trust::Origin;
use super::{Hops, Kind, UpstreamRequest, retry_after};

/// Every manifest type that we can keep, in one line, the same on HEAD and GET: with a narrower list some registries
/// answer with another representation and so another digest. Schema 1 is left out (its digest is not over its bytes),
/// and so is `*/*`, which would let it in.
const MANIFEST_TYPES: HeaderValue = HeaderValue::from_static(
    "application/vnd.oci.image.index.v1+json, \
     application/vnd.oci.image.manifest.v1+json, \
     application/vnd.docker.distribution.manifest.list.v2+json, \
     application/vnd.docker.distribution.manifest.v2+json",
);

const MOST_REDIRECTS: usize = 5;
/// What is read of the body of a refusal or a redirect, so that its connection can be used again.
const SMALL_BODY: usize = 64 * 1024;
const SMALL_BODY_TIME: Duration = Duration::from_millis(500);

/// What is asked for: the caller's request, or the GET in place of a HEAD.
#[derive(Clone, Copy)]
pub(super) struct Ask<'a> {
    pub(super) request: &'a UpstreamRequest,
    pub(super) method: &'a Method,
    pub(super) range: Option<(u64, u64)>,
    pub(super) hops: &'a Hops,
    pub(super) deadline: Instant,
    /// Whether the upstream itself has answered what it was asked last, whatever its storage or token server then do.
    pub(super) heard: &'a AtomicBool,
}

/// The end of a chain of redirects.
struct Arrived {
    response: reqwest::Response,
    /// Whether another host than the upstream itself answers.
    elsewhere: bool,
}

impl Remote {
    /// Asks one URL after the other, as long as the next one may do better, until the head of an answer is there. A silent
    /// URL leaves those behind it their share of the time.
    pub(super) async fn round(&self, live: &Live, ask: Ask<'_>) -> Result<UpstreamResponse, UpstreamError> {
        let mut failure = None;
        let still_to_ask = (1..=u32::try_from(self.urls.len()).unwrap_or(u32::MAX)).rev();
        let in_order = self.urls.iter().cycle().skip(ask.request.skip_urls);
        for (base, still_to_ask) in in_order.zip(still_to_ask) {
            let now = Instant::now();
            let share = ask.deadline.saturating_duration_since(now) / still_to_ask;
            match self.ask_at(live, base, Ask { deadline: now + share, ..ask }).await {
                Err(error) if error.is_worth_another_url() && Instant::now() < ask.deadline => failure = Some(error),
                answer => return answer,
            }
        }
        Err(failure.unwrap_or_else(|| UpstreamError::timeout(&self.name, "no time left to ask")))
    }

    async fn ask_at(&self, live: &Live, base: &Url, ask: Ask<'_>) -> Result<UpstreamResponse, UpstreamError> {
        let request = ask.request;
        let url = self.address(base, request)?;
        let arrived = self.follow(live, url.clone(), ask).await?;
        let refuses_head = request.kind == Kind::Blob
            && request.method == Method::HEAD
            && arrived.elsewhere
            && matches!(arrived.response.status().as_u16(), 400 | 403 | 405 | 501);
        if refuses_head {
            return self.head_by_get(live, url, ask).await;
        }
        self.judge(ask, arrived).await
    }

    /// HEAD of a blob whose storage answers GET only (its URLs are signed for one method): one byte says the length.
    async fn head_by_get(&self, live: &Live, url: Url, ask: Ask<'_>) -> Result<UpstreamResponse, UpstreamError> {
        let ask = Ask { method: &Method::GET, range: Some((0, 0)), ..ask };
        let arrived = self.follow(live, url, ask).await?;
        let headers = arrived.response.headers();
        let length = match arrived.response.status() {
            // Its length is not the content's.
            _ if !response::is_identity(headers) => return self.judge(ask, arrived).await,
            StatusCode::OK => response::content_length(headers),
            // 416: there is no first byte, which is the answer too.
            StatusCode::PARTIAL_CONTENT | StatusCode::RANGE_NOT_SATISFIABLE => response::content_range_total(headers),
            _ => return self.judge(ask, arrived).await,
        };
        let length = length.ok_or_else(|| UpstreamError::bad(&self.name, "a blob whose length it does not tell"))?;
        let mut headers = headers.clone();
        headers.remove(CONTENT_RANGE);
        headers.insert(CONTENT_LENGTH, length.into());
        self.discard(arrived.response, ask.deadline).await;
        Ok(UpstreamResponse { status: StatusCode::OK, headers, body: self.body(ask.request.kind, None) })
    }

    /// Follows redirects to an answer that is none. Credentials stay behind at the first change of host, for good:
    /// a host that redirects back to the upstream could choose the path that they are used for.
    async fn follow(&self, live: &Live, mut url: Url, ask: Ask<'_>) -> Result<Arrived, UpstreamError> {
        let home = Origin::of(&url);
        let mut elsewhere = false;
        for _ in 0..=MOST_REDIRECTS {
            let subject = Subject { url: &url, repository: ask.request.repository.as_str(), own: !elsewhere };
            let response = self.authorized(live, subject, ask).await?;
            let Some(location) = redirect(&response) else {
                return Ok(Arrived { response, elsewhere });
            };
            let target = location.to_str().ok().and_then(|location| url.join(location).ok());
            let target = target.ok_or_else(|| UpstreamError::bad(&self.name, "a redirect to nowhere"))?;
            let target = without_user(target);
            self.trust.check_redirect(&url, &target).map_err(|reason| UpstreamError::bad(&self.name, reason))?;
            self.discard(response, ask.deadline).await;
            elsewhere |= Origin::of(&target) != home;
            url = target;
        }
        Err(UpstreamError::bad(&self.name, format!("more than {MOST_REDIRECTS} redirects")))
    }

    /// One URL, with whatever its host wants to see. At most four requests: bare, with a token, and where that token
    /// was an old one, bare and with a token once more.
    async fn authorized(
        &self,
        live: &Live,
        subject: Subject<'_>,
        ask: Ask<'_>,
    ) -> Result<reqwest::Response, UpstreamError> {
        let (wire, auth, asked) = (&live.wire, &live.auth, Instant::now());
        // What was foreseen may not be wanted here: a token server in trouble matters only to who is challenged.
        let foreseen = auth.foresee(wire, subject, ask.deadline).await;
        let mut grant = foreseen.unwrap_or_else(|error| {
            tracing::debug!(upstream = %self.name, %error, "asking {} without a token: {error}", self.name);
            None
        });
        let mut renewed = false;
        loop {
            if subject.own {
                ask.heard.store(false, Ordering::Relaxed);
            }
            let response = self.exchange(live, subject.url, ask, grant.as_ref().map(|grant| &grant.header)).await?;
            if subject.own {
                ask.heard.store(!is_outage(response.status()), Ordering::Relaxed);
            }
            let (status, headers) = (response.status(), response.headers());
            grant = match &grant {
                None if status == StatusCode::UNAUTHORIZED => {
                    let answer = auth.answer(wire, subject, headers, ask.deadline).await;
                    match answer.map_err(|error| self.limited(Covers::Everything, error))? {
                        Some(grant) => Some(grant),
                        None => return Ok(response),
                    }
                }
                Some(refused) if may_mean_old_token(status) && !renewed => {
                    renewed = true;
                    if !auth.renew(subject, refused, asked, ask.deadline, status, headers).await {
                        return Ok(response);
                    }
                    None
                }
                _ => return Ok(response),
            };
            self.discard(response, ask.deadline).await;
        }
    }

    async fn exchange(
        &self,
        live: &Live,
        url: &Url,
        ask: Ask<'_>,
        authorization: Option<&HeaderValue>,
    ) -> Result<reqwest::Response, UpstreamError> {
        let mut request = reqwest::Request::new(ask.method.clone(), url.clone());
        let headers = request.headers_mut();
        if let Some(authorization) = authorization {
            headers.insert(AUTHORIZATION, authorization.clone());
        }
        if !ask.hops.is_empty() {
            headers.insert(VIA, ask.hops.then(&self.setup.via));
        }
        if ask.request.kind == Kind::Manifest {
            headers.insert(ACCEPT, MANIFEST_TYPES);
        }
        if let Some((first, last)) = ask.range {
            let range = HeaderValue::try_from(format!("bytes={first}-{last}"));
            headers.insert(RANGE, range.map_err(|_| UpstreamError::bad(&self.name, "a bad range"))?);
        }
        for (name, etag) in [(IF_NONE_MATCH, &ask.request.if_none_match), (IF_RANGE, &ask.request.if_range)] {
            // An ETag that cannot be sent back came from nowhere we know: ask without it.
            if let Some(Ok(etag)) = etag.as_ref().map(HeaderValue::try_from) {
                headers.insert(name, etag);
            }
        }
        let lane = if ask.request.kind == Kind::Blob { Lane::Blobs } else { Lane::Control };
        let started = Instant::now();
        let deadline = ask.deadline.min(started + self.header_timeout);
        let response = live.wire.send(lane, ask.request.kind.as_str(), request, deadline).await?;
        self.metrics.upstream_first_byte(&self.name, started.elapsed().as_secs_f64());
        self.note_rate_limit(response.headers());
        Ok(response)
    }

    /// The answer for the caller, or the error that it amounts to.
    async fn judge(&self, ask: Ask<'_>, arrived: Arrived) -> Result<UpstreamResponse, UpstreamError> {
        let Arrived { response, elsewhere } = arrived;
        let (status, headers) = (response.status(), response.headers());
        let upstream = self.name.clone();
        let expected = match status {
            StatusCode::OK => true,
            StatusCode::PARTIAL_CONTENT => ask.range.is_some(),
            StatusCode::NOT_MODIFIED => ask.request.if_none_match.is_some(),
            _ => false,
        };
        if expected {
            if status != StatusCode::NOT_MODIFIED && !response::is_identity(headers) {
                return Err(UpstreamError::bad(&upstream, "an encoded body (Content-Encoding)"));
            }
            let headers = headers.clone();
            let has_body = *ask.method != Method::HEAD && status != StatusCode::NOT_MODIFIED;
            return Ok(UpstreamResponse {
                status,
                headers,
                body: self.body(ask.request.kind, has_body.then_some(response)),
            });
        }
        let retry_after = retry_after::from_headers(headers);
        let body = self.discard(response, ask.deadline).await;
        // Storage that refuses a signed URL is in trouble with the registry; it does not decide who may pull.
        let decides = !(elsewhere && ask.request.kind == Kind::Blob);
        Err(match status {
            StatusCode::NOT_FOUND => UpstreamError::NotFound { upstream },
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN if decides => UpstreamError::Denied { upstream, status },
            StatusCode::TOO_MANY_REQUESTS => {
                let body = body.unwrap_or_default();
                let covers = Covers::of(ask.request.kind, ask.method, elsewhere, &body);
                let retry_after = retry_after.or_else(|| retry_after::from_body(&body));
                self.limited(covers, UpstreamError::RateLimited { upstream, retry_after })
            }
            _ if status.is_client_error() || status.is_server_error() => {
                UpstreamError::Status { upstream, status, retry_after }
            }
            _ => UpstreamError::bad(&upstream, format!("{status}, which it was not asked for")),
        })
    }

    pub(super) fn body(&self, kind: Kind, response: Option<reqwest::Response>) -> UpstreamBody {
        UpstreamBody {
            upstream: self.name.clone(),
            kind,
            idle_timeout: self.idle_timeout,
            metrics: self.metrics.clone(),
            response,
        }
    }

    /// Reads a body that nobody wants, if it is small and quick: an HTTP/1 connection that is left with bytes in it
    /// cannot be used again.
    pub(super) async fn discard(&self, mut response: reqwest::Response, deadline: Instant) -> Option<Bytes> {
        if response::content_length(response.headers()).is_some_and(|length| length > SMALL_BODY as u64) {
            return None;
        }
        let deadline = deadline.min(Instant::now() + SMALL_BODY_TIME);
        timeout_at(deadline, response::read_limited(&mut response, SMALL_BODY)).await.ok()?.ok()?
    }

    fn address(&self, base: &Url, request: &UpstreamRequest) -> Result<Url, UpstreamError> {
        let base = base.as_str().trim_end_matches('/');
        let address = Url::parse(&format!("{base}/v2/{}/{}", request.repository, request.path));
        address.map_err(|_| UpstreamError::bad(&self.name, "a URL that cannot be built from its own"))
    }

    /// Remembers a 429, and fills in how long we stay away where it does not say.
    fn limited(&self, covers: Covers, error: UpstreamError) -> UpstreamError {
        let UpstreamError::RateLimited { upstream, retry_after: told } = error else { return error };
        let hold = self.limits.lock().hold(covers, told, Instant::now());
        tracing::warn!(
            %upstream, ?covers, seconds = hold.as_secs_f64(),
            "{upstream} limits our rate of requests: not asking for {:.1} s", hold.as_secs_f64()
        );
        UpstreamError::RateLimited { upstream, retry_after: told.or(Some(hold)) }
    }

    /// Docker Hub's `ratelimit-limit: 100;w=21600` and `ratelimit-remaining`.
    fn note_rate_limit(&self, headers: &HeaderMap) {
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
            self.limits.lock().note_budget(limit, remaining, window, Instant::now());
        }
    }
}

fn redirect(response: &reqwest::Response) -> Option<&HeaderValue> {
    let redirects = matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308);
    redirects.then(|| response.headers().get(LOCATION)).flatten()
}

/// ECR says 403 and public ECR says 400 to a token that has expired, without a challenge.
fn may_mean_old_token(status: StatusCode) -> bool {
    matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::BAD_REQUEST)
}

/// A user name in a `Location` would become an `Authorization`. Neither call can fail on an http URL.
fn without_user(mut url: Url) -> Url {
    let _ = url.set_username("");
    let _ = url.set_password(None);
    url.set_fragment(None);
    url
}

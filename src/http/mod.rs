//! The registry over HTTP: parse, authenticate, resolve, authorize, act, respond.
//!
//! [`Site`] answers requests. One function takes every path under `/v2` (see [`crate::oci::Route`] for why no router does),
//! asks the gate ([`crate::access`]) and calls the handler of the endpoint with the permission that the gate has given.
//! `serve` and the modules below it are about connections: their number, deadlines and bounds.

mod admin;
mod blobs;
mod body;
mod call;
mod catalog;
mod connection;
mod error;
mod fields;
mod host;
mod manifests;
mod outcome;
mod places;
mod plain;
mod protocols;
mod query;
mod referrers;
pub mod serve;
mod streams;
mod tags;
pub mod tls;
mod uploads;

use std::collections::HashSet;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::extract::{Extension, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get};
use futures_util::FutureExt;
use http::header::{ALLOW, CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE, Entry};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode};
use http_body::Body as _;
use parking_lot::Mutex;
use tower_service::Service;
use tracing::{Instrument, Span};

use crate::access::{AccessError, Caller, Gate, Peer};
use crate::oci::{Endpoint, Route, RouteError, STALE_WARNING};
use crate::printable::Printable;
use crate::pull::Puller;
use crate::resolve::ResolveError;
use crate::store::Store;
use crate::telemetry::{InFlight, Metrics, REQUEST_ID, RequestTrace};
use body::Guarded;
use call::Call;
use error::ApiError;
use outcome::Outcome;

/// Where the distribution API is, unless a mirror URL has a path.
const REGISTRY: &str = "/v2/";
/// What orchestrators ask for. Reserved places answer nothing else.
const HEALTH_PATHS: [&str; 2] = ["/healthz", "/readyz"];
/// The methods of an endpoint that is only read.
const READS: &str = "GET, HEAD";
const API_VERSION: HeaderName = HeaderName::from_static("docker-distribution-api-version");
const CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");
/// The value of `Warning` on content that could not be confirmed.
const STALE: HeaderValue = HeaderValue::from_static(STALE_WARNING);

/// What every handler works with.
pub struct App {
    pub store: Store,
    pub puller: Puller,
    pub gate: Gate,
    pub metrics: Arc<Metrics>,
    /// Our own name in `Via`. A request that carries it has been here before.
    pub via: String,
    /// How long the body of an upload may make no progress.
    pub progress_timeout: Duration,
    pub foreign_names: ForeignNames,
    /// Added to every response that does not have them.
    pub response_headers: Vec<(HeaderName, HeaderValue)>,
}

/// The values of `ns` that a warning has been logged about, because they may be names of this server.
#[derive(Default)]
pub struct ForeignNames(Mutex<HashSet<String>>);

/// Everything that is answered on the listening port. Clones share it.
#[derive(Clone)]
pub struct Site {
    app: Arc<App>,
    /// The paths beside `/v2/`.
    router: Router,
    /// Only health checks are answered, and the rest with 503.
    is_crowded: bool,
}

impl Site {
    pub fn new(app: Arc<App>) -> Self {
        let registry = |State(app): State<Arc<App>>, Extension(peer): Extension<Peer>, request| async move {
            dispatch(&app, &peer, request).await
        };
        let router = Router::new()
            .route("/", any(alive))
            .route("/metrics", get(admin::metrics))
            .route("/healthz", get(admin::healthz))
            .route("/readyz", get(admin::readyz))
            .method_not_allowed_fallback(wrong_method)
            .fallback(registry)
            .with_state(app.clone());
        Self { app, router, is_crowded: false }
    }

    /// The site for a connection that came while every usual place had a request in progress.
    fn crowded(&self) -> Self {
        Self { is_crowded: true, ..self.clone() }
    }

    /// Answers one request of a peer.
    pub async fn answer(&self, peer: &Peer, mut request: Request<Body>) -> Response {
        if self.is_crowded && !HEALTH_PATHS.contains(&request.uri().path()) {
            return self.refuse(&request, ApiError::Crowded);
        }
        // Nearly all requests take this way, which costs less than a router.
        let response = if request.uri().path().starts_with(REGISTRY) {
            dispatch(&self.app, peer, request).await
        } else {
            request.extensions_mut().insert(peer.clone());
            // Boxed, so that the rare case does not make the future of every request larger.
            Box::pin(self.router.clone().call(request)).await.unwrap_or_else(|never| match never {})
        };
        self.with_headers(response)
    }

    /// Answers a request that no endpoint is to see.
    fn refuse<B>(&self, request: &Request<B>, error: ApiError) -> Response {
        let trace = RequestTrace::new("other", request.method().clone(), request.headers());
        let response = self.with_headers(error.into_response(&trace));
        if request.method() == Method::HEAD { without_body(response) } else { response }
    }

    /// Adds the configured headers. A header that the response has stays as it is.
    fn with_headers(&self, mut response: Response) -> Response {
        let configured = &self.app.response_headers;
        if !configured.is_empty() {
            let headers = response.headers_mut();
            let missing: Vec<_> = configured.iter().filter(|(name, _)| !headers.contains_key(name)).collect();
            for (name, value) in missing {
                headers.append(name, value.clone());
            }
        }
        response
    }
}

/// Answers one request. A panic costs that request and nothing else.
async fn dispatch(app: &Arc<App>, peer: &Peer, request: Request<Body>) -> Response {
    let route = Route::parse(request.uri().path());
    let handler = route.as_ref().map_or("other", |route| route.endpoint.handler());
    let in_flight = app.metrics.http_started(handler);
    let trace = RequestTrace::new(handler, request.method().clone(), request.headers());
    // A hit opens no span of its own: only a subscriber that wants everything makes it do so. That case is in a box, so that
    // it does not make the future of every request larger.
    let answered = if RequestTrace::is_wanted_for_hits() {
        let answering = AssertUnwindSafe(answer(app, peer, &trace, route, request)).catch_unwind();
        Box::pin(answering.instrument(trace.span())).await
    } else {
        AssertUnwindSafe(answer(app, peer, &trace, route, request)).catch_unwind().await
    };
    let answer = answered.unwrap_or_else(|_| {
        tracing::error!(handler, method = %trace.method(), request_id = trace.id(), "a handler panicked");
        Err(ApiError::Panic)
    });
    let mut response = answer.unwrap_or_else(|error| {
        app.foreign_names.look_at(&error);
        error.into_response(&trace)
    });
    let headers = response.headers_mut();
    headers.insert(API_VERSION, HeaderValue::from_static("registry/2.0"));
    if let Some(id) = trace.sent_id() {
        headers.insert(REQUEST_ID, id.clone());
    }
    if *trace.method() == Method::HEAD {
        response = without_body(response);
    }
    let (method, started, span) = trace.into_parts();
    let code = response.status();
    let ended = Ended { app: app.clone(), handler, method, code, started, _in_flight: in_flight, _span: span };
    response.map(|body| Guarded::wrap(body, ended))
}

impl ForeignNames {
    /// At most this many are warned about. Clients send what they like.
    const MAX_NAMES: usize = 20;

    /// Warns once for each `ns` that hides a local repository.
    fn look_at(&self, error: &ApiError) {
        let ApiError::Access(AccessError::Resolve(error @ ResolveError::NotOurName { ns })) = error else { return };
        let mut warned = self.0.lock();
        if warned.len() < Self::MAX_NAMES && warned.insert(Printable(ns).to_string()) {
            tracing::warn!(%error, "a client named a registry that is not configured");
        }
    }
}

/// Counts a request when its response has been sent or abandoned.
struct Ended {
    app: Arc<App>,
    handler: &'static str,
    method: Method,
    code: StatusCode,
    started: Instant,
    _in_flight: InFlight,
    /// The span of the request, if it has one, lasts to the end of the response.
    _span: Option<Box<Span>>,
}

impl Drop for Ended {
    fn drop(&mut self) {
        let seconds = self.started.elapsed().as_secs_f64();
        self.app.metrics.http_finished(self.handler, &self.method, self.code, seconds);
    }
}

async fn answer(
    app: &Arc<App>,
    peer: &Peer,
    trace: &RequestTrace,
    route: Result<Route, RouteError>,
    request: Request<Body>,
) -> Result<Response, ApiError> {
    let (parts, body) = request.into_parts();
    let route = route?;
    let principal = app.gate.authenticate(Caller::new(peer, &parts.headers))?;
    let call = Call::new(parts, route, principal, trace);
    // Whatever it asks for: our upstreams lead back to us, so a request to them would wait for itself.
    if call.has_passed(&app.via) {
        return Err(ApiError::Loop);
    }
    match (call.method(), &call.route.endpoint) {
        (&Method::GET | &Method::HEAD, Endpoint::Base) => Ok(base()),
        // The hit path: the miss engine opens the span of the request when there is a miss.
        (&Method::GET | &Method::HEAD, Endpoint::Manifest(reference)) => {
            manifests::get(app, &call, call.may_pull(app)?, reference).await
        }
        (&Method::GET | &Method::HEAD, Endpoint::Blob(digest)) => {
            blobs::get(app, &call, call.may_pull(app)?, digest).await
        }
        // Boxed, so that the rare cases do not make the future of every request larger.
        _ => Box::pin(answer_rare(app, &call, body)).instrument(trace.span()).await,
    }
}

/// Everything but reads of manifests and blobs.
async fn answer_rare(app: &Arc<App>, call: &Call<'_>, body: Body) -> Result<Response, ApiError> {
    match (call.method(), &call.route.endpoint) {
        (&Method::GET | &Method::HEAD, Endpoint::Catalog) => {
            catalog::list(app, call, app.gate.catalog(&call.principal)?).await
        }
        (&Method::GET | &Method::HEAD, Endpoint::Tags) => tags::list(app, call, call.may_pull(app)?).await,
        (&Method::GET | &Method::HEAD, Endpoint::Referrers(subject)) => {
            referrers::list(app, call, call.may_pull(app)?, subject).await
        }
        (&Method::PUT, Endpoint::Manifest(reference)) => {
            manifests::put(app, call, call.may_push(app).await?, reference, body).await
        }
        (&Method::DELETE, Endpoint::Manifest(reference)) => {
            manifests::delete(app, call.may_delete(app)?, reference).await
        }
        (&Method::DELETE, Endpoint::Blob(digest)) => blobs::delete(app, call.may_delete(app)?, digest).await,
        (&Method::POST, Endpoint::Uploads) => uploads::start(app, call, call.may_push(app).await?, body).await,
        (&Method::PATCH, Endpoint::Upload(id)) => uploads::append(app, call, call.may_push(app).await?, id, body).await,
        (&Method::PUT, Endpoint::Upload(id)) => uploads::finish(app, call, call.may_push(app).await?, id, body).await,
        (&Method::GET | &Method::HEAD, Endpoint::Upload(id)) => {
            uploads::status(app, call.may_push(app).await?, id).await
        }
        (&Method::DELETE, Endpoint::Upload(id)) => uploads::cancel(app, call.may_push(app).await?, id).await,
        // Browsers ask before a request to another site (CORS). The configured headers are the answer, as in `registry:2`.
        (&Method::OPTIONS, endpoint) => {
            Ok([(ALLOW, HeaderValue::from_static(allowed_methods(endpoint)))].into_response())
        }
        (_, endpoint) => Err(ApiError::Method { allowed: allowed_methods(endpoint) }),
    }
}

/// The methods that [`answer_rare`] and [`answer`] handle, as the value of an `Allow` header (RFC 9110, section 10.2.1).
fn allowed_methods(endpoint: &Endpoint) -> &'static str {
    match endpoint {
        Endpoint::Base | Endpoint::Catalog | Endpoint::Tags | Endpoint::Referrers(_) => READS,
        Endpoint::Manifest(_) => "GET, HEAD, PUT, DELETE",
        Endpoint::Blob(_) => "GET, HEAD, DELETE",
        Endpoint::Uploads => "POST",
        Endpoint::Upload(_) => "GET, HEAD, PATCH, PUT, DELETE",
    }
}

/// Answers a request to a path beside `/v2/` whose method it does not have.
async fn wrong_method(method: Method, headers: HeaderMap) -> Response {
    let trace = RequestTrace::new("other", method, &headers);
    ApiError::Method { allowed: READS }.into_response(&trace)
}

/// What `registry:2` answers at its root, to any method. Load balancers ask for it.
async fn alive() -> impl IntoResponse {
    [(CACHE_CONTROL, HeaderValue::from_static("no-cache"))]
}

/// Removes the body of a response to HEAD and keeps its length in the header (RFC 9110, section 9.3.2). hyper does this for
/// HTTP/1 only.
fn without_body(response: Response) -> Response {
    let (mut parts, body) = response.into_parts();
    if let (Entry::Vacant(length), Some(exact)) = (parts.headers.entry(CONTENT_LENGTH), body.size_hint().exact())
        && !body.is_end_stream()
    {
        length.insert(exact.into());
    }
    Response::from_parts(parts, Body::empty())
}

/// end-1 of the distribution-spec: the API exists, and no caller is challenged.
fn base() -> Response {
    ([(CONTENT_TYPE, HeaderValue::from_static("application/json"))], "{}").into_response()
}

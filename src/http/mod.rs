//! The registry over HTTP: parse, authenticate, resolve, authorize, act, respond.
//!
//! [`Site`] answers requests. `dispatch` takes every path under `/v2` (see [`crate::oci::Route`] for why no router
//! does), asks the gate ([`crate::access`]) and calls the handler of the operation with the permission that the gate
//! has given. `serve` and the modules below it are about connections: their number, deadlines and bounds.

mod admin;
mod blobs;
mod body;
mod call;
mod catalog;
mod challenge;
mod connection;
mod dispatch;
mod drain;
mod error;
mod fields;
mod hits;
mod host;
mod manifests;
mod operation;
mod outcome;
mod places;
mod plain;
mod protocols;
mod query;
mod records;
mod referrers;
pub mod serve;
mod streams;
mod tags;
pub mod tls;
mod token;
mod uploads;

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Extension, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get};
use http::header::{CACHE_CONTROL, CONTENT_LENGTH, Entry};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request};
use http_body::Body as _;
use parking_lot::Mutex;
use tower_service::Service;

use crate::access::{AccessError, Gate, Peer};
use crate::audit::Audit;
use crate::oci::STALE_WARNING;
use crate::printable::Printable;
use crate::pull::{LargeDocuments, Puller};
use crate::resolve::ResolveError;
use crate::store::Store;
use crate::telemetry::{Metrics, RequestTrace};
use call::Call;
pub use challenge::TokenServer;
use dispatch::dispatch;
use error::ApiError;
pub use manifests::large_manifests;
use outcome::Outcome;

/// Where the distribution API is, unless a mirror URL has a path.
const REGISTRY: &str = "/v2/";
/// The paths of health checks. Connections at reserved places get 503 for all others.
const HEALTH_PATHS: [&str; 2] = ["/healthz", "/readyz"];
/// The methods of the paths beside `/v2/`.
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
    pub token_server: TokenServer,
    pub metrics: Arc<Metrics>,
    pub audit: Audit,
    /// Our own name in `Via`. A request that carries it has been here before.
    pub via: String,
    /// How long the body of an upload may make no progress.
    pub progress_timeout: Duration,
    pub foreign_names: ForeignNames,
    /// Bounds the large manifests that are received and checked at the same time.
    pub large_manifests: LargeDocuments,
    /// Headers that are added to every response that does not have them.
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
    /// Whether only health checks are answered, and other requests get 503.
    is_crowded: bool,
    /// Whether hits are left to the handlers: something must be added to their responses, or to the audit log.
    leaves_hits: bool,
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
            .fallback(registry);
        let router = match app.gate.has_users() {
            true => router.route(challenge::TOKEN_PATH, any(token::token)),
            false => router,
        };
        let router = router.with_state(app.clone());
        let leaves_hits = !app.response_headers.is_empty() || app.audit.has_pulls();
        Self { app, router, is_crowded: false, leaves_hits }
    }

    /// The site for a connection that came while every usual place had a request in progress.
    fn crowded(&self) -> Self {
        Self { is_crowded: true, leaves_hits: true, ..self.clone() }
    }

    /// Answers one request of a peer.
    pub async fn answer(&self, peer: &Peer, mut request: Request<Body>) -> Response {
        if self.is_crowded && !HEALTH_PATHS.contains(&request.uri().path()) {
            return self.refuse(&request, ApiError::Crowded);
        }
        // Nearly all requests take this way, which costs less than a router. The URL of a mirror may have a path
        // before `/v2/`.
        let path = request.uri().path();
        let response = if path.starts_with(REGISTRY) || path.contains(REGISTRY) {
            dispatch(&self.app, peer, request).await
        } else {
            request.extensions_mut().insert(peer.clone());
            // Boxed, so that the rare case does not make the future of every request larger.
            Box::pin(self.router.clone().call(request)).await.unwrap_or_else(|never| match never {})
        };
        self.with_headers(response)
    }

    /// Answers a request with an error, before it reaches an endpoint.
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

impl ForeignNames {
    /// Largest number of values that a warning is logged about, because clients choose them.
    const MAX_WARNED_NAMES: usize = 20;

    /// Warns once for each `ns` that hides a local repository.
    fn look_at(&self, error: &ApiError) {
        let ApiError::Access(AccessError::Resolve(error @ ResolveError::NotOurName { ns })) = error else { return };
        let mut warned = self.0.lock();
        if warned.len() < Self::MAX_WARNED_NAMES && warned.insert(Printable(ns).to_string()) {
            tracing::warn!(%error, "a client named a registry that is not configured");
        }
    }
}

/// Answers a request to a path beside `/v2/` whose method it does not have.
async fn wrong_method(method: Method, headers: HeaderMap) -> Response {
    let trace = RequestTrace::new("other", method, &headers);
    ApiError::Method { allowed: READS.to_owned() }.into_response(&trace)
}

/// The response of `registry:2` at `/`, to any method. Load balancers request it.
async fn alive() -> impl IntoResponse {
    [(CACHE_CONTROL, HeaderValue::from_static("no-cache"))]
}

/// Removes the body of a response to HEAD and keeps its length in the header (RFC 9110, section 9.3.2). hyper does
/// this for HTTP/1 only.
fn without_body(response: Response) -> Response {
    let (mut parts, body) = response.into_parts();
    if let (Entry::Vacant(length), Some(exact)) = (parts.headers.entry(CONTENT_LENGTH), body.size_hint().exact())
        && !body.is_end_stream()
    {
        length.insert(exact.into());
    }
    Response::from_parts(parts, Body::empty())
}

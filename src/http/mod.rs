//! The registry over HTTP: parse, ask the gate, call, respond.
//!
//! One fallback handler takes every path under `/v2` (see [`crate::oci::Route`] for why no router does), resolves which
//! repository is meant and hands over to the file of the resource. `serve` is what runs below it: connections, their
//! deadlines and bounds.

mod admin;
mod blobs;
mod body;
mod catalog;
mod connection;
mod error;
mod fields;
mod manifests;
mod peer;
mod plain;
mod query;
mod referrers;
pub mod serve;
mod streams;
mod tags;
pub mod tls;
mod uploads;

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use futures_util::FutureExt;
use http::header::{CONTENT_TYPE, HOST, WARNING};
use http::request::Parts;
use http::{HeaderName, HeaderValue, Method, Request, StatusCode, Version};
use tower_service::Service;

use crate::auth::{Action, Policy, Principal};
use crate::oci::{Endpoint, RepoId, Route, STALE_WARNING, Scope};
use crate::pull::{PullError, Puller};
use crate::resolve::{Asked, Routes, Rule, Target};
use crate::store::Store;
use crate::telemetry::{CacheResult, ContentKind, InFlight, Metrics};
use crate::upstream::Hops;
use body::{Counter, Guarded};
use error::{ApiError, insert};
use query::Query;

/// Where the distribution API is, unless something stands before it.
const REGISTRY: &str = "/v2/";
const API_VERSION: HeaderName = HeaderName::from_static("docker-distribution-api-version");
const CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");
/// On what could not be confirmed.
const STALE: HeaderValue = HeaderValue::from_static(STALE_WARNING);
const OCI_NAMESPACE: HeaderName = HeaderName::from_static("oci-namespace");

/// What every handler works with.
pub struct App {
    pub store: Store,
    pub puller: Puller,
    pub routes: Routes,
    pub policy: Policy,
    pub metrics: Arc<Metrics>,
    /// What we call ourselves in `Via`: a request that carries it has been here before.
    pub via: String,
    /// An upload's body may stand still for this long.
    pub progress_timeout: Duration,
}

/// One request, taken apart.
struct Call {
    parts: Parts,
    query: Query,
    /// What it came through (`Via`).
    hops: Hops,
    route: Route,
    principal: Principal,
}

/// Everything that is answered on the listening port. Clones share it.
#[derive(Clone)]
pub struct Site {
    app: Arc<App>,
    /// The paths beside `/v2/`.
    router: Router,
}

impl Site {
    pub fn new(app: Arc<App>) -> Self {
        let router = Router::new()
            .route("/metrics", get(admin::metrics))
            .route("/healthz", get(admin::healthz))
            .route("/readyz", get(admin::readyz))
            .fallback(|State(app): State<Arc<App>>, request| async move { dispatch(&app, request).await })
            .with_state(app.clone());
        Self { app, router }
    }

    /// Answers one request.
    pub async fn answer(&self, request: Request<Body>) -> Response {
        // Nearly all of them, past what a router costs.
        if request.uri().path().starts_with(REGISTRY) {
            return dispatch(&self.app, request).await;
        }
        // In a box: what is rare is not to make the future of every request larger.
        Box::pin(self.router.clone().call(request)).await.unwrap_or_else(|never| match never {})
    }
}

/// Answers one request; a panic costs that request and nothing else.
async fn dispatch(app: &Arc<App>, request: Request<Body>) -> Response {
    let started = Instant::now();
    let route = Route::parse(request.uri().path());
    let handler = route.as_ref().map_or("other", |route| route.endpoint.handler());
    let in_flight = app.metrics.http_started(handler);
    let method = request.method().clone();
    let answer = AssertUnwindSafe(answer(app, route, request)).catch_unwind().await.unwrap_or_else(|_| {
        tracing::error!(handler, %method, "a handler panicked");
        Err(ApiError::Panic)
    });
    let mut response = answer.unwrap_or_else(IntoResponse::into_response);
    response.headers_mut().insert(API_VERSION, HeaderValue::from_static("registry/2.0"));
    let ended = Ended { app: app.clone(), handler, method, code: response.status(), started, _in_flight: in_flight };
    response.map(|body| Guarded::wrap(body, ended))
}

/// Counts a request when its answer has been sent or given up.
struct Ended {
    app: Arc<App>,
    handler: &'static str,
    method: Method,
    code: StatusCode,
    started: Instant,
    _in_flight: InFlight,
}

impl Drop for Ended {
    fn drop(&mut self) {
        let seconds = self.started.elapsed().as_secs_f64();
        self.app.metrics.http_finished(self.handler, &self.method, self.code, seconds);
    }
}

async fn answer(
    app: &Arc<App>,
    route: Result<Route, crate::oci::RouteError>,
    request: Request<Body>,
) -> Result<Response, ApiError> {
    let (parts, body) = request.into_parts();
    let (query, hops) = (Query::of(&parts.uri), Hops::of(&parts.headers));
    let call = Call { query, hops, route: route?, principal: Principal::Anonymous, parts };
    // Whatever it asks for: its upstreams lead back here, and a question to them would wait for itself.
    if call.hops.contain(&app.via) {
        return Err(ApiError::Loop);
    }
    match (call.method(), &call.route.endpoint) {
        (&Method::GET | &Method::HEAD, Endpoint::Base) => Ok(base()),
        (&Method::GET | &Method::HEAD, Endpoint::Catalog) => Box::pin(catalog::list(app, &call)).await,
        (&Method::GET | &Method::HEAD, Endpoint::Tags) => Box::pin(tags::list(app, &call)).await,
        (&Method::GET | &Method::HEAD, Endpoint::Manifest(reference)) => manifests::get(app, &call, reference).await,
        (&Method::PUT, Endpoint::Manifest(reference)) => Box::pin(manifests::put(app, &call, reference, body)).await,
        (&Method::DELETE, Endpoint::Manifest(reference)) => Box::pin(manifests::delete(app, &call, reference)).await,
        (&Method::GET | &Method::HEAD, Endpoint::Blob(digest)) => blobs::get(app, &call, digest).await,
        (&Method::DELETE, Endpoint::Blob(digest)) => Box::pin(blobs::delete(app, &call, digest)).await,
        (&Method::POST, Endpoint::Uploads) => Box::pin(uploads::start(app, &call, body)).await,
        (&Method::PATCH, Endpoint::Upload(id)) => Box::pin(uploads::append(app, &call, id, body)).await,
        (&Method::PUT, Endpoint::Upload(id)) => Box::pin(uploads::finish(app, &call, id, body)).await,
        (&Method::GET | &Method::HEAD, Endpoint::Upload(id)) => Box::pin(uploads::status(app, &call, id)).await,
        (&Method::DELETE, Endpoint::Upload(id)) => Box::pin(uploads::cancel(app, &call, id)).await,
        (&Method::GET | &Method::HEAD, Endpoint::Referrers(subject)) => {
            Box::pin(referrers::list(app, &call, subject)).await
        }
        _ => Err(ApiError::Method),
    }
}

/// end-1: the API is here, and nobody is challenged.
fn base() -> Response {
    ([(CONTENT_TYPE, HeaderValue::from_static("application/json"))], "{}").into_response()
}

impl Call {
    fn method(&self) -> &Method {
        &self.parts.method
    }

    fn is_head(&self) -> bool {
        self.parts.method == Method::HEAD
    }

    fn header(&self, name: HeaderName) -> Option<&str> {
        self.parts.headers.get(name)?.to_str().ok()
    }

    /// The miss engine, on behalf of this request.
    fn puller(&self, app: &App) -> Puller {
        app.puller.with_hops(self.hops.clone())
    }

    /// To an HTTP/1.0 client a body without length that fails looks whole.
    fn needs_length(&self) -> bool {
        self.parts.version < Version::HTTP_11
    }

    fn asked(&self) -> Asked<'_> {
        let authority = self.parts.uri.authority().map(|authority| authority.as_str());
        Asked {
            ns: self.query.get("ns"),
            host: self.header(HOST).or(authority),
            prefix: self.route.prefix.as_deref(),
            name: &self.route.name,
        }
    }

    /// The repository to read from, once the gate has been passed.
    fn readable(&self, app: &App) -> Result<Target, ApiError> {
        let target = app.routes.resolve(self.asked(), |name| app.store.is_local(name))?;
        app.policy.authorize(&self.principal, Action::Pull, &target.repo.scope, Some(&target.repo.name))?;
        Ok(target)
    }

    /// The local repository to write to, once the gate has been passed.
    async fn writable(&self, app: &App) -> Result<RepoId, ApiError> {
        let repo = app.routes.resolve_push(self.asked())?;
        app.policy.authorize(&self.principal, Action::Push, &repo.scope, Some(&repo.name))?;
        if app.store.is_local(&repo.name) {
            return Ok(repo);
        }
        // A mirror client asks for the default upstream's names without saying so, and must not get somebody's push.
        if let Some(mirrored) = app.routes.default_repository(&repo.name)
            && app.store.repository_exists(&mirrored).await?
        {
            return Err(ApiError::NameTaken(repo.name.to_string(), mirrored.scope.as_str().to_owned()));
        }
        Ok(repo)
    }

    /// The repository to delete from, once the gate has been passed.
    fn deletable(&self, app: &App) -> Result<RepoId, ApiError> {
        let target = app.routes.resolve(self.asked(), |name| app.store.is_local(name))?;
        app.policy.authorize(&self.principal, Action::Delete, &target.repo.scope, Some(&target.repo.name))?;
        Ok(target.repo)
    }

    /// Says back which registry was meant (distribution-spec, "Registry Proxying").
    fn echo_namespace(&self, response: &mut Response, target: &Target) {
        if let (Some(ns), Rule::Namespace | Rule::OwnNamespace) = (self.query.get("ns"), target.rule) {
            insert(response.headers_mut(), OCI_NAMESPACE, ns.to_owned());
        }
    }
}

/// Counts one GET of mirrored content exactly once, however it ends; HEAD and local content count in nothing.
struct Outcome {
    counted: Counter,
    kind: ContentKind,
    result: CacheResult,
    started: Instant,
    answered: bool,
}

impl Outcome {
    fn of(app: &App, call: &Call, repo: &RepoId, kind: ContentKind) -> Self {
        let counted = match &repo.scope {
            Scope::Upstream(upstream) if !call.is_head() => Some((app.metrics.clone(), upstream.clone())),
            _ => None,
        };
        Self { counted: Counter(counted), kind, result: CacheResult::Error, started: Instant::now(), answered: false }
    }

    /// The answer begins now.
    fn answered(&mut self, result: CacheResult) {
        self.result = result;
        self.answered = true;
    }

    fn failed(&mut self, error: &PullError) {
        if error.is_not_found() {
            self.result = CacheResult::Negative;
        }
    }

    fn counter(&self) -> Counter {
        self.counted.clone()
    }
}

impl Drop for Outcome {
    fn drop(&mut self) {
        if let Counter(Some((metrics, upstream))) = &self.counted {
            metrics.mirrored_get(self.kind, upstream, self.result);
            if self.answered {
                metrics.first_byte(self.kind, self.result, self.started.elapsed().as_secs_f64());
            }
        }
    }
}

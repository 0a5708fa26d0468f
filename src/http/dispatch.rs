//! From a request below `/v2/` to the handler of its operation: parse, authenticate, resolve, authorize, act, respond.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Instant;

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use futures_util::FutureExt;
use http::header::{ALLOW, CONTENT_TYPE};
use http::{HeaderValue, Method, Request, StatusCode};
use tracing::{Instrument, Span};

use super::body::Guarded;
use super::call::Call;
use super::challenge::challenge;
use super::error::ApiError;
use super::fields::insert;
use super::operation::{Operation, RareOperation, allowed_methods};
use super::{API_VERSION, App, blobs, catalog, manifests, records, referrers, tags, uploads, without_body};
use crate::access::{AccessError, AttemptResult, Caller, How, LoginError, Peer, Sender, Unauthenticated};
use crate::oci::{Route, RouteError};
use crate::telemetry::{InFlight, REQUEST_ID, RequestTrace};

/// Answers one request. A panic costs that request and nothing else.
pub(super) async fn dispatch(app: &Arc<App>, peer: &Peer, request: Request<Body>) -> Response {
    let route = Route::parse(request.uri().path());
    let handler = route.as_ref().map_or("other", |route| route.endpoint.handler());
    let in_flight = app.metrics.http_started(handler);
    let trace = RequestTrace::new(handler, request.method().clone(), request.headers());
    // A hit opens a span only if a subscriber asks for all spans. That rare case is boxed, so that it does not make the
    // future of every request larger.
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
    let (sender, refused) = match app.gate.identify(Caller::new(peer, &parts.headers)) {
        Ok(sender) => (sender, None),
        Err(error) => (Sender::Unusable, Some(error)),
    };
    let mut call = Call::new(parts, route, peer, sender, trace);
    let with_challenge = |error: ApiError| error.with_challenge(|reason| challenge(app, &call, reason));
    if let Some(error) = refused {
        trace.set_client(call.caller().address());
        if error == LoginError::Unauthenticated(Unauthenticated::InvalidToken) {
            app.metrics.auth_attempt(How::Token.as_str(), AttemptResult::Refused.as_str());
        }
        return Err(with_challenge(AccessError::from(error).into()));
    }
    // This applies to every operation. The server's upstreams lead back to it, so the request would wait for itself.
    if call.has_passed(&app.via) {
        return Err(ApiError::Loop);
    }
    // Not in a function of its own: the future of this one would be moved into the one that awaits it, and it is large.
    let answered = match Operation::of(call.method(), &call.route.endpoint) {
        // The hit path: the miss engine opens the span of the request when there is a miss.
        Some(Operation::ReadManifest(reference)) => match call.may_pull(app).await {
            Ok(access) => manifests::get(app, &call, access, reference).await,
            Err(error) => Err(error),
        },
        Some(Operation::ReadBlob(digest)) => match call.may_pull(app).await {
            Ok(access) => blobs::get(app, &call, access, digest).await,
            Err(error) => Err(error),
        },
        // Boxed, so that the rare cases do not make the future of every request larger.
        Some(Operation::Ping) => Box::pin(call.may_ping(app)).await.map(|()| base()),
        Some(Operation::Rare(operation)) => {
            trace.set_client(call.caller().address());
            Box::pin(answer_rare(app, &call, operation, body)).instrument(trace.span()).await
        }
        None => Err(ApiError::Method { allowed: allowed_methods(&call.route.endpoint) }),
    };
    let answered = answered.map_err(with_challenge);
    if answered.is_err() {
        trace.set_client(call.caller().address());
    }
    if app.audit.is_on() {
        records::conclude(app, &mut call, &answered);
    }
    answered
}

/// All operations except reads of manifests and blobs.
async fn answer_rare(
    app: &Arc<App>,
    call: &Call<'_>,
    operation: RareOperation<'_>,
    body: Body,
) -> Result<Response, ApiError> {
    match operation {
        RareOperation::ListRepositories => catalog::list(app, call, call.may_list(app).await?).await,
        RareOperation::ListTags => tags::list(app, call, call.may_pull(app).await?).await,
        RareOperation::ListReferrers(subject) => referrers::list(app, call, call.may_pull(app).await?, subject).await,
        RareOperation::PutManifest(reference) => {
            manifests::put(app, call, call.may_push(app).await?, reference, body).await
        }
        RareOperation::DeleteManifest(reference) => {
            manifests::delete(app, call.may_delete(app).await?, reference).await
        }
        RareOperation::DeleteBlob(digest) => blobs::delete(app, call.may_delete(app).await?, digest).await,
        RareOperation::StartUpload => uploads::start(app, call, call.may_push(app).await?, body).await,
        RareOperation::AppendToUpload(id) => uploads::append(app, call, call.may_push(app).await?, id, body).await,
        RareOperation::FinishUpload(id) => uploads::finish(app, call, call.may_push(app).await?, id, body).await,
        RareOperation::UploadStatus(id) => uploads::status(app, call.may_push(app).await?, id).await,
        RareOperation::CancelUpload(id) => uploads::cancel(app, call.may_push(app).await?, id).await,
        RareOperation::NameMethods => Ok(methods(&allowed_methods(&call.route.endpoint))),
    }
}

/// The response to `OPTIONS`, as that of `registry:2`. The configured headers say which requests a browser may send.
fn methods(allowed: &str) -> Response {
    let mut response = Response::new(Body::empty());
    insert(response.headers_mut(), ALLOW, allowed.to_owned());
    response
}

/// end-1 of the distribution-spec: the API exists, and the caller may use it.
fn base() -> Response {
    ([(CONTENT_TYPE, HeaderValue::from_static("application/json"))], "{}").into_response()
}

//! The routes of `control.sock`.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use http::StatusCode;
use http::header::CONTENT_TYPE;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::json;
use tokio::time::timeout;

use super::{Control, SOCKET, explain, gc, import, lease, lines, machine_tokens, reload, scrub, usage};
use crate::import::ImportEvent;
use crate::resolve::Routes;

/// Maximum bytes of a request's body. No valid request is as long.
const MAX_REQUEST_BYTES: usize = 64 << 10;
/// Maximum time to receive the body of a request. The client is on this machine.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// Why an operation was not started: the response's status and error text.
struct OperationError(StatusCode, String);

pub(super) fn router(control: Arc<Control>) -> Router {
    Router::new()
        .route("/v1/explain", post(explain_image))
        .route("/v1/du", post(du))
        .route("/v1/gc", post(collect))
        .route("/v1/import", post(import_images))
        .route("/v1/scrub", post(scrub_store))
        .route("/v1/reload", post(reload_rules))
        .route("/v1/lease", post(take_lease))
        .route("/v1/release", post(release_lease))
        .route("/v1/token-create", post(create_token))
        .route("/v1/token-list", post(list_tokens))
        .route("/v1/token-revoke", post(revoke_token))
        .with_state(control)
}

async fn explain_image(State(control): State<Arc<Control>>, body: Body) -> Result<Response, OperationError> {
    let request: explain::ExplainRequest = read(body).await?;
    let explained = tokio::task::spawn_blocking(move || {
        let sources = explain::ExplainSources {
            config: &control.config,
            routes: &Routes::new(&control.config),
            view: &control.store.view(),
            server: Some(&control),
        };
        explain::explain(&sources, &request)
    });
    let explained = explained.await.map_err(|_| panicked())?;
    explained.map(|explanation| respond_json(&explanation)).map_err(bad_request)
}

async fn du(State(control): State<Arc<Control>>) -> Response {
    let store = control.store.clone();
    lines::respond(&control.tasks, |lines| usage::usage(store, move |event| lines.write(&event)))
}

async fn scrub_store(State(control): State<Arc<Control>>, body: Body) -> Result<Response, OperationError> {
    let request: scrub::ScrubRequest = read(body).await?;
    if request.repair {
        control.record("scrub --repair", "started");
    }
    let (store, metrics) = (control.store.clone(), control.metrics.clone());
    Ok(lines::respond(&control.tasks, |lines| async move {
        let sink = lines.clone();
        let summary = scrub::scrub(store, request.repair, Some(metrics), move |event| sink.write(&event)).await?;
        lines.send(&scrub::ScrubEvent::Done(summary)).await;
        Ok(())
    }))
}

async fn collect(State(control): State<Arc<Control>>, body: Body) -> Result<Response, OperationError> {
    let request: gc::GcRequest = read(body).await?;
    if !request.dry_run {
        control.record("gc", "started");
    }
    let remove = !request.dry_run && control.since.elapsed() >= control.config.gc.after_start;
    let (store, config) = (control.store.clone(), control.config.clone());
    Ok(lines::respond(&control.tasks, |lines| async move {
        let sink = lines.clone();
        let summary = gc::gc(store, &config, remove, move |event| sink.write(&event)).await?;
        lines.send(&gc::GcEvent::Done(summary)).await;
        Ok(())
    }))
}

async fn import_images(State(control): State<Arc<Control>>, body: Body) -> Result<Response, OperationError> {
    let request: import::ImportRequest = read(body).await?;
    if !request.dry_run {
        control.record("import", "started");
    }
    let config = control.config.clone();
    let prepared = tokio::task::spawn_blocking(move || import::prepare(&config, &request)).await;
    let prepared = prepared.map_err(|_| panicked())?.map_err(bad_request)?;
    let store = control.store.clone();
    Ok(lines::respond(&control.tasks, |lines| async move {
        let sink = lines.clone();
        let summary = import::import(Some(store), prepared, move |event| sink.write(&event)).await?;
        lines.send(&ImportEvent::Done(summary)).await;
        Ok(())
    }))
}

async fn reload_rules(State(control): State<Arc<Control>>, body: Body) -> Result<Response, OperationError> {
    let reload::ReloadRequest {} = read(body).await?;
    blocking(move || control.reloader.reload(SOCKET)).await
}

async fn take_lease(State(control): State<Arc<Control>>, body: Body) -> Result<Response, OperationError> {
    let request: lease::LeaseRequest = read(body).await?;
    let taken = lease::take(control.store.clone(), request).await;
    control.record("backup-lease", if taken.is_ok() { "done" } else { "failed" });
    taken.map(|lease| respond_json(&lease)).map_err(bad_request)
}

async fn release_lease(State(control): State<Arc<Control>>, body: Body) -> Result<Response, OperationError> {
    let request: lease::ReleaseRequest = read(body).await?;
    control.record("backup-lease --release", "done");
    Ok(respond_json(&lease::release(&control.store, &request)))
}

async fn create_token(State(control): State<Arc<Control>>, body: Body) -> Result<Response, OperationError> {
    let request: machine_tokens::CreateRequest = read(body).await?;
    blocking(move || {
        let created =
            machine_tokens::create(&control.reloader.config(), machine_tokens::of_server(&control)?, &request);
        control.record("token create", if created.is_ok() { "done" } else { "failed" });
        created
    })
    .await
}

async fn list_tokens(State(control): State<Arc<Control>>, body: Body) -> Result<Response, OperationError> {
    let machine_tokens::ListRequest {} = read(body).await?;
    blocking(move || machine_tokens::of_server(&control).map(machine_tokens::list)).await
}

async fn revoke_token(State(control): State<Arc<Control>>, body: Body) -> Result<Response, OperationError> {
    let request: machine_tokens::RevokeRequest = read(body).await?;
    blocking(move || {
        let revoked = machine_tokens::revoke(machine_tokens::of_server(&control)?, &request);
        control.record("token revoke", if revoked.is_ok() { "done" } else { "failed" });
        revoked
    })
    .await
}

/// The answer of an operation that blocks.
async fn blocking<A: Serialize + Send + 'static>(
    operation: impl FnOnce() -> Result<A, String> + Send + 'static,
) -> Result<Response, OperationError> {
    let done = tokio::task::spawn_blocking(operation).await;
    done.map_err(|_| panicked())?.map(|answer| respond_json(&answer)).map_err(bad_request)
}

async fn read<R: DeserializeOwned>(body: Body) -> Result<R, OperationError> {
    let late = |_| OperationError(StatusCode::REQUEST_TIMEOUT, "the request was not complete in time".to_owned());
    let bytes = timeout(REQUEST_TIMEOUT, to_bytes(body, MAX_REQUEST_BYTES)).await.map_err(late)?;
    let bytes = bytes.map_err(|error| bad_request(error.to_string()))?;
    serde_json::from_slice(&bytes).map_err(|error| bad_request(error.to_string()))
}

fn panicked() -> OperationError {
    OperationError(StatusCode::INTERNAL_SERVER_ERROR, "the operation panicked".to_owned())
}

fn bad_request(error: String) -> OperationError {
    OperationError(StatusCode::BAD_REQUEST, error)
}

fn respond_json(value: &impl Serialize) -> Response {
    ([(CONTENT_TYPE, "application/json")], json!(value).to_string()).into_response()
}

impl IntoResponse for OperationError {
    fn into_response(self) -> Response {
        let mut response = respond_json(&json!({ "error": self.1 }));
        *response.status_mut() = self.0;
        response
    }
}

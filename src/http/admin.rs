//! What monitoring and orchestrators ask for: metrics, whether the process is alive, and whether it is ready.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Extension, State};
use axum::response::{IntoResponse, Response};
use http::header::CONTENT_TYPE;
use http::{Request, StatusCode};
use serde::Serialize;

use super::call::Call;
use super::challenge::challenge_for_metrics;
use super::error::ApiError;
use super::{App, records};
use crate::access::{AccessError, Caller, Peer, Sender};
use crate::config::Right;
use crate::oci::{Endpoint, Route};
use crate::store::Store;
use crate::telemetry::RequestTrace;

/// A disk that takes longer than this to write a few bytes is not ready.
const WRITE_TIMEOUT: Duration = Duration::from_secs(5);

pub(super) async fn metrics(
    State(app): State<Arc<App>>,
    Extension(peer): Extension<Peer>,
    request: Request<Body>,
) -> Response {
    if !app.gate.has_open_metrics()
        && let Err(refused) = may_read_metrics(&app, &peer, request).await
    {
        return refused;
    }
    let (storage, _) = storage(&app.store).await;
    app.metrics.set_ready(storage.is_ready());
    ([(CONTENT_TYPE, "text/plain; version=0.0.4")], app.metrics.render()).into_response()
}

/// # Errors
/// The response to a request that may not read metrics.
async fn may_read_metrics(app: &App, peer: &Peer, request: Request<Body>) -> Result<(), Response> {
    let (parts, _) = request.into_parts();
    let trace = RequestTrace::new("metrics", parts.method.clone(), &parts.headers);
    let identified = app.gate.identify(Caller::new(peer, &parts.headers));
    let route = Route { prefix: None, name: String::new(), endpoint: Endpoint::Base };
    let (sender, identified) = match identified {
        Ok(sender) => (sender, Ok(())),
        Err(error) => (Sender::Unusable, Err(ApiError::Access(error.into()))),
    };
    let call = Call::new(parts, route, peer, sender, &trace);
    trace.set_client(call.caller().address());
    let allowed = match identified {
        Ok(()) => call.may_read_metrics(app).await,
        Err(error) => Err(error),
    };
    if let Err(ApiError::Access(AccessError::Denied)) = allowed {
        records::denied(app, &call, Right::Metrics, None);
    }
    allowed
        .map_err(|error| error.with_challenge(|reason| challenge_for_metrics(app, &call, reason)).into_response(&trace))
}

pub(super) async fn healthz() -> &'static str {
    "ok\n"
}

/// The body of `/readyz`.
#[derive(Serialize)]
struct Readiness {
    ready: bool,
    storage: Storage,
    /// Why it cannot be written, with the remedy.
    #[serde(skip_serializing_if = "Option::is_none")]
    obstacle: Option<String>,
    /// Lists and sums come from the folders until then.
    index_rebuilding: bool,
    /// The disk has no room for an index: as above, and nothing is evicted. It is opened when there is room.
    index_without_room: bool,
    /// Something was not stored lately, because there was no room.
    bypassing: bool,
    /// A backup lease holds back removals of content.
    deletions_held: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Storage {
    Writable,
    ReadOnly,
    CannotBeWritten,
    DoesNotAnswer,
}

/// The server is ready if it can write its storage, or is not meant to. A failed upstream does not make it unready.
pub(super) async fn readyz(State(app): State<Arc<App>>) -> Response {
    let (storage, obstacle) = storage(&app.store).await;
    let ready = storage.is_ready();
    let readiness = Readiness {
        ready,
        storage,
        obstacle,
        index_rebuilding: storage != Storage::ReadOnly && app.store.needs_reconcile(),
        index_without_room: app.store.lacks_index(),
        bypassing: app.metrics.is_bypassing(),
        deletions_held: app.store.deletions_held(),
    };
    // Serialized directly, which keeps the order of the fields.
    let text = serde_json::to_string(&readiness).unwrap_or_default() + "\n";
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, [(CONTENT_TYPE, "application/json")], text).into_response()
}

// === impl Storage ===

impl Storage {
    fn is_ready(&self) -> bool {
        matches!(self, Self::Writable | Self::ReadOnly)
    }
}

/// The state of the storage, and the obstacle if it cannot be written. The store logs when that changes.
async fn storage(store: &Store) -> (Storage, Option<String>) {
    if store.is_read_only() {
        return (Storage::ReadOnly, None);
    }
    match tokio::time::timeout(WRITE_TIMEOUT, store.check_writable()).await {
        Ok(Ok(())) => (Storage::Writable, None),
        Ok(Err(error)) => (
            Storage::CannotBeWritten,
            Some(error.obstacle().map_or_else(|| error.to_string(), |text| text.to_string())),
        ),
        Err(_) => (Storage::DoesNotAnswer, None),
    }
}

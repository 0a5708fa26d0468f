//! What an operator's machinery asks: metrics, is the process alive, can it work.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::StatusCode;
use http::header::CONTENT_TYPE;
use serde::Serialize;

use super::App;
use crate::store::Store;

/// A disk that takes longer than this to write a byte is not ready.
const WRITE_PATIENCE: Duration = Duration::from_secs(5);

pub(super) async fn metrics(State(app): State<Arc<App>>) -> Response {
    ([(CONTENT_TYPE, "text/plain; version=0.0.4")], app.metrics.render()).into_response()
}

pub(super) async fn healthz() -> &'static str {
    "ok\n"
}

/// What `/readyz` says beside its status.
#[derive(Serialize)]
struct Readiness {
    ready: bool,
    storage: Storage,
    /// Lists and sums come from the folders meanwhile.
    index_rebuilding: bool,
    /// The disk has no room for an index: as above, and nothing is evicted. It is taken up when there is room.
    index_without_room: bool,
    /// Lately something was not kept, for there was no room.
    bypassing: bool,
    /// A backup lease keeps content from being unlinked.
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

/// Ready is who can write its storage, or is not meant to; an upstream that is down makes nobody unready.
pub(super) async fn readyz(State(app): State<Arc<App>>) -> Response {
    let storage = storage(&app.store).await;
    let ready = matches!(storage, Storage::Writable | Storage::ReadOnly);
    let readiness = Readiness {
        ready,
        storage,
        index_rebuilding: storage != Storage::ReadOnly && app.store.needs_reconcile(),
        index_without_room: app.store.lacks_index(),
        bypassing: app.metrics.is_bypassing(),
        deletions_held: app.store.deletions_held(),
    };
    // In this order, which a value of JSON would not keep.
    let text = serde_json::to_string(&readiness).unwrap_or_default() + "\n";
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, [(CONTENT_TYPE, "application/json")], text).into_response()
}

async fn storage(store: &Store) -> Storage {
    if store.is_read_only() {
        return Storage::ReadOnly;
    }
    match tokio::time::timeout(WRITE_PATIENCE, store.check_writable()).await {
        Ok(Ok(())) => Storage::Writable,
        Ok(Err(error)) => {
            tracing::error!(%error, "not ready: the storage cannot be written: {error}");
            Storage::CannotBeWritten
        }
        Err(_) => Storage::DoesNotAnswer,
    }
}

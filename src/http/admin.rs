//! What an operator's machinery asks: metrics, is the process alive, can it work.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::StatusCode;
use http::header::CONTENT_TYPE;

use super::App;
use crate::store::Class;
use crate::telemetry::StorageClass;

/// A disk that takes longer than this to write a byte is not ready.
const WRITE_PATIENCE: Duration = Duration::from_secs(5);

pub(super) async fn metrics(State(app): State<Arc<App>>) -> Response {
    app.metrics.storage_bytes(StorageClass::Cached, app.store.bytes(Class::Cached));
    app.metrics.storage_bytes(StorageClass::Pushed, app.store.bytes(Class::Pushed));
    app.metrics.index_ready(app.store.can_evict());
    for (reason, evicted) in app.store.take_evicted() {
        app.metrics.evicted(reason.as_str(), evicted.files, evicted.bytes);
    }
    ([(CONTENT_TYPE, "text/plain; version=0.0.4")], app.metrics.render()).into_response()
}

pub(super) async fn healthz() -> &'static str {
    "ok\n"
}

/// Ready is who can write its storage; an upstream that is down makes nobody unready.
pub(super) async fn readyz(State(app): State<Arc<App>>) -> Response {
    match tokio::time::timeout(WRITE_PATIENCE, app.store.check_writable()).await {
        Ok(Ok(())) => "ok\n".into_response(),
        Ok(Err(error)) => {
            tracing::error!(%error, "not ready: the storage cannot be written: {error}");
            (StatusCode::SERVICE_UNAVAILABLE, "the storage cannot be written\n").into_response()
        }
        Err(_) => (StatusCode::SERVICE_UNAVAILABLE, "the storage does not answer\n").into_response(),
    }
}

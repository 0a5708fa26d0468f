//! The operations by name.

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

use super::{Control, explain, gc, lease, lines, scrub, usage};
use crate::resolve::Routes;

/// More than any question takes.
const MOST_BYTES: usize = 64 << 10;

/// For all of a question, from a process on this machine.
const QUESTION_WITHIN: Duration = Duration::from_secs(5);

/// Why an operation was not begun.
struct Refused(StatusCode, String);

pub(super) fn router(control: Arc<Control>) -> Router {
    Router::new()
        .route("/v1/explain", post(explain_image))
        .route("/v1/du", post(du))
        .route("/v1/gc", post(collect))
        .route("/v1/scrub", post(scrub_store))
        .route("/v1/lease", post(take_lease))
        .route("/v1/release", post(release_lease))
        .with_state(control)
}

async fn explain_image(State(control): State<Arc<Control>>, body: Body) -> Result<Response, Refused> {
    let question: explain::Question = read(body).await?;
    let explained = tokio::task::spawn_blocking(move || {
        let known = explain::Known {
            config: &control.config,
            routes: &Routes::new(&control.config),
            view: &control.store.view(),
            server: Some(&control),
        };
        explain::explain(&known, &question.image)
    });
    let facts = explained.await.map_err(|_| Refused(StatusCode::INTERNAL_SERVER_ERROR, "it panicked".to_owned()))?;
    facts.map(|facts| answer(&facts)).map_err(bad_request)
}

async fn du(State(control): State<Arc<Control>>) -> Response {
    let store = control.store.clone();
    lines::answer(&control.tasks, |lines| usage::usage(store, move |event| lines.write(&event)))
}

async fn scrub_store(State(control): State<Arc<Control>>, body: Body) -> Result<Response, Refused> {
    let question: scrub::Question = read(body).await?;
    let (store, metrics) = (control.store.clone(), control.metrics.clone());
    Ok(lines::answer(&control.tasks, |lines| async move {
        let sink = lines.clone();
        let summary = scrub::scrub(store, question.repair, Some(metrics), move |event| sink.write(&event)).await?;
        lines.send(&scrub::ScrubEvent::Done(summary)).await;
        Ok(())
    }))
}

async fn collect(State(control): State<Arc<Control>>, body: Body) -> Result<Response, Refused> {
    let question: gc::Question = read(body).await?;
    let remove = !question.dry_run && control.since.elapsed() >= control.config.gc.after_start;
    let (store, config) = (control.store.clone(), control.config.clone());
    Ok(lines::answer(&control.tasks, |lines| async move {
        let sink = lines.clone();
        let summary = gc::gc(store, &config, remove, move |event| sink.write(&event)).await?;
        lines.send(&gc::GcEvent::Done(summary)).await;
        Ok(())
    }))
}

async fn take_lease(State(control): State<Arc<Control>>, body: Body) -> Result<Response, Refused> {
    let question: lease::Question = read(body).await?;
    let taken = lease::take(control.store.clone(), question).await;
    taken.map(|lease| answer(&lease)).map_err(bad_request)
}

async fn release_lease(State(control): State<Arc<Control>>, body: Body) -> Result<Response, Refused> {
    let question: lease::Release = read(body).await?;
    Ok(answer(&lease::release(&control.store, &question)))
}

async fn read<Q: DeserializeOwned>(body: Body) -> Result<Q, Refused> {
    let late = |_| Refused(StatusCode::REQUEST_TIMEOUT, "the question did not come to its end".to_owned());
    let bytes = timeout(QUESTION_WITHIN, to_bytes(body, MOST_BYTES)).await.map_err(late)?;
    let bytes = bytes.map_err(|error| bad_request(error.to_string()))?;
    serde_json::from_slice(&bytes).map_err(|error| bad_request(error.to_string()))
}

fn bad_request(error: String) -> Refused {
    Refused(StatusCode::BAD_REQUEST, error)
}

fn answer(value: &impl Serialize) -> Response {
    ([(CONTENT_TYPE, "application/json")], json!(value).to_string()).into_response()
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        let mut response = answer(&json!({ "error": self.1 }));
        *response.status_mut() = self.0;
        response
    }
}

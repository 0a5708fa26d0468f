//! The names of the repositories that were pushed here. Upstreams' catalogues are theirs.

use std::sync::Arc;

use axum::response::Response;
use serde_json::json;

use super::error::ApiError;
use super::tags::Paging;
use super::{App, Call};
use crate::auth::Action;
use crate::oci::Scope;

const DEFAULT_PAGE: usize = 100;
const MAX_PAGE: usize = 1000;

pub(super) async fn list(app: &Arc<App>, call: &Call) -> Result<Response, ApiError> {
    app.policy.authorize(&call.principal, Action::Catalog, &Scope::Local, None)?;
    let most = if call.query.get("n").is_some() { MAX_PAGE } else { DEFAULT_PAGE };
    let paging = Paging::of(call, most)?;
    let page = app.store.local_repositories(&paging.last, paging.limit).await?;
    Ok(paging.respond(call, page, |names| json!({ "repositories": names })))
}

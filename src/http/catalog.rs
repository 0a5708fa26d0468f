//! The catalogue: the names of local repositories. An upstream's repositories are in the upstream's own catalogue.
//!
//! `GET /v2/_catalog` is distribution's; it is not in the specification.

use std::sync::Arc;

use axum::response::Response;
use serde_json::json;

use super::error::ApiError;
use super::tags::Paging;
use super::{App, Call};
use crate::access::{Authorized, Catalog};
use crate::oci::RepoId;
use crate::store::{Page, StoreError};

const DEFAULT_PAGE: usize = 100;
const MAX_PAGE: usize = 1000;

pub(super) async fn list(app: &Arc<App>, call: &Call<'_>, access: Authorized<Catalog>) -> Result<Response, ApiError> {
    let max = if call.query.get("n").is_some() { MAX_PAGE } else { DEFAULT_PAGE };
    let paging = Paging::of(call, max)?;
    let page = readable(app, &access, &paging).await?;
    Ok(paging.respond(call, page, |names| json!({ "repositories": names })))
}

/// The page of those repositories that the caller may read.
async fn readable(app: &App, access: &Authorized<Catalog>, paging: &Paging) -> Result<Page, StoreError> {
    let may_read =
        |name: &String| name.parse().is_ok_and(|name| app.gate.may_pull(access.principal(), &RepoId::local(name)));
    let (mut page, mut last) = (Page::default(), paging.last.clone());
    loop {
        let missing = paging.limit - page.items.len();
        let next = app.store.local_repositories(&last, missing).await?;
        page.more = next.more;
        last = next.items.last().cloned().unwrap_or_default();
        page.items.extend(next.items.into_iter().filter(may_read));
        if !page.more || page.items.len() == paging.limit {
            return Ok(page);
        }
    }
}

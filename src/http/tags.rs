//! Tags of a repository: end-8 of the distribution-spec.

use std::sync::Arc;

use axum::response::{IntoResponse, Response};
use http::HeaderValue;
use http::header::{CONTENT_TYPE, LINK, WARNING};
use serde_json::{Value, json};

use super::error::{ApiError, insert};
use super::{App, Call, STALE};
use crate::resolve::Rule;
use crate::store::Page;
use crate::telemetry::ContentKind;

/// The most that one page holds.
const MAX_PAGE: usize = 1000;

pub(super) async fn list(app: &Arc<App>, call: &Call) -> Result<Response, ApiError> {
    let target = call.readable(app)?;
    let repo = &target.repo;
    let paging = Paging::of(call, MAX_PAGE)?;
    let (page, stale) = if repo.scope.is_local() {
        if !app.store.is_local(&repo.name) {
            return Err(ApiError::UnknownRepository);
        }
        (app.store.tags(repo, &paging.last, paging.limit).await?, false)
    } else {
        if target.rule == Rule::Default && !app.store.repository_exists(repo).await? {
            return Err(ApiError::UnknownRepository);
        }
        let listed = call.puller(app).tag_list(repo, &paging.last, paging.limit).await;
        listed.map_err(|error| match error.is_not_found() {
            true => ApiError::UnknownRepository,
            false => ApiError::Pull { kind: ContentKind::Manifest, error },
        })?
    };
    // As the client called it: a mirrored repository's own name may be another one.
    let body = |tags: &[String]| json!({ "name": call.route.name, "tags": tags });
    let mut response = paging.respond(call, page, body);
    if stale {
        response.headers_mut().insert(WARNING, STALE);
    }
    call.echo_namespace(&mut response, &target);
    Ok(response)
}

/// The `n` and `last` of a list request.
pub(super) struct Paging {
    pub(super) limit: usize,
    pub(super) last: String,
}

impl Paging {
    /// Without `n`, and beyond it, a page holds `most`.
    pub(super) fn of(call: &Call, most: usize) -> Result<Self, ApiError> {
        let limit = match call.query.get("n") {
            None => most,
            Some(n) if !n.is_empty() && n.bytes().all(|byte| byte.is_ascii_digit()) => {
                n.parse().unwrap_or(most).min(most)
            }
            Some(_) => return Err(ApiError::PageSize),
        };
        Ok(Self { limit, last: call.query.get("last").unwrap_or_default().to_owned() })
    }

    /// A page as JSON, with a relative `Link` to the next one (RFC 8288).
    pub(super) fn respond(&self, call: &Call, page: Page, body: impl Fn(&[String]) -> Value) -> Response {
        let json = [(CONTENT_TYPE, HeaderValue::from_static("application/json"))];
        let mut response = (json, body(&page.items).to_string()).into_response();
        if let (true, Some(last)) = (page.more && self.limit > 0, page.items.last()) {
            let mut next = url::form_urlencoded::Serializer::new(String::new());
            next.append_pair("n", &self.limit.to_string()).append_pair("last", last);
            if let Some(ns) = call.query.get("ns") {
                next.append_pair("ns", ns);
            }
            let link = format!("<{}?{}>; rel=\"next\"", call.parts.uri.path(), next.finish());
            insert(response.headers_mut(), LINK, link);
        }
        response
    }
}

//! The tags of a repository: end-8 of the distribution-spec.

use std::sync::Arc;

use axum::response::{IntoResponse, Response};
use http::HeaderValue;
use http::header::{CONTENT_TYPE, LINK, WARNING};
use serde_json::{Value, json};

use super::error::ApiError;
use super::fields::insert;
use super::{App, Call, STALE};
use crate::access::{Authorized, Pull};
use crate::pull::TagPage;
use crate::resolve::Rule;
use crate::store::Page;
use crate::telemetry::ContentKind;

/// Tags on one page.
const MAX_PAGE: usize = 1000;

pub(super) async fn list(app: &Arc<App>, call: &Call<'_>, access: Authorized<Pull>) -> Result<Response, ApiError> {
    let repo = access.repo();
    let paging = Paging::of(call, MAX_PAGE)?;
    // The name that the client used, which may differ from a mirrored repository's own.
    let body = |tags: &[String]| json!({ "name": call.route.name, "tags": tags });
    if repo.scope.is_local() {
        if !app.store.is_local(&repo.name) {
            return Err(ApiError::UnknownRepository);
        }
        let page = app.store.tags(repo, &paging.last, paging.limit).await?;
        let mut response = paging.respond(call, page, body);
        call.echo_namespace(&mut response, access.rule());
        return Ok(response);
    }
    if access.rule() == Rule::Default && call.may_begin_push(app).await {
        return Err(ApiError::UnknownRepository);
    }
    let cursor = call.query.without(&["n", "last", "ns"]);
    let requested = TagPage { after: &paging.last, limit: paging.limit, cursor: &cursor };
    let listed = call.puller(app).tag_list(repo, requested).await.map_err(|error| match error.is_not_found() {
        true => ApiError::UnknownRepository,
        false => ApiError::Pull { kind: ContentKind::Manifest, error },
    })?;
    let mut response = page(call, &body(&listed.tags), listed.next.as_deref());
    if listed.stale {
        response.headers_mut().insert(WARNING, STALE);
    }
    call.echo_namespace(&mut response, access.rule());
    Ok(response)
}

/// The `n` and `last` parameters of a list request.
pub(super) struct Paging {
    pub(super) limit: usize,
    pub(super) last: String,
}

impl Paging {
    /// Without `n`, and for a larger one, a page has `max` entries.
    pub(super) fn of(call: &Call<'_>, max: usize) -> Result<Self, ApiError> {
        let limit = match call.query.get("n") {
            None => max,
            Some(n) if !n.is_empty() && n.bytes().all(|byte| byte.is_ascii_digit()) => {
                n.parse().unwrap_or(max).min(max)
            }
            Some(_) => return Err(ApiError::PageSize),
        };
        Ok(Self { limit, last: call.query.get("last").unwrap_or_default().to_owned() })
    }

    /// A page as JSON, with a relative `Link` to the next one (RFC 8288).
    pub(super) fn respond(&self, call: &Call<'_>, page: Page, body: impl Fn(&[String]) -> Value) -> Response {
        let next = page.items.last().filter(|_| page.more && self.limit > 0);
        let next = next.map(|last| [("n".to_owned(), self.limit.to_string()), ("last".to_owned(), last.clone())]);
        self::page(call, &body(&page.items), next.as_ref().map(<[_; 2]>::as_slice))
    }
}

/// JSON, with a link to the page that the query `next` asks for.
fn page(call: &Call<'_>, body: &Value, next: Option<&[(String, String)]>) -> Response {
    let json = [(CONTENT_TYPE, HeaderValue::from_static("application/json"))];
    let mut response = (json, body.to_string()).into_response();
    if let Some(next) = next {
        let mut query = url::form_urlencoded::Serializer::new(String::new());
        query.extend_pairs(next.iter().filter(|(name, _)| name != "ns"));
        if let Some(ns) = call.query.get("ns") {
            query.append_pair("ns", ns);
        }
        let link = format!("<{}?{}>; rel=\"next\"", call.parts.uri.path(), query.finish());
        insert(response.headers_mut(), LINK, link);
    }
    response
}

//! Blobs: end-2 and end-10 of the distribution-spec; ranges by RFC 9110, section 14.

use std::sync::Arc;

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use http::header::{
    ACCEPT_RANGES, CACHE_CONTROL, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, IF_NONE_MATCH, IF_RANGE, RANGE,
};
use http::{HeaderMap, HeaderValue, StatusCode};

use super::body::{FilePart, Multipart, streamed};
use super::error::{ApiError, insert};
use super::fields::{FIELDS, insert_digest};
use super::{App, Call, Outcome};
use crate::oci::{Digest, RangeSet, RepoId, media_type};
use crate::pull::{BlobRequest, Content, ContentBody, ContentStream};
use crate::resolve::Rule;
use crate::store::{Blob, StoreError};
use crate::telemetry::{CacheResult, ContentKind};

/// Content by digest never changes.
const FOREVER: HeaderValue = HeaderValue::from_static("max-age=31536000, immutable");

/// GET and HEAD.
pub(super) async fn get(app: &Arc<App>, call: &Call, digest: &str) -> Result<Response, ApiError> {
    let target = call.readable(app)?;
    let digest: Digest = digest.parse()?;
    let mut outcome = Outcome::of(app, call, &target.repo, ContentKind::Blob);
    let etag = digest.quoted();
    let local = target.repo.scope.is_local();
    let mut response = if call.is_head() {
        let length = if local {
            Some(local_blob(app, &target.repo, &digest).await?.length)
        } else {
            // A first push asks whether its blobs are here; for a repository of which nothing is known they are not. Nor
            // are they under a name of one component: a mirror client sends `library/` with it, so who asks is about to
            // push, and what the default upstream has is not in the repository that the push is for.
            let of_a_push = call.asked().name_is_single() || !app.store.repository_exists(&target.repo).await?;
            if target.rule == Rule::Default && of_a_push {
                return Err(ApiError::Unknown(ContentKind::Blob));
            }
            call.puller(app).blob_length(&target.repo, &digest).await.map_err(ApiError::pull(ContentKind::Blob))?
        };
        let mut response = Response::new(Body::empty());
        if let Some(length) = length {
            response.headers_mut().insert(CONTENT_LENGTH, length.into());
        }
        response
    } else {
        let unchanged = matches(call.header(IF_NONE_MATCH), &etag);
        // Who has it all is told so before a range of it is looked at (RFC 9110, 13.2.2).
        let ranges = if unchanged { None } else { wanted_ranges(call, &etag) };
        let want = BlobRequest { ranges, needs_length: call.needs_length() };
        let content = if local {
            let blob = local_blob(app, &target.repo, &digest).await?;
            let selected = want.select(blob.length).map_err(ApiError::pull(ContentKind::Blob))?;
            Content::of_blob(&blob, selected, CacheResult::Hit)
        } else {
            match call.puller(app).blob(&target.repo, &digest, want).await {
                Ok(content) => content,
                Err(error) => {
                    outcome.failed(&error);
                    return Err(ApiError::Pull { kind: ContentKind::Blob, error });
                }
            }
        };
        outcome.answered(content.result);
        if unchanged { StatusCode::NOT_MODIFIED.into_response() } else { respond(content, outcome.counter()) }
    };
    let headers = response.headers_mut();
    if !headers.contains_key(CONTENT_TYPE) {
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(media_type::OCTET_STREAM));
    }
    headers.insert(ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    headers.insert(CACHE_CONTROL, FOREVER);
    insert_digest(headers, &etag);
    call.echo_namespace(&mut response, &target);
    Ok(response)
}

fn respond(content: Content, counter: super::Counter) -> Response {
    let mut headers = HeaderMap::with_capacity(FIELDS);
    let file = match &content.body {
        ContentBody::Whole(ContentStream::File(range)) | ContentBody::Part(_, ContentStream::File(range)) => {
            let (reader, next, end) = (range.reader().clone(), range.start(), range.end());
            Some(FilePart { reader, next, end, counter: counter.clone() })
        }
        _ => None,
    };
    let (status, length, body) = match (content.body, content.total) {
        (ContentBody::Part(part, bytes), Some(total)) => {
            insert(&mut headers, CONTENT_RANGE, part.content_range(total));
            (StatusCode::PARTIAL_CONTENT, Some(part.len()), streamed(bytes, counter))
        }
        (ContentBody::Parts(parts), Some(total)) => {
            let multipart = Multipart::new(parts, total);
            insert(&mut headers, CONTENT_TYPE, multipart.content_type());
            (StatusCode::PARTIAL_CONTENT, Some(multipart.length()), multipart.into_body(counter))
        }
        (ContentBody::Whole(_), Some(0)) => (StatusCode::OK, Some(0), Body::empty()),
        (ContentBody::Whole(bytes) | ContentBody::Part(_, bytes), total) => {
            (StatusCode::OK, total, streamed(bytes, counter))
        }
        // Parts are only ever selected from a known length.
        (ContentBody::Parts(_), None) => (StatusCode::INTERNAL_SERVER_ERROR, Some(0), Body::empty()),
    };
    if let Some(length) = length {
        headers.insert(CONTENT_LENGTH, length.into());
    }
    let mut response = Response::new(body);
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    if let Some(file) = file {
        response.extensions_mut().insert(file);
    }
    response
}

/// The ranges that are asked for, where the condition on them holds (RFC 9110, 13.1.5).
fn wanted_ranges(call: &Call, etag: &[u8]) -> Option<RangeSet> {
    if call.header(IF_RANGE).is_some_and(|condition| condition.as_bytes() != etag) {
        return None;
    }
    RangeSet::parse(call.header(RANGE)?)
}

/// Whether an `If-None-Match` names this entity tag (RFC 9110, 13.1.2: weak comparison).
pub(super) fn matches(condition: Option<&str>, etag: &[u8]) -> bool {
    condition.is_some_and(|condition| {
        let mut tags = condition.split(',').map(str::trim);
        tags.any(|tag| tag == "*" || tag.strip_prefix("W/").unwrap_or(tag).as_bytes() == etag)
    })
}

async fn local_blob(app: &App, repo: &RepoId, digest: &Digest) -> Result<Blob, ApiError> {
    let linked = app.store.member(repo, digest).await?.is_some() || app.store.has_manifest(repo, digest).await?;
    let blob = if linked { app.store.blob(digest).await? } else { None };
    if linked && blob.is_none() {
        tracing::error!(%repo, %digest, "pushed content is missing: {digest} of {repo}; a new push brings it back");
    }
    blob.ok_or(ApiError::Unknown(ContentKind::Blob))
}

/// Whether a local repository has this blob, content included.
pub(super) async fn is_here(app: &App, repo: &RepoId, digest: &Digest) -> Result<bool, StoreError> {
    Ok(app.store.member(repo, digest).await?.is_some() && app.store.blob(digest).await?.is_some())
}

pub(super) async fn delete(app: &Arc<App>, call: &Call, digest: &str) -> Result<Response, ApiError> {
    let repo = call.deletable(app)?;
    let digest: Digest = digest.parse()?;
    if app.store.unlink_blob(&repo, &digest).await? {
        Ok(StatusCode::ACCEPTED.into_response())
    } else {
        Err(ApiError::Unknown(ContentKind::Blob))
    }
}

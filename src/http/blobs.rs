//! Blobs: GET and HEAD (end-2 of the distribution-spec), with ranges (RFC 9110, section 14), and DELETE (end-10).

use std::sync::Arc;

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use http::header::{ACCEPT_RANGES, CACHE_CONTROL, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, IF_RANGE, RANGE};
use http::{HeaderMap, HeaderValue, StatusCode};

use super::body::{Counter, Multipart, streamed};
use super::error::ApiError;
use super::fields::insert;
use super::fields::{FIELDS, insert_digest};
use super::{App, Call, Outcome};
use crate::access::{Authorized, Delete, Pull};
use crate::oci::{Digest, RangeSet, RepoId, media_type};
use crate::pull::{BlobRequest, Content, ContentBody};
use crate::resolve::Rule;
use crate::store::{FileRange, Member, StoreError};
use crate::telemetry::{CacheResult, ContentKind};

/// Content never changes under its digest.
const IMMUTABLE: HeaderValue = HeaderValue::from_static("max-age=31536000, immutable");

/// GET and HEAD.
pub(super) async fn get(
    app: &Arc<App>,
    call: &Call<'_>,
    access: Authorized<Pull>,
    digest: &str,
) -> Result<Response, ApiError> {
    let repo = access.repo();
    let digest: Digest = digest.parse()?;
    let mut outcome = Outcome::of(app, call, repo, ContentKind::Blob);
    let etag = digest.quoted();
    let is_local = repo.scope.is_local();
    let mut response = if call.is_head() {
        let length = if is_local {
            Some(local_blob(app, repo, &digest).await?.len())
        } else {
            mirrored_length(app, call, &access, &digest).await?
        };
        let mut response = Response::new(Body::empty());
        if call.has_already(&etag) {
            *response.status_mut() = StatusCode::NOT_MODIFIED;
        } else if let Some(length) = length {
            response.headers_mut().insert(CONTENT_LENGTH, length.into());
        }
        response
    } else {
        let unchanged = call.has_already(&etag);
        // `If-None-Match` takes precedence over `Range` (RFC 9110, section 13.2.2).
        let ranges = if unchanged { None } else { requested_ranges(call, &etag) };
        let requested = BlobRequest { ranges, needs_length: call.needs_length() };
        let content = if is_local {
            let blob = local_blob(app, repo, &digest).await?;
            let selected = requested.select(blob.len()).map_err(ApiError::pull(ContentKind::Blob))?;
            Content::of_blob(&blob, selected, CacheResult::Hit)
        } else {
            match call.puller(app).blob(repo, &digest, requested).await {
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
    headers.insert(CACHE_CONTROL, IMMUTABLE);
    insert_digest(headers, &etag);
    call.echo_namespace(&mut response, access.rule());
    Ok(response)
}

/// Returns the length of a mirrored blob in bytes, for HEAD; `None` if its upstream does not send a length.
async fn mirrored_length(
    app: &App,
    call: &Call<'_>,
    access: &Authorized<Pull>,
    digest: &Digest,
) -> Result<Option<u64>, ApiError> {
    // A first push sends HEADs without an upstream. An unknown repository has no blobs. Mirror clients send
    // `library/alpine`, so a one-component name means a push. Blobs of the default upstream must not count as
    // present.
    if access.rule() == Rule::Default && call.may_begin_push(app).await {
        return Err(ApiError::Unknown(ContentKind::Blob));
    }
    call.puller(app).blob_length(access.repo(), digest).await.map_err(ApiError::pull(ContentKind::Blob))
}

fn respond(content: Content, counter: Counter) -> Response {
    let mut headers = HeaderMap::with_capacity(FIELDS);
    let (status, length, (body, file)) = match (content.body, content.total) {
        (ContentBody::Part(part, bytes), Some(total)) => {
            insert(&mut headers, CONTENT_RANGE, part.content_range(total));
            (StatusCode::PARTIAL_CONTENT, Some(part.len()), streamed(bytes, counter))
        }
        (ContentBody::Parts(parts), Some(total)) => {
            let multipart = Multipart::new(parts, total);
            insert(&mut headers, CONTENT_TYPE, multipart.content_type());
            (StatusCode::PARTIAL_CONTENT, Some(multipart.length()), (multipart.into_body(counter), None))
        }
        (ContentBody::Whole(_), Some(0)) => (StatusCode::OK, Some(0), (Body::empty(), None)),
        (ContentBody::Whole(bytes) | ContentBody::Part(_, bytes), total) => {
            (StatusCode::OK, total, streamed(bytes, counter))
        }
        // Cannot happen: parts are selected only where the length is known.
        (ContentBody::Parts(_), None) => (StatusCode::INTERNAL_SERVER_ERROR, Some(0), (Body::empty(), None)),
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

/// Returns the requested ranges, if `If-Range` is absent or matches (RFC 9110, section 13.1.5).
fn requested_ranges(call: &Call<'_>, etag: &[u8]) -> Option<RangeSet> {
    if call.header(IF_RANGE).is_some_and(|condition| condition.as_bytes() != etag) {
        return None;
    }
    RangeSet::parse(call.header(RANGE)?)
}

async fn local_blob(app: &App, repo: &RepoId, digest: &Digest) -> Result<FileRange, ApiError> {
    let member = match app.store.member(repo, digest).await? {
        Some(member) => Some(member),
        None => app.store.has_manifest(repo, digest).await?.then_some(Member { size: None, proven: true }),
    };
    let blob = match member {
        Some(member) => app.store.blob_of(repo, digest, member).await?,
        None => None,
    };
    if member.is_some() && blob.is_none() {
        tracing::error!(%repo, %digest, "pushed content is missing; push it again");
    }
    blob.ok_or(ApiError::Unknown(ContentKind::Blob))
}

/// Whether a local repository has this blob, and its content is stored.
pub(super) async fn is_stored(app: &App, repo: &RepoId, digest: &Digest) -> Result<bool, StoreError> {
    Ok(app.store.member(repo, digest).await?.is_some() && app.store.blob(digest).await?.is_some())
}

/// Handles DELETE, which removes the blob's link from the repository.
pub(super) async fn delete(app: &Arc<App>, access: Authorized<Delete>, digest: &str) -> Result<Response, ApiError> {
    let digest: Digest = digest.parse()?;
    if app.store.unlink_blob(access.repo(), &digest).await? {
        Ok(StatusCode::ACCEPTED.into_response())
    } else {
        Err(ApiError::Unknown(ContentKind::Blob))
    }
}

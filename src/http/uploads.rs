//! Push sessions: end-4, end-5, end-6, end-11, end-13 and end-14 of the distribution-spec.
//!
//! Docker streams one PATCH without `Content-Range`. containerd sends one PUT. podman mounts first and cancels the sessions
//! that it does not need. All of these are one session that grows and is finished with its digest.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::{self, Stream};
use http::header::{CONTENT_RANGE, LOCATION, RANGE};
use http::{HeaderName, StatusCode};
use http_body::Body as _;
use http_body_util::BodyExt;
use tokio::time::{Instant, sleep, timeout};

use super::error::ApiError;
use super::fields::insert;
use super::fields::received_range;
use super::{App, CONTENT_DIGEST, Call};
use crate::access::{Authorized, Principal, Pulling, Push};
use crate::oci::{Algorithm, Digest, RepoId, RepoName};
use crate::resolve::RequestedRepo;
use crate::store::{self, MayRead, StoreError, Upload, UploadError};

const UPLOAD_UUID: HeaderName = HeaderName::from_static("docker-upload-uuid");

/// How long the last request of a session waits for an earlier one that holds it.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
const BUSY_CHECK_INTERVAL: Duration = Duration::from_millis(20);

/// POST: opens a session, mounts a blob of another repository, or receives a complete blob.
pub(super) async fn start(
    app: &Arc<App>,
    call: &Call<'_>,
    access: Authorized<Push>,
    body: Body,
) -> Result<Response, ApiError> {
    let repo = access.repo();
    if let Some(digest) = call.query.get("mount") {
        let digest: Digest = digest.parse()?;
        if mount(app, call, &access, &digest).await? {
            return Ok(created(&repo.name, &digest));
        }
    }
    let whole = call.query.get("digest").map(str::parse::<Digest>).transpose()?;
    let announced = call.query.get("digest-algorithm").map(str::parse::<Algorithm>).transpose()?;
    let algorithm = whole.as_ref().map(Digest::algorithm).or(announced).unwrap_or(Algorithm::Sha256);
    let mut upload = app.store.create_upload(repo, algorithm).await?;
    let Some(digest) = whole else {
        upload.keep();
        return Ok(session(StatusCode::ACCEPTED, &repo.name, &upload));
    };
    // No client knows this session, so it ends with a failure of this request.
    let upload = receive(app, upload, body, |_| true).await?;
    close(upload, repo, &digest).await
}

/// Mounts a blob from the repository that the request names, or from any local repository that has it. Whether it was mounted:
/// the caller must be allowed to read that repository, and the blob must be part of it.
async fn mount(app: &Arc<App>, call: &Call<'_>, access: &Authorized<Push>, digest: &Digest) -> Result<bool, ApiError> {
    let (repo, principal) = (access.repo(), access.principal());
    let source = match call.query.get("from") {
        Some(from) => {
            let requested = RequestedRepo { name: from, prefix: None, ..call.requested() };
            match app.gate.pull(principal, requested, |name| app.store.is_local(name)) {
                Ok(Pulling::Allowed(access)) => Some(access.repo().clone()),
                // The client uploads what cannot be mounted.
                Ok(Pulling::IfPublic(pull)) => {
                    Some(pull.repo().clone()).filter(|repo| app.puller.is_known_public(repo))
                }
                Err(_) => None,
            }
        }
        None => app.store.find_pushed(digest, may_read(app, principal)).await?,
    };
    let Some(source) = source else { return Ok(false) };
    if !app.store.member(&source, digest).await?.is_some_and(|member| member.proven) {
        return Ok(false);
    }
    Ok(app.store.adopt(repo, digest).await?)
}

fn may_read(app: &Arc<App>, principal: &Principal) -> MayRead {
    let (app, principal) = (app.clone(), principal.clone());
    Box::new(move |name: &RepoName| app.gate.may_pull(&principal, &RepoId::local(name.clone())))
}

/// PATCH: the next bytes. The bytes that arrived before a failure stay.
pub(super) async fn append(
    app: &Arc<App>,
    call: &Call<'_>,
    access: Authorized<Push>,
    id: &str,
    body: Body,
) -> Result<Response, ApiError> {
    let repo = access.repo();
    let upload = app.store.upload(repo, id).await?;
    let upload = receive_chunk(app, call, repo, upload, body).await?;
    Ok(session(StatusCode::ACCEPTED, &repo.name, &upload))
}

/// PUT: the last bytes, if any, and the digest of all of them. After a failure the session is as it was before, so that
/// the client can send the same request again.
pub(super) async fn finish(
    app: &Arc<App>,
    call: &Call<'_>,
    access: Authorized<Push>,
    id: &str,
    body: Body,
) -> Result<Response, ApiError> {
    let repo = access.repo();
    let digest = call.query.get("digest").ok_or(ApiError::Parameter { parameter: "digest" })?;
    let digest: Digest = digest.parse()?;
    let upload = match find_when_free(app, repo, id).await {
        // An earlier request has finished the session, and its response was lost.
        Err(UploadError::Unknown)
            if app.gate.may_pull(access.principal(), repo) && super::blobs::is_stored(app, repo, &digest).await? =>
        {
            discard(app, body).await?;
            return Ok(created(&repo.name, &digest));
        }
        found => found?,
    };
    if !body.is_end_stream() {
        upload.begin_last_chunk().await?;
    }
    let upload = receive_chunk(app, call, repo, upload, body).await?;
    close(upload, repo, &digest).await
}

/// Finds a session. If an earlier request still holds it, this waits for that request: its client may have lost the
/// response.
async fn find_when_free(app: &App, repo: &RepoId, id: &str) -> Result<Upload, UploadError> {
    let deadline = Instant::now() + BUSY_TIMEOUT;
    loop {
        match app.store.upload(repo, id).await {
            Err(UploadError::Busy) if Instant::now() < deadline => sleep(BUSY_CHECK_INTERVAL).await,
            found => return found,
        }
    }
}

/// Receives the next bytes of a session.
async fn receive_chunk(
    app: &App,
    call: &Call<'_>,
    repo: &RepoId,
    upload: Upload,
    body: Body,
) -> Result<Upload, ApiError> {
    check_range(call, &repo.name, &upload, &body)?;
    receive(app, upload, body, found_no_room).await
}

/// Reads and drops a body that is not needed, so that the client reads the response.
async fn discard(app: &App, body: Body) -> Result<(), ApiError> {
    let mut frames = pin!(data_frames(body, app.progress_timeout));
    while frames.next().await.transpose()?.is_some() {}
    Ok(())
}

/// GET: how much has been received.
pub(super) async fn status(app: &Arc<App>, access: Authorized<Push>, id: &str) -> Result<Response, ApiError> {
    let repo = access.repo();
    let upload = app.store.upload(repo, id).await?;
    Ok(session(StatusCode::NO_CONTENT, &repo.name, &upload))
}

/// DELETE: ends the session.
pub(super) async fn cancel(app: &Arc<App>, access: Authorized<Push>, id: &str) -> Result<Response, ApiError> {
    let repo = access.repo();
    app.store.upload(repo, id).await?.cancel().await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

async fn close(upload: Upload, repo: &RepoId, digest: &Digest) -> Result<Response, ApiError> {
    upload.finish(repo, digest).await.map_err(|error| match error {
        StoreError::DigestMismatch { digest: found, .. } => {
            ApiError::DigestMismatch { expected: digest.clone(), found }
        }
        error => error.into(),
    })?;
    Ok(created(&repo.name, digest))
}

/// A chunk with a `Content-Range` must begin where the session ends.
fn check_range(call: &Call<'_>, name: &RepoName, upload: &Upload, body: &Body) -> Result<(), ApiError> {
    let Some(range) = call.header(CONTENT_RANGE) else { return Ok(()) };
    // Some clients send the unit, which this header does not have.
    let range = range.strip_prefix("bytes ").unwrap_or(range);
    let (first, last) = range.split_once('-').ok_or(ApiError::ContentRange)?;
    let number = |text: &str| text.parse::<u64>().map_err(|_| ApiError::ContentRange);
    let (first, last) = (number(first)?, number(last.split('/').next().unwrap_or(last))?);
    if first > last {
        return Err(ApiError::ContentRange);
    }
    let length = upload.length();
    if first != length {
        return Err(ApiError::OutOfOrder { length, location: location(name, upload) });
    }
    // A body of unknown length is accepted as it is.
    if body.size_hint().exact().is_some_and(|length| length.checked_sub(1) != Some(last - first)) {
        return Err(ApiError::ChunkLength);
    }
    Ok(())
}

/// A session for which the disk has no room ends: what it has received would only take room from others.
fn found_no_room(error: &ApiError) -> bool {
    matches!(error, ApiError::Store(error) if error.is_full())
}

/// Receives the body. A failure that `ends` the session cancels it.
async fn receive(app: &App, upload: Upload, body: Body, ends: impl Fn(&ApiError) -> bool) -> Result<Upload, ApiError> {
    let announced = body.size_hint().lower();
    let received = match app.store.require_room_for_push(announced).await {
        Ok(()) => {
            let frames = data_frames(body, app.progress_timeout);
            store::pump(frames, |chunks| upload.append(chunks), |_| Ok(())).await
        }
        Err(error) => Err(error.into()),
    };
    match received {
        Ok(_) => Ok(upload),
        Err(error) => {
            if ends(&error) {
                upload.cancel().await?;
            }
            Err(error)
        }
    }
}

/// The data of a body. A body that makes no progress for `progress` has failed.
fn data_frames(body: Body, progress: Duration) -> impl Stream<Item = Result<Bytes, ApiError>> {
    stream::try_unfold(body, move |mut body| async move {
        loop {
            match timeout(progress, body.frame()).await.map_err(|_| ApiError::Body)? {
                None => return Ok(None),
                Some(Err(_)) => return Err(ApiError::Body),
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => return Ok(Some((data, body))),
                    Err(_trailers) => continue,
                },
            }
        }
    })
}

fn location(name: &RepoName, upload: &Upload) -> String {
    format!("/v2/{name}/blobs/uploads/{}", upload.id())
}

fn session(status: StatusCode, name: &RepoName, upload: &Upload) -> Response {
    let mut response = status.into_response();
    let headers = response.headers_mut();
    insert(headers, LOCATION, location(name, upload));
    insert(headers, RANGE, received_range(upload.length()));
    insert(headers, UPLOAD_UUID, upload.id().to_string());
    response
}

fn created(name: &RepoName, digest: &Digest) -> Response {
    let mut response = StatusCode::CREATED.into_response();
    insert(response.headers_mut(), LOCATION, format!("/v2/{name}/blobs/{digest}"));
    insert(response.headers_mut(), CONTENT_DIGEST, digest.to_string());
    response
}

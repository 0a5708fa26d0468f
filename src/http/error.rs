//! Every failure as a response: the one place where status, code and outside message are decided.
//!
//! The outside message names what a client or its user can act on, the upstream included; causes with paths and the like
//! go to the log, once, here.

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use http::header::{CONTENT_RANGE, CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderName, HeaderValue, StatusCode};
use serde_json::json;

use crate::auth::Refused;
use crate::oci::{Digest, DigestError, ErrorCode, ManifestError, NameError, ReferenceError, RouteError};
use crate::pull::PullError;
use crate::resolve::{PushRefused, ResolveError};
use crate::store::{StoreError, UploadError};
use crate::telemetry::ContentKind;
use crate::upstream::UpstreamError;

/// Missing references that are named one by one.
const MOST_DETAILS: usize = 50;

/// Seconds after which a transfer that found no slot may find one.
const BUSY_RETRY_AFTER: &str = "5";

/// What a client reads of a failure of our own disk.
const STORAGE_FAILED: &str = "the registry's storage failed";

/// A request that is answered with an error.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    #[error(transparent)]
    Route(#[from] RouteError),
    #[error("the method is not supported here")]
    Method,
    #[error(transparent)]
    Resolve(#[from] ResolveError),
    #[error(transparent)]
    Refused(#[from] Refused),
    #[error(transparent)]
    PushRefused(#[from] PushRefused),
    #[error("{0} exists in the mirrored registry {1}; push to another name")]
    NameTaken(String, String),
    #[error("the request came through this server before: its upstreams lead back to it")]
    Loop,
    #[error(transparent)]
    Digest(#[from] DigestError),
    #[error("the content has digest {found}, not {expected}")]
    DigestMismatch { expected: Digest, found: Digest },
    #[error(transparent)]
    Reference(ReferenceError),
    #[error("{} unknown to this repository", match .0 { ContentKind::Blob => "blob", ContentKind::Manifest => "manifest" })]
    Unknown(ContentKind),
    #[error("the repository is not known here")]
    UnknownRepository,
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    #[error("a manifest's type is one of application/")]
    ManifestType,
    #[error("the manifest refers to what this repository does not have: {}", .0.first().map_or("", String::as_str))]
    MissingReferences(Vec<String>),
    #[error("a manifest is at most {limit} bytes")]
    ManifestTooLarge { limit: u64 },
    #[error(transparent)]
    Upload(#[from] UploadError),
    #[error("the chunk does not begin where the upload is: at byte {length}")]
    OutOfOrder { length: u64, location: String },
    #[error("the Content-Range header is not of the form first-last")]
    ContentRange,
    #[error("the chunk is not as long as its Content-Range header says")]
    ChunkLength,
    #[error("the body ended before its announced length, or stood still")]
    Body,
    #[error("n is a number from 0 on")]
    PageSize,
    #[error("a {parameter} parameter is missing or not valid")]
    Parameter { parameter: &'static str },
    #[error("one push sets at most {most} tags")]
    TooManyTags { most: usize },
    #[error("{error}")]
    Pull { kind: ContentKind, error: PullError },
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("internal error")]
    Panic,
}

impl ApiError {
    pub fn pull(kind: ContentKind) -> impl Fn(PullError) -> Self {
        move |error| Self::Pull { kind, error }
    }

    fn status_and_code(&self) -> (StatusCode, ErrorCode) {
        use {ErrorCode as Code, StatusCode as Status};
        match self {
            Self::Route(RouteError::Malformed) => (Status::BAD_REQUEST, Code::NameInvalid),
            Self::Route(RouteError::Unknown) => (Status::NOT_FOUND, Code::Unsupported),
            Self::Method => (Status::METHOD_NOT_ALLOWED, Code::Unsupported),
            Self::Resolve(error) | Self::PushRefused(PushRefused::Resolve(error)) => match error {
                ResolveError::UnknownRegistry(_) => (Status::NOT_FOUND, Code::NameUnknown),
                ResolveError::Name(NameError::Length | NameError::Grammar) => (Status::BAD_REQUEST, Code::NameInvalid),
            },
            Self::Refused(_) => (Status::METHOD_NOT_ALLOWED, Code::Unsupported),
            Self::PushRefused(_) | Self::NameTaken(..) => (Status::FORBIDDEN, Code::Denied),
            Self::Loop => (Status::LOOP_DETECTED, Code::Unavailable),
            Self::Digest(_) | Self::DigestMismatch { .. } => (Status::BAD_REQUEST, Code::DigestInvalid),
            Self::Reference(ReferenceError::Digest(_)) => (Status::BAD_REQUEST, Code::DigestInvalid),
            Self::Reference(ReferenceError::Tag(_)) => (Status::BAD_REQUEST, Code::ManifestInvalid),
            Self::Unknown(ContentKind::Blob) => (Status::NOT_FOUND, Code::BlobUnknown),
            Self::Unknown(ContentKind::Manifest) => (Status::NOT_FOUND, Code::ManifestUnknown),
            Self::UnknownRepository => (Status::NOT_FOUND, Code::NameUnknown),
            Self::Manifest(_) | Self::ManifestType => (Status::BAD_REQUEST, Code::ManifestInvalid),
            Self::MissingReferences(_) => (Status::BAD_REQUEST, Code::ManifestBlobUnknown),
            Self::ManifestTooLarge { .. } => (Status::PAYLOAD_TOO_LARGE, Code::SizeInvalid),
            Self::Upload(UploadError::Unknown) => (Status::NOT_FOUND, Code::BlobUploadUnknown),
            Self::Upload(UploadError::Busy) => (Status::CONFLICT, Code::BlobUploadInvalid),
            Self::OutOfOrder { .. } => (Status::RANGE_NOT_SATISFIABLE, Code::BlobUploadInvalid),
            Self::ContentRange | Self::Body => (Status::BAD_REQUEST, Code::BlobUploadInvalid),
            Self::ChunkLength => (Status::BAD_REQUEST, Code::SizeInvalid),
            Self::PageSize => (Status::BAD_REQUEST, Code::PaginationNumberInvalid),
            Self::Parameter { .. } => (Status::BAD_REQUEST, Code::Unsupported),
            Self::TooManyTags { .. } => (Status::URI_TOO_LONG, Code::Unsupported),
            Self::Pull { kind, error } => pull_status(*kind, error),
            Self::Upload(UploadError::Store(error)) | Self::Store(error) => store_status(error),
            Self::Panic => (Status::INTERNAL_SERVER_ERROR, Code::Unknown),
        }
    }

    /// What a stranger may read: no paths, no causes of ours.
    fn outside_message(&self) -> String {
        if let Some(error) = self.of_the_store() {
            return store_message(error);
        }
        match self {
            Self::Pull { error: PullError::LocalRead { .. }, .. } => STORAGE_FAILED.to_owned(),
            Self::Pull { error: PullError::Upstream(UpstreamError::Credentials { upstream, .. }), .. } => {
                format!("no credentials for {upstream}")
            }
            error => error.to_string(),
        }
    }

    fn of_the_store(&self) -> Option<&StoreError> {
        match self {
            Self::Upload(UploadError::Store(error))
            | Self::Store(error)
            | Self::Pull { error: PullError::Store(error), .. } => Some(error),
            _ => None,
        }
    }

    fn log(&self, status: StatusCode) {
        // The miss engine has logged what it met, with the image; a store's failure has not been seen by anybody.
        if let Some(error) = self.of_the_store()
            && status.is_server_error()
        {
            tracing::error!(%error, "the store failed: {error}");
            return;
        }
        match self {
            Self::Pull { error: error @ PullError::LocalRead { .. }, .. } => {
                tracing::error!(%error, "the store failed: {error}");
            }
            Self::PushRefused(_) | Self::NameTaken(..) => tracing::info!(error = %self, "refused a push: {self}"),
            _ => tracing::debug!(status = status.as_u16(), error = %self, "refused: {self}"),
        }
    }
}

fn pull_status(kind: ContentKind, error: &PullError) -> (StatusCode, ErrorCode) {
    use {ErrorCode as Code, StatusCode as Status};
    match error {
        PullError::NotFound => ApiError::Unknown(kind).status_and_code(),
        PullError::Range { .. } => (Status::RANGE_NOT_SATISFIABLE, Code::RangeInvalid),
        PullError::Upstream(error) => match error {
            UpstreamError::NotFound { .. } => ApiError::Unknown(kind).status_and_code(),
            UpstreamError::Denied { .. } => (Status::FORBIDDEN, Code::Denied),
            UpstreamError::RateLimited { .. } => (Status::TOO_MANY_REQUESTS, Code::TooManyRequests),
            UpstreamError::Timeout { .. } => (Status::GATEWAY_TIMEOUT, Code::Unavailable),
            UpstreamError::Connect { .. } | UpstreamError::LeftAlone { .. } => {
                (Status::SERVICE_UNAVAILABLE, Code::Unavailable)
            }
            UpstreamError::Status { status: Status::LOOP_DETECTED, .. } => (Status::LOOP_DETECTED, Code::Unavailable),
            UpstreamError::Status { status: Status::SERVICE_UNAVAILABLE, .. } => {
                (Status::SERVICE_UNAVAILABLE, Code::Unavailable)
            }
            UpstreamError::Status { .. }
            | UpstreamError::Interrupted { .. }
            | UpstreamError::Certificate { .. }
            | UpstreamError::Credentials { .. }
            | UpstreamError::BadResponse { .. } => (Status::BAD_GATEWAY, Code::Unavailable),
        },
        PullError::WrongContent { .. } | PullError::Changed { .. } | PullError::BadDocument { .. } => {
            (Status::BAD_GATEWAY, Code::Unavailable)
        }
        PullError::TooLate { .. } => (Status::GATEWAY_TIMEOUT, Code::Unavailable),
        PullError::Abandoned | PullError::Busy { .. } => (Status::SERVICE_UNAVAILABLE, Code::Unavailable),
        PullError::Store(error) => store_status(error),
        PullError::LocalRead { .. } => (Status::INTERNAL_SERVER_ERROR, Code::Unknown),
    }
}

fn store_status(error: &StoreError) -> (StatusCode, ErrorCode) {
    match error {
        StoreError::DigestMismatch { .. } => (StatusCode::BAD_REQUEST, ErrorCode::DigestInvalid),
        StoreError::ReadOnly => (StatusCode::METHOD_NOT_ALLOWED, ErrorCode::Unsupported),
        error if error.is_full() => (StatusCode::INSUFFICIENT_STORAGE, ErrorCode::Unavailable),
        error if error.lacks_descriptors() => (StatusCode::SERVICE_UNAVAILABLE, ErrorCode::Unavailable),
        _ => (StatusCode::INTERNAL_SERVER_ERROR, ErrorCode::Unknown),
    }
}

fn store_message(error: &StoreError) -> String {
    match error {
        StoreError::DigestMismatch { .. } => error.to_string(),
        StoreError::ReadOnly => "the registry is read-only".to_owned(),
        error if error.is_full() => "the registry's disk is full".to_owned(),
        error if error.lacks_descriptors() => "the registry has too many files open".to_owned(),
        _ => STORAGE_FAILED.to_owned(),
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let (status, code) = self.status_and_code();
        self.log(status);
        let mut error = json!({ "code": code.as_str(), "message": self.outside_message() });
        if let Self::MissingReferences(digests) = &self {
            error["detail"] = json!(digests.iter().take(MOST_DETAILS).collect::<Vec<_>>());
        }
        let body = json!({ "errors": [error] }).to_string();
        let mut response = Response::new(Body::from(body));
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        match &self {
            Self::Pull { error: PullError::Range { length }, .. } => {
                insert(headers, CONTENT_RANGE, format!("bytes */{length}"));
            }
            Self::Pull { error: PullError::Busy { .. } | PullError::Abandoned, .. } => {
                headers.insert(RETRY_AFTER, HeaderValue::from_static(BUSY_RETRY_AFTER));
            }
            _ if self.of_the_store().is_some_and(StoreError::lacks_descriptors) => {
                headers.insert(RETRY_AFTER, HeaderValue::from_static(BUSY_RETRY_AFTER));
            }
            Self::Pull { error: PullError::Upstream(error), .. } => {
                if let Some(after) = error.retry_after() {
                    // Rounded up: a client that comes back a moment too early is turned away again.
                    insert(headers, RETRY_AFTER, after.as_secs_f64().ceil().to_string());
                } else if status == StatusCode::TOO_MANY_REQUESTS {
                    headers.insert(RETRY_AFTER, HeaderValue::from_static("60"));
                }
            }
            Self::OutOfOrder { length, location } => {
                insert(headers, http::header::LOCATION, location.clone());
                insert(headers, http::header::RANGE, super::uploads::received(*length));
            }
            _ => {}
        }
        response
    }
}

/// Sets a header to text of our own making; text that cannot stand in a header is left out.
pub(super) fn insert(headers: &mut http::HeaderMap, name: HeaderName, value: String) {
    if let Ok(value) = HeaderValue::try_from(value) {
        headers.insert(name, value);
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::Arc;

    use super::*;
    use crate::oci::Algorithm;

    #[test]
    fn a_local_read_failure_is_our_fault_and_not_the_upstreams() {
        let digest = Digest::of(Algorithm::Sha256, b"");
        let cause = Arc::new(io::Error::from(io::ErrorKind::UnexpectedEof));
        let error = ApiError::Pull { kind: ContentKind::Blob, error: PullError::LocalRead { digest, cause } };
        assert_eq!(error.status_and_code().0, StatusCode::INTERNAL_SERVER_ERROR);
        assert_eq!(error.outside_message(), "the registry's storage failed");
    }
}

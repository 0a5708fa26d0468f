//! Every failure as a response: status, code, headers and the text that a client reads.
//!
//! This is the only place that decides the status and the code. The text is that of the error itself: [`ApiError`]
//! here, [`UpstreamError`] in `upstream::error` (the text for an untrusted certificate is there), `PullError` in
//! `pull::error`. Such a text names what a client can act on. Where a cause could name local files, `outside_message`
//! replaces it here, and the cause is logged once.

use axum::body::Body;
use axum::response::Response;
use http::header::{ALLOW, CONTENT_RANGE, CONTENT_TYPE, LOCATION, RANGE, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{HeaderMap, HeaderValue, StatusCode};
use serde_json::{Value, json};

use super::fields::{insert, received_range};
use super::host::HostError;
use crate::access::{AccessError, LoginError, SwitchedOff, Unauthenticated};
use crate::oci::{Digest, DigestError, ErrorCode, ManifestError, NameError, ReferenceError, RouteError};
use crate::pull::PullError;
use crate::resolve::{PushRefused, ResolveError};
use crate::store::{Obstacle, StoreError, UploadError};
use crate::telemetry::{ContentKind, REQUEST_ID, RequestTrace};
use crate::upstream::UpstreamError;

/// Missing references that the details of an error name.
pub(super) const MAX_NAMED_REFERENCES: usize = 50;

/// Seconds after which a transfer that found no slot may find one.
const BUSY_RETRY_AFTER: &str = "5";
/// Seconds after which a client may ask again where an upstream's limit does not say.
const RATE_LIMIT_RETRY_AFTER: &str = "60";

/// What a client reads of a failure of our own disk.
const STORAGE_FAILED: &str = "the registry's storage failed";

/// A request that is answered with an error.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    #[error(transparent)]
    Route(#[from] RouteError),
    #[error(transparent)]
    Host(#[from] HostError),
    #[error("the method is not supported by this endpoint")]
    Method { allowed: String },
    #[error(transparent)]
    Access(#[from] AccessError),
    /// As [`LoginError::Unauthenticated`], with the value of `WWW-Authenticate`.
    #[error("{reason}")]
    Challenged { reason: Unauthenticated, challenge: String },
    #[error("{0} exists in the mirrored registry {1}; push to another name")]
    NameTaken(String, String),
    #[error("the request has passed this server before; its upstreams lead back to it")]
    Loop,
    #[error("every connection of this registry has a request in progress; try again later")]
    Crowded,
    #[error(transparent)]
    Digest(#[from] DigestError),
    #[error("the content has digest {found}, not {expected}")]
    DigestMismatch { expected: Digest, found: Digest },
    #[error(transparent)]
    Reference(ReferenceError),
    #[error("{} unknown to this repository", match .0 { ContentKind::Blob => "blob", ContentKind::Manifest => "manifest" })]
    Unknown(ContentKind),
    #[error("repository unknown to this registry")]
    UnknownRepository,
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    #[error("the manifest refers to content that this repository does not have: {}", .0.first().map_or("", String::as_str))]
    MissingReferences(Vec<String>),
    #[error("a manifest may have at most {limit} bytes")]
    ManifestTooLarge { limit: u64 },
    #[error("too many large manifests are pushed at once; try again")]
    TooManyManifests,
    #[error(transparent)]
    Upload(#[from] UploadError),
    #[error("the chunk does not begin at the end of the upload, which is byte {length}")]
    OutOfOrder { length: u64, location: String },
    #[error("the Content-Range header is not of the form first-last")]
    ContentRange,
    #[error("the length of the chunk differs from its Content-Range header")]
    ChunkLength,
    #[error("the body ended before its announced length, or made no progress")]
    Body,
    #[error("n must be a number, 0 or greater")]
    PageSize,
    #[error("the {parameter} parameter is missing or not valid")]
    Parameter { parameter: &'static str },
    #[error("one push may set at most {max} tags")]
    TooManyTags { max: usize },
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

    /// Adds a challenge if the client may try again with other credentials.
    pub(super) fn with_challenge(self, challenge: impl FnOnce(Unauthenticated) -> String) -> Self {
        match self {
            Self::Access(AccessError::Login(LoginError::Unauthenticated(reason))) => {
                Self::Challenged { reason, challenge: challenge(reason) }
            }
            other => other,
        }
    }

    /// Whether the failure is ours: something may have been changed.
    pub(super) fn is_of_server(&self) -> bool {
        self.status_and_code().0.is_server_error()
    }

    fn status_and_code(&self) -> (StatusCode, ErrorCode) {
        use {ErrorCode as Code, StatusCode as Status};
        match self {
            Self::Route(RouteError::Malformed) => (Status::BAD_REQUEST, Code::NameInvalid),
            Self::Host(_) => (Status::BAD_REQUEST, Code::Unsupported),
            Self::Route(RouteError::Unknown) => (Status::NOT_FOUND, Code::Unsupported),
            Self::Method { .. } => (Status::METHOD_NOT_ALLOWED, Code::Unsupported),
            Self::Access(error) => access_status(error),
            Self::Challenged { .. } => (Status::UNAUTHORIZED, Code::Unauthorized),
            Self::NameTaken(..) => (Status::FORBIDDEN, Code::Denied),
            Self::Loop => (Status::LOOP_DETECTED, Code::Unavailable),
            Self::Crowded => (Status::SERVICE_UNAVAILABLE, Code::Unavailable),
            Self::Digest(_) | Self::DigestMismatch { .. } => (Status::BAD_REQUEST, Code::DigestInvalid),
            Self::Reference(ReferenceError::Digest(_)) => (Status::BAD_REQUEST, Code::DigestInvalid),
            Self::Reference(ReferenceError::Tag(_)) => (Status::BAD_REQUEST, Code::ManifestInvalid),
            Self::Unknown(ContentKind::Blob) => (Status::NOT_FOUND, Code::BlobUnknown),
            Self::Unknown(ContentKind::Manifest) => (Status::NOT_FOUND, Code::ManifestUnknown),
            Self::UnknownRepository => (Status::NOT_FOUND, Code::NameUnknown),
            Self::Manifest(_) => (Status::BAD_REQUEST, Code::ManifestInvalid),
            Self::MissingReferences(_) => (Status::BAD_REQUEST, Code::ManifestBlobUnknown),
            Self::ManifestTooLarge { .. } => (Status::PAYLOAD_TOO_LARGE, Code::SizeInvalid),
            Self::TooManyManifests => (Status::SERVICE_UNAVAILABLE, Code::Unavailable),
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

    /// The message for the client: without paths and causes inside of the server.
    fn outside_message(&self) -> String {
        if let Some(error) = self.store_error() {
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

    fn is_of_storage(&self) -> bool {
        self.store_error().is_some() || matches!(self, Self::Pull { error: PullError::LocalRead { .. }, .. })
    }

    fn store_error(&self) -> Option<&StoreError> {
        match self {
            Self::Upload(UploadError::Store(error))
            | Self::Store(error)
            | Self::Pull { error: PullError::Store(error), .. } => Some(error),
            _ => None,
        }
    }

    /// Logs the error, once, with the id that the client reads.
    fn log(&self, status: StatusCode, trace: &RequestTrace) {
        let (request_id, status_code) = (trace.id(), status.as_u16());
        let client = trace.client().map(tracing::field::display);
        match self {
            // The miss engine has logged its failures with the image. A failure of the store has not been logged yet.
            _ if self.is_of_storage() && status.is_server_error() => {
                tracing::error!(request_id, client, status = status_code, error = %self, "the store failed");
            }
            Self::Access(AccessError::PushRefused(_)) | Self::NameTaken(..) => {
                tracing::info!(request_id, client, status = status_code, error = %self, "refused a push");
            }
            // The accept loop has logged one warning for many of these requests.
            Self::Crowded => {
                tracing::debug!(request_id, client, status = status_code, error = %self, "refused a request")
            }
            // Logged above debug so that the id that a client reports can be found.
            _ if status.is_server_error() => {
                tracing::info!(request_id, client, status = status_code, error = %self, "answered with an error");
            }
            _ => tracing::debug!(request_id, client, status = status_code, error = %self, "refused a request"),
        }
    }

    /// The error as a response. The id of the request is in its details, in a header, and in the log line.
    pub(super) fn into_response(self, trace: &RequestTrace) -> Response {
        let (status, code) = self.status_and_code();
        self.log(status, trace);
        let error = json!({ "code": code.as_str(), "message": self.outside_message(), "detail": self.detail(trace) });
        let mut response = Response::new(Body::from(json!({ "errors": [error] }).to_string()));
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        insert(headers, REQUEST_ID, trace.id().to_owned());
        self.add_headers(status, headers);
        response
    }

    fn detail(&self, trace: &RequestTrace) -> Value {
        let mut detail = json!({ "request_id": trace.id() });
        if let Self::MissingReferences(digests) = self {
            detail["missing"] = json!(digests.iter().take(MAX_NAMED_REFERENCES).collect::<Vec<_>>());
        }
        detail
    }

    /// Headers that tell the client how to go on.
    fn add_headers(&self, status: StatusCode, headers: &mut HeaderMap) {
        match self {
            Self::Pull { error: PullError::Range { length }, .. } => {
                insert(headers, CONTENT_RANGE, format!("bytes */{length}"));
            }
            Self::Crowded
            | Self::TooManyManifests
            | Self::Pull { error: PullError::Busy { .. } | PullError::Abandoned, .. } => {
                headers.insert(RETRY_AFTER, HeaderValue::from_static(BUSY_RETRY_AFTER));
            }
            _ if self
                .store_error()
                .is_some_and(|error| error.lacks_descriptors() || matches!(error, StoreError::TooManyUploads)) =>
            {
                headers.insert(RETRY_AFTER, HeaderValue::from_static(BUSY_RETRY_AFTER));
            }
            Self::Pull { error: PullError::Upstream(error), .. } => {
                if let Some(after) = error.retry_after() {
                    // Rounded up: a client that returns slightly too early would be turned away again.
                    insert(headers, RETRY_AFTER, after.as_secs_f64().ceil().to_string());
                } else if status == StatusCode::TOO_MANY_REQUESTS {
                    headers.insert(RETRY_AFTER, HeaderValue::from_static(RATE_LIMIT_RETRY_AFTER));
                }
            }
            Self::Pull { error: error @ PullError::VisibilityUnknown { .. }, .. } => {
                let after = error.retry_after().map(|after| after.as_secs_f64().ceil().to_string());
                insert(headers, RETRY_AFTER, after.unwrap_or_else(|| BUSY_RETRY_AFTER.to_owned()));
            }
            Self::Challenged { challenge, .. } => {
                insert(headers, WWW_AUTHENTICATE, challenge.clone());
            }
            Self::Access(AccessError::Login(
                LoginError::TooManyAttempts { retry_after }
                | LoginError::TooManyAtOnce { retry_after }
                | LoginError::IssuerUnavailable { retry_after },
            )) => {
                insert(headers, RETRY_AFTER, retry_after.as_secs_f64().ceil().to_string());
            }
            Self::Method { allowed } => {
                insert(headers, ALLOW, allowed.clone());
            }
            Self::OutOfOrder { length, location } => {
                insert(headers, LOCATION, location.clone());
                insert(headers, RANGE, received_range(*length));
            }
            _ => {}
        }
    }
}

/// Unauthenticated, denied, switched off and not possible are different.
fn access_status(error: &AccessError) -> (StatusCode, ErrorCode) {
    use {ErrorCode as Code, StatusCode as Status};
    match error {
        AccessError::Login(error) => match error {
            LoginError::Unauthenticated(_) => (Status::UNAUTHORIZED, Code::Unauthorized),
            LoginError::TooManyAttempts { .. } | LoginError::TooManyAtOnce { .. } => {
                (Status::TOO_MANY_REQUESTS, Code::TooManyRequests)
            }
            LoginError::IssuerUnavailable { .. } => (Status::SERVICE_UNAVAILABLE, Code::Unavailable),
            LoginError::SeveralCredentials => (Status::BAD_REQUEST, Code::Unsupported),
        },
        AccessError::Denied => (Status::FORBIDDEN, Code::Denied),
        AccessError::SwitchedOff(
            SwitchedOff::Push | SwitchedOff::Delete | SwitchedOff::ReadOnly | SwitchedOff::Mirrored,
        ) => (Status::METHOD_NOT_ALLOWED, Code::Unsupported),
        AccessError::Resolve(error) | AccessError::PushRefused(PushRefused::Resolve(error)) => match error {
            ResolveError::UnknownRegistry(_) | ResolveError::NotOurName { .. } => {
                (Status::NOT_FOUND, Code::NameUnknown)
            }
            ResolveError::Name(NameError::Length | NameError::Grammar) => (Status::BAD_REQUEST, Code::NameInvalid),
        },
        AccessError::PushRefused(_) => (Status::FORBIDDEN, Code::Denied),
    }
}

fn pull_status(kind: ContentKind, error: &PullError) -> (StatusCode, ErrorCode) {
    use {ErrorCode as Code, StatusCode as Status};
    match error {
        PullError::NotFound | PullError::PresumedAbsent => ApiError::Unknown(kind).status_and_code(),
        PullError::Range { .. } => (Status::RANGE_NOT_SATISFIABLE, Code::RangeInvalid),
        PullError::Upstream(error) => match error {
            UpstreamError::NotFound { .. } => ApiError::Unknown(kind).status_and_code(),
            UpstreamError::Denied { .. } => (Status::FORBIDDEN, Code::Denied),
            UpstreamError::RateLimited { .. } => (Status::TOO_MANY_REQUESTS, Code::TooManyRequests),
            UpstreamError::Timeout { .. } => (Status::GATEWAY_TIMEOUT, Code::Unavailable),
            UpstreamError::Connect { .. }
            | UpstreamError::LocalLimit { .. }
            | UpstreamError::CircuitOpen { .. }
            | UpstreamError::Overloaded { .. }
            | UpstreamError::Contradicted { .. } => (Status::SERVICE_UNAVAILABLE, Code::Unavailable),
            UpstreamError::Status { status: Status::LOOP_DETECTED, .. } => (Status::LOOP_DETECTED, Code::Unavailable),
            UpstreamError::Status { status: Status::SERVICE_UNAVAILABLE, .. } => {
                (Status::SERVICE_UNAVAILABLE, Code::Unavailable)
            }
            UpstreamError::Status { .. }
            | UpstreamError::Challenge { .. }
            | UpstreamError::Interrupted { .. }
            | UpstreamError::Certificate { .. }
            | UpstreamError::Credentials { .. }
            | UpstreamError::BadResponse { .. } => (Status::BAD_GATEWAY, Code::Unavailable),
        },
        PullError::WrongContent { .. }
        | PullError::WrongManifest { .. }
        | PullError::Changed { .. }
        | PullError::BadDocument { .. } => (Status::BAD_GATEWAY, Code::Unavailable),
        PullError::TooLate { .. } => (Status::GATEWAY_TIMEOUT, Code::Unavailable),
        PullError::VisibilityUnknown { .. } | PullError::Abandoned | PullError::Busy { .. } => {
            (Status::SERVICE_UNAVAILABLE, Code::Unavailable)
        }
        PullError::Store(error) => store_status(error),
        PullError::LocalRead { .. } => (Status::INTERNAL_SERVER_ERROR, Code::Unknown),
    }
}

fn store_status(error: &StoreError) -> (StatusCode, ErrorCode) {
    match error {
        StoreError::DigestMismatch { .. } => (StatusCode::BAD_REQUEST, ErrorCode::DigestInvalid),
        StoreError::ReadOnly => (StatusCode::METHOD_NOT_ALLOWED, ErrorCode::Unsupported),
        StoreError::TooManyUploads => (StatusCode::TOO_MANY_REQUESTS, ErrorCode::TooManyRequests),
        error if error.is_full() || error.obstacle() == Some(Obstacle::ReadOnlyDisk) => {
            (StatusCode::INSUFFICIENT_STORAGE, ErrorCode::Unavailable)
        }
        error if error.lacks_descriptors() => (StatusCode::SERVICE_UNAVAILABLE, ErrorCode::Unavailable),
        _ => (StatusCode::INTERNAL_SERVER_ERROR, ErrorCode::Unknown),
    }
}

fn store_message(error: &StoreError) -> String {
    match error {
        StoreError::DigestMismatch { .. } | StoreError::TooManyUploads => error.to_string(),
        error if error.lacks_descriptors() => "the registry has too many files open".to_owned(),
        error => error.obstacle().map_or_else(|| STORAGE_FAILED.to_owned(), |obstacle| obstacle.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(error: impl Into<AccessError>) -> (u16, &'static str) {
        let (status, code) = ApiError::Access(error.into()).status_and_code();
        (status.as_u16(), code.as_str())
    }

    #[test]
    fn unauthenticated_denied_and_switched_off_have_statuses_of_their_own() {
        assert_eq!(status(LoginError::from(Unauthenticated::Required)), (401, "UNAUTHORIZED"));
        assert_eq!(status(LoginError::SeveralCredentials), (400, "UNSUPPORTED"));
        let retry_after = std::time::Duration::from_secs(9);
        assert_eq!(status(LoginError::TooManyAttempts { retry_after }), (429, "TOOMANYREQUESTS"));
        assert_eq!(status(LoginError::IssuerUnavailable { retry_after }), (503, "UNAVAILABLE"));
        assert_eq!(status(AccessError::Denied), (403, "DENIED"));
        assert_eq!(status(SwitchedOff::Delete), (405, "UNSUPPORTED"));
        assert_eq!(status(ResolveError::UnknownRegistry("x".into())), (404, "NAME_UNKNOWN"));
        assert_eq!(status(PushRefused::Library), (403, "DENIED"));
    }

    #[test]
    fn a_local_read_failure_is_not_the_upstreams() {
        let digest = Digest::of(crate::oci::Algorithm::Sha256, b"");
        let cause = std::sync::Arc::new(std::io::Error::from(std::io::ErrorKind::UnexpectedEof));
        let error = ApiError::Pull { kind: ContentKind::Blob, error: PullError::LocalRead { digest, cause } };
        assert_eq!(error.status_and_code().0, StatusCode::INTERNAL_SERVER_ERROR);
        assert_eq!(error.outside_message(), "the registry's storage failed");
    }

    #[test]
    fn every_error_carries_the_id_of_its_request() {
        let mut headers = HeaderMap::new();
        headers.insert(REQUEST_ID, HeaderValue::from_static("abc"));
        let trace = RequestTrace::new("blob", http::Method::GET, &headers);
        let missing = ApiError::MissingReferences(vec!["sha256:x".to_owned()]);
        assert_eq!(missing.detail(&trace), json!({ "request_id": "abc", "missing": ["sha256:x"] }));
        let response = ApiError::Method { allowed: "GET, HEAD".to_owned() }.into_response(&trace);
        assert_eq!(response.headers()[REQUEST_ID], "abc");
    }
}

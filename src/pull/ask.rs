//! Sends one request to an upstream for a repository, and converts denials.

use http::Method;
use tokio::time::Instant;

use super::error::PullError;
use crate::config::OnDenied;
use crate::oci::RepoId;
use crate::upstream::{Effort, Kind, Upstream, UpstreamError, UpstreamRequest, UpstreamResponse};

/// Sends a request and waits for the response headers until `deadline`. Many registries deny anonymous access to
/// content that does not exist, so a denial of an anonymous request is a `PresumedAbsent`, unless `on_denied` says
/// otherwise.
pub(super) async fn ask(
    upstream: &Upstream,
    request: UpstreamRequest,
    deadline: Instant,
) -> Result<UpstreamResponse, PullError> {
    let repository = request.repository.clone();
    upstream.send(request, deadline).await.map_err(|error| match error {
        UpstreamError::Denied { .. }
            if !upstream.has_credentials(&repository) && upstream.on_denied(&repository) == OnDenied::Deny =>
        {
            PullError::PresumedAbsent
        }
        error => error.into(),
    })
}

/// Whether to serve what is cached instead of this error. For a denial, `on_denied` decides.
pub(super) fn may_serve_stale(upstream: &Upstream, repo: &RepoId, error: &PullError) -> bool {
    match error {
        PullError::Upstream(UpstreamError::Denied { .. }) => upstream.on_denied(&repo.name) == OnDenied::Stale,
        error => error.is_inconclusive(),
    }
}

/// Returns a request for `/v2/<repository>/<path>`, without conditions.
pub(super) fn request(method: Method, kind: Kind, repo: &RepoId, path: String) -> UpstreamRequest {
    UpstreamRequest {
        kind,
        method,
        repository: repo.name.clone(),
        path,
        range: None,
        if_none_match: None,
        if_range: None,
        skip_urls: 0,
        effort: Effort::Rounds,
    }
}

/// Whether to request a document once more from the next URL: one URL answered, and what it sent is unusable.
/// `next_url`: that of the response, or 0 if there was none.
pub(super) fn may_be_sent_by_next_url(upstream: &Upstream, error: &PullError, next_url: usize) -> bool {
    let is_unusable = match error {
        PullError::BadDocument { .. } | PullError::Upstream(UpstreamError::BadResponse { .. }) => true,
        error => error.is_wrong_content() || error.is_interruption(),
    };
    let may = is_unusable && next_url > 0 && upstream.has_several_urls();
    if may {
        tracing::warn!(upstream = %upstream.name(), %error, "one URL sent an unusable document; trying the next URL");
    }
    may
}

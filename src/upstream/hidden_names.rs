//! Private names that an upstream hides from anonymous requests.
//!
//! A registry that allows anonymous pulls may answer a request for a private name with 404 or 403 and without a
//! challenge, and challenge at `GET /v2/` only (distribution-spec, "Determining Support"). If there are credentials for
//! the request, the challenge is requested there, once for each host.

use http::{Method, StatusCode};
use tokio::time::Instant;
use url::Url;

use super::allowed_hosts::Origin;
use super::auth::{AuthTarget, Grant};
use super::client::ClientKind;
use super::error::{UpstreamError, is_outage};
use super::remote::{Connection, Remote};
use super::retry_after;

/// Whether a response to an anonymous request may hide a private name.
pub(super) fn may_hide_a_name(status: StatusCode) -> bool {
    matches!(status, StatusCode::NOT_FOUND | StatusCode::FORBIDDEN)
}

impl Remote {
    /// Requests the challenge at `/v2/`, and answers it. `None`: there are no credentials for the request, or the host
    /// does not challenge, so that the response to the anonymous request counts.
    ///
    /// # Errors
    /// If the host does not answer, so that it is not known whether the name exists; otherwise those of
    /// [`Authorizer::answer`](super::auth::Authorizer::answer).
    pub(super) async fn authorize_hidden(
        &self,
        connection: &Connection,
        target: AuthTarget<'_>,
        deadline: Instant,
    ) -> Result<Option<Grant>, UpstreamError> {
        let (clients, auth) = (&connection.clients, &connection.auth);
        let origin = Origin::of(target.url);
        let Some(url) = version_url(target) else { return Ok(None) };
        if auth.is_known_not_to_challenge(&origin) || !auth.has_credentials(target, deadline).await? {
            return Ok(None);
        }
        let by = deadline.min(Instant::now() + self.header_timeout);
        let response = clients.send(ClientKind::Control, "probe", reqwest::Request::new(Method::GET, url), by).await?;
        let (status, headers) = (response.status(), response.headers().clone());
        self.discard(response, by).await;
        let (upstream, retry_after) = (self.name.clone(), retry_after::from_headers(&headers));
        match status {
            StatusCode::UNAUTHORIZED => auth.answer(clients, target, &headers, deadline).await,
            StatusCode::TOO_MANY_REQUESTS => Err(UpstreamError::RateLimited { upstream, retry_after }),
            status if is_outage(status) => Err(UpstreamError::Status { upstream, status, retry_after }),
            _ => {
                auth.note_no_challenge(origin);
                Ok(None)
            }
        }
    }
}

/// The URL of `/v2/` for a request. `None` if the URL of the request has another form, after a redirect.
fn version_url(target: AuthTarget<'_>) -> Option<Url> {
    let path = target.url.path();
    let base = path.rfind(&format!("/v2/{}/", target.repository))?;
    let mut url = target.url.clone();
    url.set_path(&format!("{}/v2/", &path[..base]));
    url.set_query(None);
    Some(url)
}

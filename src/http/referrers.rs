//! Referrers: end-12 of the distribution-spec. An unknown subject has none, which is no error.

use std::sync::Arc;

use axum::body::Body;
use axum::response::Response;
use http::header::{CONTENT_TYPE, LINK, WARNING};
use http::{HeaderName, HeaderValue};

use super::error::ApiError;
use super::fields::insert;
use super::{App, Call, STALE};
use crate::access::{Authorized, Pull};
use crate::oci::{Digest, Referrer, ReferrerIndex, RepoId, media_type};
use crate::tasks::on_bytes;
use crate::telemetry::ContentKind;

const FILTERS_APPLIED: HeaderName = HeaderName::from_static("oci-filters-applied");
/// Referrers on one page.
const MAX_PAGE: usize = 200;
/// Bytes of the descriptors on one page, beyond its first referrer. Clients read a page as one manifest, most of them up to
/// 4 MiB.
const MAX_PAGE_BYTES: usize = 2 << 20;

/// Rights are per repository, so all referrers of a subject may be read by a caller that may read the subject's repository.
pub(super) async fn list(
    app: &Arc<App>,
    call: &Call<'_>,
    access: Authorized<Pull>,
    subject: &str,
) -> Result<Response, ApiError> {
    let repo = access.repo();
    let subject: Digest = subject.parse()?;
    let wanted = call.query.get("artifactType").filter(|wanted| !wanted.is_empty());
    let after = call.query.get("last").unwrap_or_default();
    let (page, stale) = if repo.scope.is_local() {
        (local(app, repo, &subject, wanted, after).await?, false)
    } else {
        let listed = call.puller(app).referrers(repo, &subject).await;
        let (referrers, stale) = listed.map_err(ApiError::pull(ContentKind::Manifest))?;
        let mut page = Page::default();
        let mut all: Vec<&Referrer> = referrers.iter().filter(|referrer| referrer.digest.as_str() > after).collect();
        all.sort_unstable_by(|a, b| a.digest.cmp(&b.digest));
        all.into_iter().filter(|referrer| referrer.is_of_type(wanted)).any(|referrer| !page.push(referrer.clone()));
        (page, stale)
    };
    let mut response = page.respond(call, wanted);
    if stale {
        response.headers_mut().insert(WARNING, STALE);
    }
    call.echo_namespace(&mut response, access.rule());
    Ok(response)
}

async fn local(
    app: &App,
    repo: &RepoId,
    subject: &Digest,
    wanted: Option<&str>,
    after: &str,
) -> Result<Page, ApiError> {
    let mut page = Page::default();
    for digest in app.store.referrers(repo, subject).await? {
        if digest.to_string().as_str() <= after {
            continue;
        }
        let Some(manifest) = app.store.manifest(repo, &digest).await? else { continue };
        let media_type = manifest.media_type.clone();
        let referrer = on_bytes(manifest.bytes.clone(), move |bytes| Referrer::of(&digest, &media_type, bytes)).await;
        let referrer = referrer.ok_or(ApiError::Panic)?;
        if let Some(referrer) = referrer.filter(|referrer| referrer.is_of_type(wanted))
            && !page.push(referrer)
        {
            break;
        }
    }
    Ok(page)
}

/// One page, in the order of the digests.
#[derive(Default)]
struct Page {
    referrers: Vec<Referrer>,
    bytes: usize,
    more: bool,
}

impl Page {
    /// Adds a referrer. False if the page is full; the referrer is then the first of the next page.
    fn push(&mut self, referrer: Referrer) -> bool {
        let bytes = self.bytes + referrer.weight();
        let is_first = self.referrers.is_empty();
        self.more = self.referrers.len() == MAX_PAGE || (bytes > MAX_PAGE_BYTES && !is_first);
        if !self.more {
            self.bytes = bytes;
            self.referrers.push(referrer);
        }
        !self.more
    }

    fn respond(self, call: &Call<'_>, wanted: Option<&str>) -> Response {
        let last = self.referrers.last().filter(|_| self.more).map(|referrer| referrer.digest.clone());
        let index = ReferrerIndex::new(self.referrers);
        let mut response = Response::new(Body::from(serde_json::json!(index).to_string()));
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(media_type::OCI_INDEX));
        if wanted.is_some() {
            headers.insert(FILTERS_APPLIED, HeaderValue::from_static("artifactType"));
        }
        if let Some(last) = last {
            let mut next = url::form_urlencoded::Serializer::new(String::new());
            next.append_pair("last", &last);
            for (name, value) in [("artifactType", wanted), ("ns", call.query.get("ns"))] {
                value.inspect(|value| {
                    next.append_pair(name, value);
                });
            }
            insert(headers, LINK, format!("<{}?{}>; rel=\"next\"", call.parts.uri.path(), next.finish()));
        }
        response
    }
}

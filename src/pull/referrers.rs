//! Referrers of mirrored content: the upstream's list or its fallback tag. In an outage the last list is served as
//! stale, or an empty list if none is known.
//!
//! A list is fresh for `tag_ttl`, like a tag, because policy controllers request lists often, and most lists are empty.

use std::sync::Arc;

use bytes::Bytes;
use http::Method;
use tokio::time::{Instant, timeout_at};
use tracing::Span;

use super::ask::{ask, may_be_sent_by_next_url, may_serve_stale, request};
use super::engine::{Engine, PullRequest};
use super::error::PullError;
use super::next_link::next_link;
use crate::oci::{Digest, Referrer, ReferrerIndex, RepoId, Tag};
use crate::tasks::on_bytes;
use crate::upstream::{Kind, Upstream, UpstreamError, UpstreamRequest};

/// Maximum size of a page of an upstream's list. A longer page is an error.
const MAX_PAGE_BYTES: usize = 4 << 20;
/// Maximum number of pages. Further pages are omitted.
const MAX_PAGES: usize = 20;
/// Maximum size of all pages. Pages after it are omitted.
const MAX_LIST_BYTES: usize = 8 << 20;

impl PullRequest<'_> {
    /// Returns the referrers of a digest in a mirrored repository. The flag is true if they may be out of date.
    pub async fn referrers(&self, repo: &RepoId, subject: &Digest) -> Result<(Arc<Vec<Referrer>>, bool), PullError> {
        let (engine, context) = (self.engine, &self.engine.context);
        let key = (repo.clone(), subject.clone());
        let known = context.memory.referrers(&key);
        if let Some(listed) = known.as_ref().filter(|listed| listed.at.elapsed() < context.config.tag_ttl) {
            return Ok((listed.referrers.clone(), false));
        }
        let upstream = self.upstream(repo)?;
        let deadline = if known.is_some() { context.deadline_with_stale() } else { context.deadline() };
        let work = || {
            let (engine, upstream, (repo, subject)) = (engine.clone(), upstream.clone(), key.clone());
            async move {
                let (referrers, stale) = engine.ask_for_referrers(&upstream, &repo, &subject, deadline).await?;
                let referrers = Arc::new(referrers);
                if !stale {
                    engine.context.notes.remember_referrers(&repo, &subject, referrers.clone()).await;
                    engine.context.memory.remember_referrers((repo, subject), referrers.clone());
                }
                Ok((referrers, stale))
            }
        };
        let flight = context.run_flight(&engine.referrers, key.clone(), upstream.name(), deadline, work);
        match flight.await {
            Ok((listed, _)) => Ok(listed),
            // The list is served even if nothing is known: Docker 29 requests the referrers of a cached image, and an
            // error would end its pull.
            Err(error) if is_trouble(&upstream, repo, &error) => {
                tracing::warn!(%repo, %subject, %error, "serving a stale list of referrers");
                let referrers = match known {
                    Some(listed) => listed.referrers,
                    None => Arc::new(context.notes.referrers(repo, subject).await),
                };
                Ok((referrers, true))
            }
            Err(error) => Err(error),
        }
    }
}

impl Engine {
    async fn ask_for_referrers(
        self: &Arc<Self>,
        upstream: &Arc<Upstream>,
        repo: &RepoId,
        subject: &Digest,
        deadline: Instant,
    ) -> Result<(Vec<Referrer>, bool), PullError> {
        let mut next_url = 0;
        match self.referrers_from(upstream, repo, subject, &mut next_url, deadline).await {
            Err(error) if may_be_sent_by_next_url(upstream, &error, next_url) => {
                let again = self.referrers_from(upstream, repo, subject, &mut next_url, deadline).await;
                again.map_err(|_| error)
            }
            answer => answer,
        }
    }

    /// Requests all pages, first from the URL at `next_url`, which becomes that of the last response.
    async fn referrers_from(
        self: &Arc<Self>,
        upstream: &Arc<Upstream>,
        repo: &RepoId,
        subject: &Digest,
        next_url: &mut usize,
        deadline: Instant,
    ) -> Result<(Vec<Referrer>, bool), PullError> {
        let (mut referrers, mut received, mut stale) = (Vec::new(), 0, false);
        let mut path = Some(format!("referrers/{subject}"));
        let skip_urls = *next_url;
        for page in 0..MAX_PAGES {
            let Some(next) = path.take() else { break };
            let get = UpstreamRequest { skip_urls, ..request(Method::GET, Kind::Referrers, repo, next) };
            let asked = ask(upstream, get, deadline).await;
            let response = match asked {
                // The upstream has no referrers API, so its clients store the list under a tag.
                Err(error) if page == 0 && lacks_referrers_api(&error) => {
                    let (listed, stale) = self.fallback_referrers(upstream, repo, subject, deadline).await?;
                    // An upstream that has answered before now refuses.
                    let is_refusal = listed.is_empty() && !matches!(error, PullError::NotFound);
                    if is_refusal && !self.context.notes.referrers(repo, subject).await.is_empty() {
                        return Err(error);
                    }
                    return Ok((listed, stale));
                }
                // The beginning of a list is not the list.
                Err(error) if error.is_not_found() => {
                    stale = true;
                    break;
                }
                asked => asked?,
            };
            *next_url = response.next_url;
            stale |= response.is_stale();
            path = next_link(&response.headers).and_then(next_page);
            let bytes = response.body.collect(MAX_PAGE_BYTES, deadline).await?;
            received += bytes.len();
            referrers.extend(parse(upstream, bytes).await?.manifests);
            if received > MAX_LIST_BYTES {
                tracing::warn!(%repo, %subject, received, "a list of referrers is too long; the rest of it is omitted");
                break;
            }
        }
        Ok((referrers, stale))
    }

    /// Returns the list that clients store under a tag (distribution-spec, "Referrers Tag Schema"). Waits for the
    /// flight of the tag until `deadline`; the flight has its own deadline.
    async fn fallback_referrers(
        self: &Arc<Self>,
        upstream: &Arc<Upstream>,
        repo: &RepoId,
        subject: &Digest,
        deadline: Instant,
    ) -> Result<(Vec<Referrer>, bool), PullError> {
        let Ok(tag) = subject.referrers_tag().parse::<Tag>() else { return Ok((Vec::new(), false)) };
        let served = timeout_at(deadline, self.serve_tag(upstream, repo, &tag, Span::current)).await;
        match served.unwrap_or_else(|_| Err(self.context.too_late(upstream.name()))) {
            Ok(served) => Ok((parse(upstream, served.manifest.bytes.clone()).await?.manifests, served.stale)),
            Err(PullError::NotFound) => Ok((Vec::new(), false)),
            Err(error) => Err(error),
        }
    }
}

/// Whether the last list is better than this error.
fn is_trouble(upstream: &Upstream, repo: &RepoId, error: &PullError) -> bool {
    let is_unknown = matches!(error, PullError::PresumedAbsent) || may_serve_stale(upstream, repo, error);
    is_unknown && !error.is_local() && !error.is_loop()
}

/// Whether the error means that there is no such API, rather than that the upstream failed. Registries without it
/// answer 404, but also 400, 401, 403, 405 or 406.
fn lacks_referrers_api(error: &PullError) -> bool {
    match error {
        PullError::NotFound | PullError::PresumedAbsent => true,
        PullError::Upstream(UpstreamError::Denied { .. } | UpstreamError::Challenge { .. }) => true,
        PullError::Upstream(UpstreamError::Status { status, .. }) => {
            matches!(status.as_u16(), 400 | 401 | 403 | 404 | 405 | 406 | 410 | 501)
        }
        _ => false,
    }
}

async fn parse(upstream: &Upstream, bytes: Bytes) -> Result<ReferrerIndex, PullError> {
    let read = on_bytes(bytes, ReferrerIndex::read).await.ok_or(PullError::Abandoned)?;
    read.ok_or_else(|| PullError::BadDocument {
        upstream: upstream.name().clone(),
        reason: "its list of referrers cannot be parsed".to_owned(),
    })
}

/// Returns the path below the repository of a link to `…/referrers/…`.
fn next_page(target: &str) -> Option<String> {
    let at = target.rfind("/referrers/")?;
    Some(target[at + 1..].to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn relative_and_absolute_links_lead_to_the_next_page() {
        for target in
            ["/v2/a/b/referrers/sha256:0?n=1&last=x", "https://other.example/v2/a/b/referrers/sha256:0?n=1&last=x"]
        {
            assert_eq!(next_page(target).as_deref(), Some("referrers/sha256:0?n=1&last=x"), "{target}");
        }
        for target in ["", "x", "/v2/a/tags/list"] {
            assert_eq!(next_page(target), None, "{target}");
        }
    }
}

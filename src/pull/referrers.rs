//! Referrers of mirrored content: the upstream's list, or its fallback tag, served stale in an outage.
//!
//! A list is fresh for `tag_ttl`, as a tag is: policy controllers ask often, and mostly for what is not there.

use std::sync::Arc;

use http::Method;
use tokio::time::{Instant, timeout_at};

use super::{PullError, Puller, link, request};
use crate::oci::{Digest, Referrer, ReferrerIndex, RepoId, Tag};
use crate::upstream::{Kind, Upstream};

/// The most bytes of one page of an upstream's list, and the most pages of it.
const MAX_PAGE: usize = 4 << 20;
const MAX_PAGES: usize = 20;
/// Bytes of all pages, after which the rest is left out.
const MAX_LIST: usize = 8 << 20;

/// The referrers of one subject as its upstream last listed them.
#[derive(Clone, Debug)]
pub(super) struct Listed {
    referrers: Arc<Vec<Referrer>>,
    at: Instant,
}

impl Listed {
    /// Bytes that it takes in memory, roughly.
    pub(super) fn weight(&self) -> u32 {
        let one = |referrer: &Referrer| 512 + referrer.weight();
        u32::try_from(256 + self.referrers.iter().map(one).sum::<usize>()).unwrap_or(u32::MAX)
    }
}

impl Puller {
    /// The referrers of a digest in a mirrored repository, and whether they may be out of date.
    pub async fn referrers(&self, repo: &RepoId, subject: &Digest) -> Result<(Arc<Vec<Referrer>>, bool), PullError> {
        let inner = &self.inner;
        let key = (repo.clone(), subject.clone());
        let known = inner.listed.get(&key);
        if let Some(listed) = known.as_ref().filter(|listed| listed.at.elapsed() < inner.cache.tag_ttl) {
            return Ok((listed.referrers.clone(), false));
        }
        let upstream = self.upstream(repo)?;
        let deadline = if known.is_some() { inner.deadline_of_stale() } else { inner.deadline() };
        let flight = inner.referrers.run(key.clone(), || {
            let (puller, inner, upstream, (repo, subject)) = (self.clone(), inner.clone(), upstream.clone(), key);
            async move {
                let asked = puller.ask_for_referrers(&upstream, &repo, &subject, deadline).await;
                let (referrers, stale) = asked?;
                let referrers = Arc::new(referrers);
                if !stale {
                    let listed = Listed { referrers: referrers.clone(), at: Instant::now() };
                    inner.listed.insert((repo, subject), listed);
                }
                Ok((referrers, stale))
            }
        });
        let answer = match timeout_at(deadline, flight).await {
            Ok((answer, _)) => answer.unwrap_or(Err(PullError::GivenUp)),
            Err(_) => Err(inner.too_late(&upstream)),
        };
        match (answer, known) {
            (Ok(listed), _) => Ok(listed),
            (Err(error), Some(listed)) if error.is_trouble() => {
                tracing::warn!(%repo, %subject, %error, "serving the referrers of {repo}@{subject} as they were: {error}");
                Ok((listed.referrers, true))
            }
            (Err(error), _) => Err(error),
        }
    }

    async fn ask_for_referrers(
        &self,
        upstream: &Upstream,
        repo: &RepoId,
        subject: &Digest,
        deadline: Instant,
    ) -> Result<(Vec<Referrer>, bool), PullError> {
        let (mut referrers, mut received, mut stale) = (Vec::new(), 0, false);
        let mut path = Some(format!("referrers/{subject}"));
        for page in 0..MAX_PAGES {
            let Some(next) = path.take() else { break };
            let asked = self.inner.send(upstream, request(Method::GET, Kind::Referrers, repo, next), deadline).await;
            let response = match asked {
                // No such API there: its clients keep referrers under a tag.
                Err(PullError::NotFound) if page == 0 => {
                    return self.fallback_referrers(upstream, repo, subject, deadline).await;
                }
                Err(PullError::NotFound) => break,
                asked => asked?,
            };
            stale |= response.is_stale();
            path = link::next(&response.headers).and_then(next_page);
            let bytes = response.body.collect(MAX_PAGE, deadline).await?;
            received += bytes.len();
            referrers.extend(parse(upstream, &bytes)?.manifests);
            if received > MAX_LIST {
                tracing::warn!(%repo, %subject, "the list of referrers of {repo}@{subject} is cut at {received} bytes");
                break;
            }
        }
        Ok((referrers, stale))
    }

    /// The list that clients keep under a tag where there is no such API. The question about the tag is one that others
    /// may have asked, too; here it is waited for until `deadline`.
    async fn fallback_referrers(
        &self,
        upstream: &Upstream,
        repo: &RepoId,
        subject: &Digest,
        deadline: Instant,
    ) -> Result<(Vec<Referrer>, bool), PullError> {
        let Ok(tag) = subject.referrers_tag().parse::<Tag>() else { return Ok((Vec::new(), false)) };
        let served = timeout_at(deadline, self.tag(repo, &tag)).await;
        match served.unwrap_or_else(|_| Err(self.inner.too_late(upstream))) {
            Ok(served) => Ok((parse(upstream, &served.manifest.bytes)?.manifests, served.stale)),
            Err(PullError::NotFound) => Ok((Vec::new(), false)),
            Err(error) => Err(error),
        }
    }
}

fn parse(upstream: &Upstream, bytes: &[u8]) -> Result<ReferrerIndex, PullError> {
    ReferrerIndex::read(bytes).ok_or_else(|| PullError::BadManifest {
        upstream: upstream.name().to_string(),
        reason: "its list of referrers cannot be read".to_owned(),
    })
}

/// The path below the repository of a link to `…/referrers/…`.
fn next_page(target: &str) -> Option<String> {
    let at = target.rfind("/referrers/")?;
    Some(target[at + 1..].to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_page_is_found_in_relative_and_absolute_links() {
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

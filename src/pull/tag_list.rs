//! The tags of a mirrored repository: the upstream's list, or what is cached of it when the upstream is in trouble.

use std::time::Duration;

use http::Method;
use serde::Deserialize;
use tokio::time::Instant;

use super::{PullError, Puller, link, request};
use crate::oci::{RepoId, Tag};
use crate::upstream::Kind;

/// The most bytes of one page of an upstream's list.
const MAX_LIST: usize = 4 << 20;
/// With a list of the cached tags at hand. More than for a single tag: it is a part of what is asked for, and a long
/// list takes its time.
const PATIENCE: Duration = Duration::from_secs(5);

#[derive(Deserialize)]
struct List {
    tags: Option<Vec<String>>,
}

/// The page that is wanted.
#[derive(Clone, Copy, Debug)]
pub struct AskedTags<'a> {
    /// The last tag of the page before; of some upstreams (ECR) a mark that only they understand.
    pub after: &'a str,
    pub limit: usize,
    /// What else the upstream's own link to this page has in its query (Quay's `next_page`).
    pub marks: &'a [(String, String)],
}

#[derive(Debug, Default)]
pub struct TagList {
    pub tags: Vec<String>,
    /// The query that asks for what follows.
    pub next: Option<Vec<(String, String)>>,
    /// Whether this is only what is cached, or an upstream says so of its own.
    pub stale: bool,
}

impl Puller {
    /// A page of an upstream's tags. How it marks the next page is its own business: its mark goes to the client and comes
    /// back with the next request.
    pub async fn tag_list(&self, repo: &RepoId, asked: AskedTags<'_>) -> Result<TagList, PullError> {
        let inner = &self.inner;
        match self.ask_for_list(repo, asked).await {
            Err(error) if error.is_trouble() => {
                let cached = inner.store.tags(repo, asked.after, asked.limit).await?;
                if cached.items.is_empty() && !inner.store.repository_exists(repo).await? {
                    return Err(error);
                }
                tracing::warn!(%repo, %error, "listing the cached tags of {repo}: {error}");
                let next = cached.items.last().filter(|_| cached.more).map(|last| page_after(last, asked.limit));
                Ok(TagList { tags: cached.items, next, stale: true })
            }
            listed => listed,
        }
    }

    async fn ask_for_list(&self, repo: &RepoId, asked: AskedTags<'_>) -> Result<TagList, PullError> {
        let inner = &self.inner;
        let upstream = self.upstream(repo)?;
        if asked.limit == 0 {
            return Ok(TagList::default());
        }
        let path = list_path(asked);
        let mut deadline = inner.deadline();
        if inner.store.repository_exists(repo).await? {
            deadline = deadline.min(Instant::now() + PATIENCE);
        }
        let response = inner.send(&upstream, request(Method::GET, Kind::Tags, repo, path), deadline).await?;
        let stale = response.is_stale();
        let linked = link::next(&response.headers).map(query_of);
        let bytes = response.body.collect(MAX_LIST, deadline).await?;
        let list: List = serde_json::from_slice(&bytes).map_err(|_| PullError::BadManifest {
            upstream: upstream.name().to_string(),
            reason: "its list of tags cannot be read".to_owned(),
        })?;
        // Some registries ignore n and last, and some list what is no tag.
        let mut tags: Vec<String> = list.tags.unwrap_or_default();
        tags.retain(|tag| tag.parse::<Tag>().is_ok());
        if let Some(at) = tags.iter().position(|tag| tag == asked.after) {
            tags.drain(..=at);
        }
        let next = match tags.get(..asked.limit).and_then(<[String]>::last) {
            Some(last) if tags.len() > asked.limit => Some(page_after(last, asked.limit)),
            // One that leads here again would be followed for ever.
            _ => linked.map(|marks| asked.next(marks)).filter(|next| next.len() > 1 && *next != asked.query()),
        };
        tags.truncate(asked.limit);
        Ok(TagList { tags, next, stale })
    }
}

// === impl AskedTags ===

impl AskedTags<'_> {
    fn query(&self) -> Vec<(String, String)> {
        let mut query = vec![("n".to_owned(), self.limit.to_string())];
        if !self.after.is_empty() {
            query.push(("last".to_owned(), self.after.to_owned()));
        }
        query.extend(self.marks.iter().cloned());
        query
    }

    /// What asks for the page that a link's query marks. How long pages are is the client's to say: some upstreams link to
    /// pages of none.
    fn next(&self, marks: Vec<(String, String)>) -> Vec<(String, String)> {
        let mut query = vec![("n".to_owned(), self.limit.to_string())];
        query.extend(marks.into_iter().filter(|(name, _)| name != "n"));
        query
    }
}

fn list_path(asked: AskedTags<'_>) -> String {
    let mut query = url::form_urlencoded::Serializer::new(String::new());
    query.extend_pairs(asked.query());
    format!("tags/list?{}", query.finish())
}

fn page_after(last: &str, limit: usize) -> Vec<(String, String)> {
    AskedTags { after: last, limit, marks: &[] }.query()
}

/// The query of a link's target.
fn query_of(target: &str) -> Vec<(String, String)> {
    let (_, query) = target.split_once('?').unwrap_or_default();
    url::form_urlencoded::parse(query.as_bytes()).into_owned().collect()
}

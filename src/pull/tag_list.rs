//! The list of tags of a mirrored repository: the upstream's list; in an outage its last list, or else the cached tags.

use std::collections::HashSet;
use std::time::Duration;

use http::Method;
use serde::Deserialize;
use tokio::time::Instant;

use super::ask::{ask, may_be_sent_by_next_url, may_serve_stale, request};
use super::engine::PullRequest;
use super::error::PullError;
use super::next_link::next_link;
use crate::oci::{RepoId, Tag};
use crate::upstream::{Kind, Upstream, UpstreamRequest};

/// Maximum size of a page of an upstream's list. A longer page is an error.
const MAX_PAGE_BYTES: usize = 4 << 20;
/// Maximum wait for the upstream's list if there are cached tags. It is longer than for a single tag, because the
/// cached tags are only a part of the list and a long list takes time.
const MAX_WAIT_WITH_CACHED_TAGS: Duration = Duration::from_secs(5);

/// Maximum number of cached tags that are added to an incomplete list.
const MAX_CACHED_TAGS: usize = 10_000;

/// Some registries send `null` for an empty list. A document without the field is no list.
#[derive(Deserialize)]
struct UpstreamTags {
    #[serde(deserialize_with = "Option::deserialize")]
    tags: Option<Vec<String>>,
}

/// A page as an upstream sent it.
struct ReceivedTags {
    list: UpstreamTags,
    /// The query of the page that it links to.
    linked: Option<Vec<(String, String)>>,
    stale: bool,
}

/// The requested page.
#[derive(Clone, Copy, Debug)]
pub struct TagPage<'a> {
    /// The last tag of the previous page; for some upstreams (ECR) an opaque cursor.
    pub after: &'a str,
    /// Maximum number of tags on the page.
    pub limit: usize,
    /// Further parameters of the upstream's own link to this page (Quay's `next_page`).
    pub cursor: &'a [(String, String)],
}

#[derive(Debug, Default)]
pub struct TagList {
    pub tags: Vec<String>,
    /// The query of the next page.
    pub next: Option<Vec<(String, String)>>,
    /// Whether the list has cached tags only, of this server or of an upstream that is a Roadstead.
    pub stale: bool,
}

impl PullRequest<'_> {
    /// Returns a page of an upstream's tags. The client gets the upstream's cursor for the next page and sends it
    /// back with its next request. The cursor may be any text.
    pub async fn tag_list(&self, repo: &RepoId, page: TagPage<'_>) -> Result<TagList, PullError> {
        let (context, upstream) = (&self.engine.context, self.upstream(repo)?);
        let error = match self.ask_for_tags(&upstream, repo, page).await {
            Ok(list) => {
                if !list.stale && page.limit > 0 && page.cursor.is_empty() {
                    context.notes.remember_tags(repo, page.after, &list.tags, list.next.is_none()).await;
                }
                return Ok(list);
            }
            Err(error) if may_serve_stale(&upstream, repo, &error) => error,
            Err(error) => return Err(error),
        };
        let (mut tags, complete) = context.notes.tags(repo).await;
        if !complete {
            let cached = context.store.tags(repo, "", MAX_CACHED_TAGS).await?;
            let listed: HashSet<String> = tags.iter().cloned().collect();
            tags.extend(cached.items.into_iter().filter(|tag| !listed.contains(tag)));
        }
        let list = page.of(&tags);
        // An empty list would say that there is no tag.
        if list.tags.is_empty() && !complete {
            return Err(error);
        }
        tracing::warn!(%repo, %error, complete, "serving a stale list of tags");
        Ok(list)
    }

    async fn ask_for_tags(&self, upstream: &Upstream, repo: &RepoId, page: TagPage<'_>) -> Result<TagList, PullError> {
        let context = &self.engine.context;
        if page.limit == 0 {
            return Ok(TagList::default());
        }
        let path = list_path(page);
        let mut deadline = context.deadline();
        if context.store.repository_exists(repo).await? {
            deadline = deadline.min(Instant::now() + MAX_WAIT_WITH_CACHED_TAGS);
        }
        let get = request(Method::GET, Kind::Tags, repo, path);
        let mut next_url = 0;
        let ReceivedTags { list, linked, stale } = match receive_tags(upstream, &get, &mut next_url, deadline).await {
            Err(error) if may_be_sent_by_next_url(upstream, &error, next_url) => {
                receive_tags(upstream, &get, &mut next_url, deadline).await.map_err(|_| error)?
            }
            received => received?,
        };
        // Some registries ignore `n` and `last`, and some list names that are not valid tags.
        let mut tags: Vec<String> = list.tags.unwrap_or_default();
        tags.retain(|tag| tag.parse::<Tag>().is_ok());
        if let Some(at) = tags.iter().position(|tag| tag == page.after) {
            tags.drain(..=at);
        }
        let next = match tags.get(..page.limit).and_then(<[String]>::last) {
            Some(last) if tags.len() > page.limit => Some(page_after(last, page.limit)),
            // A client would follow a link to this same page forever.
            _ => linked.map(|cursor| page.next(cursor)).filter(|next| next.len() > 1 && *next != page.query()),
        };
        tags.truncate(page.limit);
        Ok(TagList { tags, next, stale })
    }
}

/// The first valid tag of the list that answers this request.
pub(super) async fn first_tag(
    upstream: &Upstream,
    get: &UpstreamRequest,
    deadline: Instant,
) -> Result<Option<Tag>, PullError> {
    let list = receive_tags(upstream, get, &mut 0, deadline).await?.list;
    Ok(list.tags.unwrap_or_default().iter().find_map(|tag| tag.parse().ok()))
}

/// Requests a page of tags, first from the URL at `next_url`, which becomes that of the response.
async fn receive_tags(
    upstream: &Upstream,
    get: &UpstreamRequest,
    next_url: &mut usize,
    deadline: Instant,
) -> Result<ReceivedTags, PullError> {
    let response = ask(upstream, UpstreamRequest { skip_urls: *next_url, ..get.clone() }, deadline).await?;
    *next_url = response.next_url;
    let stale = response.is_stale();
    let linked = next_link(&response.headers).map(query_of);
    let bytes = response.body.collect(MAX_PAGE_BYTES, deadline).await?;
    let list = serde_json::from_slice(&bytes).map_err(|_| PullError::BadDocument {
        upstream: upstream.name().clone(),
        reason: "its list of tags cannot be parsed".to_owned(),
    })?;
    Ok(ReceivedTags { list, linked, stale })
}

// === impl TagPage ===

impl TagPage<'_> {
    /// Returns this page of a stale list.
    fn of(&self, all: &[String]) -> TagList {
        let position = all.iter().position(|tag| tag == self.after);
        let rest: Vec<&String> = match position {
            Some(position) => all[position + 1..].iter().collect(),
            None => all.iter().filter(|tag| tag.as_str() > self.after).collect(),
        };
        let tags: Vec<String> = rest.iter().take(self.limit).map(|tag| (*tag).clone()).collect();
        let next = tags.last().filter(|_| tags.len() < rest.len()).map(|last| page_after(last, self.limit));
        TagList { tags, next, stale: true }
    }

    fn query(&self) -> Vec<(String, String)> {
        let mut query = vec![("n".to_owned(), self.limit.to_string())];
        if !self.after.is_empty() {
            query.push(("last".to_owned(), self.after.to_owned()));
        }
        query.extend(self.cursor.iter().cloned());
        query
    }

    /// Returns the query of the page that an upstream links to, with the client's page size: some upstreams link to
    /// pages with `n=0`.
    fn next(&self, cursor: Vec<(String, String)>) -> Vec<(String, String)> {
        let mut query = vec![("n".to_owned(), self.limit.to_string())];
        query.extend(cursor.into_iter().filter(|(name, _)| name != "n"));
        query
    }
}

fn list_path(page: TagPage<'_>) -> String {
    let mut query = url::form_urlencoded::Serializer::new(String::new());
    query.extend_pairs(page.query());
    format!("tags/list?{}", query.finish())
}

/// Returns the query of the page after `last`.
fn page_after(last: &str, limit: usize) -> Vec<(String, String)> {
    TagPage { after: last, limit, cursor: &[] }.query()
}

/// Returns the parameters in a link's target.
fn query_of(target: &str) -> Vec<(String, String)> {
    let (_, query) = target.split_once('?').unwrap_or_default();
    url::form_urlencoded::parse(query.as_bytes()).into_owned().collect()
}

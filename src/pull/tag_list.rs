//! The tags of a mirrored repository: the upstream's list, or what is cached of it when the upstream is in trouble.

use std::time::Duration;

use http::Method;
use serde::Deserialize;
use tokio::time::Instant;

use super::{PullError, Puller, request};
use crate::oci::{RepoId, Tag};
use crate::store::Page;
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

impl Puller {
    /// A page of tags after `after`, at most `limit`, and whether it is only what is cached.
    pub async fn tag_list(&self, repo: &RepoId, after: &str, limit: usize) -> Result<(Page, bool), PullError> {
        let inner = &self.inner;
        match self.ask_for_list(repo, after, limit).await {
            Err(error) if error.is_trouble() => {
                let cached = inner.store.tags(repo, after, limit).await?;
                if cached.items.is_empty() && !inner.store.repository_exists(repo).await? {
                    return Err(error);
                }
                tracing::warn!(%repo, %error, "listing the cached tags of {repo}: {error}");
                Ok((cached, true))
            }
            listed => listed,
        }
    }

    async fn ask_for_list(&self, repo: &RepoId, after: &str, limit: usize) -> Result<(Page, bool), PullError> {
        let inner = &self.inner;
        let upstream = self.upstream(repo)?;
        if limit == 0 {
            return Ok((Page::default(), false));
        }
        let path = list_path(after, limit);
        let mut deadline = inner.deadline();
        if inner.store.repository_exists(repo).await? {
            deadline = deadline.min(Instant::now() + PATIENCE);
        }
        let response = inner.send(&upstream, request(Method::GET, Kind::Tags, repo, path), deadline).await?;
        let stale = response.is_stale();
        let linked = response.headers.contains_key(http::header::LINK);
        let bytes = response.body.collect(MAX_LIST, deadline).await?;
        let list: List = serde_json::from_slice(&bytes).map_err(|_| PullError::BadManifest {
            upstream: upstream.name().to_string(),
            reason: "its list of tags cannot be read".to_owned(),
        })?;
        // Some registries ignore n and last, and some list what is no tag.
        let mut items: Vec<String> = list.tags.unwrap_or_default();
        items.retain(|tag| tag.parse::<Tag>().is_ok());
        let more = linked || items.len() > limit;
        items.truncate(limit);
        Ok((Page { items, more }, stale))
    }
}

fn list_path(after: &str, limit: usize) -> String {
    let mut query = url::form_urlencoded::Serializer::new(String::new());
    query.append_pair("n", &limit.to_string());
    if !after.is_empty() {
        query.append_pair("last", after);
    }
    format!("tags/list?{}", query.finish())
}

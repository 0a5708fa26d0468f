//! Pages of tags and repositories: from the index while it is in service, else from the folders.

use super::error::{At, StoreError, optional};
use super::fs;
use super::records::{Class, Page};
use super::{Inner, Store};
use crate::oci::{Digest, RepoId, RepoName, Scope};

impl Store {
    /// The tags of a repository that sort after `after` in ASCII order, at most `limit`.
    pub async fn tags(&self, repo: &RepoId, after: &str, limit: usize) -> Result<Page, StoreError> {
        let (repo, after) = (repo.clone(), after.to_owned());
        self.run(move |inner| match inner.index.tags(&repo, &after, limit) {
            Some(page) => Ok(page),
            None => {
                let tags = inner.layout.tags_on_disk(&repo)?;
                Ok(page(tags.iter().map(ToString::to_string).collect(), &after, limit))
            }
        })
        .await
    }

    /// A local repository that has this blob and that the asker may read. Blobs that were never pushed are not looked for.
    pub async fn find_pushed(
        &self,
        digest: &Digest,
        may_read: impl Fn(&RepoName) -> bool + Send + 'static,
    ) -> Result<Option<RepoId>, StoreError> {
        let digest = digest.clone();
        self.run(move |inner| {
            let known = inner.index.blob(&digest);
            if inner.index.is_ready() && known.is_none_or(|blob| blob.class != Class::Pushed) {
                return Ok(None);
            }
            let locals: Vec<RepoName> = inner.locals.read().iter().filter(|name| may_read(name)).cloned().collect();
            for repo in locals.into_iter().map(RepoId::local) {
                if inner.layout.read_member(&repo, &digest)?.is_some() {
                    return Ok(Some(repo));
                }
            }
            Ok(None)
        })
        .await
    }

    /// The names of the local repositories that sort after `after`, at most `limit`.
    pub async fn local_repositories(&self, after: &str, limit: usize) -> Result<Page, StoreError> {
        let after = after.to_owned();
        self.run(move |inner| match inner.index.repositories(&Scope::Local, &after, limit) {
            Some(page) => Ok(page),
            None => Ok(page(inner.locals.read().iter().map(ToString::to_string).collect(), &after, limit)),
        })
        .await
    }
}

fn page(mut items: Vec<String>, after: &str, limit: usize) -> Page {
    items.retain(|item| item.as_str() > after);
    items.sort_unstable();
    let more = items.len() > limit;
    items.truncate(limit);
    Page { items, more }
}

impl Inner {
    /// The repositories of a scope that have anything in them, in no order, each handed to `each` until it says stop.
    pub(super) fn walk_repositories(
        &self,
        scope: &Scope,
        each: &mut dyn FnMut(RepoId) -> Result<bool, StoreError>,
    ) -> Result<bool, StoreError> {
        let mut pending = vec![String::new()];
        let root = self.layout.repositories().join(scope.as_str());
        while let Some(name) = pending.pop() {
            let path = if name.is_empty() { root.clone() } else { root.join(&name) };
            let Some(entries) = optional(fs::read_dir(&path)).at("read", &path)? else { continue };
            for entry in entries {
                let entry = entry.at("read", &path)?;
                let Ok(component) = entry.file_name().into_string() else { continue };
                if component == "_blobs" {
                    if let Ok(name) = name.parse()
                        && !each(RepoId::new(scope.clone(), name))?
                    {
                        return Ok(false);
                    }
                } else if !component.starts_with('_') && entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    pending.push(if name.is_empty() { component } else { format!("{name}/{component}") });
                }
            }
        }
        Ok(true)
    }

    /// The scopes that have a folder.
    pub(super) fn scopes(&self) -> Result<Vec<Scope>, StoreError> {
        let path = self.layout.repositories();
        let mut scopes = Vec::new();
        for entry in fs::read_dir(&path).at("read", &path)? {
            match entry.at("read", &path)?.file_name().to_str() {
                Some("local") => scopes.push(Scope::Local),
                Some(upstream) => scopes.push(Scope::Upstream(upstream.into())),
                None => {}
            }
        }
        Ok(scopes)
    }
}

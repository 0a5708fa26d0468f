//! Lists of tags and repositories: from the index while it is in service, otherwise from the folders.

use super::Local;
use crate::oci::{Digest, RepoId, RepoName, Scope};
use crate::store::error::{At, StoreError, optional};
use crate::store::fs;
use crate::store::records::{Class, Page};

impl Local {
    pub(super) fn list_tags(&self, repo: &RepoId, after: &str, limit: usize) -> Result<Page, StoreError> {
        match self.index.tags(repo, after, limit) {
            Some(page) => Ok(page),
            None => {
                let tags = self.layout.tags_on_disk(repo)?;
                Ok(page(tags.iter().map(ToString::to_string).collect(), after, limit))
            }
        }
    }

    pub(super) fn list_local_repositories(&self, after: &str, limit: usize) -> Result<Page, StoreError> {
        match self.index.repositories(&Scope::Local, after, limit) {
            Some(page) => Ok(page),
            None => Ok(page(self.names.locals().iter().map(ToString::to_string).collect(), after, limit)),
        }
    }

    pub(super) fn find_pushed(
        &self,
        digest: &Digest,
        may_read: &dyn Fn(&RepoName) -> bool,
    ) -> Result<Option<RepoId>, StoreError> {
        let known = self.index.blob(digest);
        if self.index.is_ready() && known.is_none_or(|blob| blob.class != Class::Pushed) {
            return Ok(None);
        }
        for repo in self.names.locals().into_iter().filter(may_read).map(RepoId::local) {
            if self.layout.read_member(&repo, digest)?.is_some() {
                return Ok(Some(repo));
            }
        }
        Ok(None)
    }

    /// See the contract. This reads the links of every repository of the scope, so it is for rare requests.
    pub(super) fn find_proven(
        &self,
        scope: &Scope,
        digest: &Digest,
        may_share: &dyn Fn(&RepoName) -> bool,
    ) -> Result<Option<RepoId>, StoreError> {
        let mut found = None;
        self.layout.walk_repositories(scope, &mut |repo| {
            let is_proven = self.layout.read_member(&repo, digest)?.is_some_and(|member| member.proven)
                || self.layout.manifest_media_type(&repo, digest)?.is_some();
            if is_proven && may_share(&repo.name) {
                found = Some(repo);
            }
            Ok(found.is_none())
        })?;
        Ok(found)
    }

    /// Calls `each` for the repositories of a scope, in no particular order, until it returns false. Whether all were visited.
    pub(in crate::store) fn walk_repositories(
        &self,
        scope: &Scope,
        each: &mut dyn FnMut(RepoId) -> Result<bool, StoreError>,
    ) -> Result<bool, StoreError> {
        self.layout.walk_repositories(scope, each)
    }

    /// The scopes that have a folder.
    pub(in crate::store) fn scopes(&self) -> Result<Vec<Scope>, StoreError> {
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

impl super::Layout {
    /// As [`Local::walk_repositories`].
    pub(super) fn walk_repositories(
        &self,
        scope: &Scope,
        each: &mut dyn FnMut(RepoId) -> Result<bool, StoreError>,
    ) -> Result<bool, StoreError> {
        let mut pending = vec![String::new()];
        let root = self.repositories().join(scope.as_str());
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
}

fn page(mut items: Vec<String>, after: &str, limit: usize) -> Page {
    items.retain(|item| item.as_str() > after);
    items.sort_unstable();
    let more = items.len() > limit;
    items.truncate(limit);
    Page { items, more }
}

//! Every name: can it be read, and is what it names here?
//!
//! Each is looked at under its repository's lock, so that a push or delete under way is not taken for damage. A mirrored
//! name need not have its content here: that is fetched when somebody asks for it.

use std::collections::HashSet;
use std::io;
use std::path::Path;

use super::read::is_ours;
use super::{Finding, Inner, Problem, ScrubWatch};
use crate::oci::{Digest, Manifest, RepoId, Tag};
use crate::store::error::{At, StoreError, optional};
use crate::store::fs;
use crate::store::index::Change;
use crate::store::records::{self, Class, TagRecord};

/// A name, as a finding names it.
enum Name<'a> {
    Tag(&'a Tag),
    Manifest(&'a Digest),
    Blob(&'a Digest),
}

/// What the file of a name holds.
enum Text {
    Gone,
    Unreadable,
    /// No text.
    Odd,
    Is(String),
}

impl Inner {
    pub(super) fn scrub_names(&self, repair: bool, watch: &mut dyn ScrubWatch) -> Result<bool, StoreError> {
        for scope in self.scopes()? {
            if !self.walk_repositories(&scope, &mut |repo| self.scrub_repository(&repo, repair, watch))? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn scrub_repository(&self, repo: &RepoId, repair: bool, watch: &mut dyn ScrubWatch) -> Result<bool, StoreError> {
        for tag in self.layout.tags_on_disk(repo)? {
            if !self.scrub_name(repo, &Name::Tag(&tag), repair, watch)? {
                return Ok(false);
            }
        }
        for digest in self.layout.links_below(&self.layout.manifests(repo))? {
            if !self.scrub_name(repo, &Name::Manifest(&digest), repair, watch)? {
                return Ok(false);
            }
        }
        for digest in self.layout.links_below(&self.layout.blob_links(repo))? {
            if !self.scrub_name(repo, &Name::Blob(&digest), repair, watch)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn scrub_name(
        &self,
        repo: &RepoId,
        name: &Name<'_>,
        repair: bool,
        watch: &mut dyn ScrubWatch,
    ) -> Result<bool, StoreError> {
        if !watch.may_read(0) {
            return Ok(false);
        }
        let problems = {
            let _locked = self.repositories.read(repo);
            self.problems_of(repo, name)?
        };
        watch.name_checked();
        for (problem, digest) in problems {
            let quarantined =
                // What the disk cannot read now it may read later.
                repair && problem == Problem::Name && self.set_aside(repo, name)?;
            let tag = match name {
                Name::Tag(tag) => Some(tag.to_string()),
                Name::Manifest(_) | Name::Blob(_) => None,
            };
            let class = if repo.scope.is_local() { Class::Pushed } else { Class::Cached };
            let digest = digest.map(|digest| digest.to_string());
            watch.found(Finding { problem, class, digest, tag, repositories: vec![repo.to_string()], quarantined });
        }
        Ok(true)
    }

    /// With the repository's lock held.
    fn problems_of(&self, repo: &RepoId, name: &Name<'_>) -> Result<Vec<(Problem, Option<Digest>)>, StoreError> {
        let digest = match name {
            Name::Tag(_) => None,
            Name::Manifest(digest) | Name::Blob(digest) => Some((*digest).clone()),
        };
        let path = self.name_path(repo, name);
        let text = match read(&path).at("read", &path)? {
            Text::Odd => return Ok(vec![(Problem::Name, digest)]),
            Text::Gone => return Ok(Vec::new()),
            Text::Unreadable => return Ok(vec![(Problem::Unreadable, digest)]),
            Text::Is(text) => text,
        };
        let local = repo.scope.is_local();
        match name {
            Name::Tag(_) => match TagRecord::from_text(&text) {
                None => Ok(vec![(Problem::Name, None)]),
                Some(record) if local && !self.layout.manifest_link(repo, &record.digest).exists() => {
                    Ok(vec![(Problem::Dangling, Some(record.digest))])
                }
                Some(_) => Ok(Vec::new()),
            },
            Name::Manifest(_) if records::manifest_link_media_type(&text).is_none() => {
                Ok(vec![(Problem::Name, digest)])
            }
            Name::Manifest(_) | Name::Blob(_) if !local => Ok(Vec::new()),
            Name::Blob(blob) => Ok(self.is_missing(blob)?.then_some((Problem::Missing, digest)).into_iter().collect()),
            Name::Manifest(manifest) if self.is_missing(manifest)? => Ok(vec![(Problem::Missing, digest)]),
            Name::Manifest(manifest) => self.unlinked_references(repo, manifest),
        }
    }

    fn is_missing(&self, digest: &Digest) -> Result<bool, StoreError> {
        let path = self.layout.blob(digest);
        Ok(optional(fs::metadata(&path)).at("stat", &path)?.is_none())
    }

    /// What a manifest needs that its repository does not have. A content that is no manifest is found as a blob.
    fn unlinked_references(
        &self,
        repo: &RepoId,
        manifest: &Digest,
    ) -> Result<Vec<(Problem, Option<Digest>)>, StoreError> {
        let content = self.layout.read_content(manifest, Manifest::MAX_LENGTH)?;
        let Some(Ok(manifest)) = content.map(|bytes| Manifest::parse(&bytes)) else { return Ok(Vec::new()) };
        let needed: HashSet<_> =
            manifest.children.into_iter().filter(|child| !child.optional).map(|c| (c.digest, c.is_manifest)).collect();
        let missing = needed.into_iter().filter(|(digest, is_manifest)| {
            let manifest_link = self.layout.manifest_link(repo, digest);
            if *is_manifest { !manifest_link.exists() } else { !self.layout.blob_link(repo, digest).exists() }
        });
        Ok(missing.map(|(digest, _)| (Problem::Incomplete, Some(digest))).collect())
    }

    fn name_path(&self, repo: &RepoId, name: &Name<'_>) -> std::path::PathBuf {
        match name {
            Name::Tag(tag) => self.layout.tag(repo, tag),
            Name::Manifest(digest) => self.layout.manifest_link(repo, digest),
            Name::Blob(digest) => self.layout.blob_link(repo, digest),
        }
    }

    /// Moves the file of a name to `quarantine/`, unless it has been written anew meanwhile.
    fn set_aside(&self, repo: &RepoId, name: &Name<'_>) -> Result<bool, StoreError> {
        let _locked = self.repositories.write(repo);
        let problems = self.problems_of(repo, name)?;
        if !problems.iter().any(|(problem, _)| *problem == Problem::Name) {
            return Ok(false);
        }
        let (path, aside) = (self.name_path(repo, name), self.layout.quarantined_name());
        self.layout.within(&aside, |aside| fs::rename(&path, aside)).at("rename", &path)?;
        match name {
            Name::Tag(tag) => {
                self.index.apply(&[Change::NoTag(repo, tag)]);
                self.front.tags.invalidate(&(repo.clone(), (*tag).clone()));
            }
            Name::Manifest(digest) => self.front.manifests.invalidate(&(repo.clone(), (*digest).clone())),
            Name::Blob(digest) => self.front.members.invalidate(&(repo.clone(), (*digest).clone())),
        }
        let (path, aside) = (path.display(), aside.display());
        tracing::error!(%repo, %path, "the name {path} of {repo} cannot be read; it is moved to {aside}");
        Ok(true)
    }
}

fn read(path: &Path) -> io::Result<Text> {
    match fs::read(path) {
        Ok(bytes) => Ok(String::from_utf8(bytes).map_or(Text::Odd, Text::Is)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Text::Gone),
        Err(error) if is_ours(&error) => Err(error),
        Err(error) => {
            tracing::error!(%error, "{} cannot be read: {error}", path.display());
            Ok(Text::Unreadable)
        }
    }
}

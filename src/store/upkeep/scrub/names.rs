//! Scrubbing names: whether every name file can be read, and whether the content of local names is stored.
//!
//! Each name is checked under its repository's lock, so that a push or delete in progress is not taken for damage. The content
//! of mirrored names need not be stored: it is fetched when a client asks for it.

use std::collections::HashSet;
use std::io;
use std::path::Path;

use super::read::is_lack_of_resources;
use super::{Finding, Problem, ScrubWatch};
use crate::oci::{Child, Digest, Manifest, RepoId};
use crate::store::error::{At, StoreError};
use crate::store::fs;
use crate::store::local::{Local, Name, manifest_link_media_type};
use crate::store::records::{Class, TagRecord};

/// What reading a name file has shown.
enum NameText {
    /// It was removed in the meantime.
    Gone,
    Unreadable,
    /// It is not UTF-8.
    Corrupt,
    Read(String),
}

pub(super) fn scrub_names(local: &Local, repair: bool, watch: &mut dyn ScrubWatch) -> Result<bool, StoreError> {
    for scope in local.scopes()? {
        if !local.walk_repositories(&scope, &mut |repo| scrub_repository(local, &repo, repair, watch))? {
            return Ok(false);
        }
    }
    Ok(true)
}

fn scrub_repository(
    local: &Local,
    repo: &RepoId,
    repair: bool,
    watch: &mut dyn ScrubWatch,
) -> Result<bool, StoreError> {
    for tag in local.layout().tags_on_disk(repo)? {
        if !scrub_name(local, repo, &Name::Tag(&tag), repair, watch)? {
            return Ok(false);
        }
    }
    for digest in local.layout().links_below(&local.layout().manifests(repo))? {
        if !scrub_name(local, repo, &Name::Manifest(&digest), repair, watch)? {
            return Ok(false);
        }
    }
    for digest in local.layout().links_below(&local.layout().blob_links(repo))? {
        if !scrub_name(local, repo, &Name::Blob(&digest), repair, watch)? {
            return Ok(false);
        }
    }
    Ok(true)
}

fn scrub_name(
    local: &Local,
    repo: &RepoId,
    name: &Name<'_>,
    repair: bool,
    watch: &mut dyn ScrubWatch,
) -> Result<bool, StoreError> {
    if !watch.may_read(0) {
        return Ok(false);
    }
    let problems = {
        let _locked = local.names().read(repo);
        problems_of(local, repo, name)?
    };
    watch.name_checked();
    for (problem, digest) in problems {
        let quarantined =
            // The disk may be able to read an unreadable name later.
            repair && problem == Problem::Name && set_aside(local, repo, name)?;
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
fn problems_of(local: &Local, repo: &RepoId, name: &Name<'_>) -> Result<Vec<(Problem, Option<Digest>)>, StoreError> {
    let digest = match name {
        Name::Tag(_) => None,
        Name::Manifest(digest) | Name::Blob(digest) => Some((*digest).clone()),
    };
    let path = local.layout().name_path(repo, name);
    let text = match read(&path).at("read", &path)? {
        NameText::Corrupt => return Ok(vec![(Problem::Name, digest)]),
        NameText::Gone => return Ok(Vec::new()),
        NameText::Unreadable => return Ok(vec![(Problem::Unreadable, digest)]),
        NameText::Read(text) => text,
    };
    let is_local = repo.scope.is_local();
    match name {
        Name::Tag(_) => match TagRecord::from_text(&text) {
            None => Ok(vec![(Problem::Name, None)]),
            Some(record) if is_local && !fs::is_file(&local.layout().manifest_link(repo, &record.digest)) => {
                Ok(vec![(Problem::Dangling, Some(record.digest))])
            }
            Some(_) => Ok(Vec::new()),
        },
        Name::Manifest(_) if manifest_link_media_type(&text).is_none() => Ok(vec![(Problem::Name, digest)]),
        Name::Manifest(_) | Name::Blob(_) if !is_local => Ok(Vec::new()),
        Name::Blob(blob) => {
            Ok((!local.layout().has_content(blob)?).then_some((Problem::Missing, digest)).into_iter().collect())
        }
        Name::Manifest(manifest) if !local.layout().has_content(manifest)? => Ok(vec![(Problem::Missing, digest)]),
        Name::Manifest(manifest) => unlinked_references(local, repo, manifest),
    }
}

/// What a manifest needs and its repository does not have. Content that is no manifest is found as a blob.
fn unlinked_references(
    local: &Local,
    repo: &RepoId,
    manifest: &Digest,
) -> Result<Vec<(Problem, Option<Digest>)>, StoreError> {
    let content = local.layout().read_content(manifest, Manifest::MAX_LENGTH)?;
    let Some(Ok(manifest)) = content.map(|bytes| Manifest::parse(&bytes)) else { return Ok(Vec::new()) };
    let mut checked = HashSet::new();
    let needed = manifest.children.into_iter().filter(|child| !child.optional);
    let missing = needed.filter(|child| checked.insert(child.digest.clone()) && !is_linked(local, repo, child));
    Ok(missing.map(|child| (Problem::Incomplete, Some(child.digest))).collect())
}

/// Whether a repository has what a manifest refers to. An entry of an index may be a blob.
fn is_linked(local: &Local, repo: &RepoId, child: &Child) -> bool {
    let layout = local.layout();
    let is_manifest = child.is_manifest && fs::is_file(&layout.manifest_link(repo, &child.digest));
    is_manifest || (child.may_be_blob && fs::is_file(&layout.blob_link(repo, &child.digest)))
}

/// Moves the file of a name to `quarantine/`, unless it has been replaced in the meantime. Whether it was moved.
fn set_aside(local: &Local, repo: &RepoId, name: &Name<'_>) -> Result<bool, StoreError> {
    let _locked = local.names().write(repo);
    let problems = problems_of(local, repo, name)?;
    if !problems.iter().any(|(problem, _)| *problem == Problem::Name) {
        return Ok(false);
    }
    local.quarantine_name(repo, name)?;
    Ok(true)
}

fn read(path: &Path) -> io::Result<NameText> {
    match fs::read(path) {
        Ok(bytes) => Ok(String::from_utf8(bytes).map_or(NameText::Corrupt, NameText::Read)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(NameText::Gone),
        Err(error) if is_lack_of_resources(&error) => Err(error),
        Err(error) => {
            tracing::error!(path = %path.display(), %error, "a name file cannot be read");
            Ok(NameText::Unreadable)
        }
    }
}

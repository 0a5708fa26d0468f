//! How much room content takes, by scope and repository: what belongs to one alone, and what is shared.
//!
//! The names are walked once, and each link's content is looked up once. A blob takes 24 bytes of memory: the first bytes of
//! its digest, its length, and the first and the last repository that has it. That is enough to tell shared content without a
//! second walk, and takes 60 MiB for two million blobs.

use std::collections::HashMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::oci::{Algorithm, Digest, RepoId, Scope};
use crate::store::cache::NAME_BYTES;
use crate::store::error::{At, StoreError, optional};
use crate::store::fs;
use crate::store::local::{Local, digest_of_file};
use crate::store::records::Class;

/// Repositories, or folders of blobs, between two reports of progress.
const REPORT_INTERVAL: u64 = 64;

/// Files and their bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Amount {
    pub files: u64,
    pub bytes: u64,
}

/// The stored content of one repository, or of all repositories of a scope.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredAmount {
    /// Content of no other repository, or of no other scope.
    pub own_bytes: u64,
    /// Content that others have as well.
    pub shared_bytes: u64,
    pub blobs: u64,
}

/// What one repository takes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RepositoryUsage {
    /// `local`, or the name of the upstream.
    pub scope: String,
    pub repository: String,
    pub class: Class,
    #[serde(flatten)]
    pub content: StoredAmount,
    pub manifests: u64,
    pub tags: u64,
}

/// What all repositories of a scope take.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScopeUsage {
    pub scope: String,
    pub class: Class,
    #[serde(flatten)]
    pub content: StoredAmount,
    pub repositories: u64,
    pub manifests: u64,
    pub tags: u64,
}

/// Everything below the data folder.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TotalUsage {
    /// Content of mirrored repositories alone. It can be evicted.
    pub cached: Amount,
    /// Content of a local repository.
    pub pushed: Amount,
    /// Content of no repository: its names were deleted, or its push is in progress.
    pub unreferenced: Amount,
    /// Tags and links, at 4 KiB each.
    pub names: Amount,
    /// Push sessions.
    pub uploads: Amount,
    /// Fills in progress.
    pub spool: Amount,
    pub quarantine: Amount,
    pub index: Amount,
    /// The sum of the above.
    pub bytes: u64,
}

/// The bounds of the cache, and the room on its disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskUsage {
    /// Bytes that cached content may take. `None`: the walk was made without a server, and no bounds are in force.
    pub max_size: Option<u64>,
    /// Bytes of the disk that stay free.
    pub min_free: Option<u64>,
    /// Size of the disk in bytes.
    pub bytes: u64,
    pub free_bytes: u64,
    /// 0: the file system does not count inodes.
    pub inodes: u64,
    pub free_inodes: u64,
    /// Inodes that stay free.
    pub min_free_inodes: u64,
}

/// What a walk reports, in this order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum UsageEvent {
    /// Absent if the state of the disk is unknown.
    Disk(DiskUsage),
    Progress {
        repositories: u64,
        blobs: u64,
    },
    Repository(RepositoryUsage),
    Scope(ScopeUsage),
    Total(TotalUsage),
}

/// The length of a blob in bytes, and the numbers of the first and the last repository that has it.
struct Seen {
    length: u64,
    first: u32,
    last: u32,
}

/// The sums so far.
#[derive(Default)]
struct Walk {
    /// By the first eight bytes of the digest.
    seen: HashMap<u64, Seen>,
    repositories: Vec<RepositoryUsage>,
    scopes: Vec<ScopeUsage>,
    /// The scope of each repository.
    scope_of: Vec<usize>,
    names: u64,
}

fn disk_usage(local: &Local) -> Option<DiskUsage> {
    let space = local.cache().space();
    let (disk, bounds) = (space.disk()?, space.is_bounded().then(|| space.bounds()));
    Some(DiskUsage {
        max_size: bounds.map(|bounds| bounds.max_size),
        min_free: bounds.map(|bounds| bounds.min_free),
        bytes: disk.bytes,
        free_bytes: disk.free_bytes,
        inodes: disk.inodes,
        free_inodes: disk.free_inodes,
        min_free_inodes: disk.kept_free_inodes(),
    })
}

/// Walks names and blobs and calls `report` with what they take. It returns false to stop the walk. Blocks.
pub(in crate::store) fn usage(local: &Local, report: &mut dyn FnMut(UsageEvent) -> bool) -> Result<(), StoreError> {
    if let Some(disk) = disk_usage(local)
        && !report(UsageEvent::Disk(disk))
    {
        return Ok(());
    }
    let mut walk = Walk::default();
    let mut scopes = local.scopes()?;
    // Local first: the content of a local repository is pushed, even if mirrored ones have it as well.
    scopes.sort_unstable_by(|one, other| (!one.is_local(), one.as_str()).cmp(&(!other.is_local(), other.as_str())));
    for scope in &scopes {
        walk.begin_scope(scope);
        let go_on = local.walk_repositories(scope, &mut |repo| {
            add_repository(local, &mut walk, &repo)?;
            let repositories = walk.repositories.len() as u64;
            let blobs = walk.seen.len() as u64;
            Ok(!repositories.is_multiple_of(REPORT_INTERVAL) || report(UsageEvent::Progress { repositories, blobs }))
        })?;
        if !go_on {
            return Ok(());
        }
    }
    let Some(total) = total_usage(local, &walk, report)? else { return Ok(()) };
    let Walk { mut repositories, scopes, .. } = walk;
    repositories.sort_by(|one, other| (&one.scope, &one.repository).cmp(&(&other.scope, &other.repository)));
    let rows = repositories.into_iter().map(UsageEvent::Repository);
    let scopes = scopes.into_iter().filter(|scope| scope.repositories > 0).map(UsageEvent::Scope);
    let _ = rows.chain(scopes).chain([UsageEvent::Total(total)]).all(report);
    Ok(())
}

fn add_repository(local: &Local, walk: &mut Walk, repo: &RepoId) -> Result<(), StoreError> {
    let layout = local.layout();
    let manifests = layout.links_below(&layout.manifests(repo))?;
    let blobs = layout.links_below(&layout.blob_links(repo))?;
    let tags = layout.tags_on_disk(repo)?.len() as u64;
    walk.names += tags + manifests.len() as u64 + blobs.len() as u64;
    walk.begin_repository(repo, manifests.len() as u64, tags);
    for digest in manifests.iter().chain(&blobs) {
        let key = key_of(digest);
        let length = match walk.seen.get(&key) {
            Some(seen) => seen.length,
            None => {
                let path = layout.blob(digest);
                match optional(fs::metadata(&path)).at("stat", &path)? {
                    Some(metadata) => metadata.len(),
                    None => continue,
                }
            }
        };
        walk.add(key, length);
    }
    Ok(())
}

/// Walks the stored blobs; `None` if the walk was stopped.
fn total_usage(
    local: &Local,
    walk: &Walk,
    report: &mut dyn FnMut(UsageEvent) -> bool,
) -> Result<Option<TotalUsage>, StoreError> {
    let layout = local.layout();
    let mut total = TotalUsage::default();
    let repositories = walk.repositories.len() as u64;
    for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
        for first in 0..=u8::MAX {
            add_blobs(local, walk, algorithm, first, &mut total)?;
            let blobs = total.cached.files + total.pushed.files + total.unreferenced.files;
            if u64::from(first).is_multiple_of(REPORT_INTERVAL) && !report(UsageEvent::Progress { repositories, blobs })
            {
                return Ok(None);
            }
        }
    }
    total.names = Amount { files: walk.names, bytes: walk.names * NAME_BYTES };
    total.uploads = below(&layout.uploads())?;
    total.spool = below(&layout.spool())?;
    total.quarantine = below(&layout.quarantine())?;
    total.index = below(&layout.index())?;
    let parts = [total.cached, total.pushed, total.unreferenced, total.names];
    let parts = parts.into_iter().chain([total.uploads, total.spool, total.quarantine, total.index]);
    total.bytes = parts.map(|part| part.bytes).sum();
    Ok(Some(total))
}

fn add_blobs(
    local: &Local,
    walk: &Walk,
    algorithm: Algorithm,
    first: u8,
    total: &mut TotalUsage,
) -> Result<(), StoreError> {
    let folder = local.layout().blob_folder(algorithm, first);
    let Some(entries) = optional(fs::read_dir(&folder)).at("read", &folder)? else { return Ok(()) };
    for entry in entries {
        let entry = entry.at("read", &folder)?;
        let Some(digest) = digest_of_file(algorithm, &entry.file_name()) else { continue };
        let (part, length) = match walk.seen.get(&key_of(&digest)) {
            Some(seen) if walk.is_pushed(seen) => (&mut total.pushed, seen.length),
            Some(seen) => (&mut total.cached, seen.length),
            None => match entry.metadata() {
                Ok(metadata) => (&mut total.unreferenced, metadata.len()),
                // It was removed in the meantime.
                Err(_) => continue,
            },
        };
        part.files += 1;
        part.bytes += length;
    }
    Ok(())
}

impl Walk {
    fn begin_scope(&mut self, scope: &Scope) {
        self.scopes.push(ScopeUsage {
            scope: scope.as_str().to_owned(),
            class: class_of(scope),
            content: StoredAmount::default(),
            repositories: 0,
            manifests: 0,
            tags: 0,
        });
    }

    fn begin_repository(&mut self, repo: &RepoId, manifests: u64, tags: u64) {
        self.scope_of.push(self.scopes.len().saturating_sub(1));
        self.repositories.push(RepositoryUsage {
            scope: repo.scope.as_str().to_owned(),
            repository: repo.name.to_string(),
            class: class_of(&repo.scope),
            content: StoredAmount::default(),
            manifests,
            tags,
        });
        if let Some(scope) = self.scopes.last_mut() {
            scope.repositories += 1;
            scope.manifests += manifests;
            scope.tags += tags;
        }
    }

    /// Counts content for the repository that was begun last. Repositories are walked scope by scope, so the last one that
    /// has the content tells whether this scope has counted it.
    fn add(&mut self, key: u64, length: u64) {
        let Some(this) = self.repositories.len().checked_sub(1) else { return };
        let number = u32::try_from(this).unwrap_or(u32::MAX);
        let before = self.seen.get(&key).map(|seen| (seen.first as usize, seen.last as usize));
        match before {
            Some((_, last)) if last == this => {}
            Some((first, last)) => {
                let scopes = [first, last, this].map(|repository| self.scope_of.get(repository).copied());
                share(self.repositories.get_mut(first).filter(|_| first == last).map(|it| &mut it.content), length);
                if let Some(own) = self.repositories.get_mut(this) {
                    own.content.add(length, true);
                }
                if scopes[1] != scopes[2] {
                    let first = scopes[0].filter(|_| scopes[0] == scopes[1]);
                    share(first.and_then(|first| self.scopes.get_mut(first)).map(|it| &mut it.content), length);
                    if let Some(own) = scopes[2].and_then(|this| self.scopes.get_mut(this)) {
                        own.content.add(length, true);
                    }
                }
                if let Some(seen) = self.seen.get_mut(&key) {
                    seen.last = number;
                }
            }
            None => {
                self.seen.insert(key, Seen { length, first: number, last: number });
                let scope = self.scopes.last_mut().map(|scope| &mut scope.content);
                let own = self.repositories.last_mut().map(|repository| &mut repository.content);
                scope.into_iter().chain(own).for_each(|content| content.add(length, false));
            }
        }
    }

    fn is_pushed(&self, seen: &Seen) -> bool {
        self.repositories.get(seen.first as usize).is_some_and(|first| first.class == Class::Pushed)
    }
}

impl StoredAmount {
    fn add(&mut self, length: u64, shared: bool) {
        self.blobs += 1;
        *if shared { &mut self.shared_bytes } else { &mut self.own_bytes } += length;
    }
}

/// Content that was counted for one alone turns out to be shared.
fn share(content: Option<&mut StoredAmount>, length: u64) {
    if let Some(content) = content {
        content.own_bytes -= length;
        content.shared_bytes += length;
    }
}

fn class_of(scope: &Scope) -> Class {
    if scope.is_local() { Class::Pushed } else { Class::Cached }
}

/// The first eight bytes. Among two million digests, two share them in one of ten million stores.
fn key_of(digest: &Digest) -> u64 {
    digest.as_bytes().first_chunk().map_or(0, |first| u64::from_be_bytes(*first))
}

/// The files below a folder, at any depth.
fn below(folder: &Path) -> Result<Amount, StoreError> {
    let mut amount = Amount::default();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        let Some(entries) = optional(fs::read_dir(&folder)).at("read", &folder)? else { continue };
        for entry in entries {
            let entry = entry.at("read", &folder)?;
            // A file that was removed in the meantime takes no room.
            let Ok(metadata) = entry.metadata() else { continue };
            if metadata.is_dir() {
                folders.push(entry.path());
            } else {
                amount.files += 1;
                amount.bytes += metadata.len();
            }
        }
    }
    Ok(amount)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `(scope, name, contents)` in the order of a walk; the rows as `own/shared`.
    fn rows(repositories: &[(&str, &str, &[u64])]) -> (Vec<String>, Vec<String>) {
        let mut walk = Walk::default();
        let mut scopes: Vec<&str> = Vec::new();
        for (scope, name, contents) in repositories {
            let scope_id = if *scope == "local" { Scope::Local } else { Scope::Upstream((*scope).into()) };
            if scopes.last() != Some(scope) {
                scopes.push(scope);
                walk.begin_scope(&scope_id);
            }
            walk.begin_repository(&RepoId::new(scope_id, name.parse().unwrap()), 0, 0);
            contents.iter().for_each(|length| walk.add(*length, *length));
        }
        let row = |content: &StoredAmount| format!("{}/{}", content.own_bytes, content.shared_bytes);
        let scopes = walk.scopes.iter().map(|scope| row(&scope.content)).collect();
        (walk.repositories.iter().map(|repo| row(&repo.content)).collect(), scopes)
    }

    #[test]
    fn shared_content_is_told_from_unshared() {
        let (repositories, scopes) = rows(&[
            ("local", "a", &[1, 2, 4, 4]),
            ("local", "b", &[2, 8]),
            ("docker.io", "c", &[4, 16, 32]),
            ("docker.io", "d", &[4, 32, 4]),
            ("ghcr.io", "e", &[64]),
        ]);
        assert_eq!(repositories, ["1/6", "8/2", "16/36", "0/36", "64/0"]);
        assert_eq!(scopes, ["11/4", "48/4", "64/0"]);
    }
}

//! Reconciling the index with the files, beside requests: first everything that is in the files is added, then
//! everything that is not in the files is removed.

use std::collections::HashSet;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use crate::oci::{Algorithm, Digest, RepoId, Tag};
use crate::store::clock::to_time;
use crate::store::error::{At, StoreError, optional};
use crate::store::fs::{self, Metadata};
use crate::store::index::keys::{self, BlobRecord, kind};
use crate::store::index::{BATCH_RECORDS, Change};
use crate::store::local::{Local, digest_of_file};
use crate::store::records::Class;

/// Walks the files until done or until `stop` is set. Blocks for as long as that takes: give it a thread. If the disk
/// had no room for an index before, it is opened first, if there is room now.
pub(in crate::store) fn reconcile(local: &Local, stop: &AtomicBool) {
    let started = Instant::now();
    match local.recover_index() {
        Ok(true) => {}
        Ok(false) => return,
        Err(error) => {
            tracing::error!(%error, "cannot open the index; lists come from the files");
            return;
        }
    }
    match walk(local, stop) {
        Ok(true) => {
            local.set_content_verified();
            local.cache().space().names_are_counted();
            local.index().set_ready();
            let seconds = started.elapsed().as_secs_f64();
            tracing::info!(seconds, "the index is in step with the files");
        }
        Ok(false) => {}
        Err(error) => tracing::error!(%error, "the walk of the files failed; lists come from the files"),
    }
}

/// Whether the walk came to its end.
fn walk(local: &Local, stop: &AtomicBool) -> Result<bool, StoreError> {
    let stopped = || stop.load(Ordering::Relaxed);
    let layout = local.layout();
    let mut unchecked = UncheckedLengths::default();
    for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
        let root = layout.blobs(algorithm);
        for folder in fs::read_dir(&root).at("read", &root)? {
            if stopped() {
                return Ok(false);
            }
            add_contents(local, &folder.at("read", &root)?.path(), algorithm, &mut unchecked)?;
        }
    }
    for scope in local.scopes()? {
        let complete = local.walk_repositories(&scope, &mut |repo| {
            add_repository(local, &repo)?;
            unchecked.check(local, &repo)?;
            if !repo.scope.is_local() {
                let _locked = local.names().read(&repo);
                local.cache().space().found_names(&repo, layout.count_names(&repo)?);
            }
            Ok(!stopped())
        })?;
        if !complete {
            return Ok(false);
        }
    }
    remove_stale(local, &stopped)
}

fn add_contents(
    local: &Local,
    folder: &Path,
    algorithm: Algorithm,
    unchecked: &mut UncheckedLengths,
) -> Result<(), StoreError> {
    let Some(entries) = optional(fs::read_dir(folder)).at("read", folder)? else { return Ok(()) };
    for entry in entries {
        let entry = entry.at("read", folder)?;
        let Some(digest) = digest_of_file(algorithm, &entry.file_name()) else { continue };
        let Some(metadata) = entry.metadata().ok().filter(Metadata::is_file) else { continue };
        let known = local.index().blob(&digest).map(|blob| blob.size);
        let is_doubtful = local.has_unverified_content() || known.is_some_and(|size| size != metadata.len());
        // Opening a file verifies it, and moves it aside if it is corrupt.
        if is_doubtful && local.open_content(&digest)?.is_none() {
            continue;
        }
        if known.is_none() && !local.has_unverified_content() {
            unchecked.add(&digest);
        }
        let _locked = local.lock_content(&digest);
        match local.index().blob(&digest).map(|blob| blob.class) {
            // A push may have recorded it since.
            Some(Class::Pushed) => {}
            // If the process ended after a push had changed the mode, the index may still say cached.
            Some(Class::Cached) => {
                let now = optional(entry.metadata()).at("stat", &entry.path())?;
                if let Some(metadata) = now.filter(|metadata| local.has_pushed_mode(metadata)) {
                    local.record_stored(&digest, metadata.len(), Class::Pushed);
                }
            }
            None => {
                let class = if local.has_pushed_mode(&metadata) { Class::Pushed } else { Class::Cached };
                let added = metadata.modified().map(to_time).unwrap_or_default();
                local.index().apply(&[Change::Blob(&digest, BlobRecord { size: metadata.len(), class, added })]);
            }
        }
    }
    Ok(())
}

/// Content whose length the index did not know. The file may have become shorter while no process ran, so the length is
/// compared with what manifests say.
#[derive(Default)]
struct UncheckedLengths {
    /// The first eight bytes of each digest, to save memory.
    digests: HashSet<u64>,
    verified: HashSet<Digest>,
}

impl UncheckedLengths {
    fn add(&mut self, digest: &Digest) {
        self.digests.insert(prefix(digest));
    }

    /// Compares the lengths in the manifests of a repository with its content. Content of another length is hashed,
    /// because a manifest may be wrong. Corrupt content is moved aside.
    fn check(&mut self, local: &Local, repo: &RepoId) -> Result<(), StoreError> {
        if self.digests.is_empty() {
            return Ok(());
        }
        let layout = local.layout();
        layout.for_each_link(&layout.manifests(repo), &mut |digest| {
            for child in layout.parse_manifest(&digest)?.unwrap_or_default().children {
                let Some(size) = child.size.filter(|_| self.digests.contains(&prefix(&child.digest))) else { continue };
                let differs = local.index().blob(&child.digest).is_some_and(|blob| blob.size != size);
                if !differs || self.verified.contains(&child.digest) {
                    continue;
                }
                if let Some((file, _)) = local.open_content(&child.digest)?
                    && local.verify_content(&child.digest, &file)?
                {
                    self.verified.insert(child.digest);
                }
            }
            Ok(())
        })
    }
}

/// The first eight bytes.
fn prefix(digest: &Digest) -> u64 {
    digest.as_bytes().first_chunk().map_or(0, |first| u64::from_be_bytes(*first))
}

fn add_repository(local: &Local, repo: &RepoId) -> Result<(), StoreError> {
    let layout = local.layout();
    {
        let _locked = local.names().read(repo);
        local.index().apply(&[Change::Repository(repo)]);
        for tag in layout.tags_on_disk(repo)? {
            local.index().apply(&[Change::Tag(repo, &tag)]);
        }
    }
    if !repo.scope.is_local() {
        let _locked = local.names().read(repo);
        return layout.for_each_link(&layout.manifests(repo), &mut |digest| {
            local.index().apply(&[Change::Link(repo, &digest)]);
            Ok(())
        });
    }
    for links in [layout.blob_links(repo), layout.manifests(repo)] {
        layout.for_each_link(&links, &mut |digest| local.record_linked_locally(&digest))?;
    }
    Ok(())
}

/// Removes the records of what is not in the files. Whether it came to its end.
fn remove_stale(local: &Local, stopped: &dyn Fn() -> bool) -> Result<bool, StoreError> {
    let mut after = Vec::new();
    loop {
        let keys = local.index().keys_after(&after);
        let Some(last) = keys.last().cloned() else { return Ok(true) };
        for key in &keys {
            remove_if_stale(local, key)?;
        }
        if stopped() {
            return Ok(false);
        }
        if keys.len() < BATCH_RECORDS {
            return Ok(true);
        }
        after = last;
    }
}

fn remove_if_stale(local: &Local, key: &[u8]) -> Result<(), StoreError> {
    match key.first() {
        Some(&kind::BLOB) => match keys::digest_of_key(key) {
            Some(digest) => remove_stale_content(local, &digest),
            None => Ok(()),
        },
        Some(&kind::LINK) => {
            let Some((digest, repo)) = keys::link_of_key(key) else { return Ok(()) };
            let _locked = local.names().read(&repo);
            if local.layout().manifest_media_type(&repo, &digest)?.is_none() {
                local.index().apply(&[Change::NoLink(&repo, &digest)]);
            }
            Ok(())
        }
        Some(&(kind::REPOSITORY | kind::TAG)) => match keys::names_of_key(key) {
            Some((repo, None)) => remove_stale_repository(local, &repo),
            Some((repo, Some(tag))) => tag.parse().map_or(Ok(()), |tag| remove_stale_tag(local, &repo, &tag)),
            None => Ok(()),
        },
        _ => Ok(()),
    }
}

fn remove_stale_content(local: &Local, digest: &Digest) -> Result<(), StoreError> {
    let _locked = local.lock_content(digest);
    if !local.layout().has_content(digest)? {
        local.record_removed(digest);
    }
    Ok(())
}

fn remove_stale_repository(local: &Local, repo: &RepoId) -> Result<(), StoreError> {
    let _locked = local.names().write(repo);
    if !fs::is_dir(&local.layout().blob_links(repo)) {
        local.index().apply(&[Change::NoRepository(repo)]);
    }
    Ok(())
}

fn remove_stale_tag(local: &Local, repo: &RepoId, tag: &Tag) -> Result<(), StoreError> {
    let _locked = local.names().write(repo);
    let path = local.layout().tag(repo, tag);
    if optional(fs::metadata(&path)).at("stat", &path)?.is_none() {
        local.index().apply(&[Change::NoTag(repo, tag)]);
    }
    Ok(())
}

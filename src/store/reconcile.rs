//! Bringing the index into step with the files, beside requests: first everything that is in the files goes in, then
//! everything in it that is not in the files goes out.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use super::blobs::{is_marked_pushed, mark_pushed};
use super::clock::to_time;
use super::error::{At, StoreError, optional};
use super::fs;
use super::index::{BATCH, Change};
use super::records::{self, BlobRecord, Class};
use super::{Inner, Store};
use crate::oci::{Algorithm, Digest, RepoId};

impl Store {
    /// Whether the index has to be brought into step before lists and sums can come from it.
    pub fn needs_reconcile(&self) -> bool {
        !self.inner.index.is_ready()
    }

    /// Walks the files until done or `stop` is set. Blocks for as long as that takes: give it a thread. Where there is no
    /// index yet, for the disk had no room for it, it is taken up first, if there is room now.
    pub fn reconcile(&self, stop: &AtomicBool) {
        let started = Instant::now();
        let inner = &*self.inner;
        match inner.take_up_index() {
            Ok(true) => {}
            Ok(false) => return,
            Err(error) => {
                tracing::error!(%error, "the index cannot be opened; lists go on coming from the files: {error}");
                return;
            }
        }
        match inner.reconcile(stop) {
            Ok(true) => {
                inner.settling.all_clear();
                inner.space.names_are_counted();
                inner.index.set_ready();
                let seconds = started.elapsed().as_secs_f64();
                tracing::info!(seconds, "the index is in step with the files");
            }
            Ok(false) => {}
            Err(error) => {
                tracing::error!(%error, "the walk of the files ended early; lists go on coming from the files")
            }
        }
    }
}

impl Inner {
    fn reconcile(&self, stop: &AtomicBool) -> Result<bool, StoreError> {
        let stopped = || stop.load(Ordering::Relaxed);
        for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
            let root = self.layout.blobs(algorithm);
            for folder in fs::read_dir(&root).at("read", &root)? {
                if stopped() {
                    return Ok(false);
                }
                self.index_blobs(&folder.at("read", &root)?.path(), algorithm)?;
            }
        }
        for scope in self.scopes()? {
            let whole = self.walk_repositories(&scope, &mut |repo| {
                self.index_repository(&repo)?;
                if !repo.scope.is_local() {
                    let _locked = self.repositories.read(&repo);
                    self.space.found_names(&repo, self.layout.count_names(&repo)?);
                }
                Ok(!stopped())
            })?;
            if !whole {
                return Ok(false);
            }
        }
        self.drop_stale(&stopped)
    }

    fn index_blobs(&self, folder: &Path, algorithm: Algorithm) -> Result<(), StoreError> {
        let Some(entries) = optional(fs::read_dir(folder)).at("read", folder)? else { return Ok(()) };
        for entry in entries {
            let entry = entry.at("read", folder)?;
            let Some(digest) = digest_of_file(algorithm, &entry.file_name()) else { continue };
            let Ok(metadata) = entry.metadata() else { continue };
            let known = self.index.blob(&digest).map(|blob| blob.size);
            // Opening it hashes it if a power cut may have spoilt it, and moves it aside if it is not what it was.
            if (self.settling.has_suspects() || known.is_some_and(|size| size != metadata.len()))
                && self.open_blob(&digest)?.is_none()
            {
                continue;
            }
            let _locked = self.digests.lock(&digest);
            // What a push has said since counts; a class is only ever raised here.
            if self.index.blob(&digest).is_none() {
                let pushed = self.keeps_modes && is_marked_pushed(&metadata);
                let class = if pushed { Class::Pushed } else { Class::Cached };
                let added = metadata.modified().map(to_time).unwrap_or_default();
                self.index.apply(&[Change::Blob(&digest, BlobRecord { size: metadata.len(), class, added })]);
            }
        }
        Ok(())
    }

    fn index_repository(&self, repo: &RepoId) -> Result<(), StoreError> {
        {
            let _locked = self.repositories.read(repo);
            self.index.apply(&[Change::Repository(repo)]);
            for tag in self.layout.tags_on_disk(repo)? {
                self.index.apply(&[Change::Tag(repo, &tag)]);
            }
        }
        if !repo.scope.is_local() {
            let _locked = self.repositories.read(repo);
            return self.layout.for_each_link(&self.layout.manifests(repo), &mut |digest| {
                self.index.apply(&[Change::Link(repo, &digest)]);
                Ok(())
            });
        }
        for links in [self.layout.blob_links(repo), self.layout.manifests(repo)] {
            self.layout.for_each_link(&links, &mut |digest| self.index_pushed(&digest))?;
        }
        Ok(())
    }

    /// A local repository names it: whatever its file said, from now on it says that it is pushed.
    pub(super) fn index_pushed(&self, digest: &Digest) -> Result<(), StoreError> {
        let _locked = self.digests.lock(digest);
        let Some(BlobRecord { class: Class::Cached, size, .. }) = self.index.blob(digest) else { return Ok(()) };
        let path = self.layout.blob(digest);
        if let Some(file) = optional(fs::open(&path)).at("open", &path)? {
            mark_pushed(&file).and_then(|()| fs::sync_all(&file)).at("sync", &path)?;
            self.record_blob(digest, size, Class::Pushed);
        }
        Ok(())
    }

    fn drop_stale(&self, stopped: &dyn Fn() -> bool) -> Result<bool, StoreError> {
        let mut after = Vec::new();
        loop {
            let keys = self.index.keys_after(&after);
            let Some(last) = keys.last().cloned() else { return Ok(true) };
            for key in &keys {
                self.drop_if_stale(key)?;
            }
            if stopped() {
                return Ok(false);
            }
            if keys.len() < BATCH {
                return Ok(true);
            }
            after = last;
        }
    }

    fn drop_if_stale(&self, key: &[u8]) -> Result<(), StoreError> {
        match key.first() {
            Some(&records::kind::BLOB) => {
                let Some(digest) = records::digest_of_key(key) else { return Ok(()) };
                let _locked = self.digests.lock(&digest);
                let path = self.layout.blob(&digest);
                if optional(fs::metadata(&path)).at("stat", &path)?.is_none() {
                    self.record_gone(&digest);
                }
            }
            Some(&records::kind::LINK) => {
                let Some((digest, repo)) = records::link_of_key(key) else { return Ok(()) };
                let _locked = self.repositories.read(&repo);
                if self.layout.manifest_media_type(&repo, &digest)?.is_none() {
                    self.index.apply(&[Change::NoLink(&repo, &digest)]);
                }
            }
            Some(&(records::kind::REPOSITORY | records::kind::TAG)) => {
                let Some((repo, tag)) = records::names_of_key(key) else { return Ok(()) };
                let _locked = self.repositories.write(&repo);
                match tag.map(str::parse) {
                    None => {
                        if !self.layout.blob_links(&repo).is_dir() {
                            self.index.apply(&[Change::NoRepository(&repo)]);
                        }
                    }
                    Some(Ok(tag)) => {
                        let path = self.layout.tag(&repo, &tag);
                        if optional(fs::metadata(&path)).at("stat", &path)?.is_none() {
                            self.index.apply(&[Change::NoTag(&repo, &tag)]);
                        }
                    }
                    Some(Err(_)) => {}
                }
            }
            _ => {}
        }
        Ok(())
    }
}

pub(super) fn digest_of_file(algorithm: Algorithm, name: &std::ffi::OsStr) -> Option<Digest> {
    format!("{}:{}", algorithm.as_str(), name.to_str()?).parse().ok()
}

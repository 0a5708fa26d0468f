//! Content by digest: `blobs/<alg>/ab/<hex>`, immutable, there by rename or not at all.

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;

use super::clock::now;
use super::error::{At, StoreError, optional};
use super::fs::{self, File, Metadata, Permissions};
use super::index::Change;
use super::layout::sync_folder;
use super::reader::BlobReader;
use super::records::Candidate;
use super::records::{BlobRecord, Class};
use super::settled::is_still_at;
use super::{Inner, Store};
use crate::oci::{Digest, RepoId, RepoName};

/// The owner's permission to write, which pushed content has not: so a file says itself that it is not to be evicted.
const WRITABLE: u32 = 0o200;

/// An open blob and its length in bytes.
#[derive(Clone, Debug)]
pub struct Blob {
    pub reader: BlobReader,
    pub length: u64,
}

impl Store {
    /// Opens a blob if its file is here. Who may read it is not asked: see [`Store::member`].
    pub async fn blob(&self, digest: &Digest) -> Result<Option<Blob>, StoreError> {
        if let Some((file, length)) = self.inner.open_files.get_at_once(digest) {
            self.inner.recency.note_content(digest);
            return Ok(Some(Blob { reader: BlobReader::new(file), length }));
        }
        let digest = digest.clone();
        self.run(move |inner| {
            let blob = inner.open_blob(&digest)?;
            if blob.is_some() {
                inner.recency.note_content(&digest);
            }
            Ok(blob)
        })
        .await
    }

    /// Makes a blob that is here part of the local repository's pushed content, on the disk before it returns.
    /// False if its file is not here.
    pub async fn adopt(&self, repo: &crate::oci::RepoId, digest: &Digest) -> Result<bool, StoreError> {
        let (repo, digest) = (repo.clone(), digest.clone());
        self.run(move |inner| {
            let _held = inner.coming.hold(&digest);
            // What cannot be trusted is found here, and moved aside; under the lock it must still be the same file.
            let Some((file, length)) = inner.open_file(&digest)? else { return Ok(false) };
            {
                let _locked = inner.digests.lock(&digest);
                let path = inner.layout.blob(&digest);
                if !is_still_at(&path, &file).at("stat", &path)? {
                    return Ok(false);
                }
                inner.unmark(&[Candidate::Content(digest.clone())]);
                let was_pushed = inner.index.blob(&digest).is_some_and(|blob| blob.class == Class::Pushed);
                mark_pushed(&file).at("change", &path)?;
                inner.record_blob(&digest, length, Class::Pushed);
                if let Err(error) = fs::sync_all(&file) {
                    // What a sync has failed for may be lost, and the next sync does not say so again. What was pushed
                    // before was synced then, and others have it.
                    if !was_pushed {
                        inner.set_blob_aside(&digest, &path)?;
                    }
                    return Err(error).at("sync", &path);
                }
                inner.sync_blob_folder(&path)?;
            }
            inner.link_blob(&repo, &digest, Some(length))?;
            Ok(true)
        })
        .await
    }
}

impl Inner {
    pub(super) fn open_blob(&self, digest: &Digest) -> Result<Option<Blob>, StoreError> {
        let opened = self.open_file(digest)?;
        Ok(opened.map(|(file, length)| Blob { reader: BlobReader::new(file), length }))
    }

    /// The file of a digest and its length. One that is not what it was is moved aside and counts as not there.
    fn open_file(&self, digest: &Digest) -> Result<Option<(Arc<File>, u64)>, StoreError> {
        let path = self.layout.blob(digest);
        // A second try: an upload of the same content may have taken the place of what was opened.
        for _ in 0..2 {
            if let Some(opened) = self.open_files.get(digest) {
                return Ok(Some(opened));
            }
            let opened = self.open_files.with_room(|| fs::open(&path));
            let Some(file) = optional(opened).at("open", &path)?.map(Arc::new) else { return Ok(None) };
            let metadata = file.metadata().at("stat", &path)?;
            if !metadata.is_file() {
                return Ok(None);
            }
            let as_known = self.index.blob(digest).is_none_or(|blob| blob.size == metadata.len());
            if !as_known || !self.is_trusted(digest, &file).at("read", &path)? {
                self.quarantine(digest, &file)?;
                return Ok(None);
            }
            let length = metadata.len();
            if self.open_files.share(digest, &file, length, &path).at("stat", &path)? {
                return Ok(Some((file, length)));
            }
        }
        Ok(None)
    }

    /// What the index and the order of eviction are told of a blob that is here. Under its lock.
    pub(super) fn record_blob(&self, digest: &Digest, size: u64, class: Class) {
        let added = now();
        self.index.apply(&[Change::Blob(digest, BlobRecord { size, class, added })]);
        match class {
            Class::Cached => {
                let mut segments = self.recency.segments.lock();
                let before = segments.bytes();
                segments.insert(digest, size, added);
                self.space.add_cached((segments.bytes() - before) as i64);
            }
            Class::Pushed => self.no_longer_cached(digest),
        }
    }

    /// The same of a blob that is not here any more. Under its lock.
    pub(super) fn record_gone(&self, digest: &Digest) {
        self.index.apply(&[Change::NoBlob(digest)]);
        self.no_longer_cached(digest);
    }

    fn no_longer_cached(&self, digest: &Digest) {
        if let Some(size) = self.recency.segments.lock().remove(digest) {
            self.space.add_cached(-(size as i64));
        }
    }

    /// Whether a file holds pushed content: it says so itself, or a local repository has a link to it. A copy of the data
    /// folder, or who changes the permissions of all that is in it, takes away what the files say.
    pub(super) fn is_pushed(&self, digest: &Digest, metadata: &Metadata) -> Result<bool, StoreError> {
        Ok((self.keeps_modes && is_marked_pushed(metadata)) || self.is_named_locally(digest)?)
    }

    /// Whether a local repository has a link to it.
    pub(super) fn is_named_locally(&self, digest: &Digest) -> Result<bool, StoreError> {
        let locals: Vec<RepoName> = self.locals.read().iter().cloned().collect();
        for repo in locals.into_iter().map(RepoId::local) {
            for link in [self.layout.blob_link(&repo, digest), self.layout.manifest_link(&repo, digest)] {
                if optional(fs::metadata(&link)).at("stat", &link)?.is_some() {
                    return Ok(true);
                }
            }
        }
        Ok(false)
    }

    /// Moves a finished file to its digest. Pushed content is on the disk, name included, before this returns.
    ///
    /// Cached content never replaces what is there, which may be pushed and synced; pushed content always does, for what
    /// is there may be cached and not synced. A fill that brings back a lost pushed blob is pushed content.
    pub(super) fn commit_file(
        &self,
        from: &Path,
        digest: &Digest,
        length: u64,
        class: Class,
    ) -> Result<(), StoreError> {
        let to = self.layout.blob(digest);
        let known = self.index.blob(digest).map(|blob| blob.class);
        let class = if known == Some(Class::Pushed) { Class::Pushed } else { class };
        if class == Class::Pushed {
            fs::open(from).and_then(|file| mark_pushed(&file).and_then(|()| fs::sync_all(&file))).at("sync", from)?;
        }
        let _locked = self.digests.lock(digest);
        let present = optional(fs::metadata(&to)).at("stat", &to)?.filter(|there| there.len() == length);
        match (class, present) {
            (Class::Cached, Some(there)) => {
                fs::remove_file(from).at("remove", from)?;
                // The walk may have come to know it since.
                if self.index.blob(digest).is_none() {
                    let class = if self.is_pushed(digest, &there)? { Class::Pushed } else { Class::Cached };
                    self.record_blob(digest, length, class);
                }
            }
            (Class::Cached, None) => {
                self.layout.within(&to, |to| fs::rename(from, to)).at("rename", &to)?;
                self.settling.committed(digest);
                self.record_blob(digest, length, Class::Cached);
            }
            (Class::Pushed, _) => {
                self.unmark(&[Candidate::Content(digest.clone())]);
                self.layout.within(&to, |to| fs::rename(from, to)).at("rename", &to)?;
                // Who read what stood here goes on; who comes reads the file that is synced.
                self.open_files.forget(digest);
                // Before what may fail: the file is there, and if nobody comes to name it, the collector has to know it.
                self.record_blob(digest, length, Class::Pushed);
                self.sync_blob_folder(&to)?;
            }
        }
        Ok(())
    }

    fn sync_blob_folder(&self, blob: &Path) -> Result<(), StoreError> {
        let folder = blob.parent().unwrap_or(self.layout.root());
        sync_folder(folder).at("sync", folder)
    }
}

/// Takes the permission to write away: from now on the file says that it is pushed content.
pub(super) fn mark_pushed(file: &File) -> io::Result<()> {
    let mode = file.metadata()?.permissions().mode();
    if mode & WRITABLE == 0 { Ok(()) } else { fs::set_permissions(file, Permissions::from_mode(mode & !0o222)) }
}

pub(super) fn is_marked_pushed(metadata: &Metadata) -> bool {
    metadata.permissions().mode() & WRITABLE == 0
}

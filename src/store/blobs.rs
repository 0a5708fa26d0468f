//! Content by digest: `blobs/<alg>/ab/<hex>`, immutable, there by rename or not at all.

use std::fs::{self, File};
use std::path::Path;
use std::sync::Arc;

use super::error::{At, StoreError, optional};
use super::index::Change;
use super::layout::sync_folder;
use super::reader::BlobReader;
use super::records::Class;
use super::settled::is_still_at;
use super::{Inner, Store};
use crate::oci::Digest;

/// An open blob and its length in bytes.
#[derive(Clone, Debug)]
pub struct Blob {
    pub reader: BlobReader,
    pub length: u64,
}

impl Store {
    /// Opens a blob if its file is here. Who may read it is not asked: see [`Store::member`].
    pub async fn blob(&self, digest: &Digest) -> Result<Option<Blob>, StoreError> {
        let digest = digest.clone();
        self.run(move |inner| inner.open_blob(&digest)).await
    }

    /// Makes a blob that is here part of the local repository's pushed content, on the disk before it returns.
    /// False if its file is not here.
    pub async fn adopt(&self, repo: &crate::oci::RepoId, digest: &Digest) -> Result<bool, StoreError> {
        let (repo, digest) = (repo.clone(), digest.clone());
        self.run(move |inner| {
            // What cannot be trusted is found here, and moved aside; under the lock it must still be the same file.
            let Some((file, length)) = inner.open_file(&digest)? else { return Ok(false) };
            {
                let _locked = inner.digests.lock(&digest);
                let path = inner.layout.blob(&digest);
                if !is_still_at(&path, &file).at("stat", &path)? {
                    return Ok(false);
                }
                file.sync_all().at("sync", &path)?;
                inner.sync_blob_folder(&path)?;
                inner.index.apply(&[Change::Blob(&digest, length, Class::Pushed)]);
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
        Ok(opened.map(|(file, length)| Blob { reader: BlobReader::new(Arc::new(file)), length }))
    }

    /// The file of a digest and its length. One that is not what it was is moved aside and counts as not there.
    fn open_file(&self, digest: &Digest) -> Result<Option<(File, u64)>, StoreError> {
        let path = self.layout.blob(digest);
        let Some(file) = optional(File::open(&path)).at("open", &path)? else { return Ok(None) };
        let metadata = file.metadata().at("stat", &path)?;
        if !metadata.is_file() {
            return Ok(None);
        }
        let as_known = self.index.blob(digest).is_none_or(|(size, _)| size == metadata.len());
        if as_known && self.is_trusted(digest, &file).at("read", &path)? {
            return Ok(Some((file, metadata.len())));
        }
        self.quarantine(digest, &file)?;
        Ok(None)
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
        let known = self.index.blob(digest).map(|(_, class)| class);
        let class = if known == Some(Class::Pushed) { Class::Pushed } else { class };
        if class == Class::Pushed {
            File::open(from).and_then(|file| file.sync_all()).at("sync", from)?;
        }
        let _locked = self.digests.lock(digest);
        let present = optional(fs::metadata(&to)).at("stat", &to)?.is_some_and(|there| there.len() == length);
        match class {
            Class::Cached if present => {
                fs::remove_file(from).at("remove", from)?;
                if known.is_none() {
                    self.index.apply(&[Change::Blob(digest, length, Class::Cached)]);
                }
            }
            Class::Cached => {
                fs::rename(from, &to).at("rename", &to)?;
                self.settling.committed(digest);
                self.index.apply(&[Change::Blob(digest, length, Class::Cached)]);
            }
            Class::Pushed => {
                fs::rename(from, &to).at("rename", &to)?;
                self.sync_blob_folder(&to)?;
                self.index.apply(&[Change::Blob(digest, length, Class::Pushed)]);
            }
        }
        Ok(())
    }

    fn sync_blob_folder(&self, blob: &Path) -> Result<(), StoreError> {
        let folder = blob.parent().unwrap_or(self.layout.root());
        sync_folder(folder).at("sync", folder)
    }
}

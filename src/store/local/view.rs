//! A look at a data folder beside the process that uses it.

use std::path::Path;

use bytes::Bytes;

use super::layout::Layout;
use crate::oci::{Digest, Manifest, RepoId, RepoName, Tag};
use crate::store::error::{At, StoreError, optional};
use crate::store::fs;
use crate::store::records::TagRecord;

/// A look at a data folder: it takes no lock, writes nothing and opens no index. All methods block.
#[derive(Debug)]
pub struct View {
    layout: Layout,
}

impl View {
    /// `root` is the data folder.
    pub fn of(root: &Path) -> Self {
        Self { layout: Layout::new(root) }
    }

    /// Whether a local repository of this name exists.
    pub fn is_local(&self, name: &RepoName) -> bool {
        fs::is_dir(&self.layout.blob_links(&RepoId::local(name.clone())))
    }

    /// The record of a tag.
    pub fn tag(&self, repo: &RepoId, tag: &Tag) -> Result<Option<TagRecord>, StoreError> {
        self.layout.read_tag(repo, tag)
    }

    /// The media type and the content of a manifest that belongs to the repository. Its content may not be stored.
    pub fn manifest(&self, repo: &RepoId, digest: &Digest) -> Result<Option<(String, Option<Bytes>)>, StoreError> {
        let Some(media_type) = self.layout.manifest_media_type(repo, digest)? else { return Ok(None) };
        Ok(Some((media_type, self.layout.read_content(digest, Manifest::MAX_LENGTH)?)))
    }

    /// Whether a digest may be read in the repository without asking an upstream.
    pub fn may_read(&self, repo: &RepoId, digest: &Digest) -> Result<bool, StoreError> {
        let is_member = self.layout.read_member(repo, digest)?.is_some_and(|member| member.proven);
        Ok(is_member || self.layout.manifest_media_type(repo, digest)?.is_some())
    }

    /// The length of stored content in bytes.
    pub fn content_length(&self, digest: &Digest) -> Result<Option<u64>, StoreError> {
        let path = self.layout.blob(digest);
        Ok(optional(fs::metadata(&path)).at("stat", &path)?.map(|metadata| metadata.len()))
    }
}

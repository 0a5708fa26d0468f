//! Reading names and content from the files alone: what the store decides by, and all that a look from outside needs.

use std::io::Read;
use std::path::Path;

use bytes::Bytes;

use super::Store;
use super::error::{At, StoreError, optional};
use super::fs::{self, File};
use super::layout::Layout;
use super::reconcile::digest_of_file;
use super::records::{self, Member, TagRecord};
use crate::oci::{Algorithm, Digest, Manifest, RepoId, RepoName, Tag};

impl Layout {
    pub(super) fn read_member(&self, repo: &RepoId, digest: &Digest) -> Result<Option<Member>, StoreError> {
        let path = self.blob_link(repo, digest);
        let text = optional(fs::read_to_string(&path)).at("read", &path)?;
        Ok(text.map(|text| Member::from_text(&text)))
    }

    pub(super) fn manifest_media_type(&self, repo: &RepoId, digest: &Digest) -> Result<Option<String>, StoreError> {
        let path = self.manifest_link(repo, digest);
        let text = optional(fs::read_to_string(&path)).at("read", &path)?;
        Ok(text.as_deref().and_then(records::manifest_link_media_type).map(str::to_owned))
    }

    pub(super) fn read_tag(&self, repo: &RepoId, tag: &Tag) -> Result<Option<TagRecord>, StoreError> {
        let Some(record) = self.tag_file(repo, tag)? else { return Ok(None) };
        let linked = self.manifest_media_type(repo, &record.digest)?.is_some();
        Ok(linked.then_some(record))
    }

    /// What the file of a tag says, whether or not its manifest belongs to the repository.
    pub(super) fn tag_file(&self, repo: &RepoId, tag: &Tag) -> Result<Option<TagRecord>, StoreError> {
        let path = self.tag(repo, tag);
        let text = optional(fs::read_to_string(&path)).at("read", &path)?;
        Ok(text.as_deref().and_then(TagRecord::from_text))
    }

    /// The tags that have a file, in no order.
    pub(super) fn tags_on_disk(&self, repo: &RepoId) -> Result<Vec<Tag>, StoreError> {
        let path = self.tags(repo);
        let Some(entries) = optional(fs::read_dir(&path)).at("read", &path)? else { return Ok(Vec::new()) };
        let mut tags = Vec::new();
        for entry in entries {
            let entry = entry.at("read", &path)?;
            tags.extend(entry.file_name().to_str().and_then(|name| name.parse().ok()));
        }
        Ok(tags)
    }

    /// The digests that have a file in a folder of links, in no order.
    pub(super) fn for_each_link(
        &self,
        links: &Path,
        each: &mut dyn FnMut(Digest) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
            let folder = links.join(algorithm.as_str());
            let Some(entries) = optional(fs::read_dir(&folder)).at("read", &folder)? else { continue };
            for entry in entries {
                if let Some(digest) = digest_of_file(algorithm, &entry.at("read", &folder)?.file_name()) {
                    each(digest)?;
                }
            }
        }
        Ok(())
    }

    /// The same as a list.
    pub(super) fn links_below(&self, links: &Path) -> Result<Vec<Digest>, StoreError> {
        let mut digests = Vec::new();
        self.for_each_link(links, &mut |digest| {
            digests.push(digest);
            Ok(())
        })?;
        Ok(digests)
    }

    /// The name files of a repository.
    pub(super) fn count_names(&self, repo: &RepoId) -> Result<i64, StoreError> {
        let mut names = self.tags_on_disk(repo)?.len() as i64;
        for links in [self.manifests(repo), self.blob_links(repo)] {
            self.for_each_link(&links, &mut |_| {
                names += 1;
                Ok(())
            })?;
        }
        for subject in self.links_below(&self.referrer_folders(repo))? {
            names += self.read_referrers(repo, &subject)?.len() as i64;
        }
        Ok(names)
    }

    /// What the file of a digest holds, unchecked, if it is at most `limit` bytes.
    pub(super) fn read_content(&self, digest: &Digest, limit: u64) -> Result<Option<Bytes>, StoreError> {
        Ok(self.open_content(digest, limit)?.map(|(_, bytes)| bytes))
    }

    /// The same with the file that was read.
    pub(super) fn open_content(&self, digest: &Digest, limit: u64) -> Result<Option<(File, Bytes)>, StoreError> {
        let path = self.blob(digest);
        let Some(mut file) = optional(fs::open(&path)).at("open", &path)? else { return Ok(None) };
        let metadata = file.metadata().at("stat", &path)?;
        if !metadata.is_file() || metadata.len() > limit {
            return Ok(None);
        }
        let mut bytes = Vec::with_capacity(metadata.len().try_into().unwrap_or(0));
        file.read_to_end(&mut bytes).at("read", &path)?;
        Ok(Some((file, bytes.into())))
    }
}

impl Store {
    /// A look at the files of this store.
    pub fn view(&self) -> View {
        View { layout: self.inner.layout.clone() }
    }

    /// What is remembered of a tag: its file may say of a mirrored one that it was confirmed earlier.
    pub fn remembered_tag(&self, repo: &RepoId, tag: &Tag) -> Option<TagRecord> {
        self.inner.front.tags.get(&(repo.clone(), tag.clone()))
    }
}

/// A look at a data folder, whoever else uses it: it takes no lock, writes nothing and opens no index. Blocks.
#[derive(Debug)]
pub struct View {
    layout: Layout,
}

impl View {
    pub fn of(root: &Path) -> Self {
        Self { layout: Layout::new(root) }
    }

    /// Whether a local repository of this name exists.
    pub fn is_local(&self, name: &RepoName) -> bool {
        self.layout.blob_links(&RepoId::local(name.clone())).is_dir()
    }

    /// What a tag means.
    pub fn tag(&self, repo: &RepoId, tag: &Tag) -> Result<Option<TagRecord>, StoreError> {
        self.layout.read_tag(repo, tag)
    }

    /// The type and content of a manifest that belongs to the repository; the content may not be here.
    pub fn manifest(&self, repo: &RepoId, digest: &Digest) -> Result<Option<(String, Option<Bytes>)>, StoreError> {
        let Some(media_type) = self.layout.manifest_media_type(repo, digest)? else { return Ok(None) };
        Ok(Some((media_type, self.layout.read_content(digest, Manifest::MAX_LENGTH)?)))
    }

    /// Whether a digest belongs to the repository, so that nobody has to be asked before it is read there.
    pub fn may_read(&self, repo: &RepoId, digest: &Digest) -> Result<bool, StoreError> {
        let is_member = self.layout.read_member(repo, digest)?.is_some();
        Ok(is_member || self.layout.manifest_media_type(repo, digest)?.is_some())
    }

    /// The length in bytes of content that is here.
    pub fn content_length(&self, digest: &Digest) -> Result<Option<u64>, StoreError> {
        let path = self.layout.blob(digest);
        Ok(optional(fs::metadata(&path)).at("stat", &path)?.map(|metadata| metadata.len()))
    }
}

//! Reading names and content straight from the files: what the store decides by.

use std::io::Read;
use std::path::{Path, PathBuf};

use bytes::Bytes;

use super::layout::{Layout, digest_of_file};
use super::name_text;
use crate::oci::{Algorithm, Digest, Manifest, RepoId, Tag};
use crate::store::error::{At, StoreError, optional};
use crate::store::fs::{self, DirEntry, File};
use crate::store::records::{Member, TagRecord};

/// A name of a repository, for operations that are the same for every kind of name.
pub(in crate::store) enum Name<'a> {
    Tag(&'a Tag),
    Manifest(&'a Digest),
    Blob(&'a Digest),
}

/// Whether an entry can be a name. Anything but a regular file counts as missing.
fn is_regular(entry: &DirEntry) -> bool {
    entry.file_type().is_ok_and(|kind| kind.is_file())
}

impl Layout {
    pub(in crate::store) fn name_path(&self, repo: &RepoId, name: &Name<'_>) -> PathBuf {
        match name {
            Name::Tag(tag) => self.tag(repo, tag),
            Name::Manifest(digest) => self.manifest_link(repo, digest),
            Name::Blob(digest) => self.blob_link(repo, digest),
        }
    }

    pub(in crate::store) fn read_member(&self, repo: &RepoId, digest: &Digest) -> Result<Option<Member>, StoreError> {
        let path = self.blob_link(repo, digest);
        let text = optional(fs::read_to_string(&path)).at("read", &path)?;
        Ok(text.map(|text| Member::from_text(&text)))
    }

    /// `None` if the manifest does not belong to the repository.
    pub(in crate::store) fn manifest_media_type(
        &self,
        repo: &RepoId,
        digest: &Digest,
    ) -> Result<Option<String>, StoreError> {
        let path = self.manifest_link(repo, digest);
        let text = optional(fs::read_to_string(&path)).at("read", &path)?;
        Ok(text.as_deref().and_then(name_text::manifest_link_media_type).map(str::to_owned))
    }

    /// The record of a tag whose manifest belongs to the repository.
    pub(in crate::store) fn read_tag(&self, repo: &RepoId, tag: &Tag) -> Result<Option<TagRecord>, StoreError> {
        let Some(record) = self.tag_file(repo, tag)? else { return Ok(None) };
        let linked = self.manifest_media_type(repo, &record.digest)?.is_some();
        Ok(linked.then_some(record))
    }

    /// The record of a tag, whether or not its manifest belongs to the repository.
    pub(in crate::store) fn tag_file(&self, repo: &RepoId, tag: &Tag) -> Result<Option<TagRecord>, StoreError> {
        let path = self.tag(repo, tag);
        let text = optional(fs::read_to_string(&path)).at("read", &path)?;
        Ok(text.as_deref().and_then(TagRecord::from_text))
    }

    /// The tags that have a file, in no particular order.
    pub(in crate::store) fn tags_on_disk(&self, repo: &RepoId) -> Result<Vec<Tag>, StoreError> {
        let path = self.tags(repo);
        let Some(entries) = optional(fs::read_dir(&path)).at("read", &path)? else { return Ok(Vec::new()) };
        let mut tags = Vec::new();
        for entry in entries {
            let entry = entry.at("read", &path)?;
            if is_regular(&entry) {
                tags.extend(entry.file_name().to_str().and_then(|name| name.parse().ok()));
            }
        }
        Ok(tags)
    }

    /// Calls `each` for the digests that have a file in a folder of links, in no particular order.
    pub(in crate::store) fn for_each_link(
        &self,
        links: &Path,
        each: &mut dyn FnMut(Digest) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
            let folder = links.join(algorithm.as_str());
            let Some(entries) = optional(fs::read_dir(&folder)).at("read", &folder)? else { continue };
            for entry in entries {
                let entry = entry.at("read", &folder)?;
                if let Some(digest) = digest_of_file(algorithm, &entry.file_name())
                    && is_regular(&entry)
                {
                    each(digest)?;
                }
            }
        }
        Ok(())
    }

    /// The digests that have a file in a folder of links, in no particular order.
    pub(in crate::store) fn links_below(&self, links: &Path) -> Result<Vec<Digest>, StoreError> {
        let mut digests = Vec::new();
        self.for_each_link(links, &mut |digest| {
            digests.push(digest);
            Ok(())
        })?;
        Ok(digests)
    }

    /// The subjects that have a folder of referrers, in no particular order.
    pub(in crate::store) fn subjects(&self, repo: &RepoId) -> Result<Vec<Digest>, StoreError> {
        let mut subjects = Vec::new();
        for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
            let folder = self.referrer_folders(repo).join(algorithm.as_str());
            let Some(entries) = optional(fs::read_dir(&folder)).at("read", &folder)? else { continue };
            for entry in entries {
                subjects.extend(digest_of_file(algorithm, &entry.at("read", &folder)?.file_name()));
            }
        }
        Ok(subjects)
    }

    /// The count of name files of a repository.
    pub(in crate::store) fn count_names(&self, repo: &RepoId) -> Result<i64, StoreError> {
        let mut names = self.tags_on_disk(repo)?.len() as i64;
        for links in [self.manifests(repo), self.blob_links(repo)] {
            self.for_each_link(&links, &mut |_| {
                names += 1;
                Ok(())
            })?;
        }
        for subject in self.subjects(repo)? {
            names += self.read_referrers(repo, &subject)?.len() as i64;
        }
        Ok(names)
    }

    /// The content of a digest if its file has at most `limit` bytes. The digest is not verified.
    pub(in crate::store) fn read_content(&self, digest: &Digest, limit: u64) -> Result<Option<Bytes>, StoreError> {
        Ok(self.open_content(digest, limit)?.map(|(_, bytes)| bytes))
    }

    /// As [`Layout::read_content`], together with the open file.
    pub(super) fn open_content(&self, digest: &Digest, limit: u64) -> Result<Option<(File, Bytes)>, StoreError> {
        let path = self.blob(digest);
        let Some(mut file) = optional(fs::open(&path)).at("open", &path)? else { return Ok(None) };
        let metadata = file.metadata().at("stat", &path)?;
        if metadata.len() > limit {
            return Ok(None);
        }
        let mut bytes = Vec::with_capacity(metadata.len().try_into().unwrap_or(0));
        file.read_to_end(&mut bytes).at("read", &path)?;
        Ok(Some((file, bytes.into())))
    }

    /// A manifest's content, parsed. Content that is missing or no manifest has no children. The digest is not verified.
    pub(in crate::store) fn parse_manifest(&self, digest: &Digest) -> Result<Option<Manifest>, StoreError> {
        let content = self.read_content(digest, Manifest::MAX_LENGTH)?;
        Ok(content.map(|bytes| Manifest::parse(&bytes).unwrap_or_default()))
    }

    /// Whether there is content under a digest.
    pub(in crate::store) fn has_content(&self, digest: &Digest) -> Result<bool, StoreError> {
        let path = self.blob(digest);
        Ok(optional(fs::metadata(&path)).at("stat", &path)?.is_some())
    }
}

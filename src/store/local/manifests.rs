//! Manifests: content like any other, and a link `_manifests/<alg>/<hex>` in each repository that has it.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;

use super::Local;
use super::durability::QuarantineCause;
use super::layout::Temporary;
use super::name_text;
use crate::events::StoreEvent;
use crate::oci::{Digest, Manifest, RepoId, Tag, media_type};
use crate::store::cache::NAME_BYTES;
use crate::store::error::{At, StoreError};
use crate::store::fs;
use crate::store::index::Change;
use crate::store::names::NewManifest;
use crate::store::records::{Class, Member, StoredManifest, TagRecord, Unreferenced};

impl Local {
    /// The content of a manifest. It is small enough to be hashed whenever it is read. Corrupt content counts as
    /// missing.
    pub(super) fn read_manifest(&self, digest: &Digest) -> Result<Option<Bytes>, StoreError> {
        let Some((file, bytes)) = self.layout.open_content(digest, Manifest::MAX_LENGTH)? else { return Ok(None) };
        if Digest::of(digest.algorithm(), &bytes) == *digest {
            return Ok(Some(bytes));
        }
        self.quarantine(digest, &file, QuarantineCause::WrongContent)?;
        Ok(None)
    }

    pub(super) fn load_manifest(
        &self,
        repo: RepoId,
        digest: &Digest,
    ) -> Result<Option<Arc<StoredManifest>>, StoreError> {
        let _locked = self.names.read(&repo);
        let Some(media_type) = self.layout.manifest_media_type(&repo, digest)? else { return Ok(None) };
        let Some(bytes) = self.read_manifest(digest)? else { return Ok(None) };
        let parsed = Manifest::parse(&bytes).unwrap_or_default();
        // An earlier version stored the type of a push unchecked.
        let media_type = media_type::of_manifest(&media_type).unwrap_or_else(|| parsed.guess_media_type());
        let manifest = Arc::new(StoredManifest::new(digest.clone(), media_type, bytes, &parsed));
        self.names.cache().insert_manifest(repo, manifest.clone());
        Ok(Some(manifest))
    }

    /// Content, members, link, tags; in this order, so that no name leads to something that does not exist.
    pub(super) fn put_manifest(
        &self,
        repo: &RepoId,
        new: NewManifest,
        tags: &[Tag],
    ) -> Result<Arc<StoredManifest>, StoreError> {
        self.require_writable()?;
        let durable = repo.scope.is_local();
        let class = if durable { Class::Pushed } else { Class::Cached };
        let NewManifest { digest, media_type, bytes, manifest } = new;
        let length = bytes.len() as u64;
        let room = if durable {
            self.cache.require_disk_room(length, 1, self)?;
            None
        } else {
            // Itself, its link, its tags, and a link for each child.
            let names = (manifest.children.len() + tags.len() + 2) as u64;
            Some(self.cache.reserve(length + names * NAME_BYTES, names, self)?)
        };

        let temporary = Temporary::new(self.layout.temporary());
        let path = temporary.path();
        self.layout.with_folder(path, |path| fs::write(path, &bytes)).at("write", path)?;
        let _pending = durable.then(|| self.content.pending_links().announce(&digest));
        self.commit_file(path, &digest, length, class)?;

        let _locked = self.names.write(repo);
        if durable {
            self.marks.unmark(&[Unreferenced::Manifest(repo.clone(), digest.clone())]);
        }
        self.create_repository(repo)?;
        if !durable {
            // The upstream need not have a layer that is fetched from elsewhere. It is asked when a client wants it.
            let mut linked = HashSet::new();
            for child in manifest.children.iter().filter(|child| !child.optional) {
                if linked.insert(&child.digest) {
                    self.write_member(repo, &child.digest, Member { size: child.size, proven: false })?;
                }
            }
        }
        self.link_referrer(repo, &digest, &manifest)?;
        self.link_manifest(repo, &digest, &media_type)?;
        self.emit(StoreEvent::ManifestStored {
            repo: repo.clone(),
            digest: digest.clone(),
            media_type: media_type.clone(),
            bytes: length,
        });
        let record =
            TagRecord { digest: digest.clone(), media_type: media_type.as_str().into(), confirmed: SystemTime::now() };
        for tag in tags {
            self.write_tag(repo, tag, &record)?;
            self.names.cache().insert_tag(repo.clone(), tag.clone(), record.clone());
        }
        self.pins_may_grow(&digest);
        drop(room);
        // Two tags of one manifest share its bytes in memory.
        let known = self.names.cache().manifest(repo, &digest).filter(|known| known.media_type == media_type);
        let stored = known.unwrap_or_else(|| Arc::new(StoredManifest::new(digest, media_type, bytes, &manifest)));
        self.names.cache().insert_manifest(repo.clone(), stored.clone());
        Ok(stored)
    }

    /// With the repository's write lock held.
    fn link_manifest(&self, repo: &RepoId, digest: &Digest, media_type: &str) -> Result<(), StoreError> {
        let (link, durable) = (self.layout.manifest_link(repo, digest), repo.scope.is_local());
        if self.layout.manifest_media_type(repo, digest)?.as_deref() == Some(media_type) {
            return self.sync_name(repo, &link);
        }
        self.write_name(repo, &link, &name_text::manifest_link_text(media_type), durable)?;
        if !durable {
            self.index.apply(&[Change::Link(repo, digest)]);
        }
        Ok(())
    }

    pub(super) fn delete_manifest(&self, repo: &RepoId, digest: &Digest) -> Result<bool, StoreError> {
        let _locked = self.names.write(repo);
        if self.layout.manifest_media_type(repo, digest)?.is_none() {
            return Ok(false);
        }
        self.remove_manifest(repo, digest, self.subject_of(digest)?.as_ref())?;
        self.remove_empty_local(repo)?;
        Ok(true)
    }

    /// The subject that a stored manifest names.
    pub(super) fn subject_of(&self, digest: &Digest) -> Result<Option<Digest>, StoreError> {
        Ok(self.layout.parse_manifest(digest)?.and_then(|manifest| manifest.subject))
    }

    /// Removes the tags that point to a manifest, its link, and its entry among the referrers of its subject. With the
    /// repository's write lock held.
    pub(super) fn remove_manifest(
        &self,
        repo: &RepoId,
        digest: &Digest,
        subject: Option<&Digest>,
    ) -> Result<(), StoreError> {
        for tag in self.layout.tags_on_disk(repo)? {
            if self.layout.tag_file(repo, &tag)?.is_some_and(|record| record.digest == *digest) {
                self.remove_tag(repo, &tag)?;
            }
        }
        self.names.cache().remove_manifest(repo, digest);
        let event = StoreEvent::ManifestRemoved { repo: repo.clone(), digest: digest.clone() };
        self.remove_reported_name(repo, &self.layout.manifest_link(repo, digest), event)?;
        if let Some(subject) = subject {
            self.remove_name(repo, &self.layout.referrer_link(repo, subject, digest))?;
        }
        if !repo.scope.is_local() {
            self.index.apply(&[Change::NoLink(repo, digest)]);
        }
        Ok(())
    }
}

//! Tags: `_tags/<tag>`, one file for each, with the digest and media type that the tag points to.

use std::time::Duration;

use super::Local;
use crate::events::StoreEvent;
use crate::oci::{Digest, RepoId, Tag};
use crate::store::error::StoreError;
use crate::store::fs;
use crate::store::index::Change;
use crate::store::records::TagRecord;

impl Local {
    pub(super) fn load_tag(&self, repo: RepoId, tag: Tag) -> Result<Option<TagRecord>, StoreError> {
        let _locked = self.names.read(&repo);
        let record = self.layout.read_tag(&repo, &tag)?;
        if let Some(record) = &record {
            self.names.cache().insert_tag(repo, tag, record.clone());
        }
        Ok(record)
    }

    pub(super) fn compare_and_set_tag(
        &self,
        repo: RepoId,
        tag: Tag,
        old: Option<&Digest>,
        new: TagRecord,
        rewrite: Duration,
    ) -> Result<bool, StoreError> {
        let _locked = self.names.write(&repo);
        let stored = self.layout.read_tag(&repo, &tag)?;
        // A tag whose file has vanished has not moved.
        if stored.as_ref().is_some_and(|record| Some(&record.digest) != old) {
            return Ok(false);
        }
        let is_recent = stored.as_ref().is_some_and(|stored| {
            stored.digest == new.digest && new.confirmed.duration_since(stored.confirmed).is_ok_and(|age| age < rewrite)
        });
        if !is_recent && !self.is_read_only() {
            self.write_tag(&repo, &tag, &new)?;
        }
        self.names.cache().insert_tag(repo, tag, new);
        Ok(true)
    }

    pub(super) fn delete_tag(&self, repo: &RepoId, tag: &Tag) -> Result<bool, StoreError> {
        let _locked = self.names.write(repo);
        // This includes the file of a tag whose manifest is gone. The file exists, so observers get an event for its
        // removal.
        let existed = self.layout.tag_file(repo, tag)?.is_some();
        self.remove_tag(repo, tag)?;
        self.remove_empty_local(repo)?;
        Ok(existed)
    }

    /// With the repository's write lock held.
    pub(super) fn write_tag(&self, repo: &RepoId, tag: &Tag, record: &TagRecord) -> Result<(), StoreError> {
        let path = self.layout.tag(repo, tag);
        let previous = self.digest_in_tag_file(repo, tag);
        self.names.cache().remove_tag(repo, tag);
        let written = self.write_name(repo, &path, &record.to_text(), repo.scope.is_local());
        // After a failure as well: the file may be in place and only its sync have failed.
        if written.is_ok() || fs::exists(&path) {
            self.index.apply(&[Change::Tag(repo, tag)]);
        }
        self.pins_may_change(repo, tag);
        // Reported after a failed sync as well, if the tag has moved: a second attempt would find nothing to move.
        let moved = written.is_ok() || self.digest_in_tag_file(repo, tag).as_ref() == Some(&record.digest);
        if moved && previous.as_ref() != Some(&record.digest) {
            let (repo, tag, digest) = (repo.clone(), tag.clone(), record.digest.clone());
            self.emit(StoreEvent::TagMoved { repo, tag, digest, previous });
        }
        written
    }

    /// What a tag pointed to, for an event. A file that cannot be read is no reason not to replace it.
    fn digest_in_tag_file(&self, repo: &RepoId, tag: &Tag) -> Option<Digest> {
        let stored = self.layout.tag_file(repo, tag).unwrap_or_else(|error| {
            tracing::warn!(%repo, %tag, %error, "cannot read the file of a tag that is replaced");
            None
        });
        stored.map(|stored| stored.digest)
    }

    /// With the repository's write lock held.
    pub(super) fn remove_tag(&self, repo: &RepoId, tag: &Tag) -> Result<(), StoreError> {
        let path = self.layout.tag(repo, tag);
        self.names.cache().remove_tag(repo, tag);
        let event = StoreEvent::TagRemoved { repo: repo.clone(), tag: tag.clone() };
        let removed = self.remove_reported_name(repo, &path, event);
        if removed.is_ok() || !fs::exists(&path) {
            self.index.apply(&[Change::NoTag(repo, tag)]);
        }
        self.pins_may_change(repo, tag);
        removed.map(drop)
    }
}

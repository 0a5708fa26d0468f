//! Names: which tags a repository has, which manifests and blobs belong to it. Small text files, by rename.
//!
//! A local repository's names are on the disk before a call returns; a mirrored one's are not waited for.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;

use super::error::{At, StoreError, optional};
use super::fs;
use super::index::Change;
use super::layout::{Temporary, create_folders, sync_folder};
use super::records::Candidate;
use super::records::{self, Class, Member, StoredManifest, TagRecord};
use super::space::NAME_BYTES;
use super::{Inner, Store};
use crate::oci::{Digest, Manifest, RepoId, Tag};

/// A manifest to be stored in a repository.
#[derive(Debug)]
pub struct NewManifest {
    pub digest: Digest,
    pub media_type: String,
    pub bytes: Bytes,
    /// What it refers to becomes readable in its repository, too.
    pub manifest: Manifest,
}

impl Store {
    /// Whether anything was ever stored in this repository.
    pub async fn repository_exists(&self, repo: &RepoId) -> Result<bool, StoreError> {
        if repo.scope.is_local() {
            return Ok(self.is_local(&repo.name));
        }
        if self.inner.front.repositories.contains_key(repo) {
            return Ok(true);
        }
        let repo = repo.clone();
        self.run(move |inner| {
            let exists = inner.layout.blob_links(&repo).is_dir();
            if exists {
                inner.front.repositories.insert(repo, ());
            }
            Ok(exists)
        })
        .await
    }

    /// Makes the name local, from its first upload on.
    pub async fn create_local(&self, repo: &RepoId) -> Result<(), StoreError> {
        if self.is_local(&repo.name) {
            return Ok(());
        }
        let repo = repo.clone();
        self.run(move |inner| {
            let _locked = inner.repositories.write(&repo);
            inner.create_repository(&repo)
        })
        .await
    }

    /// Whether the digest may be read in this repository, and its size if that is known. Its content may not be here.
    pub async fn member(&self, repo: &RepoId, digest: &Digest) -> Result<Option<Member>, StoreError> {
        if repo.scope.is_local() {
            self.inner.unmark(&[Candidate::Member(repo.clone(), digest.clone()), Candidate::Content(digest.clone())]);
        }
        let key = (repo.clone(), digest.clone());
        if let Some(member) = self.inner.front.members.get(&key) {
            return Ok(Some(member));
        }
        self.run(move |inner| {
            let (repo, digest) = &key;
            let _locked = inner.repositories.read(repo);
            let member = inner.layout.read_member(repo, digest)?;
            if let Some(member) = member {
                inner.front.members.insert(key, member);
            }
            Ok(member)
        })
        .await
    }

    /// Lets the digest be read in this repository from now on.
    pub async fn link_blob(&self, repo: &RepoId, digest: &Digest, size: Option<u64>) -> Result<(), StoreError> {
        let (repo, digest) = (repo.clone(), digest.clone());
        self.run(move |inner| inner.link_blob(&repo, &digest, size)).await
    }

    /// Ends that; whether it could be read before. Its content stays for whoever else has it.
    pub async fn unlink_blob(&self, repo: &RepoId, digest: &Digest) -> Result<bool, StoreError> {
        let (repo, digest) = (repo.clone(), digest.clone());
        self.run(move |inner| {
            let _locked = inner.repositories.write(&repo);
            inner.remove_member(&repo, &digest)
        })
        .await
    }

    /// A manifest of this repository, if it belongs here and its content is here.
    pub async fn manifest(&self, repo: &RepoId, digest: &Digest) -> Result<Option<Arc<StoredManifest>>, StoreError> {
        if repo.scope.is_local() {
            self.inner.unmark(&[Candidate::Manifest(repo.clone(), digest.clone())]);
        }
        let key = (repo.clone(), digest.clone());
        if let Some(manifest) = self.inner.front.manifests.get(&key) {
            return Ok(Some(manifest));
        }
        self.run(move |inner| {
            let (repo, digest) = &key;
            let _locked = inner.repositories.read(repo);
            let Some(media_type) = inner.layout.manifest_media_type(repo, digest)? else { return Ok(None) };
            let Some(bytes) = inner.read_manifest(digest)? else { return Ok(None) };
            let parsed = Manifest::parse(&bytes).unwrap_or_default();
            let manifest = Arc::new(StoredManifest::new(digest.clone(), media_type, bytes, &parsed));
            inner.front.manifests.insert(key, manifest.clone());
            Ok(Some(manifest))
        })
        .await
    }

    /// The content of a manifest that is here for another repository's sake; whether it may be served is the caller's to know.
    pub async fn manifest_content(&self, digest: &Digest) -> Result<Option<Bytes>, StoreError> {
        let digest = digest.clone();
        self.run(move |inner| inner.read_manifest(&digest)).await
    }

    /// Whether a manifest belongs to this repository.
    pub async fn has_manifest(&self, repo: &RepoId, digest: &Digest) -> Result<bool, StoreError> {
        let (repo, digest) = (repo.clone(), digest.clone());
        self.run(move |inner| Ok(inner.layout.manifest_media_type(&repo, &digest)?.is_some())).await
    }

    /// Stores a manifest: content, what it refers to, link, tags; in this order, so that a name never points at nothing.
    pub async fn put_manifest(
        &self,
        repo: &RepoId,
        new: NewManifest,
        tags: Vec<Tag>,
    ) -> Result<Arc<StoredManifest>, StoreError> {
        let repo = repo.clone();
        self.run(move |inner| inner.put_manifest(&repo, new, &tags)).await
    }

    /// Removes a manifest and the tags that point to it; whether it was there.
    pub async fn delete_manifest(&self, repo: &RepoId, digest: &Digest) -> Result<bool, StoreError> {
        let (repo, digest) = (repo.clone(), digest.clone());
        self.run(move |inner| inner.delete_manifest(&repo, &digest)).await
    }

    /// What a tag means here. A tag whose manifest does not belong to the repository does not exist.
    pub async fn tag(&self, repo: &RepoId, tag: &Tag) -> Result<Option<TagRecord>, StoreError> {
        let key = (repo.clone(), tag.clone());
        if let Some(record) = self.inner.front.tags.get(&key) {
            return Ok(Some(record));
        }
        self.run(move |inner| {
            let (repo, tag) = &key;
            let _locked = inner.repositories.read(repo);
            let record = inner.layout.read_tag(repo, tag)?;
            if let Some(record) = &record {
                inner.front.tags.insert(key, record.clone());
            }
            Ok(record)
        })
        .await
    }

    /// Points a mirrored tag to a manifest of the repository, unless it has moved since the caller saw it at `old`.
    /// A mere confirmation rewrites its file only if the file's own is `rewrite` old; the front always learns it.
    pub async fn compare_and_set_tag(
        &self,
        repo: &RepoId,
        tag: &Tag,
        old: Option<Digest>,
        new: TagRecord,
        rewrite: Duration,
    ) -> Result<bool, StoreError> {
        let (repo, tag) = (repo.clone(), tag.clone());
        self.run(move |inner| {
            let _locked = inner.repositories.write(&repo);
            let there = inner.layout.read_tag(&repo, &tag)?;
            // A file that has vanished has not moved.
            if there.as_ref().is_some_and(|record| Some(&record.digest) != old.as_ref()) {
                return Ok(false);
            }
            let young = there.is_some_and(|there| {
                there.digest == new.digest
                    && new.confirmed.duration_since(there.confirmed).is_ok_and(|age| age < rewrite)
            });
            if !young && !inner.read_only {
                inner.write_tag(&repo, &tag, &new)?;
            }
            inner.front.tags.insert((repo, tag), new);
            Ok(true)
        })
        .await
    }

    /// Removes a tag; whether it was there.
    pub async fn delete_tag(&self, repo: &RepoId, tag: &Tag) -> Result<bool, StoreError> {
        let (repo, tag) = (repo.clone(), tag.clone());
        self.run(move |inner| {
            let _locked = inner.repositories.write(&repo);
            let existed = inner.layout.read_tag(&repo, &tag)?.is_some();
            inner.remove_tag(&repo, &tag)?;
            Ok(existed)
        })
        .await
    }
}

// === the same, on the blocking pool ===

impl Inner {
    /// The content of a manifest. It is small enough to be hashed whenever it is read; what is wrong counts as not there.
    fn read_manifest(&self, digest: &Digest) -> Result<Option<Bytes>, StoreError> {
        let Some((file, bytes)) = self.layout.open_content(digest, Manifest::MAX_LENGTH)? else { return Ok(None) };
        if Digest::of(digest.algorithm(), &bytes) == *digest {
            return Ok(Some(bytes));
        }
        self.quarantine(digest, &file)?;
        Ok(None)
    }

    /// With the repository's write lock held.
    fn create_repository(&self, repo: &RepoId) -> Result<(), StoreError> {
        self.check_writes()?;
        let path = self.layout.blob_links(repo);
        create_folders(&path, repo.scope.is_local()).at("create", &path)?;
        self.index.apply(&[Change::Repository(repo)]);
        if repo.scope.is_local() {
            self.locals.write().insert(repo.name.clone());
        }
        Ok(())
    }

    pub(super) fn link_blob(&self, repo: &RepoId, digest: &Digest, size: Option<u64>) -> Result<(), StoreError> {
        let _locked = self.repositories.write(repo);
        self.create_repository(repo)?;
        self.write_member(repo, digest, Member { size })
    }

    /// With the repository's write lock held. An existing link stays as it is unless it lacked the size. Local links
    /// carry none: their content is always here, and an empty file needs no sync of its own.
    fn write_member(&self, repo: &RepoId, digest: &Digest, member: Member) -> Result<(), StoreError> {
        let member = if repo.scope.is_local() { Member { size: None } } else { member };
        let path = self.layout.blob_link(repo, digest);
        match self.layout.read_member(repo, digest)? {
            Some(there) if there.size.is_some() || member.size.is_none() => return self.sync_name(repo, &path),
            _ => {}
        }
        self.write_name(repo, &path, &member.to_text(), repo.scope.is_local())?;
        self.front.members.insert((repo.clone(), digest.clone()), member);
        Ok(())
    }

    fn put_manifest(&self, repo: &RepoId, new: NewManifest, tags: &[Tag]) -> Result<Arc<StoredManifest>, StoreError> {
        self.check_writes()?;
        let durable = repo.scope.is_local();
        let class = if durable { Class::Pushed } else { Class::Cached };
        let NewManifest { digest, media_type, bytes, manifest } = new;
        let room = if durable {
            self.need_disk(bytes.len() as u64)?;
            None
        } else {
            // Itself, its link and tag, and a link for everything that it refers to.
            let names = (manifest.children.len() + tags.len() + 2) as u64;
            Some(self.reserve(bytes.len() as u64 + names * NAME_BYTES)?)
        };

        let temporary = Temporary::new(self.layout.temporary());
        let path = temporary.path();
        self.layout.within(path, |path| fs::write(path, &bytes)).at("write", path)?;
        let _held = durable.then(|| self.coming.hold(&digest));
        self.commit_file(path, &digest, bytes.len() as u64, class)?;

        let _locked = self.repositories.write(repo);
        if durable {
            self.unmark(&[Candidate::Manifest(repo.clone(), digest.clone())]);
        }
        self.create_repository(repo)?;
        if !durable {
            // A foreign layer need not be the upstream's: whether it has it is asked when somebody wants it.
            for child in manifest.children.iter().filter(|child| !child.optional) {
                self.write_member(repo, &child.digest, Member { size: Some(child.size) })?;
            }
        }
        self.link_referrer(repo, &digest, &manifest)?;
        let link = self.layout.manifest_link(repo, &digest);
        if self.layout.manifest_media_type(repo, &digest)?.as_deref() != Some(&media_type) {
            self.write_name(repo, &link, &records::manifest_link_text(&media_type), durable)?;
            if !durable {
                self.index.apply(&[Change::Link(repo, &digest)]);
            }
        } else {
            self.sync_name(repo, &link)?;
        }
        let record = TagRecord { digest: digest.clone(), media_type: media_type.clone(), confirmed: SystemTime::now() };
        for tag in tags {
            self.write_tag(repo, tag, &record)?;
            self.front.tags.insert((repo.clone(), tag.clone()), record.clone());
        }
        self.manifest_came(&digest);
        drop(room);
        let stored = Arc::new(StoredManifest::new(digest.clone(), media_type, bytes, &manifest));
        self.front.manifests.insert((repo.clone(), digest), stored.clone());
        Ok(stored)
    }

    fn delete_manifest(&self, repo: &RepoId, digest: &Digest) -> Result<bool, StoreError> {
        let _locked = self.repositories.write(repo);
        if self.layout.manifest_media_type(repo, digest)?.is_none() {
            return Ok(false);
        }
        self.remove_manifest(repo, digest, self.subject_of(digest)?.as_ref())?;
        Ok(true)
    }

    pub(super) fn subject_of(&self, digest: &Digest) -> Result<Option<Digest>, StoreError> {
        let content = self.layout.read_content(digest, Manifest::MAX_LENGTH)?;
        Ok(content.and_then(|bytes| Manifest::parse(&bytes).ok()?.subject))
    }

    /// A manifest's link, the tags that mean it, and its place among the referrers of its subject. With the repository's
    /// write lock held.
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
        self.front.manifests.invalidate(&(repo.clone(), digest.clone()));
        self.remove_name(repo, &self.layout.manifest_link(repo, digest))?;
        if let Some(subject) = subject {
            self.remove_name(repo, &self.layout.referrer_link(repo, subject, digest))?;
        }
        if !repo.scope.is_local() {
            self.index.apply(&[Change::NoLink(repo, digest)]);
        }
        Ok(())
    }

    /// With the repository's write lock held; whether it was there.
    pub(super) fn remove_member(&self, repo: &RepoId, digest: &Digest) -> Result<bool, StoreError> {
        self.front.members.invalidate(&(repo.clone(), digest.clone()));
        self.remove_name(repo, &self.layout.blob_link(repo, digest))
    }

    fn write_tag(&self, repo: &RepoId, tag: &Tag, record: &TagRecord) -> Result<(), StoreError> {
        let path = self.layout.tag(repo, tag);
        self.front.tags.invalidate(&(repo.clone(), tag.clone()));
        let written = self.write_name(repo, &path, &record.to_text(), repo.scope.is_local());
        // Also after a failure: it may be in place, and only not be known to be on the disk.
        if written.is_ok() || path.exists() {
            self.index.apply(&[Change::Tag(repo, tag)]);
        }
        self.tag_changed(repo, tag);
        written
    }

    /// With the repository's write lock held.
    pub(super) fn remove_tag(&self, repo: &RepoId, tag: &Tag) -> Result<(), StoreError> {
        let path = self.layout.tag(repo, tag);
        self.front.tags.invalidate(&(repo.clone(), tag.clone()));
        let removed = self.remove_name(repo, &path).map(drop);
        if removed.is_ok() || !path.exists() {
            self.index.apply(&[Change::NoTag(repo, tag)]);
        }
        self.tag_changed(repo, tag);
        removed
    }

    /// Puts a small file in place by rename, creating the folders above it; with `durable`, on the disk before it returns.
    pub(super) fn write_name(&self, repo: &RepoId, path: &Path, text: &str, durable: bool) -> Result<(), StoreError> {
        self.check_writes()?;
        let temporary = Temporary::new(self.layout.temporary());
        let written = self.layout.within(temporary.path(), fs::create_new).and_then(|mut file| {
            fs::write_all(&mut file, text.as_bytes())?;
            if durable && !text.is_empty() { fs::sync_all(&file) } else { Ok(()) }
        });
        written.at("write", temporary.path())?;
        let folder = path.parent().unwrap_or(self.layout.root());
        let is_new = !durable && fs::metadata(path).is_err();
        let renamed = match fs::rename(temporary.path(), path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                create_folders(folder, durable).at("create", folder)?;
                fs::rename(temporary.path(), path)
            }
            renamed => renamed,
        };
        renamed.at("rename", path)?;
        if is_new {
            self.space.add_names(repo, 1);
        }
        if durable { sync_folder(folder).at("sync", folder) } else { Ok(()) }
    }

    /// A local name that is there already may not be on the disk yet: who put it there was stopped before.
    fn sync_name(&self, repo: &RepoId, path: &Path) -> Result<(), StoreError> {
        let folder = path.parent().unwrap_or(self.layout.root());
        if repo.scope.is_local() { sync_folder(folder).at("sync", folder) } else { Ok(()) }
    }

    /// Whether there was such a name; the end of a local one is on the disk before this returns.
    pub(super) fn remove_name(&self, repo: &RepoId, path: &Path) -> Result<bool, StoreError> {
        self.check_writes()?;
        if optional(fs::remove_file(path)).at("remove", path)?.is_none() {
            return Ok(false);
        }
        if repo.scope.is_local() {
            let folder = path.parent().unwrap_or(self.layout.root());
            sync_folder(folder).at("sync", folder)?;
        } else {
            self.space.add_names(repo, -1);
        }
        Ok(true)
    }

    /// Removes what is left of a mirrored repository that has no names any more, and the empty folders above it; whether
    /// it had none. With the repository's write lock held.
    pub(super) fn remove_empty(&self, repo: &RepoId) -> Result<bool, StoreError> {
        let empty = self.layout.remove_empty(repo);
        if empty {
            self.index.apply(&[Change::NoRepository(repo)]);
        }
        Ok(empty)
    }
}

//! Members: `_blobs/<alg>/<hex>`, one file for each blob that may be read in a repository.

use super::Local;
use crate::events::StoreEvent;
use crate::oci::{Digest, RepoId};
use crate::store::error::StoreError;
use crate::store::records::Member;

impl Local {
    pub(super) fn load_member(&self, repo: RepoId, digest: Digest) -> Result<Option<Member>, StoreError> {
        let _locked = self.names.read(&repo);
        let member = self.layout.read_member(&repo, &digest)?;
        if let Some(member) = member {
            self.names.cache().insert_member(repo, digest, member);
        }
        Ok(member)
    }

    pub(super) fn link_blob(&self, repo: &RepoId, digest: &Digest, size: Option<u64>) -> Result<(), StoreError> {
        let _locked = self.names.write(repo);
        self.create_repository(repo)?;
        self.write_member(repo, digest, Member { size, proven: true })
    }

    /// Links a blob of `length` bytes that was pushed to a local repository. Its content is pushed content already.
    pub(super) fn link_pushed_blob(&self, repo: &RepoId, digest: &Digest, length: u64) -> Result<(), StoreError> {
        let _locked = self.names.write(repo);
        self.create_repository(repo)?;
        self.write_member(repo, digest, Member { size: Some(length), proven: true })?;
        self.emit(StoreEvent::BlobPushed { repo: repo.clone(), digest: digest.clone(), bytes: length });
        Ok(())
    }

    /// Links a blob of `length` bytes that was fetched for a mirrored repository.
    pub(super) fn link_cached_blob(&self, repo: &RepoId, digest: &Digest, length: u64) -> Result<(), StoreError> {
        let _locked = self.names.write(repo);
        self.create_repository(repo)?;
        self.write_member(repo, digest, Member { size: Some(length), proven: true })?;
        self.emit(StoreEvent::BlobCached { repo: repo.clone(), digest: digest.clone(), bytes: length });
        Ok(())
    }

    /// With the repository's write lock held. An existing link stays as it is unless its size was unknown or it was not
    /// proven. The links of local repositories have no size: their content is always stored, and an empty file needs no
    /// sync of its own.
    pub(super) fn write_member(&self, repo: &RepoId, digest: &Digest, member: Member) -> Result<(), StoreError> {
        let mut member = if repo.scope.is_local() { Member { size: None, ..member } } else { member };
        let path = self.layout.blob_link(repo, digest);
        if let Some(stored) = self.layout.read_member(repo, digest)? {
            let says_more = (stored.size.is_none() && member.size.is_some()) || (!stored.proven && member.proven);
            if !says_more {
                return self.sync_name(repo, &path);
            }
            member = Member { size: stored.size.or(member.size), proven: stored.proven || member.proven };
        }
        self.write_name(repo, &path, &member.to_text(), repo.scope.is_local())?;
        self.names.cache().insert_member(repo.clone(), digest.clone(), member);
        Ok(())
    }

    /// With the repository's write lock held. Whether the blob was a member.
    pub(super) fn remove_member(&self, repo: &RepoId, digest: &Digest) -> Result<bool, StoreError> {
        self.names.cache().remove_member(repo, digest);
        let link = self.layout.blob_link(repo, digest);
        if !repo.scope.is_local() {
            return self.remove_name(repo, &link);
        }
        let event = StoreEvent::BlobRemoved { repo: repo.clone(), digest: digest.clone() };
        self.remove_reported_name(repo, &link, event)
    }
}

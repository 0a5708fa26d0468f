//! The contract for names: which repositories exist, and which manifests, blobs and tags belong to them.

use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;

use super::error::StoreError;
use super::records::{Member, Page, StoredManifest, TagRecord};
use crate::oci::{Digest, Manifest, RepoId, RepoName, Scope, Tag};

/// A manifest to be stored in a repository.
#[derive(Debug)]
pub struct NewManifest {
    pub digest: Digest,
    pub media_type: String,
    pub bytes: Bytes,
    /// `bytes`, parsed. In a mirrored repository, everything that it refers to becomes a member without a proof.
    pub manifest: Manifest,
}

/// Says whether the requester may read a local repository.
pub type MayRead = Box<dyn Fn(&RepoName) -> bool + Send>;

/// Names, under these guarantees:
///
/// - **Durability.** A change to a *local* repository is durable before the call returns. A change to a mirrored one need
///   not be: it can be fetched again.
/// - **Atomicity.** A reader sees a tag or a link before a change or after it, never in between. After a crash the same
///   holds.
/// - **Order.** [`Names::put_manifest`] stores content, then links, then the manifest's own link, then tags, so that no name
///   ever leads to something that does not exist. A removal goes the other way round.
/// - **Visibility.** A change is visible to every later call, through whatever memory cache: after a delete has returned, the
///   `cached_` methods do not return what was deleted.
/// - **Collection.** A requester that looks up a blob or a manifest of a local repository relies on it. From then on the
///   collector does not remove it for at least the grace period. [`Names::member`], [`Names::manifest`],
///   [`Names::has_manifest`] and their `cached_` counterparts look something up. A deletion by a client is not held back.
/// - **Events.** Each change emits its event once, when it is durable and visible; several changes of one call emit theirs in
///   the order of the changes. A call that fails or changes nothing emits nothing for what it did not change. A change that is
///   visible although its sync has failed is reported as well.
/// - **Isolation.** Content that is stored for one repository is not readable in another one before it is linked there,
///   with a proof ([`Member::proven`]). A manifest that refers to it links it without one.
///
/// Methods whose name begins with `cached_` answer from memory, without waiting; `None` means that the other method must be
/// asked. They exist for the hit path.
#[async_trait]
pub trait Names: Debug + Send + Sync {
    /// Whether a local repository of this name exists: it has a manifest, a blob or a tag. A push session is none of
    /// these. Answers from memory, because every request that names no upstream needs it.
    fn is_local(&self, name: &RepoName) -> bool;

    /// Whether anything is stored in this repository. A mirrored repository may count for a while after its last
    /// content is gone.
    async fn repository_exists(&self, repo: &RepoId) -> Result<bool, StoreError>;

    fn cached_member(&self, repo: &RepoId, digest: &Digest) -> Option<Member>;

    /// The right to read a blob in a repository; `None` if there is none. The content may not be stored.
    async fn member(&self, repo: &RepoId, digest: &Digest) -> Result<Option<Member>, StoreError>;

    /// Makes a blob readable in a repository, as a proven member. `size` is its length in bytes, if known. An existing
    /// link keeps its size, unless that was unknown.
    async fn link_blob(&self, repo: &RepoId, digest: &Digest, size: Option<u64>) -> Result<(), StoreError>;

    /// Ends the right to read a blob in a repository. Whether there was one. The content stays.
    async fn unlink_blob(&self, repo: &RepoId, digest: &Digest) -> Result<bool, StoreError>;

    fn cached_manifest(&self, repo: &RepoId, digest: &Digest) -> Option<Arc<StoredManifest>>;

    /// A manifest that belongs to the repository and whose content is stored and has its digest.
    async fn manifest(&self, repo: &RepoId, digest: &Digest) -> Result<Option<Arc<StoredManifest>>, StoreError>;

    /// Whether a manifest belongs to the repository. Its content may not be stored.
    async fn has_manifest(&self, repo: &RepoId, digest: &Digest) -> Result<bool, StoreError>;

    /// Stores a manifest and points `tags` to it.
    async fn put_manifest(
        &self,
        repo: &RepoId,
        new: NewManifest,
        tags: Vec<Tag>,
    ) -> Result<Arc<StoredManifest>, StoreError>;

    /// Removes a manifest and the tags that point to it. Whether it existed.
    async fn delete_manifest(&self, repo: &RepoId, digest: &Digest) -> Result<bool, StoreError>;

    fn cached_tag(&self, repo: &RepoId, tag: &Tag) -> Option<TagRecord>;

    /// What a tag points to. A tag whose manifest does not belong to the repository does not exist.
    async fn tag(&self, repo: &RepoId, tag: &Tag) -> Result<Option<TagRecord>, StoreError>;

    /// Points a tag to a manifest, or confirms a mirrored one. The manifest must belong to the repository. False, without effect,
    /// if the tag exists and does not point to `old`; of several concurrent calls with the same `old` and different new
    /// digests, one succeeds. A tag that does not exist counts as unmoved, whatever `old` says, as its file may have been
    /// evicted. `rewrite` bounds writes: a mere confirmation is written only if the stored one is at least that much older,
    /// but it is visible at once.
    async fn compare_and_set_tag(
        &self,
        repo: &RepoId,
        tag: &Tag,
        old: Option<Digest>,
        new: TagRecord,
        rewrite: Duration,
    ) -> Result<bool, StoreError>;

    /// Removes a tag. Returns whether its file existed, even if its manifest does not belong to the repository. The
    /// manifest stays.
    async fn delete_tag(&self, repo: &RepoId, tag: &Tag) -> Result<bool, StoreError>;

    /// Up to `limit` tags of a repository that sort after `after`, which need not exist. The order is that of their bytes.
    async fn tags(&self, repo: &RepoId, after: &str, limit: usize) -> Result<Page, StoreError>;

    /// Up to `limit` names of local repositories that sort after `after`.
    async fn local_repositories(&self, after: &str, limit: usize) -> Result<Page, StoreError>;

    /// The manifests of the repository that name `subject` as their subject, in the order of their digests. The subject need
    /// not exist. After a crash the list may hold manifests that no longer belong to the repository, so each is to be looked up.
    async fn referrers(&self, repo: &RepoId, subject: &Digest) -> Result<Vec<Digest>, StoreError>;

    /// A local repository that the requester may read and that has this blob, if any. `may_read` is asked for each local
    /// repository before it is looked into. Cached content that is in no local repository is not found.
    async fn find_pushed(&self, digest: &Digest, may_read: MayRead) -> Result<Option<RepoId>, StoreError>;

    /// A repository of the scope, among those that `may_share`, that has a proven right to read the digest.
    async fn find_proven(
        &self,
        scope: &Scope,
        digest: &Digest,
        may_share: MayRead,
    ) -> Result<Option<RepoId>, StoreError>;
}

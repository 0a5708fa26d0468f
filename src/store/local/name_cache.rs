//! Names in memory: what makes a hit cheap.
//!
//! An entry is inserted under its repository's read lock and removed under its write lock, so it never outlives the
//! file it stands for.

use std::sync::Arc;
use std::time::Duration;

use moka::Equivalent;
use moka::sync::Cache;

use crate::oci::{Digest, RepoId, Tag};
use crate::store::records::{Member, StoredManifest, TagRecord};

const MAX_MANIFEST_BYTES: u64 = 32 << 20;
const MAX_TAGS: u64 = 20_000;
const MAX_MEMBERS: u64 = 50_000;
const MAX_REPOSITORIES: u64 = 10_000;
/// How long it is remembered that a mirrored repository exists.
const REPOSITORY_TTL: Duration = Duration::from_secs(60);
/// Bytes that an entry takes beside its manifest, so that tiny manifests are bounded as well.
const MANIFEST_OVERHEAD_BYTES: usize = 512;

#[derive(Debug)]
pub(super) struct NameCache {
    manifests: Cache<(RepoId, Digest), Arc<StoredManifest>>,
    tags: Cache<(RepoId, Tag), TagRecord>,
    members: Cache<(RepoId, Digest), Member>,
    /// Mirrored repositories that existed lately. A stale entry matters to the first push of a name only.
    repositories: Cache<RepoId, ()>,
}

/// A borrowed key, so that a look-up copies nothing. It has the hash of the pair that it stands for.
#[derive(Hash)]
struct Key<'a, T>(&'a RepoId, &'a T);

impl<T: Eq> Equivalent<(RepoId, T)> for Key<'_, T> {
    fn equivalent(&self, (repo, name): &(RepoId, T)) -> bool {
        self.1 == name && self.0 == repo
    }
}

impl Default for NameCache {
    fn default() -> Self {
        Self {
            manifests: Cache::builder()
                .max_capacity(MAX_MANIFEST_BYTES)
                .weigher(|_, manifest: &Arc<StoredManifest>| {
                    u32::try_from(manifest.weight() + MANIFEST_OVERHEAD_BYTES).unwrap_or(u32::MAX)
                })
                .build(),
            tags: Cache::new(MAX_TAGS),
            members: Cache::new(MAX_MEMBERS),
            repositories: Cache::builder().max_capacity(MAX_REPOSITORIES).time_to_live(REPOSITORY_TTL).build(),
        }
    }
}

impl NameCache {
    pub(super) fn manifest(&self, repo: &RepoId, digest: &Digest) -> Option<Arc<StoredManifest>> {
        self.manifests.get(&Key(repo, digest))
    }

    pub(super) fn insert_manifest(&self, repo: RepoId, manifest: Arc<StoredManifest>) {
        self.manifests.insert((repo, manifest.digest.clone()), manifest);
    }

    pub(super) fn remove_manifest(&self, repo: &RepoId, digest: &Digest) {
        self.manifests.invalidate(&Key(repo, digest));
    }

    pub(super) fn tag(&self, repo: &RepoId, tag: &Tag) -> Option<TagRecord> {
        self.tags.get(&Key(repo, tag))
    }

    pub(super) fn insert_tag(&self, repo: RepoId, tag: Tag, record: TagRecord) {
        self.tags.insert((repo, tag), record);
    }

    pub(super) fn remove_tag(&self, repo: &RepoId, tag: &Tag) {
        self.tags.invalidate(&Key(repo, tag));
    }

    pub(super) fn member(&self, repo: &RepoId, digest: &Digest) -> Option<Member> {
        self.members.get(&Key(repo, digest))
    }

    pub(super) fn insert_member(&self, repo: RepoId, digest: Digest, member: Member) {
        self.members.insert((repo, digest), member);
    }

    pub(super) fn remove_member(&self, repo: &RepoId, digest: &Digest) {
        self.members.invalidate(&Key(repo, digest));
    }

    pub(super) fn has_repository(&self, repo: &RepoId) -> bool {
        self.repositories.contains_key(repo)
    }

    pub(super) fn insert_repository(&self, repo: RepoId) {
        self.repositories.insert(repo, ());
    }
}

//! The front: what hot requests find in memory. Filled under a repository's read lock and emptied under its write lock,
//! so it never outlives the file it stands for.

use std::sync::Arc;
use std::time::Duration;

use moka::sync::Cache;

use super::records::{Member, StoredManifest, TagRecord};
use crate::oci::{Digest, RepoId, Tag};

const MANIFEST_BYTES: u64 = 32 << 20;
const TAGS: u64 = 20_000;
const MEMBERS: u64 = 50_000;
const REPOSITORIES: u64 = 10_000;
const LATELY: Duration = Duration::from_secs(60);
/// What a cached manifest costs beside its bytes, so that tiny ones are bounded, too.
const ENTRY_OVERHEAD: usize = 512;

#[derive(Debug)]
pub(super) struct Front {
    pub(super) manifests: Cache<(RepoId, Digest), Arc<StoredManifest>>,
    pub(super) tags: Cache<(RepoId, Tag), TagRecord>,
    pub(super) members: Cache<(RepoId, Digest), Member>,
    /// Mirrored repositories that were there lately. Whether one has gone since makes a difference to a first push alone.
    pub(super) repositories: Cache<RepoId, ()>,
}

impl Default for Front {
    fn default() -> Self {
        Self {
            manifests: Cache::builder()
                .max_capacity(MANIFEST_BYTES)
                .weigher(|_, manifest: &Arc<StoredManifest>| {
                    u32::try_from(manifest.weight() + ENTRY_OVERHEAD).unwrap_or(u32::MAX)
                })
                .build(),
            tags: Cache::new(TAGS),
            members: Cache::new(MEMBERS),
            repositories: Cache::builder().max_capacity(REPOSITORIES).time_to_live(LATELY).build(),
        }
    }
}

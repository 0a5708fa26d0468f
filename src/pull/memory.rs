//! Short-lived results in memory: content that does not exist, failures, lengths and lists of referrers.

use std::hash::Hash;
use std::sync::Arc;
use std::time::Duration;

use moka::sync::Cache;
use tokio::time::Instant;

use super::error::PullError;
use super::source::SourceId;
use crate::config::CacheConfig;
use crate::oci::{Digest, Reference, Referrer, RepoId};
use crate::upstream::UpstreamError;

/// How long requests share the failure of a fill.
const FAILURE_TTL: Duration = Duration::from_secs(1);
/// How long a blob bypasses the store after its fill failed in the middle because the disk did not accept all of it.
/// Another fill would break off the response to the next client at the same position.
const UNSTORABLE_TTL: Duration = Duration::from_secs(60);
/// How long the length of a blob that is not stored is kept.
const LENGTH_TTL: Duration = Duration::from_secs(10 * 60);
/// Maximum number of entries of each cache, except that of referrers.
const MAX_ENTRIES: u64 = 100_000;
/// Maximum size of the cache of referrers.
const MAX_REFERRERS_BYTES: u64 = 8 << 20;

pub(super) struct Memory {
    negative_ttl: Duration,
    /// Content that was answered 404 within `negative_ttl`, with the error.
    absent: Cache<(RepoId, Reference), PullError>,
    failures: Cache<(SourceId, Digest), PullError>,
    /// Blobs that the disk did not accept completely.
    unstorable: Cache<(SourceId, Digest), PullError>,
    /// In bytes.
    lengths: Cache<(RepoId, Digest), u64>,
    referrers: Cache<(RepoId, Digest), ListedReferrers>,
}

/// A list that requests share.
pub(super) type Referrers = Arc<Vec<Referrer>>;

/// The referrers of one subject as its upstream last listed them.
#[derive(Clone, Debug)]
pub(super) struct ListedReferrers {
    pub(super) referrers: Referrers,
    pub(super) at: Instant,
}

impl Memory {
    pub(super) fn new(config: &CacheConfig) -> Self {
        Self {
            negative_ttl: config.negative_ttl,
            absent: cache(config.negative_ttl),
            failures: cache(FAILURE_TTL),
            unstorable: cache(UNSTORABLE_TTL),
            lengths: cache(LENGTH_TTL),
            referrers: Cache::builder()
                .max_capacity(MAX_REFERRERS_BYTES)
                .weigher(|_, listed: &ListedReferrers| listed.weight())
                .time_to_live(config.stale_if_error)
                .build(),
        }
    }

    /// Returns the error of content that was answered 404 a short time ago.
    pub(super) fn absence(&self, repo: &RepoId, reference: &Reference) -> Option<PullError> {
        self.absent.get(&(repo.clone(), reference.clone()))
    }

    /// Remembers content that is answered 404 with this error.
    pub(super) fn remember_absent(&self, repo: &RepoId, reference: Reference, error: PullError) {
        if !self.negative_ttl.is_zero() {
            self.absent.insert((repo.clone(), reference), error);
        }
    }

    /// Returns the failure of the last fill from this source.
    pub(super) fn failure(&self, source: &SourceId, digest: &Digest) -> Option<PullError> {
        let key = (source.clone(), digest.clone());
        self.failures.get(&key).or_else(|| self.unstorable.get(&key))
    }

    /// Remembers that the disk accepted only a part of a blob.
    pub(super) fn remember_unstorable(&self, source: &SourceId, digest: &Digest, error: &PullError) {
        if error.is_of_writing() {
            self.unstorable.insert((source.clone(), digest.clone()), error.clone());
        }
    }

    pub(super) fn remember_failure(&self, source: &SourceId, digest: &Digest, error: &PullError) {
        match error {
            // An absence is remembered as such. The others do not predict the next request; the circuit breaker has its
            // own state.
            PullError::NotFound
            | PullError::PresumedAbsent
            | PullError::Abandoned
            | PullError::Busy { .. }
            | PullError::Upstream(UpstreamError::CircuitOpen { .. } | UpstreamError::Overloaded { .. }) => {}
            error => self.failures.insert((source.clone(), digest.clone()), error.clone()),
        }
    }

    pub(super) fn length(&self, repo: &RepoId, digest: &Digest) -> Option<u64> {
        self.lengths.get(&(repo.clone(), digest.clone()))
    }

    pub(super) fn remember_length(&self, repo: &RepoId, digest: &Digest, length: u64) {
        self.lengths.insert((repo.clone(), digest.clone()), length);
    }

    pub(super) fn referrers(&self, subject: &(RepoId, Digest)) -> Option<ListedReferrers> {
        self.referrers.get(subject)
    }

    pub(super) fn remember_referrers(&self, subject: (RepoId, Digest), referrers: Referrers) {
        self.referrers.insert(subject, ListedReferrers { referrers, at: Instant::now() });
    }
}

impl ListedReferrers {
    /// Returns the approximate size in memory, in bytes.
    fn weight(&self) -> u32 {
        let one = |referrer: &Referrer| 512 + referrer.weight();
        u32::try_from(256 + self.referrers.iter().map(one).sum::<usize>()).unwrap_or(u32::MAX)
    }
}

fn cache<K, V>(ttl: Duration) -> Cache<K, V>
where
    K: Hash + Eq + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
{
    Cache::builder().max_capacity(MAX_ENTRIES).time_to_live(ttl).build()
}

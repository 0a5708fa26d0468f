//! The running fills. Decides whether a request starts a fill or follows one, and cancels fills without followers
//! (*orphans*) if there are too many.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use parking_lot::Mutex;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::Span;
use tracing::field::Empty;

use super::super::slots::Slots;
use super::super::source::BlobSource;
use super::job::Fill;
use super::progress::{Progress, Publisher};
use crate::oci::Digest;
use crate::store::Member;

/// Maximum number of orphans per upstream.
const MAX_ORPHANS_PER_UPSTREAM: usize = 4;
/// Maximum number of those orphans whose repository has no stored content.
const MAX_NEW_REPOSITORY_ORPHANS: usize = 1;

/// The running fills: at most one per digest.
#[derive(Debug)]
pub(super) struct Registry {
    running: Mutex<HashMap<Digest, Arc<Fill>>>,
    pub(super) slots: Slots,
}

/// A request for a blob, and its access rights.
pub(in crate::pull) struct Requester {
    pub(in crate::pull) source: Arc<dyn BlobSource>,
    /// The repository may read this digest from any source.
    pub(in crate::pull) proven: bool,
    /// A manifest that was served in this repository refers to the digest. That is enough to share a fill for a
    /// repository of the same upstream with the same credentials.
    pub(in crate::pull) listed: bool,
    /// The repository may share rights with others: see `Visibilities::may_share`.
    pub(in crate::pull) may_share: bool,
    /// The repository has no stored content.
    pub(in crate::pull) new_repository: bool,
    /// The blob's length in bytes, if a manifest or an earlier answer gave it.
    pub(in crate::pull) size: Option<u64>,
    /// The request asks for a range.
    pub(in crate::pull) is_for_range: bool,
}

impl Requester {
    /// Whether the requester may read the content of a fill.
    fn may_follow(&self, fill: &Fill) -> bool {
        let (source, own) = (&fill.source, self.source.id());
        let has_same_rights = source.repo.scope == own.repo.scope && source.credential == own.credential;
        let shares = self.listed && has_same_rights && self.may_share && fill.may_share;
        self.proven || shares || source == own
    }

    /// Records that the upstream confirmed that the repository has the blob.
    pub(in crate::pull) fn set_proven(&mut self, proof: Member) {
        self.proven = true;
        self.size = self.size.or(proof.size);
    }
}

/// How a request takes part in a fill.
pub(super) enum Entered {
    /// No fill was running. The caller runs the new fill and holds `entry` until the fill ends.
    Led {
        following: Following,
        entry: Entry,
        publisher: Publisher,
    },
    Followed(Following),
    /// The running fill uses another source. The requester must first prove its access.
    NeedsProof,
}

impl Registry {
    pub(super) fn new(slots: Slots) -> Self {
        Self { running: Mutex::default(), slots }
    }

    /// Whether a fill of this digest is running.
    pub(super) fn is_running(&self, digest: &Digest) -> bool {
        self.running.lock().contains_key(digest)
    }

    /// Follows the fill of `digest`. If there is none, adds a new fill from the requester's source.
    pub(super) fn enter(self: &Arc<Self>, digest: &Digest, requester: &Requester) -> Entered {
        let mut running = self.running.lock();
        // A failed fill stays in the map until its task ends. No new request shares its failure.
        if let Some(fill) = running.get(digest).filter(|fill| !fill.has_failed()) {
            if !requester.may_follow(fill) {
                return Entered::NeedsProof;
            }
            fill.joined.fetch_add(1, Ordering::Relaxed);
            return Entered::Followed(Following::new(self, fill));
        }
        let (publisher, fill) = new_fill(digest, requester);
        running.insert(digest.clone(), fill.clone());
        // Still under the lock, so that no other request sees the fill without a follower.
        let following = Following::new(self, &fill);
        Entered::Led { following, entry: Entry { registry: self.clone(), fill }, publisher }
    }

    /// Called when the last follower of a fill has left. Cancels a queued fill. A running fill continues as long as
    /// no other fill waits for its slot. If there are too many orphans, cancels the one with the fewest bytes.
    fn orphaned(&self, fill: &Fill) {
        if fill.is_queued() && fill.follower_count() == 0 {
            return fill.abandon.cancel();
        }
        self.bound_orphans(fill);
        self.free_slot();
    }

    fn bound_orphans(&self, fill: &Fill) {
        let running = self.running.lock();
        let orphans = |new_only: bool| -> Vec<&Arc<Fill>> {
            running
                .values()
                .filter(|other| other.source.repo.scope == fill.source.repo.scope)
                .filter(|other| other.is_orphan())
                .filter(|other| !new_only || other.new_repository)
                .collect()
        };
        for (new_only, bound) in [(true, MAX_NEW_REPOSITORY_ORPHANS), (false, MAX_ORPHANS_PER_UPSTREAM)] {
            let orphans = orphans(new_only);
            if orphans.len() > bound
                && let Some(least) = orphans.iter().min_by_key(|orphan| orphan.received.load(Ordering::Relaxed))
            {
                least.abandon.cancel();
            }
        }
    }

    /// Cancels the orphan with the fewest bytes if more fills are waiting than cancelled fills will release slots.
    pub(super) fn free_slot(&self) {
        let running = self.running.lock();
        let mut orphans: Vec<&Arc<Fill>> = running.values().filter(|fill| fill.is_orphan()).collect();
        orphans.sort_by_key(|orphan| orphan.received.load(Ordering::Relaxed));
        let is_wanted = |orphan: &&&Arc<Fill>| {
            let scope = &orphan.source.repo.scope;
            let ending = running.values().filter(|fill| fill.is_ending() && fill.source.repo.scope == *scope);
            self.slots.waiting_for(scope) > ending.count()
        };
        if let Some(least) = orphans.iter().find(is_wanted) {
            least.abandon.cancel();
        }
    }

    /// Cancels every fill without followers.
    pub(super) fn abandon_orphans(&self) {
        for fill in self.running.lock().values() {
            if fill.is_orphan() {
                fill.abandon.cancel();
            }
        }
    }

    fn remove(&self, fill: &Arc<Fill>) {
        let mut running = self.running.lock();
        if running.get(&fill.digest).is_some_and(|entered| Arc::ptr_eq(entered, fill)) {
            running.remove(&fill.digest);
        }
    }
}

fn new_fill(digest: &Digest, requester: &Requester) -> (Publisher, Arc<Fill>) {
    let (publisher, progress) = Progress::channel();
    let source = requester.source.id().clone();
    // Use the ERROR level so that every filter keeps these fields.
    let span = tracing::error_span!(
        parent: None, "fill",
        %digest, repository = %source.repo, upstream = %requester.source.name(), bytes = Empty, outcome = Empty
    );
    let fill = Fill {
        digest: digest.clone(),
        source,
        size: requester.size,
        is_for_range: requester.is_for_range,
        progress,
        new_repository: requester.new_repository,
        may_share: requester.may_share,
        followers: AtomicUsize::new(0),
        joined: AtomicUsize::new(0),
        received: AtomicU64::new(0),
        resumes: AtomicUsize::new(0),
        had_to_wait: AtomicBool::new(false),
        abandon: CancellationToken::new(),
        span: Mutex::new(Some(span)),
    };
    (publisher, Arc::new(fill))
}

/// Counts as one of the fill's followers until it is dropped.
pub(in crate::pull) struct Following {
    registry: Arc<Registry>,
    fill: Arc<Fill>,
    pub(super) progress: watch::Receiver<Progress>,
}

impl Following {
    fn new(registry: &Arc<Registry>, fill: &Arc<Fill>) -> Self {
        fill.followers.fetch_add(1, Ordering::AcqRel);
        // Link the request's span to the fill's span.
        if let Some(span) = &*fill.span.lock() {
            Span::current().follows_from(span);
        }
        Self { registry: registry.clone(), fill: fill.clone(), progress: fill.progress.clone() }
    }

    pub(in crate::pull) fn fill(&self) -> &Arc<Fill> {
        &self.fill
    }
}

impl Drop for Following {
    fn drop(&mut self) {
        if self.fill.followers.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.registry.orphaned(&self.fill);
        }
    }
}

/// Removes the fill from the registry when it is dropped.
pub(super) struct Entry {
    registry: Arc<Registry>,
    fill: Arc<Fill>,
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.registry.remove(&self.fill);
    }
}

//! Which fills are in flight, which requests start one, and which fills go on without followers.

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

/// Fills of one upstream that go on without followers.
const MAX_ORPHANS_PER_UPSTREAM: usize = 4;
/// How many of those may be for repositories that nothing was ever stored in.
const MAX_NEW_REPOSITORY_ORPHANS: usize = 1;

/// At most one fill a digest, whichever requests want it.
#[derive(Debug)]
pub(super) struct Registry {
    running: Mutex<HashMap<Digest, Arc<Fill>>>,
    pub(super) slots: Slots,
}

/// A request for a blob, and what is known about its rights.
pub(in crate::pull) struct Requester {
    pub(in crate::pull) source: Arc<dyn BlobSource>,
    /// Its repository may read the digest, whichever source brings it.
    pub(in crate::pull) proven: bool,
    /// Nothing was ever stored in its repository.
    pub(in crate::pull) new_repository: bool,
    /// The blob's length in bytes, if a manifest or an earlier answer gave it.
    pub(in crate::pull) size: Option<u64>,
}

impl Requester {
    /// Its upstream said that its repository has the blob.
    pub(in crate::pull) fn set_proven(&mut self, proof: Member) {
        self.proven = true;
        self.size = self.size.or(proof.size);
    }
}

/// How a request takes part in a fill.
pub(super) enum Entered {
    /// No fill was running. The caller runs it, and keeps the entry until it has ended.
    Led {
        following: Following,
        entry: Entry,
        publisher: Publisher,
    },
    Followed(Following),
    /// A fill runs for another source, whose rights are not the requester's.
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

    /// Follows the fill of `digest`, or enters a new one from the requester's source.
    pub(super) fn enter(self: &Arc<Self>, digest: &Digest, requester: &Requester) -> Entered {
        let mut running = self.running.lock();
        // A failed fill is in the map until its task has ended; no new request shares its failure.
        if let Some(fill) = running.get(digest).filter(|fill| !fill.has_failed()) {
            if !requester.proven && fill.source != *requester.source.id() {
                return Entered::NeedsProof;
            }
            fill.joined.fetch_add(1, Ordering::Relaxed);
            return Entered::Followed(Following::new(self, fill));
        }
        let (publisher, fill) = new_fill(digest, requester);
        running.insert(digest.clone(), fill.clone());
        // Under the lock: no other request sees the fill without a follower.
        let following = Following::new(self, &fill);
        Entered::Led { following, entry: Entry { registry: self.clone(), fill }, publisher }
    }

    /// Called when the last follower of a fill has left. A queued fill ends. A running one goes on as long as no other fill
    /// waits for its slot. Where too many go on, the one that has received least is abandoned.
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

    /// Abandons the orphan that has received least, where more fills wait for its slot than slots are about to be freed.
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

    /// Abandons every fill without followers.
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
    // At the level of errors, so that every log line of a fill has these fields, whatever the filter.
    let span = tracing::error_span!(
        parent: None, "fill",
        %digest, repository = %source.repo, upstream = %requester.source.name(), bytes = Empty, outcome = Empty
    );
    let fill = Fill {
        digest: digest.clone(),
        source,
        size: requester.size,
        progress,
        new_repository: requester.new_repository,
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
        // The request's span, if it has one.
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

/// Takes the fill out of the registry when it is dropped.
pub(super) struct Entry {
    registry: Arc<Registry>,
    fill: Arc<Fill>,
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.registry.remove(&self.fill);
    }
}

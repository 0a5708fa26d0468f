//! Which fills are in flight, who starts one, and which go on when nobody follows them any more.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use parking_lot::Mutex;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::Inner;
use super::fill::{Fill, Run, Source, State};
use super::follower::Following;
use super::slots::Slots;
use crate::oci::Digest;
use crate::store::Member;
use crate::upstream::Upstream;

/// Fills of one upstream that go on without followers.
const ORPHANS_PER_UPSTREAM: usize = 4;
/// Of those, fills for repositories that nothing was ever stored in.
const NEW_REPOSITORY_ORPHANS: usize = 1;

/// At most one fill a digest, whoever asks.
#[derive(Debug)]
pub(super) struct Fills {
    running: Mutex<HashMap<Digest, Arc<Fill>>>,
    pub(super) slots: Slots,
}

/// Who asks for a blob, and what is known of it.
pub(super) struct Asker {
    pub(super) source: Source,
    pub(super) upstream: Arc<Upstream>,
    /// It may read the digest whoever brings it.
    pub(super) proven: bool,
    /// Its repository was never stored in before.
    pub(super) new_repository: bool,
    /// The blob's length in bytes, if a manifest or an earlier answer told it.
    pub(super) size: Option<u64>,
}

impl Asker {
    /// Its upstream said that its repository has the blob.
    pub(super) fn prove(&mut self, proof: Member) {
        self.proven = true;
        self.size = self.size.or(proof.size);
    }
}

/// How a request takes part in a fill.
pub(super) enum Joined {
    /// It started it.
    Led(Following),
    /// It was running.
    Followed(Following),
    /// It runs for another source, whose rights are not the asker's: first a proof of its own.
    NeedsProof,
}

impl Fills {
    pub(super) fn new(slots: Slots) -> Self {
        Self { running: Mutex::default(), slots }
    }

    /// Whether a fill of this digest is running.
    pub(super) fn is_running(&self, digest: &Digest) -> bool {
        self.running.lock().contains_key(digest)
    }

    /// Follows the fill of `digest`, starting it from the asker's source if there is none.
    pub(super) fn join(&self, inner: &Arc<Inner>, digest: &Digest, asker: &Asker) -> Joined {
        let mut running = self.running.lock();
        // A failed fill is in the map until its task has ended; nobody new shares its failure.
        if let Some(fill) = running.get(digest).filter(|fill| !fill.has_failed()) {
            if !asker.proven && fill.source != asker.source {
                return Joined::NeedsProof;
            }
            fill.joined.fetch_add(1, Ordering::Relaxed);
            return Joined::Followed(Following::new(inner.clone(), fill.clone()));
        }
        let (publish, state) = watch::channel(State::Asking);
        let fill = Arc::new(Fill {
            digest: digest.clone(),
            source: asker.source.clone(),
            size: asker.size,
            state,
            new_repository: asker.new_repository,
            followers: AtomicUsize::new(0),
            joined: AtomicUsize::new(0),
            received: AtomicU64::new(0),
            resumes: AtomicUsize::new(0),
            had_to_wait: AtomicBool::new(false),
            give_up: CancellationToken::new(),
        });
        running.insert(digest.clone(), fill.clone());
        // Before anybody else can see it without a follower.
        let following = Following::new(inner.clone(), fill.clone());
        // A runtime that is going down drops the task at once, and with it the entry, which takes the lock.
        drop(running);
        let entry = Entry { inner: inner.clone(), fill: fill.clone() };
        let run = Run { inner: inner.clone(), fill, upstream: asker.upstream.clone(), publish };
        inner.tasks.spawn(async move {
            // Dropped after the outcome was published, and also if the run panics or is stopped.
            let _entry = entry;
            run.run().await;
        });
        Joined::Led(following)
    }

    /// Called when the last follower of a fill has left: it may go on while there is a slot, and if it had to wait for one,
    /// it need not any more; where there are too many, the one that has received least is given up.
    pub(super) fn orphaned(&self, fill: &Fill) {
        if fill.is_queued() && fill.followers.load(Ordering::Acquire) == 0 {
            return fill.give_up.cancel();
        }
        self.keep_few_orphans(fill);
        self.make_room();
    }

    fn keep_few_orphans(&self, fill: &Fill) {
        let running = self.running.lock();
        let orphans = |new_only: bool| -> Vec<&Arc<Fill>> {
            running
                .values()
                .filter(|other| other.source.repo.scope == fill.source.repo.scope)
                .filter(|other| other.is_orphan())
                .filter(|other| !new_only || other.new_repository)
                .collect()
        };
        for (new_only, most) in [(true, NEW_REPOSITORY_ORPHANS), (false, ORPHANS_PER_UPSTREAM)] {
            let orphans = orphans(new_only);
            if orphans.len() > most
                && let Some(least) = orphans.iter().min_by_key(|orphan| orphan.received.load(Ordering::Relaxed))
            {
                least.give_up.cancel();
            }
        }
    }

    /// Gives up a fill that nobody follows, the one that has received least, where more wait for its slot than are about to
    /// be freed.
    pub(super) fn make_room(&self) {
        let running = self.running.lock();
        let mut orphans: Vec<&Arc<Fill>> = running.values().filter(|fill| fill.is_orphan()).collect();
        orphans.sort_by_key(|orphan| orphan.received.load(Ordering::Relaxed));
        let is_wanted = |orphan: &&&Arc<Fill>| {
            let scope = &orphan.source.repo.scope;
            let ending = running.values().filter(|fill| fill.is_ending() && fill.source.repo.scope == *scope);
            self.slots.waiting_for(scope) > ending.count()
        };
        if let Some(least) = orphans.iter().find(is_wanted) {
            least.give_up.cancel();
        }
    }

    /// Gives up every fill that nobody follows.
    pub(super) fn give_up_orphans(&self) {
        for fill in self.running.lock().values() {
            if fill.is_orphan() {
                fill.give_up.cancel();
            }
        }
    }

    fn remove(&self, fill: &Arc<Fill>) {
        let mut running = self.running.lock();
        if running.get(&fill.digest).is_some_and(|there| Arc::ptr_eq(there, fill)) {
            running.remove(&fill.digest);
        }
    }
}

/// Takes the fill out of the map, however its run ends.
struct Entry {
    inner: Arc<Inner>,
    fill: Arc<Fill>,
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.inner.fills.remove(&self.fill);
    }
}

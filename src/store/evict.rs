//! Eviction: cached content goes when what comes does not fit, the least lately used first (`segments`), and the names
//! that stood for it go with it.
//!
//! Never pushed content, never what somebody reads, never what is pinned; and nothing at all before the index is in step
//! with the files and the order of last use is complete.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustix::process::setpriority_process;
use tokio::sync::oneshot;

use super::blobs::is_marked_pushed;
use super::clock::now;
use super::error::{At, StoreError, optional};
use super::fs;
use super::layout::Temporary;
use super::records::Class;
use super::space::{Reservation, Shortage};
use super::{Inner, StopOnDrop, Store};
use crate::oci::{Digest, Manifest, RepoId};

/// What goes in one turn before anybody else may look at the order.
const AT_ONCE: usize = 25;
/// Between turns that nobody waits for the evictor rests for this many times as long as one took.
const REST: u32 = 24;
/// How long a stop may go unnoticed.
const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// Of the thread that evicts.
const NICE: i32 = 10;
/// A reservation may find that another has taken the room that was made for it.
const TRIES: usize = 16;
/// Manifests of one repository that are read when one of them goes.
const LOOKED_THROUGH: usize = 100;
/// Turns in which everything that should go was in use, after which nothing is expected to go.
const FRUITLESS: usize = 64;

/// Why something was evicted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EvictionReason {
    /// `max_size`.
    Size,
    /// `min_free`: the disk is full, by whoever's doing.
    Disk,
}

/// What was evicted for one reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Evicted {
    pub files: u64,
    pub bytes: u64,
}

#[derive(Debug, Default)]
pub(super) struct Evictions {
    /// One at a time: two would take the same victims.
    turn: Mutex<()>,
    /// Room was short since the last look: some more is made ahead of the next who needs it.
    pub(super) short: AtomicBool,
    counted: Mutex<HashMap<EvictionReason, Evicted>>,
}

/// How a turn of eviction ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Turn {
    Enough,
    /// Some went, and more has to.
    More,
    /// All that should have gone was in use; others are next.
    InUse,
    Nothing,
}

impl EvictionReason {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Size => "size",
            Self::Disk => "disk",
        }
    }
}

impl Store {
    /// Whether the index is in step with the files and the order of last use is known: nothing is evicted before.
    pub fn can_evict(&self) -> bool {
        self.inner.can_evict()
    }

    /// What was evicted since the last call.
    pub fn take_evicted(&self) -> HashMap<EvictionReason, Evicted> {
        std::mem::take(&mut *self.inner.evictions.counted.lock())
    }

    /// Puts uses in order, and evicts what the bounds ask for: all of it when they are exceeded, and some more after
    /// somebody had to wait for room. It takes its time, so that nobody else notices.
    ///
    /// # Errors
    /// When a pin cannot be read; [`StoreError::Task`] when there can be no thread for it.
    pub async fn tend(&self) -> Result<(), StoreError> {
        let is_short = self.run(|inner| {
            inner.open_files.close_idle();
            inner.is_short()
        });
        if !is_short.await? {
            return Ok(());
        }
        let stop = Arc::new(AtomicBool::new(false));
        let _stopped_with_us = StopOnDrop(stop.clone());
        let (inner, operation) = (self.inner.clone(), self.inner.operations.token());
        let (tell, told) = oneshot::channel();
        // A thread of its own: one of the blocking pool would keep its priority, for the next who gets it.
        let evictor = thread::Builder::new().name("evictor".to_owned()).spawn(move || {
            lower_priority();
            let done = inner.tend(&stop);
            drop(inner);
            drop(operation);
            let _ = tell.send(done);
        });
        evictor.map_err(|_| StoreError::Task)?;
        told.await.map_err(|_| StoreError::Task)?
    }
}

/// Of this thread alone: who serves goes first.
fn lower_priority() {
    if let Err(error) = setpriority_process(None, NICE) {
        tracing::debug!(%error, "the evictor keeps its priority: {error}");
    }
}

impl Inner {
    fn can_evict(&self) -> bool {
        self.index.is_ready() && self.recency.is_complete()
    }

    /// Room for `bytes` of cached content, made if need be.
    pub(super) fn reserve(&self, bytes: u64) -> Result<Reservation, StoreError> {
        for _ in 0..TRIES {
            if let Some(reservation) = self.space.reserve(bytes) {
                return Ok(reservation);
            }
            self.evictions.short.store(true, Ordering::Relaxed);
            if !self.make_room(&|| self.space.short_of(bytes))? {
                break;
            }
        }
        Err(StoreError::NoRoom { bytes })
    }

    /// Sees to it that the disk has room for `bytes` of a push beside `min_free`: cached content makes way.
    pub(super) fn need_disk(&self, bytes: u64) -> Result<(), StoreError> {
        let short = || self.space.disk_short_of(bytes);
        if short().bytes == 0 || self.make_room(&short)? { Ok(()) } else { Err(StoreError::NoRoom { bytes }) }
    }

    /// Puts uses in order; whether something should go now.
    fn is_short(&self) -> Result<bool, StoreError> {
        self.recency.settle();
        self.refresh_pins()?;
        if self.space.excess() > 0 {
            self.evictions.short.store(true, Ordering::Relaxed);
        }
        Ok(self.evictions.short.load(Ordering::Relaxed))
    }

    /// Evicts in turns, with rests between them, until nothing should or can go, or `stop` is set.
    fn tend(&self, stop: &AtomicBool) -> Result<(), StoreError> {
        while !stop.load(Ordering::Relaxed) && self.is_short()? {
            let begun = Instant::now();
            if self.evict_some(&|| self.space.above_low_mark())? != Turn::More {
                self.evictions.short.store(false, Ordering::Relaxed);
                break;
            }
            let rested = Instant::now() + begun.elapsed() * REST;
            while Instant::now() < rested && !stop.load(Ordering::Relaxed) {
                thread::sleep(LOOK_AGAIN.min(rested.saturating_duration_since(Instant::now())));
            }
        }
        Ok(())
    }

    /// Evicts until nothing is `short` any more; whether that could be reached. Nothing goes if it cannot.
    fn make_room(&self, short: &dyn Fn() -> Shortage) -> Result<bool, StoreError> {
        self.recency.settle();
        self.refresh_pins()?;
        if short().bytes > self.recency.segments.lock().evictable(now()) {
            return Ok(false);
        }
        let mut fruitless = 0;
        while fruitless < FRUITLESS {
            match self.evict_some(short)? {
                Turn::Enough => return Ok(true),
                Turn::More => fruitless = 0,
                Turn::InUse => fruitless += 1,
                Turn::Nothing => break,
            }
        }
        Ok(short().bytes == 0)
    }

    /// Evicts the next few, as long as anything is `short`.
    fn evict_some(&self, short: &dyn Fn() -> Shortage) -> Result<Turn, StoreError> {
        if !self.can_evict() || self.deletions_held() {
            return Ok(Turn::Nothing);
        }
        let _turn = self.evictions.turn.lock();
        let Shortage { bytes, of_disk } = short();
        let reason = if of_disk { EvictionReason::Disk } else { EvictionReason::Size };
        if bytes == 0 {
            return Ok(Turn::Enough);
        }
        let victims = self.recency.segments.lock().victims(bytes, AT_ONCE, now());
        let mut turn = if victims.is_empty() { Turn::Nothing } else { Turn::InUse };
        for digest in victims {
            if short().bytes == 0 {
                return Ok(Turn::Enough);
            }
            let went = self.evict(&digest, reason).unwrap_or_else(|error| {
                tracing::error!(%digest, %error, "cannot evict {digest}: {error}");
                false
            });
            if went {
                turn = Turn::More;
            } else {
                // In use, or out of reach: others are tried first the next time.
                self.recency.segments.lock().touch(&digest, now());
            }
        }
        Ok(if short().bytes == 0 { Turn::Enough } else { turn })
    }

    /// Whether the content went: not if somebody reads it.
    pub(super) fn evict(&self, digest: &Digest, reason: EvictionReason) -> Result<bool, StoreError> {
        let Some(_may_unlink) = self.may_unlink() else { return Ok(false) };
        // It is asked again below, where nobody can begin to.
        if self.open_files.is_read(digest) {
            return Ok(false);
        }
        // The index says that it is cached, and so does the file, below; but both may have been copied or set to rights by
        // somebody. Who links it after this look marks the file first.
        if self.is_named_locally(digest)? {
            return self.is_pushed_after_all(digest);
        }
        self.forget_manifest_everywhere(digest)?;
        let aside = Temporary::new(self.layout.temporary());
        {
            let _locked = self.digests.lock(digest);
            let path = self.layout.blob(digest);
            let Some(metadata) = optional(fs::metadata(&path)).at("stat", &path)? else {
                self.record_gone(digest);
                return Ok(true);
            };
            let known = self.index.blob(digest).map(|blob| blob.class);
            if known == Some(Class::Pushed) || (self.keeps_modes && is_marked_pushed(&metadata)) {
                self.record_blob(digest, metadata.len(), Class::Pushed);
                return Ok(false);
            }
            // No index has heard of who is about to name it, or did so since the look.
            if !self.index.is_open() && (self.coming.contains(digest) || self.is_named_locally(digest)?) {
                return Ok(false);
            }
            // Aside first: to remove a large file takes a while, and the lock is others' too.
            match self
                .open_files
                .unless_read(digest, || self.layout.within(aside.path(), |aside| fs::rename(&path, aside)))
            {
                Some(moved) => moved.at("rename", &path)?,
                None => return Ok(false),
            }
            self.record_gone(digest);
            let mut counted = self.evictions.counted.lock();
            let evicted = counted.entry(reason).or_default();
            evicted.files += 1;
            evicted.bytes += metadata.len();
        }
        tracing::debug!(%digest, reason = reason.as_str(), "evicted {digest}");
        Ok(true)
    }

    /// Content that a local repository names, and that was taken for cached: from now on index and file say that it is
    /// pushed. It does not go.
    fn is_pushed_after_all(&self, digest: &Digest) -> Result<bool, StoreError> {
        self.index_pushed(digest)?;
        tracing::warn!(%digest, "{digest} was taken for cached content, and a local repository has it: it stays");
        Ok(false)
    }

    /// Takes a cached manifest out of the mirrored repositories that name it. Content that is no manifest is in none.
    fn forget_manifest_everywhere(&self, digest: &Digest) -> Result<(), StoreError> {
        let repositories = self.index.linked_in(digest);
        if repositories.is_empty() {
            return Ok(());
        }
        let content = self.layout.read_content(digest, Manifest::MAX_LENGTH)?;
        let manifest = content.and_then(|bytes| Manifest::parse(&bytes).ok()).unwrap_or_default();
        for repo in repositories.iter().filter(|repo| !repo.scope.is_local()) {
            self.forget_manifest(repo, digest, &manifest)?;
        }
        Ok(())
    }

    /// What the manifests of a repository refer to; `None` if they are too many to be looked through for one that goes.
    fn needed_by_others(&self, repo: &RepoId) -> Result<Option<HashSet<Digest>>, StoreError> {
        let manifests = self.layout.links_below(&self.layout.manifests(repo))?;
        if manifests.len() > LOOKED_THROUGH {
            return Ok(None);
        }
        let mut needed = HashSet::new();
        for digest in manifests {
            if let Some(bytes) = self.layout.read_content(&digest, Manifest::MAX_LENGTH)? {
                needed
                    .extend(Manifest::parse(&bytes).unwrap_or_default().children.into_iter().map(|child| child.digest));
            }
        }
        Ok(Some(needed))
    }

    /// Its link, the tags that mean it, and the links of what it alone refers to. Where there are very many other manifests,
    /// links of what is here are left to `sweep`.
    fn forget_manifest(&self, repo: &RepoId, digest: &Digest, manifest: &Manifest) -> Result<(), StoreError> {
        let _locked = self.repositories.write(repo);
        self.remove_manifest(repo, digest, manifest.subject.as_ref())?;
        let needed = self.needed_by_others(repo)?;
        for child in &manifest.children {
            let alone = needed.as_ref().is_some_and(|needed| !needed.contains(&child.digest));
            if alone || !self.is_file(&child.digest)? {
                self.remove_member(repo, &child.digest)?;
            }
        }
        self.remove_empty(repo).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use rustix::process::getpriority_process;

    use super::*;

    #[test]
    fn only_the_thread_that_asks_for_it_has_a_low_priority() {
        let before = getpriority_process(None).unwrap();
        let lowered = thread::spawn(|| {
            lower_priority();
            getpriority_process(None).unwrap()
        });
        assert_eq!((lowered.join().unwrap(), getpriority_process(None).unwrap()), (NICE.max(before), before));
    }
}

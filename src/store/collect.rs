//! The collector: pushed content that nobody can reach any more. What is found out of reach is *marked*; what is still out
//! of reach, and has been marked for long enough, is removed. It runs beside pushes.
//!
//! Whoever relies on content un-marks it before he looks whether it is here, and a removal looks for the mark with the marks
//! locked: so either the removal sees that somebody relies on it, or he sees that it is gone.

use std::collections::{HashMap, HashSet};
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

use super::clock::{now, to_time};
use super::error::{At, StoreError, optional};
use super::fs;
use super::index::{BATCH, Change};
use super::layout::{Temporary, sync_folder};
use super::records::{Candidate, Class};
use super::segments::Time;
use super::{Inner, Store};
use crate::oci::{Digest, Manifest, RepoId, Scope};

/// Since when what is out of reach was found so.
#[derive(Debug, Default)]
pub(super) struct Marks {
    since: Mutex<HashMap<Candidate, Time>>,
    count: AtomicUsize,
    /// Un-marked, and not yet so in the index.
    forgotten: Mutex<Vec<Candidate>>,
}

/// When what is out of reach goes.
#[derive(Clone, Copy, Debug)]
pub struct CollectRules {
    /// After it was found that nothing names it.
    pub grace: Duration,
    /// After it was found that no manifest of its repository refers to an uploaded blob.
    pub unreferenced_after: Duration,
    /// After it was pushed, and has been found to have no tag for `grace`; `None`: untagged manifests stay.
    pub untagged_after: Option<Duration>,
    /// Whether anything is removed at all, or only said what would be.
    pub remove: bool,
}

/// What a pass of the collector did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Collected {
    /// Content removed, or that would be.
    pub files: u64,
    pub bytes: u64,
    /// Blobs that stopped belonging to a repository, or that would.
    pub members: u64,
    /// Untagged manifests removed, or that would be.
    pub manifests: u64,
    /// What is marked and not due yet.
    pub waiting: u64,
}

impl Store {
    /// Marks what is out of reach and removes what has been so for long enough. Blocks for as long as a walk of the local
    /// names takes, or until `stop` is set; `progress` hears how many repositories were looked at. Does nothing while the index is not in step with the files.
    pub fn collect(
        &self,
        rules: CollectRules,
        stop: &AtomicBool,
        progress: &dyn Fn(u64),
    ) -> Result<Collected, StoreError> {
        let inner = &self.inner;
        if !inner.index.is_ready() {
            return Ok(Collected::default());
        }
        let Some(found) = inner.find_out_of_reach(&rules, stop, progress)? else { return Ok(Collected::default()) };
        let now = now();
        inner.marks.update(&inner.index, &found, now);
        let mut collected = Collected::default();
        for candidate in found {
            if stop.load(Ordering::Relaxed) {
                break;
            }
            let wait = match candidate {
                Candidate::Member(..) => rules.unreferenced_after,
                Candidate::Content(_) | Candidate::Manifest(..) => rules.grace,
            };
            let due = inner.marks.since(&candidate).is_some_and(|since| u64::from(now - since) >= wait.as_secs());
            if due {
                inner.collect(&candidate, rules.remove, &mut collected)?;
            } else {
                collected.waiting += 1;
            }
        }
        Ok(collected)
    }
}

impl Marks {
    fn since(&self, candidate: &Candidate) -> Option<Time> {
        self.since.lock().get(candidate).copied()
    }

    /// Marks what was found and is not marked yet, and forgets what is within reach again.
    fn update(&self, index: &super::index::Index, found: &HashSet<Candidate>, now: Time) {
        let mut since = self.since.lock();
        let reached: Vec<Candidate> = since.keys().filter(|&marked| !found.contains(marked)).cloned().collect();
        for candidate in &reached {
            since.remove(candidate);
        }
        let new: Vec<&Candidate> = found.iter().filter(|&candidate| !since.contains_key(candidate)).collect();
        since.extend(new.iter().map(|&candidate| (candidate.clone(), now)));
        self.count.store(since.len(), Ordering::Release);
        drop(since);
        for batch in reached.chunks(BATCH) {
            index.apply(&batch.iter().map(Change::NoMark).collect::<Vec<_>>());
        }
        for batch in new.chunks(BATCH) {
            index.apply(&batch.iter().map(|candidate| Change::Mark(candidate, now)).collect::<Vec<_>>());
        }
    }
}

impl Inner {
    /// Somebody relies on these. To be called before it is looked whether they are here.
    pub(super) fn unmark(&self, candidates: &[Candidate]) {
        if self.marks.count.load(Ordering::Acquire) == 0 {
            return;
        }
        let mut since = self.marks.since.lock();
        for candidate in candidates {
            if since.remove(candidate).is_some() {
                self.marks.forgotten.lock().push(candidate.clone());
            }
        }
        self.marks.count.store(since.len(), Ordering::Release);
    }

    /// Brings the index up to what was un-marked. After a crash no mark counts.
    pub(super) fn save_marks(&self) {
        let forgotten = std::mem::take(&mut *self.marks.forgotten.lock());
        for batch in forgotten.chunks(BATCH) {
            self.index.apply(&batch.iter().map(Change::NoMark).collect::<Vec<_>>());
        }
    }

    pub(super) fn restore_marks(&self) {
        let mut marks = Vec::new();
        self.index.for_each_mark(&mut |candidate, since| marks.push((candidate, since)));
        let mut since = self.marks.since.lock();
        since.extend(marks);
        self.marks.count.store(since.len(), Ordering::Release);
    }

    /// Everything that is out of reach now; `None` if it was stopped.
    fn find_out_of_reach(
        &self,
        rules: &CollectRules,
        stop: &AtomicBool,
        progress: &dyn Fn(u64),
    ) -> Result<Option<HashSet<Candidate>>, StoreError> {
        let mut found = HashSet::new();
        // The beginnings of digests: two that begin alike keep each other, which is all that can go wrong.
        let mut named: HashSet<u64> = HashSet::new();
        let mut repositories = 0;
        let whole = self.walk_repositories(&Scope::Local, &mut |repo| {
            repositories += 1;
            progress(repositories);
            self.look_for_unreached(&repo, rules, &mut named, &mut found)?;
            Ok(!stop.load(Ordering::Relaxed))
        })?;
        if !whole {
            return Ok(None);
        }
        self.index.for_each_blob(&mut |digest, blob| {
            if blob.class == Class::Pushed && !named.contains(&beginning(&digest)) {
                found.insert(Candidate::Content(digest));
            }
        });
        Ok(Some(found))
    }

    fn look_for_unreached(
        &self,
        repo: &RepoId,
        rules: &CollectRules,
        named: &mut HashSet<u64>,
        found: &mut HashSet<Candidate>,
    ) -> Result<(), StoreError> {
        let mut manifests: HashMap<Digest, Manifest> = HashMap::new();
        self.layout.for_each_link(&self.layout.manifests(repo), &mut |digest| {
            let bytes = self.layout.read_content(&digest, Manifest::MAX_LENGTH)?;
            let manifest = bytes.and_then(|bytes| Manifest::parse(&bytes).ok()).unwrap_or_default();
            named.insert(beginning(&digest));
            manifests.insert(digest, manifest);
            Ok(())
        })?;
        if let Some(age) = rules.untagged_after {
            let live = self.live_manifests(repo, &manifests)?;
            for digest in manifests.keys().filter(|&digest| !live.contains(digest)) {
                let link = self.layout.manifest_link(repo, digest);
                let Some(metadata) = optional(fs::metadata(&link)).at("stat", &link)? else { continue };
                let pushed = metadata.modified().map(to_time).unwrap_or(Time::MAX);
                if u64::from(now().saturating_sub(pushed)) >= age.as_secs() {
                    found.insert(Candidate::Manifest(repo.clone(), digest.clone()));
                }
            }
        }
        let needed: HashSet<&Digest> =
            manifests.values().flat_map(|manifest| &manifest.children).map(|child| &child.digest).collect();
        self.layout.for_each_link(&self.layout.blob_links(repo), &mut |digest| {
            named.insert(beginning(&digest));
            if !needed.contains(&digest) && !manifests.contains_key(&digest) {
                found.insert(Candidate::Member(repo.clone(), digest));
            }
            Ok(())
        })
    }

    /// What a tag leads to, by way of indexes, and whatever has something live as its subject.
    fn live_manifests(
        &self,
        repo: &RepoId,
        manifests: &HashMap<Digest, Manifest>,
    ) -> Result<HashSet<Digest>, StoreError> {
        let mut pending = Vec::new();
        for tag in self.layout.tags_on_disk(repo)? {
            pending.extend(self.layout.tag_file(repo, &tag)?.map(|record| record.digest));
        }
        let mut referrers: HashMap<&Digest, Vec<&Digest>> = HashMap::new();
        for (digest, manifest) in manifests {
            if let Some(subject) = &manifest.subject {
                referrers.entry(subject).or_default().push(digest);
            }
        }
        let mut live = HashSet::new();
        while let Some(digest) = pending.pop() {
            let Some(manifest) = manifests.get(&digest).filter(|_| live.insert(digest.clone())) else { continue };
            pending
                .extend(manifest.children.iter().filter(|child| child.is_manifest).map(|child| child.digest.clone()));
            pending.extend(referrers.remove(&digest).unwrap_or_default().into_iter().cloned());
        }
        Ok(live)
    }

    /// Removes what is due, unless somebody has come to rely on it since it was found.
    fn collect(&self, candidate: &Candidate, remove: bool, collected: &mut Collected) -> Result<(), StoreError> {
        match candidate {
            Candidate::Content(digest) => {
                if let Some(bytes) = self.collect_content(digest, candidate, remove)? {
                    collected.files += 1;
                    collected.bytes += bytes;
                }
            }
            Candidate::Member(repo, digest) => {
                let _locked = self.repositories.write(repo);
                let link = self.layout.blob_link(repo, digest);
                collected.members += u64::from(self.collect_link(candidate, &link, remove, || {
                    self.front.members.invalidate(&(repo.clone(), digest.clone()));
                })?);
            }
            Candidate::Manifest(repo, digest) => {
                let _locked = self.repositories.write(repo);
                let link = self.layout.manifest_link(repo, digest);
                let removed = self.collect_link(candidate, &link, remove, || {
                    self.front.manifests.invalidate(&(repo.clone(), digest.clone()));
                })?;
                if removed && remove {
                    // What is left of it: its place among the referrers of its subject.
                    self.remove_manifest(repo, digest, self.subject_of(digest)?.as_ref())?;
                }
                collected.manifests += u64::from(removed);
            }
        }
        Ok(())
    }

    fn collect_content(&self, digest: &Digest, candidate: &Candidate, remove: bool) -> Result<Option<u64>, StoreError> {
        let Some(_may_unlink) = self.may_unlink() else { return Ok(None) };
        let aside = Temporary::new(self.layout.temporary());
        let _locked = self.digests.lock(digest);
        let path = self.layout.blob(digest);
        let Some(metadata) = optional(fs::metadata(&path)).at("stat", &path)? else { return Ok(None) };
        // In this order: who has it held links it before he lets go.
        if self.coming.contains(digest) || self.is_named_locally(digest)? {
            return Ok(None);
        }
        let moved = self.if_marked(candidate, || {
            if remove { self.layout.within(aside.path(), |aside| fs::rename(&path, aside)) } else { Ok(()) }
        });
        let taken = moved.transpose().at("rename", &path)?.is_some();
        if taken && remove {
            self.open_files.forget(digest);
            self.record_gone(digest);
        }
        Ok(taken.then_some(metadata.len()))
    }

    /// Removes a link of a local repository, with its write lock held; whether it was still marked.
    fn collect_link(
        &self,
        candidate: &Candidate,
        link: &Path,
        remove: bool,
        invalidate: impl FnOnce(),
    ) -> Result<bool, StoreError> {
        let removed = self.if_marked(candidate, || {
            if remove {
                // Somebody may have deleted it since it was found.
                optional(fs::remove_file(link))?;
                invalidate();
            }
            Ok(())
        });
        let taken = removed.transpose().at("remove", link)?.is_some();
        if taken && remove {
            let folder = link.parent().unwrap_or(self.layout.root());
            sync_folder(folder).at("sync", folder)?;
        }
        Ok(taken)
    }

    /// Does a quick thing while nobody can un-mark the candidate; `None` if somebody has.
    fn if_marked(&self, candidate: &Candidate, take: impl FnOnce() -> io::Result<()>) -> Option<io::Result<()>> {
        let since = self.marks.since.lock();
        since.contains_key(candidate).then(take)
    }
}

fn beginning(digest: &Digest) -> u64 {
    let bytes = digest.as_bytes();
    bytes.first_chunk().map_or(0, |first| u64::from_be_bytes(*first))
}

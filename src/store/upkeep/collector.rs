//! The collector: removes pushed content that is no longer reachable, while pushes go on.
//!
//! A pass marks what it finds unreferenced. What a later pass still finds unreferenced, and what has been marked for long
//! enough, is removed. See `local::marks` for why nothing is removed that a request relies on.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::oci::{Digest, Manifest, RepoId, Scope};
use crate::store::clock::{from_time, now};
use crate::store::error::{At, StoreError, optional};
use crate::store::fs;
use crate::store::local::{Local, Removed};
use crate::store::records::{Class, Unreferenced};

/// When unreferenced content is removed.
#[derive(Clone, Copy, Debug)]
pub struct CollectRules {
    /// How long content must have been found unlinked by every local repository.
    pub grace: Duration,
    /// How long an uploaded blob must have been found without a manifest of its repository that refers to it.
    pub unreferenced_after: Duration,
    /// The age at which a manifest that has been found untagged for `grace` is removed. `None`: untagged manifests stay.
    pub untagged_after: Option<Duration>,
    /// False: only says what would be removed.
    pub remove: bool,
}

/// What a pass of the collector removed, or would remove.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Collected {
    /// Content files.
    pub files: u64,
    /// Bytes of those files.
    pub bytes: u64,
    /// Blobs that are no longer part of a repository.
    pub members: u64,
    /// Untagged manifests.
    pub manifests: u64,
    /// What is marked and not due yet.
    pub waiting: u64,
}

/// Makes a pass. Does nothing while the index differs from the files. Blocks for as long as a walk of the local names
/// takes, or until `stop` is set. `progress` is called with the number of repositories that were looked at.
pub(in crate::store) fn collect(
    local: &Local,
    rules: CollectRules,
    stop: &AtomicBool,
    progress: &dyn Fn(u64),
) -> Result<Collected, StoreError> {
    if !local.index().is_ready() {
        return Ok(Collected::default());
    }
    let Some(found) = find_unreferenced(local, &rules, stop, progress)? else { return Ok(Collected::default()) };
    let now = now();
    local.marks().update(local.index(), &found, now);
    let mut collected = Collected::default();
    for candidate in found {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let wait = match candidate {
            Unreferenced::Member(..) => rules.unreferenced_after,
            Unreferenced::Content(_) | Unreferenced::Manifest(..) => rules.grace,
        };
        let due = local.marks().since(&candidate).is_some_and(|since| local.ages().age(from_time(since)) >= wait);
        if !due {
            collected.waiting += 1;
            continue;
        }
        match local.remove_unreferenced(&candidate, !rules.remove)? {
            Removed::Nothing => {}
            Removed::Content(bytes) => {
                collected.files += 1;
                collected.bytes += bytes;
            }
            Removed::Member => collected.members += 1,
            Removed::Manifest => collected.manifests += 1,
        }
    }
    Ok(collected)
}

/// Everything that is unreferenced now; `None` if the walk was stopped.
fn find_unreferenced(
    local: &Local,
    rules: &CollectRules,
    stop: &AtomicBool,
    progress: &dyn Fn(u64),
) -> Result<Option<HashSet<Unreferenced>>, StoreError> {
    let mut found = HashSet::new();
    // Prefixes of digests, to save memory. Two digests with the same prefix protect each other, which does no harm.
    let mut linked: HashSet<u64> = HashSet::new();
    let mut repositories = 0;
    let complete = local.walk_repositories(&Scope::Local, &mut |repo| {
        repositories += 1;
        progress(repositories);
        let is_empty = find_in_repository(local, &repo, rules, &mut linked, &mut found)?;
        if is_empty && rules.remove {
            local.remove_if_empty(&repo)?;
        }
        Ok(!stop.load(Ordering::Relaxed))
    })?;
    if !complete {
        return Ok(None);
    }
    local.index().for_each_blob(&mut |digest, blob| {
        if blob.class == Class::Pushed && !linked.contains(&prefix(&digest)) {
            found.insert(Unreferenced::Content(digest));
        }
    });
    Ok(Some(found))
}

/// Whether the repository has neither manifests nor blobs.
fn find_in_repository(
    local: &Local,
    repo: &RepoId,
    rules: &CollectRules,
    linked: &mut HashSet<u64>,
    found: &mut HashSet<Unreferenced>,
) -> Result<bool, StoreError> {
    let layout = local.layout();
    let mut manifests: HashMap<Digest, Manifest> = HashMap::new();
    layout.for_each_link(&layout.manifests(repo), &mut |digest| {
        let manifest = layout.parse_manifest(&digest)?.unwrap_or_default();
        linked.insert(prefix(&digest));
        manifests.insert(digest, manifest);
        Ok(())
    })?;
    if let Some(age) = rules.untagged_after {
        find_untagged(local, repo, &manifests, age, found)?;
    }
    let needed: HashSet<&Digest> =
        manifests.values().flat_map(|manifest| &manifest.children).map(|child| &child.digest).collect();
    let mut is_empty = manifests.is_empty();
    layout.for_each_link(&layout.blob_links(repo), &mut |digest| {
        is_empty = false;
        linked.insert(prefix(&digest));
        if !needed.contains(&digest) && !manifests.contains_key(&digest) {
            found.insert(Unreferenced::Member(repo.clone(), digest));
        }
        Ok(())
    })?;
    Ok(is_empty)
}

fn find_untagged(
    local: &Local,
    repo: &RepoId,
    manifests: &HashMap<Digest, Manifest>,
    age: Duration,
    found: &mut HashSet<Unreferenced>,
) -> Result<(), StoreError> {
    let reachable = reachable_manifests(local, repo, manifests)?;
    for digest in manifests.keys().filter(|&digest| !reachable.contains(digest)) {
        let link = local.layout().manifest_link(repo, digest);
        let Some(metadata) = optional(fs::metadata(&link)).at("stat", &link)? else { continue };
        if metadata.modified().is_ok_and(|pushed| local.ages().age(pushed) >= age) {
            found.insert(Unreferenced::Manifest(repo.clone(), digest.clone()));
        }
    }
    Ok(())
}

/// The manifests that a tag reaches, also through indexes, and those whose subject is reachable.
fn reachable_manifests(
    local: &Local,
    repo: &RepoId,
    manifests: &HashMap<Digest, Manifest>,
) -> Result<HashSet<Digest>, StoreError> {
    let mut pending = Vec::new();
    for tag in local.layout().tags_on_disk(repo)? {
        pending.extend(local.layout().tag_file(repo, &tag)?.map(|record| record.digest));
    }
    let mut referrers: HashMap<&Digest, Vec<&Digest>> = HashMap::new();
    for (digest, manifest) in manifests {
        if let Some(subject) = &manifest.subject {
            referrers.entry(subject).or_default().push(digest);
        }
    }
    let mut reachable = HashSet::new();
    while let Some(digest) = pending.pop() {
        let Some(manifest) = manifests.get(&digest).filter(|_| reachable.insert(digest.clone())) else { continue };
        pending.extend(manifest.children.iter().filter(|child| child.is_manifest).map(|child| child.digest.clone()));
        pending.extend(referrers.remove(&digest).unwrap_or_default().into_iter().cloned());
    }
    Ok(reachable)
}

/// The first eight bytes.
fn prefix(digest: &Digest) -> u64 {
    digest.as_bytes().first_chunk().map_or(0, |first| u64::from_be_bytes(*first))
}

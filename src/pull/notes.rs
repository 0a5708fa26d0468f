//! The last answers of upstreams about content that is not stored: tags and digests that do not exist, lists of
//! referrers, lists of tags, and whether a repository is public.
//!
//! They are needed in an outage. A client that pulls a cached image may also ask for its referrers or for a tag such as
//! `sha256-….sig`, and gives up if it gets an error (Docker 29, skopeo, CRI-O). So an absence that an upstream
//! confirmed stays an absence for `stale_if_error`, also after a restart, and the last lists are served as stale ones.
//!
//! Each repository with cached content has one note in the store. A note is read when an upstream fails, and when it
//! changes.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use moka::sync::Cache;
use serde::{Deserialize, Serialize};

use crate::oci::{Digest, Reference, Referrer, RepoId};
use crate::store::Store;

/// Maximum number of absences in a note, for names that are derived from a digest and for all others. The oldest ones are
/// removed. One client that requests many tags does not push out what clients need beside cached images.
const MAX_ABSENCES: usize = 1000;
/// The same for a note of a repository without cached content, which is kept in memory only.
const MAX_UNSAVED_ABSENCES: usize = 50;
/// Maximum size of the lists in such a note, in bytes.
const MAX_UNSAVED_LIST_BYTES: usize = 16 << 10;
/// Maximum size of all lists of referrers in a note, in bytes, and of the list of tags. The oldest lists of referrers are
/// removed, and the rest of a longer list of tags is omitted.
const MAX_LIST_BYTES: usize = 256 << 10;
/// A note is not written again if only its times have changed, and by less than this.
const MIN_REWRITE_INTERVAL: Duration = Duration::from_secs(10 * 60);
/// Maximum number of notes in memory.
const MAX_NOTES_IN_MEMORY: u64 = 500;

/// The notes of all repositories.
pub(super) struct Notes {
    store: Store,
    stale_if_error: Duration,
    /// Notes as they are in the store.
    recent: Cache<RepoId, Arc<Note>>,
}

/// The last answers of the upstream about one repository. Times are in seconds since 1970.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(default)]
struct Note {
    /// Only for operators that read the file, because its name is a hash.
    repository: String,
    /// When the upstream last said that a tag or digest does not exist.
    absent: BTreeMap<String, u64>,
    /// By subject. Empty lists are omitted.
    referrers: BTreeMap<String, KnownReferrers>,
    tags: Option<KnownTags>,
    visibility: Option<KnownVisibility>,
    /// The note is in memory only, because the repository has no cached content yet.
    #[serde(skip)]
    unsaved: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
struct KnownReferrers {
    at: u64,
    manifests: Vec<Referrer>,
}

/// Whether the upstream shows the repository to everybody.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize, Serialize)]
pub(super) struct KnownVisibility {
    pub(super) public: bool,
    pub(super) at: u64,
    /// How often in a row the upstream was asked before with the same result, if it is private.
    #[serde(default)]
    pub(super) repeated: u32,
}

/// The beginning of the upstream's list of tags, in its order, as far as clients have read it.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
struct KnownTags {
    at: u64,
    tags: Vec<String>,
    /// Whether `tags` is all of the list.
    complete: bool,
}

impl Notes {
    pub(super) fn new(store: Store, stale_if_error: Duration) -> Self {
        Self { store, stale_if_error, recent: Cache::new(MAX_NOTES_IN_MEMORY) }
    }

    /// Whether the upstream said within `stale_if_error` that the tag or digest does not exist.
    pub(super) async fn is_absent(&self, repo: &RepoId, reference: &Reference) -> bool {
        let note = self.note(repo).await;
        note.absent.get(&reference.to_string()).is_some_and(|at| self.is_usable(*at))
    }

    pub(super) async fn remember_absent(&self, repo: &RepoId, reference: Reference) {
        self.change(repo, move |note, now| {
            note.absent.insert(reference.to_string(), now);
        })
        .await;
    }

    /// Forgets an absence, because the content exists now.
    pub(super) async fn forget_absent(&self, repo: &RepoId, reference: Reference) {
        // Nearly always there is nothing to forget.
        if !self.note(repo).await.absent.contains_key(&reference.to_string()) {
            return;
        }
        self.change(repo, move |note, _| {
            note.absent.remove(&reference.to_string());
        })
        .await;
    }

    /// The last list of referrers, which is empty if none is known.
    pub(super) async fn referrers(&self, repo: &RepoId, subject: &Digest) -> Vec<Referrer> {
        let note = self.note(repo).await;
        let known = note.referrers.get(&subject.to_string()).filter(|known| self.is_usable(known.at));
        known.map(|known| known.manifests.clone()).unwrap_or_default()
    }

    pub(super) async fn remember_referrers(&self, repo: &RepoId, subject: &Digest, referrers: Arc<Vec<Referrer>>) {
        let subject = subject.to_string();
        if referrers.is_empty() && !self.note(repo).await.referrers.contains_key(&subject) {
            return;
        }
        self.change(repo, move |note, now| {
            if referrers.is_empty() {
                note.referrers.remove(&subject);
            } else {
                note.referrers.insert(subject, KnownReferrers { at: now, manifests: (*referrers).clone() });
            }
        })
        .await;
    }

    /// The last list of tags, and whether it is complete. Empty and incomplete if none is known.
    pub(super) async fn tags(&self, repo: &RepoId) -> (Vec<String>, bool) {
        let note = self.note(repo).await;
        let known = note.tags.as_ref().filter(|known| self.is_usable(known.at));
        known.map(|known| (known.tags.clone(), known.complete)).unwrap_or_default()
    }

    /// Remembers a page of the upstream's list. `is_last`: no page follows.
    pub(super) async fn remember_tags(&self, repo: &RepoId, after: &str, tags: &[String], is_last: bool) {
        let (after, tags) = (after.to_owned(), tags.to_vec());
        self.change(repo, move |note, now| note.tags.get_or_insert_default().add(now, &after, &tags, is_last)).await;
    }

    /// Whether the repository was public when the upstream was last asked.
    pub(super) async fn visibility(&self, repo: &RepoId) -> Option<KnownVisibility> {
        self.note(repo).await.visibility
    }

    pub(super) async fn remember_visibility(&self, repo: &RepoId, known: KnownVisibility) {
        self.change(repo, move |note, _| note.visibility = Some(known)).await;
    }

    /// Stores a note that was kept in memory until now. Called when content of the repository was cached.
    pub(super) async fn keep(&self, repo: &RepoId) {
        if self.recent.get(repo).is_some_and(|note| note.unsaved) {
            self.change(repo, |_, _| {}).await;
        }
    }

    /// Whether a fact of this time may be used in an outage. If the clock was set back, all facts may.
    fn is_usable(&self, at: u64) -> bool {
        seconds_now().checked_sub(at).is_none_or(|age| Duration::from_secs(age) < self.stale_if_error)
    }

    async fn note(&self, repo: &RepoId) -> Arc<Note> {
        if let Some(note) = self.recent.get(repo) {
            return note;
        }
        match self.store.note(repo).await {
            Ok(text) => {
                let note = Arc::new(Note::read(text.as_deref()));
                // A change that was stored in the meantime is newer.
                self.recent.entry_by_ref(repo).or_insert(note).into_value()
            }
            Err(error) => {
                tracing::debug!(%repo, %error, "cannot read what the upstream said before");
                Arc::default()
            }
        }
    }

    /// Changes the note of a repository. Without cached content the note is kept in memory. Failures are only logged,
    /// because notes are not required.
    async fn change(&self, repo: &RepoId, change: impl FnOnce(&mut Note, u64) + Send + 'static) {
        if self.store.is_read_only() || !self.store.repository_exists(repo).await.unwrap_or_default() {
            let mut note = Note { unsaved: true, ..(*self.note(repo).await).clone() };
            change(&mut note, seconds_now());
            note.bound(MAX_UNSAVED_ABSENCES, MAX_UNSAVED_LIST_BYTES);
            self.recent.insert(repo.clone(), Arc::new(note));
            return;
        }
        let (recent, repository) = (self.recent.clone(), repo.clone());
        let changed = self.store.change_note(repo, move |text| {
            let old = recent.get(&repository).unwrap_or_else(|| Arc::new(Note::read(text.as_deref())));
            let (mut note, now) = ((*old).clone(), seconds_now());
            change(&mut note, now);
            note.repository = format!("{}/{}", repository.scope.as_str(), repository.name);
            note.unsaved = false;
            note.bound(MAX_ABSENCES, MAX_LIST_BYTES);
            let text = (old.unsaved || note.differs_from(&old)).then(|| serde_json::to_vec(&note).ok()).flatten();
            if text.is_some() {
                recent.insert(repository, Arc::new(note));
            }
            text
        });
        if let Err(error) = changed.await {
            self.recent.invalidate(repo);
            tracing::debug!(%repo, %error, "cannot keep what the upstream said");
        }
    }
}

// === impl Note ===

impl Note {
    /// A note that cannot be read counts as empty.
    fn read(text: Option<&[u8]>) -> Self {
        text.and_then(|text| serde_json::from_slice(text).ok()).unwrap_or_default()
    }

    fn bound(&mut self, max_absences: usize, max_list_bytes: usize) {
        for derived in [true, false] {
            let mut times: Vec<u64> = self.absent_of(derived).map(|(_, at)| *at).collect();
            let mut surplus = times.len().saturating_sub(max_absences);
            if surplus > 0 {
                times.sort_unstable();
                let newest_removed = times[surplus - 1];
                self.absent.retain(|name, at| {
                    let goes = surplus > 0 && is_derived(name) == derived && *at <= newest_removed;
                    surplus -= usize::from(goes);
                    !goes
                });
            }
        }
        let size = |known: &KnownReferrers| known.manifests.iter().map(|one| 100 + one.weight()).sum::<usize>();
        while self.referrers.values().map(size).sum::<usize>() > max_list_bytes
            && let Some(oldest) = self.referrers.iter().min_by_key(|(_, known)| known.at).map(|(name, _)| name.clone())
        {
            self.referrers.remove(&oldest);
        }
        if let Some(tags) = &mut self.tags {
            tags.cut(max_list_bytes);
        }
    }

    fn absent_of(&self, derived: bool) -> impl Iterator<Item = (&String, &u64)> {
        self.absent.iter().filter(move |(name, _)| is_derived(name) == derived)
    }

    /// Whether the facts of the note differ from those of `old`, or its times are much newer.
    fn differs_from(&self, old: &Self) -> bool {
        let newer = |new: u64, old: u64| Duration::from_secs(new.abs_diff(old)) >= MIN_REWRITE_INTERVAL;
        let absent_differ = self.absent.len() != old.absent.len()
            || self.absent.iter().any(|(name, at)| old.absent.get(name).is_none_or(|old| newer(*at, *old)));
        let referrers_differ = self.referrers.len() != old.referrers.len()
            || self.referrers.iter().any(|(subject, known)| {
                let old = old.referrers.get(subject);
                old.is_none_or(|old| old.manifests != known.manifests || newer(known.at, old.at))
            });
        let tags_differ = match (&self.tags, &old.tags) {
            (Some(known), Some(old)) => {
                known.tags != old.tags || known.complete != old.complete || newer(known.at, old.at)
            }
            (known, old) => known.is_some() != old.is_some(),
        };
        let visibility_differs = match (self.visibility, old.visibility) {
            (Some(known), Some(old)) => known.public != old.public || newer(known.at, old.at),
            (known, old) => known.is_some() != old.is_some(),
        };
        absent_differ || referrers_differ || tags_differ || visibility_differs
    }
}

// === impl KnownTags ===

impl KnownTags {
    /// Adds the page that follows `after`. The first page begins a new list, unless it is the beginning of this one. A
    /// page that does not continue the list is ignored.
    fn add(&mut self, now: u64, after: &str, tags: &[String], is_last: bool) {
        let position = if after.is_empty() {
            self.at = now;
            if !self.tags.starts_with(tags) || tags.is_empty() {
                (self.tags, self.complete) = (Vec::new(), false);
            }
            0
        } else {
            let Some(at) = self.tags.iter().position(|tag| tag == after) else { return };
            at + 1
        };
        if self.tags[position..].starts_with(tags) && !is_last {
            return;
        }
        self.tags.truncate(position);
        self.tags.extend_from_slice(tags);
        self.complete = is_last;
    }

    fn cut(&mut self, max_bytes: usize) {
        let mut bytes = 0;
        let kept = self.tags.iter().take_while(|tag| {
            bytes += tag.len() + 3;
            bytes <= max_bytes
        });
        let kept = kept.count();
        self.complete &= kept == self.tags.len();
        self.tags.truncate(kept);
    }
}

/// Whether a tag or digest belongs to a digest: the digest itself, or a tag such as `sha256-….sig`.
fn is_derived(name: &str) -> bool {
    ["sha256", "sha512"].iter().any(|algorithm| {
        name.strip_prefix(algorithm).is_some_and(|rest| rest.starts_with([':', '-']) && rest.len() > 64)
    })
}

pub(super) fn seconds_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tags(names: &str) -> Vec<String> {
        names.chars().map(String::from).collect()
    }

    #[test]
    fn pages_are_joined_to_the_last_list() {
        let mut known = KnownTags::default();
        let mut add = |after: &str, page: &str, is_last| {
            known.add(1, after, &tags(page), is_last);
            (known.tags.concat(), known.complete)
        };
        let is = |text: &str, complete| (text.to_owned(), complete);
        assert_eq!(add("", "zb", false), is("zb", false));
        assert_eq!(add("b", "ca", true), is("zbca", true));
        assert_eq!(add("q", "rs", true), is("zbca", true), "a page that does not continue the list");
        assert_eq!(add("", "zb", false), is("zbca", true), "the same first page again");
        assert_eq!(add("", "zb", true), is("zb", true), "the list has become shorter");
        assert_eq!(add("", "b", false), is("b", false), "the list has changed");
        assert_eq!(add("", "", true), is("", true));
    }

    #[test]
    fn a_long_list_is_cut_and_then_incomplete() {
        let mut known = KnownTags::default();
        known.add(1, "", &vec!["x".repeat(100); 10_000], true);
        known.cut(MAX_LIST_BYTES);
        assert!(known.tags.len() * 103 <= MAX_LIST_BYTES && known.tags.len() > 2000 && !known.complete);
    }

    #[test]
    fn the_oldest_absences_of_each_kind_are_removed() {
        let mut note = Note::default();
        for n in 0..MAX_ABSENCES as u64 + 3 {
            note.absent.insert(format!("tag{n}"), n);
        }
        let signature = format!("sha256-{}.sig", "0".repeat(64));
        note.absent.insert(signature.clone(), 0);
        note.bound(MAX_ABSENCES, MAX_LIST_BYTES);
        assert_eq!(note.absent_of(false).count(), MAX_ABSENCES);
        assert!(!note.absent.contains_key("tag2") && note.absent.contains_key("tag3"));
        assert!(note.absent.contains_key(&signature), "many other tags do not push it out");
    }

    #[test]
    fn a_note_is_rewritten_only_when_it_says_something_new() {
        let mut old = Note::default();
        old.absent.insert("tag".to_owned(), 1000);
        let with = |at| {
            let mut note = old.clone();
            note.absent.insert("tag".to_owned(), at);
            note
        };
        assert!(!with(1100).differs_from(&old));
        assert!(with(1000 + MIN_REWRITE_INTERVAL.as_secs()).differs_from(&old));
        assert!(Note::default().differs_from(&old));
        assert_eq!(Note::read(Some(b"\xff")), Note::default());
        assert_eq!(Note::read(Some(&serde_json::to_vec(&old).unwrap())), old);
    }
}

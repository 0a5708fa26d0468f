//! The last answers of upstreams about content that is not stored: tags and digests that do not exist, lists of
//! referrers, and lists of tags.
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

use super::tag_list::{TagList, TagPage, page_after};
use crate::oci::{Digest, Reference, Referrer, RepoId};
use crate::store::Store;

/// Maximum number of absences in a note. The oldest ones are removed.
const MAX_ABSENCES: usize = 2000;
/// Maximum size of all lists of referrers in a note, in bytes. The oldest ones are removed.
const MAX_REFERRERS_BYTES: usize = 256 << 10;
/// Maximum size of the list of tags in a note, in bytes. The rest of a longer list is omitted.
const MAX_TAGS_BYTES: usize = 256 << 10;
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
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
struct KnownReferrers {
    at: u64,
    manifests: Vec<Referrer>,
}

/// The beginning of the upstream's list of tags, in its order, as far as clients have read it.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
struct KnownTags {
    at: u64,
    tags: Vec<String>,
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

    /// The page of the last list of tags; `None` if it is not known.
    pub(super) async fn tag_page(&self, repo: &RepoId, page: TagPage<'_>) -> Option<TagList> {
        let note = self.note(repo).await;
        note.tags.as_ref().filter(|known| self.is_usable(known.at))?.page(page)
    }

    /// Remembers a page of the upstream's list.
    pub(super) async fn remember_tags(&self, repo: &RepoId, after: &str, tags: &[String]) {
        let (after, tags) = (after.to_owned(), tags.to_vec());
        self.change(repo, move |note, now| note.tags.get_or_insert_default().add(now, &after, &tags)).await;
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

    /// Changes the note of a repository that has cached content. Failures are only logged, because notes are not
    /// required.
    async fn change(&self, repo: &RepoId, change: impl FnOnce(&mut Note, u64) + Send + 'static) {
        if self.store.is_read_only() || !self.store.repository_exists(repo).await.unwrap_or_default() {
            return;
        }
        let (recent, repository) = (self.recent.clone(), repo.clone());
        let changed = self.store.change_note(repo, move |text| {
            let old = recent.get(&repository).unwrap_or_else(|| Arc::new(Note::read(text.as_deref())));
            let (mut note, now) = ((*old).clone(), seconds_now());
            change(&mut note, now);
            note.repository = format!("{}/{}", repository.scope.as_str(), repository.name);
            note.bound();
            let text = note.differs_from(&old).then(|| serde_json::to_vec(&note).ok()).flatten();
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

    fn bound(&mut self) {
        while self.absent.len() > MAX_ABSENCES
            && let Some(oldest) = self.absent.iter().min_by_key(|(_, at)| **at).map(|(name, _)| name.clone())
        {
            self.absent.remove(&oldest);
        }
        let size = |known: &KnownReferrers| known.manifests.iter().map(|one| 100 + one.weight()).sum::<usize>();
        while self.referrers.values().map(size).sum::<usize>() > MAX_REFERRERS_BYTES
            && let Some(oldest) = self.referrers.iter().min_by_key(|(_, known)| known.at).map(|(name, _)| name.clone())
        {
            self.referrers.remove(&oldest);
        }
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
            (Some(known), Some(old)) => known.tags != old.tags || newer(known.at, old.at),
            (known, old) => known.is_some() != old.is_some(),
        };
        absent_differ || referrers_differ || tags_differ
    }
}

// === impl KnownTags ===

impl KnownTags {
    /// Adds the page that follows `after`. The first page begins a new list, unless it is the beginning of this one. A
    /// page that does not continue the list is ignored.
    fn add(&mut self, now: u64, after: &str, tags: &[String]) {
        if after.is_empty() {
            self.at = now;
            if !self.tags.starts_with(tags) || tags.is_empty() {
                self.tags.clear();
            }
        }
        let Some(position) = self.position_after(after) else { return };
        let known = &self.tags[position..];
        if known.starts_with(tags) {
            return;
        }
        self.tags.truncate(position);
        self.tags.extend_from_slice(tags);
        let mut bytes = 0;
        let kept = self.tags.iter().take_while(|tag| {
            bytes += tag.len() + 3;
            bytes <= MAX_TAGS_BYTES
        });
        let kept = kept.count();
        self.tags.truncate(kept);
    }

    fn page(&self, page: TagPage<'_>) -> Option<TagList> {
        let rest = &self.tags[self.position_after(page.after)?..];
        let tags = rest[..page.limit.min(rest.len())].to_vec();
        let next = tags.last().filter(|_| tags.len() < rest.len()).map(|last| page_after(last, page.limit));
        Some(TagList { tags, next, stale: true })
    }

    fn position_after(&self, after: &str) -> Option<usize> {
        if after.is_empty() { Some(0) } else { Some(self.tags.iter().position(|tag| tag == after)? + 1) }
    }
}

fn seconds_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tags(names: &str) -> Vec<String> {
        names.chars().map(String::from).collect()
    }

    fn listed(known: &KnownTags, after: &str, limit: usize) -> Option<(String, bool)> {
        let page = known.page(TagPage { after, limit, cursor: &[] })?;
        Some((page.tags.concat(), page.next.is_some()))
    }

    #[test]
    fn pages_are_joined_to_the_last_list() {
        let mut known = KnownTags::default();
        known.add(1, "", &tags("zb"));
        known.add(2, "b", &tags("ca"));
        assert_eq!(listed(&known, "", 10), Some(("zbca".to_owned(), false)));
        assert_eq!(listed(&known, "", 3), Some(("zbc".to_owned(), true)));
        assert_eq!(listed(&known, "c", 3), Some(("a".to_owned(), false)));
        assert_eq!(listed(&known, "q", 3), None, "a page that is not known");
        known.add(3, "q", &tags("rs"));
        assert_eq!(listed(&known, "", 10), Some(("zbca".to_owned(), false)), "a page that does not continue the list");
        known.add(4, "", &tags("zb"));
        assert_eq!(listed(&known, "", 10), Some(("zbca".to_owned(), false)), "the same first page again");
        known.add(5, "", &tags("b"));
        assert_eq!(listed(&known, "", 10), Some(("b".to_owned(), false)), "the list has changed");
        known.add(6, "", &[]);
        assert_eq!(listed(&known, "", 10), Some((String::new(), false)));
    }

    #[test]
    fn a_long_list_is_cut() {
        let mut known = KnownTags::default();
        known.add(1, "", &vec!["x".repeat(100); 10_000]);
        assert!(known.tags.len() * 103 <= MAX_TAGS_BYTES && known.tags.len() > 2000);
    }

    #[test]
    fn the_oldest_absences_make_way() {
        let mut note = Note::default();
        for n in 0..MAX_ABSENCES as u64 + 3 {
            note.absent.insert(format!("tag{n}"), n);
        }
        note.bound();
        assert_eq!(note.absent.len(), MAX_ABSENCES);
        assert!(!note.absent.contains_key("tag2") && note.absent.contains_key("tag3"));
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

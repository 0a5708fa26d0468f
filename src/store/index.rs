//! The index: what can be rebuilt from the files, kept in sled so that lists and sums need no walk.
//!
//! sled does not fail cleanly, so nothing here is believed further than it can be checked: open and full scans run under
//! `catch_unwind`; a folder that is not ours, of another version, or whose count is off is set aside; an operation that
//! fails or panics takes the index out of service until it is rebuilt. A miss here is never a 404, a hit never proof.
//! All methods block. No sled type leaves this file.

use std::fs;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use super::error::is_full;
use super::layout::Layout;
use super::records::Candidate;
use super::records::{self, BlobRecord, Class, Page, kind};
use super::segments::{LastUse, Time};
use crate::oci::{Digest, RepoId, Scope, Tag};

const FORMAT: u8 = 2;
const CACHE_BYTES: u64 = 32 << 20;
const LOCK_TRIES: usize = 100;
const LOCK_PAUSE: Duration = Duration::from_millis(10);
/// A larger batch stops every reader for as long as it takes.
pub(super) const BATCH: usize = 100;

#[derive(Debug)]
pub(super) struct Index {
    /// Empty: there is none, or none yet, and lists come from the folders.
    db: OnceLock<sled::Db>,
    folder: [u8; 16],
    /// In service: everything that is in the files is in here.
    ready: AtomicBool,
    /// Changed since the last flush.
    dirty: AtomicBool,
    records: AtomicU64,
    cached: AtomicI64,
    pushed: AtomicI64,
    /// Name files of mirrored repositories, as the last clean stop left them.
    names: AtomicU64,
}

/// A change to the index, for [`Index::apply`].
pub(super) enum Change<'a> {
    Blob(&'a Digest, BlobRecord),
    /// With it goes its last use.
    NoBlob(&'a Digest),
    Used(&'a LastUse),
    Mark(&'a Candidate, Time),
    NoMark(&'a Candidate),
    Link(&'a RepoId, &'a Digest),
    NoLink(&'a RepoId, &'a Digest),
    Repository(&'a RepoId),
    NoRepository(&'a RepoId),
    Tag(&'a RepoId, &'a Tag),
    NoTag(&'a RepoId, &'a Tag),
}

/// How the index was found.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// As a clean stop left it: in service at once.
    Clean,
    /// After an unclean stop: some records may be missing or stale.
    Unclean,
    /// Absent: there is nothing in it.
    New,
    /// Odd, for the reason given, and set aside: there is nothing in it.
    SetAside(String),
}

#[derive(Debug, thiserror::Error)]
enum OpenError {
    #[error("sled: {0}")]
    Sled(#[from] sled::Error),
    #[error("sled panicked")]
    Panicked,
    #[error("{0}")]
    Odd(&'static str),
}

impl Index {
    /// Of the data folder `folder`. Knows nothing and takes nothing in until it is opened, which that of a folder that is
    /// only read never is.
    pub(super) fn unopened(folder: [u8; 16]) -> Self {
        Self {
            db: OnceLock::new(),
            folder,
            ready: AtomicBool::new(false),
            dirty: AtomicBool::new(false),
            records: AtomicU64::new(0),
            cached: AtomicI64::new(0),
            pushed: AtomicI64::new(0),
            names: AtomicU64::new(0),
        }
    }

    /// Opens it; never fails for what is in it, only if no new one can be made. What a full disk refuses is not odd, and is
    /// left as it is. `trusted`: a clean stop's word is good, for nothing has changed since.
    pub(super) fn open(&self, layout: &Layout, trusted: bool) -> io::Result<Found> {
        let path = layout.index();
        let existed = path.exists();
        match self.try_open(&path) {
            Ok(clean) if existed => {
                let clean = clean && trusted;
                self.ready.store(clean, Ordering::Release);
                Ok(if clean { Found::Clean } else { Found::Unclean })
            }
            Ok(_) => Ok(Found::New),
            Err(OpenError::Sled(sled::Error::Io(error))) if is_full(&error) => Err(error),
            Err(reason) => {
                set_aside(&path, &layout.odd_index())?;
                match self.try_open(&path) {
                    Ok(_) => Ok(Found::SetAside(reason.to_string())),
                    Err(OpenError::Sled(sled::Error::Io(error))) => Err(error),
                    Err(error) => Err(io::Error::other(error)),
                }
            }
        }
    }

    /// Whether there is one, in service or not.
    pub(super) fn is_open(&self) -> bool {
        self.db.get().is_some()
    }

    fn try_open(&self, path: &Path) -> Result<bool, OpenError> {
        let open = || -> Result<bool, OpenError> {
            // sled's own flush would sync its file every time, also when nothing was written; see `flush`.
            let config = sled::Config::new().path(path).cache_capacity(CACHE_BYTES).flush_every_ms(None);
            let db = open_unlocked(&config)?;
            let clean = self.verify(&db)?;
            let _ = self.db.set(db);
            Ok(clean)
        };
        catch_unwind(AssertUnwindSafe(open)).unwrap_or(Err(OpenError::Panicked))
    }

    /// Reads everything once: the sums, and whether it is what the last clean stop left. Marks it open.
    fn verify(&self, db: &sled::Db) -> Result<bool, OpenError> {
        let mark = db.get([kind::META])?;
        let (mut records, mut sums) = (0, [0i64; 2]);
        for entry in db.iter() {
            let (key, value) = entry?;
            match key.first() {
                Some(&kind::META) => continue,
                Some(&kind::BLOB) => {
                    let blob = BlobRecord::from_bytes(&value).ok_or(OpenError::Odd("a blob record is odd"))?;
                    sums[blob.class as usize] += blob.size as i64;
                }
                Some(&(kind::REPOSITORY | kind::TAG | kind::USE | kind::LINK)) => {}
                Some(kind) if kind::MARKS.contains(kind) => {}
                _ => return Err(OpenError::Odd("a record of an unknown kind")),
            }
            records += 1;
        }
        let clean = match mark.as_deref() {
            None if records == 0 => false,
            None => return Err(OpenError::Odd("records, but no mark")),
            Some(mark) => {
                let mark = Mark::parse(mark).ok_or(OpenError::Odd("a mark of another version"))?;
                if mark.folder != self.folder {
                    return Err(OpenError::Odd("it belongs to another data folder"));
                }
                if mark.clean && mark.records != records {
                    return Err(OpenError::Odd("records are missing"));
                }
                self.names.store(mark.names, Ordering::Relaxed);
                mark.clean
            }
        };
        self.records.store(records, Ordering::Relaxed);
        self.cached.store(sums[Class::Cached as usize], Ordering::Relaxed);
        self.pushed.store(sums[Class::Pushed as usize], Ordering::Relaxed);
        self.write_mark(db, false, 0)?;
        Ok(clean)
    }

    fn write_mark(&self, db: &sled::Db, clean: bool, names: u64) -> Result<(), sled::Error> {
        let mark = Mark { folder: self.folder, clean, records: self.records.load(Ordering::Relaxed), names };
        db.insert([kind::META], mark.to_bytes())?;
        db.flush().map(drop)
    }

    /// Whether lists and sums may be answered from here.
    pub(super) fn is_ready(&self) -> bool {
        self.ready.load(Ordering::Acquire)
    }

    pub(super) fn set_ready(&self) {
        self.ready.store(true, Ordering::Release);
    }

    /// Bytes of content of each class.
    pub(super) fn bytes(&self, class: Class) -> u64 {
        let sum = match class {
            Class::Cached => &self.cached,
            Class::Pushed => &self.pushed,
        };
        u64::try_from(sum.load(Ordering::Relaxed)).unwrap_or(0)
    }

    /// Name files of mirrored repositories, as the last clean stop left them.
    pub(super) fn names(&self) -> u64 {
        self.names.load(Ordering::Relaxed)
    }

    /// Records of all kinds.
    pub(super) fn count(&self) -> usize {
        self.records.load(Ordering::Relaxed).try_into().unwrap_or(0)
    }

    /// Writes what has changed to the disk. Nothing depends on it: what a crash loses is found by the next walk.
    pub(super) fn flush(&self) {
        if self.dirty.swap(false, Ordering::AcqRel) {
            self.guarded(|db| db.flush());
        }
    }

    /// The last thing done at a clean stop. `names` are the name files of mirrored repositories.
    pub(super) fn close(&self, names: u64) {
        if self.is_ready() {
            self.guarded(|db| self.write_mark(db, true, names));
        }
    }

    /// Runs an operation; a failure or panic takes the index out of service and is no failure of the caller.
    fn guarded<T>(&self, operation: impl FnOnce(&sled::Db) -> Result<T, sled::Error>) -> Option<T> {
        let db = self.db.get()?;
        let reason = match catch_unwind(AssertUnwindSafe(|| operation(db))) {
            Ok(Ok(value)) => return Some(value),
            Ok(Err(error)) => error.to_string(),
            Err(_) => "sled panicked".to_owned(),
        };
        self.ready.store(false, Ordering::Release);
        tracing::error!(reason, "the index failed and is out of service until the next start; files go on answering");
        None
    }

    /// Applies changes one by one; each keeps count and sums right.
    pub(super) fn apply(&self, changes: &[Change<'_>]) {
        self.dirty.store(true, Ordering::Release);
        for change in changes {
            self.guarded(|db| {
                match change {
                    Change::Blob(digest, record) => {
                        let old = self.put(db, records::blob_key(digest), &record.to_bytes())?;
                        self.account(old.as_deref(), Some(*record));
                    }
                    Change::NoBlob(digest) => {
                        let old = self.take(db, records::blob_key(digest))?;
                        self.account(old.as_deref(), None);
                        self.take(db, records::use_key(digest))?;
                    }
                    Change::Used(last) => drop(self.put(db, records::use_key(&last.digest), &last.to_bytes())?),
                    Change::Mark(candidate, since) => {
                        drop(self.put(db, records::mark_key(candidate), &since.to_be_bytes())?);
                    }
                    Change::NoMark(candidate) => drop(self.take(db, records::mark_key(candidate))?),
                    Change::Link(repo, digest) => drop(self.put(db, records::link_key(repo, digest), &[FORMAT])?),
                    Change::NoLink(repo, digest) => drop(self.take(db, records::link_key(repo, digest))?),
                    Change::Repository(repo) => drop(self.put(db, records::repository_key(repo), &[FORMAT])?),
                    Change::NoRepository(repo) => drop(self.take(db, records::repository_key(repo))?),
                    Change::Tag(repo, tag) => drop(self.put(db, tag_key(repo, tag), &[FORMAT])?),
                    Change::NoTag(repo, tag) => drop(self.take(db, tag_key(repo, tag))?),
                }
                Ok(())
            });
        }
    }

    fn put(&self, db: &sled::Db, key: Vec<u8>, value: &[u8]) -> Result<Option<sled::IVec>, sled::Error> {
        let old = db.insert(key, value)?;
        if old.is_none() {
            self.records.fetch_add(1, Ordering::Relaxed);
        }
        Ok(old)
    }

    fn take(&self, db: &sled::Db, key: Vec<u8>) -> Result<Option<sled::IVec>, sled::Error> {
        let old = db.remove(key)?;
        if old.is_some() {
            self.records.fetch_sub(1, Ordering::Relaxed);
        }
        Ok(old)
    }

    /// What is known here of a blob.
    pub(super) fn blob(&self, digest: &Digest) -> Option<BlobRecord> {
        let value = self.guarded(|db| db.get(records::blob_key(digest)))??;
        BlobRecord::from_bytes(&value)
    }

    /// The mirrored repositories that a manifest belongs to.
    pub(super) fn linked_in(&self, digest: &Digest) -> Vec<RepoId> {
        let linked = self.guarded(|db| {
            let keys = db.scan_prefix(records::link_prefix(digest)).keys();
            keys.map(|key| Ok(records::link_of_key(&key?).map(|(_, repo)| repo))).collect::<Result<Vec<_>, _>>()
        });
        linked.unwrap_or_default().into_iter().flatten().collect()
    }

    /// Hands over what is known of every blob.
    pub(super) fn for_each_blob(&self, each: &mut dyn FnMut(Digest, BlobRecord)) {
        self.guarded(|db| {
            for entry in db.scan_prefix([kind::BLOB]) {
                let (key, value) = entry?;
                if let (Some(digest), Some(blob)) = (records::digest_of_key(&key), BlobRecord::from_bytes(&value)) {
                    each(digest, blob);
                }
            }
            Ok(())
        });
    }

    /// Hands over everything that is marked, and since when.
    pub(super) fn for_each_mark(&self, each: &mut dyn FnMut(Candidate, Time)) {
        self.guarded(|db| {
            for entry in kind::MARKS.into_iter().flat_map(|kind| db.scan_prefix([kind])) {
                let (key, value) = entry?;
                if let (Some(candidate), Ok(since)) = (records::mark_of_key(&key), (*value).try_into()) {
                    each(candidate, Time::from_be_bytes(since));
                }
            }
            Ok(())
        });
    }

    /// Hands over last use, size and time of coming of everything that is cached.
    pub(super) fn for_each_cached(&self, each: &mut dyn FnMut(LastUse, u64, Time)) {
        self.for_each_blob(&mut |digest, blob| {
            if blob.class == Class::Cached {
                let used = self.guarded(|db| db.get(records::use_key(&digest))).flatten();
                let used = used.and_then(|used| LastUse::from_bytes(digest.clone(), &used));
                each(used.unwrap_or(LastUse { digest, at: blob.added, protected: false }), blob.size, blob.added);
            }
        });
    }

    /// The tags of a repository after `after`, at most `limit`; `None` while the index is not in service.
    pub(super) fn tags(&self, repo: &RepoId, after: &str, limit: usize) -> Option<Page> {
        self.page(records::tag_prefix(repo), after, limit)
    }

    /// The names of a scope's repositories after `after`, at most `limit`; `None` while the index is not in service.
    pub(super) fn repositories(&self, scope: &Scope, after: &str, limit: usize) -> Option<Page> {
        self.page(records::scope_prefix(scope), after, limit)
    }

    fn page(&self, prefix: Vec<u8>, after: &str, limit: usize) -> Option<Page> {
        if !self.is_ready() {
            return None;
        }
        let mut start = prefix.clone();
        start.extend_from_slice(after.as_bytes());
        self.guarded(|db| {
            let mut page = Page::default();
            for entry in db.range(start.clone()..) {
                let (key, _) = entry?;
                let Some(item) = key.strip_prefix(prefix.as_slice()) else { break };
                if key == start {
                    continue;
                }
                if page.items.len() == limit {
                    page.more = true;
                    break;
                }
                page.items.push(String::from_utf8_lossy(item).into_owned());
            }
            Ok(page)
        })
    }

    /// Up to [`BATCH`] keys after `after`, for a walk that checks each against the files.
    pub(super) fn keys_after(&self, after: &[u8]) -> Vec<Vec<u8>> {
        self.guarded(|db| {
            db.range(after.to_vec()..)
                .keys()
                .filter(|key| !matches!(key, Ok(key) if key == after))
                .take(BATCH)
                .map(|key| key.map(|key| key.to_vec()))
                .collect()
        })
        .unwrap_or_default()
    }

    fn account(&self, old: Option<&[u8]>, new: Option<BlobRecord>) {
        let old = old.and_then(BlobRecord::from_bytes).map(|blob| (-(blob.size as i64), blob.class));
        for (delta, class) in old.into_iter().chain(new.map(|blob| (blob.size as i64, blob.class))) {
            match class {
                Class::Cached => self.cached.fetch_add(delta, Ordering::Relaxed),
                Class::Pushed => self.pushed.fetch_add(delta, Ordering::Relaxed),
            };
        }
    }
}

/// sled's own threads may hold its lock a moment longer than the index that was closed before in this process. Nobody
/// else does: the folder is locked by us. So it is waited for, and not taken for damage.
fn open_unlocked(config: &sled::Config) -> Result<sled::Db, sled::Error> {
    for _ in 0..LOCK_TRIES {
        match config.open() {
            Err(sled::Error::Io(error)) if error.to_string().contains("could not acquire lock") => {
                std::thread::sleep(LOCK_PAUSE);
            }
            opened => return opened,
        }
    }
    config.open()
}

fn tag_key(repo: &RepoId, tag: &Tag) -> Vec<u8> {
    let mut key = records::tag_prefix(repo);
    key.extend_from_slice(tag.as_str().as_bytes());
    key
}

/// Keeps one odd index for whoever wants to look at it.
fn set_aside(path: &Path, aside: &Path) -> io::Result<()> {
    match fs::remove_dir_all(aside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    fs::rename(path, aside)
}

/// What the index says of itself: format, data folder, and how it was left.
struct Mark {
    folder: [u8; 16],
    clean: bool,
    records: u64,
    names: u64,
}

impl Mark {
    fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = vec![FORMAT, u8::from(self.clean)];
        bytes.extend_from_slice(&self.folder);
        bytes.extend_from_slice(&self.records.to_be_bytes());
        bytes.extend_from_slice(&self.names.to_be_bytes());
        bytes
    }

    fn parse(bytes: &[u8]) -> Option<Self> {
        let (&[format, clean], rest) = bytes.split_first_chunk::<2>()?;
        let (folder, rest) = rest.split_first_chunk::<16>()?;
        let (records, names) = rest.split_first_chunk::<8>()?;
        (format == FORMAT && clean < 2).then_some(Self {
            folder: *folder,
            clean: clean == 1,
            records: u64::from_be_bytes(*records),
            names: u64::from_be_bytes(names.try_into().ok()?),
        })
    }
}

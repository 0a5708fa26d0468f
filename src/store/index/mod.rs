//! The index: what can be rebuilt from the files, kept in sled so that lists and sums need no walk of the folders.
//!
//! The files are the truth. A record that is missing here is never a reason for a 404, and one that is here proves nothing.
//!
//! sled does not fail cleanly, so every use is checked. Opening and scanning run under `catch_unwind`. A folder of
//! another version, of another data folder, or with a wrong count of records is corrupt and is set aside. An operation
//! that fails or panics takes the index out of service until it is opened again and reconciled with the files. All
//! methods block. No sled type leaves this module.

pub(in crate::store) mod keys;

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::RwLock;

use crate::oci::{Digest, RepoId, Scope, Tag};
use crate::store::clock::Time;
use crate::store::error::{is_full, optional};
use crate::store::fs;
use crate::store::records::{Class, LastUse, Page, Unreferenced};
use keys::{BlobRecord, kind};

/// Version of the format. An index of another version is rebuilt.
const FORMAT: u8 = 2;
/// Memory that sled may use as its page cache.
const SLED_CACHE_BYTES: u64 = 32 << 20;
const SLED_LOCK_ATTEMPTS: usize = 100;
const SLED_LOCK_PAUSE: Duration = Duration::from_millis(10);
/// Changes or keys of one batch. A larger batch would stop every reader for too long.
pub(in crate::store) const BATCH_RECORDS: usize = 100;

#[derive(Debug)]
pub(in crate::store) struct Index {
    /// Empty until the index is opened: lists come from the folders until then.
    db: RwLock<Option<sled::Db>>,
    /// An operation on the open index has failed. sled takes no more changes, so it has to be opened again.
    failed: AtomicBool,
    /// The condition of the index when it was first opened.
    found: OnceLock<IndexCondition>,
    /// The identity of the data folder.
    folder: [u8; 16],
    /// In service: everything that is in the files is in here.
    ready: AtomicBool,
    /// Changed since the last flush.
    dirty: AtomicBool,
    /// Records of all kinds.
    records: AtomicU64,
    /// Bytes of content of each class.
    cached: AtomicI64,
    pushed: AtomicI64,
    /// Name files of mirrored repositories at the last clean stop.
    names: AtomicU64,
}

/// A change to the index, for [`Index::apply`].
pub(in crate::store) enum Change<'a> {
    Blob(&'a Digest, BlobRecord),
    /// Removes the blob and its last use.
    NoBlob(&'a Digest),
    Used(&'a LastUse),
    Mark(&'a Unreferenced, Time),
    NoMark(&'a Unreferenced),
    Link(&'a RepoId, &'a Digest),
    NoLink(&'a RepoId, &'a Digest),
    Repository(&'a RepoId),
    NoRepository(&'a RepoId),
    Tag(&'a RepoId, &'a Tag),
    NoTag(&'a RepoId, &'a Tag),
}

/// The condition in which the index was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::store) enum IndexCondition {
    /// As a clean stop left it. It is in service at once.
    Clean,
    /// After an unclean stop. Some records may be missing or stale.
    Unclean,
    /// There was none. It is empty.
    New,
    /// Corrupt, for this reason, and set aside. The new one is empty.
    Corrupt(String),
}

#[derive(Debug, thiserror::Error)]
enum OpenError {
    #[error("sled: {0}")]
    Sled(#[from] sled::Error),
    #[error("sled panicked")]
    Panicked,
    #[error("{0}")]
    Corrupt(&'static str),
}

impl Index {
    /// The index of the data folder with identity `folder`. Until it is opened it knows nothing and ignores changes. The
    /// index of a read-only folder is never opened.
    pub(in crate::store) fn unopened(folder: [u8; 16]) -> Self {
        Self {
            db: RwLock::new(None),
            failed: AtomicBool::new(false),
            found: OnceLock::new(),
            folder,
            ready: AtomicBool::new(false),
            dirty: AtomicBool::new(false),
            records: AtomicU64::new(0),
            cached: AtomicI64::new(0),
            pushed: AtomicI64::new(0),
            names: AtomicU64::new(0),
        }
    }

    /// Opens the index at `path`. A corrupt one is moved to `aside` and replaced by an empty one. Only with `trusted` is the
    /// mark of a clean stop believed: no file has changed since without the index.
    ///
    /// # Errors
    /// When no index can be created. On a full disk the folder is left as it is: that is not corruption.
    pub(in crate::store) fn open(&self, path: &Path, aside: &Path, trusted: bool) -> io::Result<IndexCondition> {
        let condition = self.open_or_replace(path, aside, trusted)?;
        self.ready.store(condition == IndexCondition::Clean, Ordering::Release);
        let _ = self.found.set(condition.clone());
        Ok(condition)
    }

    fn open_or_replace(&self, path: &Path, aside: &Path, trusted: bool) -> io::Result<IndexCondition> {
        let existed = fs::exists(path);
        match self.try_open(path) {
            Ok(clean) if existed => Ok(if clean && trusted { IndexCondition::Clean } else { IndexCondition::Unclean }),
            Ok(_) => Ok(IndexCondition::New),
            Err(OpenError::Sled(sled::Error::Io(error))) if is_full(&error) => Err(error),
            Err(reason) => {
                set_aside(path, aside)?;
                match self.try_open(path) {
                    Ok(_) => Ok(IndexCondition::Corrupt(reason.to_string())),
                    Err(OpenError::Sled(sled::Error::Io(error))) => Err(error),
                    Err(error) => Err(io::Error::other(error)),
                }
            }
        }
    }

    /// The condition in which the index was found; `None` until it is opened.
    pub(in crate::store) fn found(&self) -> Option<&IndexCondition> {
        self.found.get()
    }

    /// Whether it has been opened, in service or not.
    pub(in crate::store) fn is_open(&self) -> bool {
        self.db.read().is_some()
    }

    /// Closes an index that has failed, so that it can be opened again. Without effect on one that works.
    pub(in crate::store) fn close_failed(&self) {
        if !self.failed.load(Ordering::Acquire) {
            return;
        }
        let failed = self.db.write().take();
        // Flushes once more, and panics where that fails.
        let _ = catch_unwind(AssertUnwindSafe(|| drop(failed)));
        self.failed.store(false, Ordering::Release);
    }

    fn try_open(&self, path: &Path) -> Result<bool, OpenError> {
        let open = || -> Result<bool, OpenError> {
            // sled's own periodic flush syncs its file even when nothing was written. `flush` does not.
            let config = sled::Config::new().path(path).cache_capacity(SLED_CACHE_BYTES).flush_every_ms(None);
            let db = open_unlocked(&config)?;
            let clean = self.verify(&db)?;
            *self.db.write() = Some(db);
            Ok(clean)
        };
        catch_unwind(AssertUnwindSafe(open)).unwrap_or(Err(OpenError::Panicked))
    }

    /// Reads everything once, for the sums, and marks the index as open. Whether it is as the last clean stop left it.
    fn verify(&self, db: &sled::Db) -> Result<bool, OpenError> {
        let header = db.get([kind::META])?;
        let (mut records, mut sums) = (0, [0i64; 2]);
        for entry in db.iter() {
            let (key, value) = entry?;
            match key.first() {
                Some(&kind::META) => continue,
                Some(&kind::BLOB) => {
                    let blob =
                        BlobRecord::from_bytes(&value).ok_or(OpenError::Corrupt("a blob record cannot be parsed"))?;
                    sums[blob.class as usize] += blob.size as i64;
                }
                Some(&(kind::REPOSITORY | kind::TAG | kind::USE | kind::LINK)) => {}
                Some(kind) if kind::MARKS.contains(kind) => {}
                _ => return Err(OpenError::Corrupt("a record of an unknown kind")),
            }
            records += 1;
        }
        let clean = match header.as_deref() {
            None if records == 0 => false,
            None => return Err(OpenError::Corrupt("records without a header")),
            Some(header) => {
                let header = Header::parse(header).ok_or(OpenError::Corrupt("a header of another version"))?;
                if header.folder != self.folder {
                    return Err(OpenError::Corrupt("it belongs to another data folder"));
                }
                if header.clean && header.records != records {
                    return Err(OpenError::Corrupt("records are missing"));
                }
                self.names.store(header.names, Ordering::Relaxed);
                header.clean
            }
        };
        self.records.store(records, Ordering::Relaxed);
        self.cached.store(sums[Class::Cached as usize], Ordering::Relaxed);
        self.pushed.store(sums[Class::Pushed as usize], Ordering::Relaxed);
        self.write_header(db, false, 0)?;
        Ok(clean)
    }

    fn write_header(&self, db: &sled::Db, clean: bool, names: u64) -> Result<(), sled::Error> {
        let header = Header { folder: self.folder, clean, records: self.records.load(Ordering::Relaxed), names };
        db.insert([kind::META], header.to_bytes())?;
        db.flush().map(drop)
    }

    /// Whether lists and sums may be answered from here.
    pub(in crate::store) fn is_ready(&self) -> bool {
        self.ready.load(Ordering::Acquire)
    }

    pub(in crate::store) fn set_ready(&self) {
        self.ready.store(true, Ordering::Release);
    }

    /// Bytes of content of each class.
    pub(in crate::store) fn bytes(&self, class: Class) -> u64 {
        let sum = match class {
            Class::Cached => &self.cached,
            Class::Pushed => &self.pushed,
        };
        u64::try_from(sum.load(Ordering::Relaxed)).unwrap_or(0)
    }

    /// Name files of mirrored repositories at the last clean stop.
    pub(in crate::store) fn names(&self) -> u64 {
        self.names.load(Ordering::Relaxed)
    }

    /// Records of all kinds.
    pub(in crate::store) fn count(&self) -> usize {
        self.records.load(Ordering::Relaxed).try_into().unwrap_or(0)
    }

    /// Writes changes to the disk. Correctness does not depend on it: the next start finds what a crash loses.
    pub(in crate::store) fn flush(&self) {
        if self.dirty.swap(false, Ordering::AcqRel) {
            self.guarded(|db| db.flush());
        }
    }

    /// Marks a clean stop, as its last step. `names` is the count of name files of mirrored repositories.
    pub(in crate::store) fn close(&self, names: u64) {
        if self.is_ready() {
            self.guarded(|db| self.write_header(db, true, names));
        }
    }

    /// Makes the index fail, as a disk does that takes no more writes.
    #[cfg(test)]
    pub(in crate::store) fn fail(&self) {
        self.guarded(|_| Err::<(), _>(sled::Error::Io(io::Error::from(io::ErrorKind::StorageFull))));
    }

    /// Runs an operation. A failure or panic takes the index out of service and does not fail the caller.
    fn guarded<T>(&self, operation: impl FnOnce(&sled::Db) -> Result<T, sled::Error>) -> Option<T> {
        let db = self.db.read().clone()?;
        if self.failed.load(Ordering::Acquire) {
            return None;
        }
        let reason = match catch_unwind(AssertUnwindSafe(|| operation(&db))) {
            Ok(Ok(value)) => return Some(value),
            Ok(Err(error)) => error.to_string(),
            Err(_) => "sled panicked".to_owned(),
        };
        self.ready.store(false, Ordering::Release);
        if !self.failed.swap(true, Ordering::AcqRel) {
            tracing::error!(
                reason,
                "the index failed; lists come from the files and nothing is evicted until it has been opened again"
            );
        }
        None
    }

    /// Applies changes one by one. Each keeps the count and the sums correct.
    pub(in crate::store) fn apply(&self, changes: &[Change<'_>]) {
        self.dirty.store(true, Ordering::Release);
        for change in changes {
            self.guarded(|db| {
                match change {
                    Change::Blob(digest, record) => {
                        let old = self.put(db, keys::blob_key(digest), &record.to_bytes())?;
                        self.account(old.as_deref(), Some(*record));
                    }
                    Change::NoBlob(digest) => {
                        let old = self.take(db, keys::blob_key(digest))?;
                        self.account(old.as_deref(), None);
                        self.take(db, keys::use_key(digest))?;
                    }
                    Change::Used(last) => drop(self.put(db, keys::use_key(&last.digest), &last.to_bytes())?),
                    Change::Mark(candidate, since) => {
                        drop(self.put(db, keys::mark_key(candidate), &since.to_be_bytes())?);
                    }
                    Change::NoMark(candidate) => drop(self.take(db, keys::mark_key(candidate))?),
                    Change::Link(repo, digest) => drop(self.put(db, keys::link_key(repo, digest), &[FORMAT])?),
                    Change::NoLink(repo, digest) => drop(self.take(db, keys::link_key(repo, digest))?),
                    Change::Repository(repo) => drop(self.put(db, keys::repository_key(repo), &[FORMAT])?),
                    Change::NoRepository(repo) => drop(self.take(db, keys::repository_key(repo))?),
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

    /// The record of a blob.
    pub(in crate::store) fn blob(&self, digest: &Digest) -> Option<BlobRecord> {
        let value = self.guarded(|db| db.get(keys::blob_key(digest)))??;
        BlobRecord::from_bytes(&value)
    }

    /// The mirrored repositories that a manifest belongs to.
    pub(in crate::store) fn linked_in(&self, digest: &Digest) -> Vec<RepoId> {
        let linked = self.guarded(|db| {
            let keys = db.scan_prefix(keys::link_prefix(digest)).keys();
            keys.map(|key| Ok(keys::link_of_key(&key?).map(|(_, repo)| repo))).collect::<Result<Vec<_>, _>>()
        });
        linked.unwrap_or_default().into_iter().flatten().collect()
    }

    /// Calls `each` for every blob.
    pub(in crate::store) fn for_each_blob(&self, each: &mut dyn FnMut(Digest, BlobRecord)) {
        self.guarded(|db| {
            for entry in db.scan_prefix([kind::BLOB]) {
                let (key, value) = entry?;
                if let (Some(digest), Some(blob)) = (keys::digest_of_key(&key), BlobRecord::from_bytes(&value)) {
                    each(digest, blob);
                }
            }
            Ok(())
        });
    }

    /// Calls `each` for everything that the collector marked, with the time of the mark.
    pub(in crate::store) fn for_each_mark(&self, each: &mut dyn FnMut(Unreferenced, Time)) {
        self.guarded(|db| {
            for entry in kind::MARKS.into_iter().flat_map(|kind| db.scan_prefix([kind])) {
                let (key, value) = entry?;
                if let (Some(candidate), Ok(since)) = (keys::mark_of_key(&key), (*value).try_into()) {
                    each(candidate, Time::from_be_bytes(since));
                }
            }
            Ok(())
        });
    }

    /// Calls `each` for every cached blob, with its last use, its size in bytes, and when it was stored.
    pub(in crate::store) fn for_each_cached(&self, each: &mut dyn FnMut(LastUse, u64, Time)) {
        self.for_each_blob(&mut |digest, blob| {
            if blob.class == Class::Cached {
                let used = self.guarded(|db| db.get(keys::use_key(&digest))).flatten();
                let used = used.and_then(|used| LastUse::from_bytes(digest.clone(), &used));
                each(used.unwrap_or(LastUse { digest, at: blob.added, protected: false }), blob.size, blob.added);
            }
        });
    }

    /// The tags of a repository after `after`, at most `limit`; `None` while the index is not in service.
    pub(in crate::store) fn tags(&self, repo: &RepoId, after: &str, limit: usize) -> Option<Page> {
        self.page(keys::tag_prefix(repo), after, limit)
    }

    /// The names of a scope's repositories after `after`, at most `limit`; `None` while the index is not in service.
    pub(in crate::store) fn repositories(&self, scope: &Scope, after: &str, limit: usize) -> Option<Page> {
        self.page(keys::scope_prefix(scope), after, limit)
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

    /// Up to [`BATCH_RECORDS`] keys after `after`, for a walk that checks each of them against the files.
    pub(in crate::store) fn keys_after(&self, after: &[u8]) -> Vec<Vec<u8>> {
        self.guarded(|db| {
            db.range(after.to_vec()..)
                .keys()
                .filter(|key| !matches!(key, Ok(key) if key == after))
                .take(BATCH_RECORDS)
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

/// Waits for sled's own lock. Threads of an index that this process closed just before may still hold it; no other process
/// can, because this one has locked the data folder. So a lock that is held is not corruption.
fn open_unlocked(config: &sled::Config) -> Result<sled::Db, sled::Error> {
    for _ in 0..SLED_LOCK_ATTEMPTS {
        match config.open() {
            Err(sled::Error::Io(error)) if error.to_string().contains("could not acquire lock") => {
                std::thread::sleep(SLED_LOCK_PAUSE);
            }
            opened => return opened,
        }
    }
    config.open()
}

fn tag_key(repo: &RepoId, tag: &Tag) -> Vec<u8> {
    let mut key = keys::tag_prefix(repo);
    key.extend_from_slice(tag.as_str().as_bytes());
    key
}

/// Keeps the latest corrupt index for an analysis.
fn set_aside(path: &Path, aside: &Path) -> io::Result<()> {
    optional(fs::remove_dir_all(aside))?;
    fs::rename(path, aside)
}

/// The record that says in which format, for which data folder and in which condition the index was left.
struct Header {
    folder: [u8; 16],
    clean: bool,
    records: u64,
    names: u64,
}

impl Header {
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

//! Durability of cached content. A cached file is renamed to its digest before it is fsynced, so after a power cut it may have
//! the right length and the wrong bytes.
//!
//! Every 30 s the server fsyncs new content. It then writes the time and the boot id of the kernel to `settled`. If a
//! start finds the record of another boot, every file that is younger than the record is unverified. The store hashes
//! such a file before it first serves it. The full check at startup after an unclean stop hashes it, too. No new record
//! is written before that check has ended. If the record cannot be read or is from the future, it is not trusted, and
//! all content is unverified.

use std::collections::HashSet;
use std::fmt;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;

use super::Local;
use super::growing_file::hash;
use super::layout::{Layout, Temporary, sync_folder};
use crate::events::StoreEvent;
use crate::oci::Digest;
use crate::store::error::{At, StoreError, optional};
use crate::store::fs::{self, File};
use crate::store::records::Class;

/// Changes with each boot of the kernel.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
/// File times lag the clock by less than this.
const CLOCK_TOLERANCE: Duration = Duration::from_secs(1);

/// A record that is at most this far in the future is trusted, because the clock may have been corrected.
const MAX_CLOCK_CORRECTION: Duration = Duration::from_secs(60);

#[derive(Debug)]
pub(super) struct Durability {
    boot: String,
    /// Content that was committed since the last record.
    unsynced: Mutex<Vec<Digest>>,
    /// The time of the last record, if another boot wrote it. Files that are younger are unverified. 1970 if the record
    /// is not trusted.
    unverified_since: Option<SystemTime>,
    /// The record cannot be read, or is from the future.
    distrusted: bool,
    /// Files that were unverified and have been hashed since.
    verified: Mutex<HashSet<Digest>>,
    /// No unverified files are left.
    all_verified: AtomicBool,
    /// This process has written a record.
    recorded: AtomicBool,
}

/// The content of the file `settled`: all content that was committed until `at` is durable.
struct DurabilityRecord {
    boot: String,
    at: SystemTime,
}

/// The record of the last fsync as it was found.
enum FoundRecord {
    Absent,
    Read(DurabilityRecord),
    /// A file that is no record. A power cut may leave an empty or torn file.
    Unreadable,
}

/// Why a content file is moved to `quarantine/`.
#[derive(Clone, Copy, Debug)]
pub(in crate::store) enum QuarantineCause {
    /// Its length or digest is wrong.
    WrongContent,
    /// The disk may have lost bytes.
    FsyncFailed,
    Unreadable,
}

impl fmt::Display for QuarantineCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::WrongContent => "wrong length or digest",
            Self::FsyncFailed => "fsync failed",
            Self::Unreadable => "cannot be read",
        })
    }
}

impl Durability {
    pub(super) fn load(layout: &Layout) -> Result<Self, StoreError> {
        let boot = fs::read_to_string(Path::new(BOOT_ID)).map(|id| id.trim().to_owned()).unwrap_or_default();
        let found = FoundRecord::read(&layout.durability_record());
        let (unverified_since, distrusted) = match found {
            FoundRecord::Absent => (None, false),
            FoundRecord::Read(record) if record.is_from_the_future() => (Some(UNIX_EPOCH), true),
            FoundRecord::Read(record) => (Some(record.at).filter(|_| record.boot != boot), false),
            FoundRecord::Unreadable => (Some(UNIX_EPOCH), true),
        };
        if distrusted {
            tracing::warn!("the record of the last fsync is not believed; all cached content is verified");
        }
        Ok(Self {
            boot,
            distrusted,
            unsynced: Mutex::default(),
            all_verified: AtomicBool::new(unverified_since.is_none()),
            unverified_since,
            recorded: AtomicBool::new(false),
            verified: Mutex::default(),
        })
    }

    /// Adds committed content to the list of the next fsync. Call it after the rename. Files that were renamed later than the
    /// recorded time count as unverified.
    pub(super) fn committed(&self, digest: &Digest) {
        self.unsynced.lock().push(digest.clone());
    }

    /// Whether it is unknown which content is durable. Then the index is not trusted either.
    pub(super) fn is_distrusted(&self) -> bool {
        self.distrusted
    }

    /// Whether files have to be verified before they are served.
    pub(super) fn has_unverified(&self) -> bool {
        !self.all_verified.load(Ordering::Acquire)
    }

    /// Records that every file has been verified, or that the last stop was clean.
    pub(super) fn set_all_verified(&self) {
        self.all_verified.store(true, Ordering::Release);
        self.verified.lock().clear();
    }

    /// Whether an open file may be served as this digest: it was fsynced before the last record, or its hash is correct.
    pub(super) fn verify(&self, digest: &Digest, file: &File) -> io::Result<bool> {
        let Some(since) = self.unverified_since else { return Ok(true) };
        if !self.has_unverified() || self.verified.lock().contains(digest) {
            return Ok(true);
        }
        // The rename of the commit sets the change time. The last write may be much older.
        let metadata = file.metadata()?;
        let changed =
            Duration::new(metadata.ctime().try_into().unwrap_or(0), metadata.ctime_nsec().try_into().unwrap_or(0));
        if UNIX_EPOCH.checked_add(changed).is_some_and(|changed| changed <= since) {
            return Ok(true);
        }
        let (hasher, _) = hash(file, digest.algorithm())?;
        let is_right = hasher.finish() == *digest;
        if is_right {
            self.verified.lock().insert(digest.clone());
        }
        Ok(is_right)
    }
}

impl Local {
    /// Fsyncs the cached content that was committed since the last call, and writes the record.
    pub(in crate::store) fn sync_committed(&self) -> Result<(), StoreError> {
        if self.is_read_only() {
            return Ok(());
        }
        if let Err(error) = self.ages.keep(&self.layout) {
            tracing::debug!(%error, "cannot write the record of ages; it is written later");
        }
        let durability = self.content.durability();
        let recorded = durability.recorded.load(Ordering::Acquire);
        if durability.has_unverified() || (recorded && durability.unsynced.lock().is_empty()) {
            return Ok(());
        }
        // Read the time before the list, so that later commits are newer. Subtract 1 s: file times lag, and content is listed
        // after its rename.
        let at = SystemTime::now().checked_sub(CLOCK_TOLERANCE).unwrap_or(UNIX_EPOCH);
        let unsynced = std::mem::take(&mut *durability.unsynced.lock());
        if let Err(error) = self.sync_contents(&unsynced).and_then(|()| self.record_durable(at)) {
            durability.unsynced.lock().extend(unsynced);
            return Err(error);
        }
        durability.recorded.store(true, Ordering::Release);
        Ok(())
    }

    fn sync_contents(&self, digests: &[Digest]) -> Result<(), StoreError> {
        for digest in digests {
            let path = self.layout.blob(digest);
            // Pushed content was fsynced when it was pushed.
            if self.index.blob(digest).is_some_and(|blob| blob.class == Class::Pushed) {
                continue;
            }
            let Some(file) = optional(fs::open(&path)).at("open", &path)? else { continue };
            if let Err(error) = fs::sync_data(&file) {
                // The bytes may be lost, and the next fsync does not report that again. They can be fetched again.
                tracing::error!(%digest, %error, "cannot sync cached content; it will be fetched again");
                self.quarantine(digest, &file, QuarantineCause::FsyncFailed)?;
            }
        }
        Ok(())
    }

    fn record_durable(&self, at: SystemTime) -> Result<(), StoreError> {
        let record = DurabilityRecord { boot: self.content.durability().boot.clone(), at };
        let (path, temporary) = (self.layout.durability_record(), Temporary::new(self.layout.temporary()));
        let written = self.layout.with_folder(temporary.path(), fs::create_new).and_then(|mut file| {
            fs::write_all(&mut file, record.to_text().as_bytes())?;
            fs::sync_all(&file)
        });
        written.at("write", temporary.path())?;
        self.layout.replace(temporary.path(), &path).at("rename", &path)?;
        sync_folder(self.layout.root()).at("sync", self.layout.root())
    }

    /// Whether files have to be verified before they are served.
    pub(in crate::store) fn has_unverified_content(&self) -> bool {
        self.content.durability().has_unverified()
    }

    /// Records that every content file has been verified.
    pub(in crate::store) fn set_content_verified(&self) {
        self.content.durability().set_all_verified();
    }

    /// Quarantines the corrupt file `seen` of a digest. If another file has replaced it, that file stays.
    pub(in crate::store) fn quarantine(
        &self,
        digest: &Digest,
        seen: &File,
        cause: QuarantineCause,
    ) -> Result<(), StoreError> {
        if self.is_read_only() {
            tracing::error!(%digest, %cause, "a content file is corrupt; it stays, because the data folder is read-only");
            return Ok(());
        }
        let _locked = self.content.lock(digest);
        let path = self.layout.blob(digest);
        if fs::is_still_at(&path, seen).at("stat", &path)? {
            self.set_content_aside(digest, &path, cause)
        } else {
            Ok(())
        }
    }

    /// Moves anything but a regular file from the place of a digest's file to `quarantine/`. Returns whether there was
    /// anything.
    pub(in crate::store) fn quarantine_irregular(&self, digest: &Digest) -> Result<bool, StoreError> {
        self.require_writable()?;
        let _locked = self.content.lock(digest);
        let path = self.layout.blob(digest);
        if !fs::exists(&path) || fs::is_file(&path) {
            return Ok(false);
        }
        self.set_content_aside(digest, &path, QuarantineCause::Unreadable)?;
        Ok(true)
    }

    /// Moves the file of a digest to `quarantine/`. The caller holds the digest lock.
    pub(super) fn set_content_aside(
        &self,
        digest: &Digest,
        path: &Path,
        cause: QuarantineCause,
    ) -> Result<(), StoreError> {
        self.layout
            .with_folder(&self.layout.quarantined(digest), |aside| fs::rename(path, aside))
            .at("rename", path)?;
        self.content.open_files().forget(digest);
        self.record_removed(digest);
        tracing::error!(%digest, %cause, "moved a content file to quarantine/");
        self.emit(StoreEvent::Quarantined { digest: digest.clone() });
        Ok(())
    }
}

impl FoundRecord {
    fn read(path: &Path) -> Self {
        match fs::read_to_string(path) {
            Ok(text) => DurabilityRecord::parse(&text).map_or(Self::Unreadable, Self::Read),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Self::Absent,
            Err(_) => Self::Unreadable,
        }
    }
}

impl DurabilityRecord {
    fn is_from_the_future(&self) -> bool {
        self.at.duration_since(SystemTime::now()).is_ok_and(|ahead| ahead > MAX_CLOCK_CORRECTION)
    }

    fn to_text(&self) -> String {
        let at = self.at.duration_since(UNIX_EPOCH).unwrap_or_default();
        format!("boot {}\nsettled {}.{:09}\n", self.boot, at.as_secs(), at.subsec_nanos())
    }

    fn parse(text: &str) -> Option<Self> {
        let (boot, at) = text.strip_prefix("boot ")?.split_once("\nsettled ")?;
        let (seconds, nanos) = at.strip_suffix('\n')?.split_once('.')?;
        let at = Duration::new(seconds.parse().ok()?, nanos.parse().ok().filter(|nanos| *nanos < 1_000_000_000)?);
        Some(Self { boot: boot.to_owned(), at: UNIX_EPOCH.checked_add(at)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_survives_its_text_and_an_incomplete_one_does_not_parse() {
        let record = DurabilityRecord { boot: "b-1".into(), at: UNIX_EPOCH + Duration::new(1_800_000_000, 5) };
        let text = record.to_text();
        let read = DurabilityRecord::parse(&text).unwrap();
        assert_eq!((read.boot, read.at), (record.boot, record.at));
        for cut in 0..text.len() {
            assert!(DurabilityRecord::parse(&text[..cut]).is_none());
        }
    }
}

//! What a power cut may have spoilt. Cached content is renamed to its digest before it is on the disk, so after a power cut
//! its file may have the right length and the wrong bytes.
//!
//! Every half minute what was committed since is synced, and a mark says so: `settled`, with the kernel's boot id. A start
//! that finds the mark of another boot holds every file that is younger than it under suspicion: such a file is hashed
//! before it is first served, and by the walk that follows every unclean stop; no new mark is set before that walk has ended.

use std::collections::HashSet;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;

use super::error::{At, StoreError, optional};
use super::fs::{self, File};
use super::growing::hash;
use super::layout::{Layout, Temporary, sync_folder};
use super::records::Class;
use super::{Inner, Store};
use crate::oci::Digest;

const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

#[derive(Debug)]
pub(super) struct Settling {
    boot: String,
    /// Committed since the last mark.
    pending: Mutex<Vec<Digest>>,
    /// The last mark, if it is another boot's.
    suspect_since: Option<SystemTime>,
    /// Suspects that were hashed and are right.
    cleared: Mutex<HashSet<Digest>>,
    /// No suspects are left.
    all_clear: AtomicBool,
    /// This boot has set a mark.
    marked: AtomicBool,
}

struct Mark {
    boot: String,
    at: SystemTime,
}

impl Store {
    /// Syncs the cached content that was committed since the last call, and says so.
    pub async fn settle(&self) -> Result<(), StoreError> {
        self.run(|inner| inner.settle()).await
    }
}

impl Settling {
    pub(super) fn open(layout: &Layout) -> Result<Self, StoreError> {
        let boot = fs::read_to_string(Path::new(BOOT_ID)).map(|id| id.trim().to_owned()).unwrap_or_default();
        let path = layout.settled();
        let mark = optional(fs::read_to_string(&path)).at("read", &path)?.and_then(|text| Mark::parse(&text));
        let suspect_since = mark.filter(|mark| mark.boot != boot).map(|mark| mark.at);
        Ok(Self {
            boot,
            pending: Mutex::default(),
            all_clear: AtomicBool::new(suspect_since.is_none()),
            suspect_since,
            marked: AtomicBool::new(false),
            cleared: Mutex::default(),
        })
    }

    /// After its rename, which sets the time that it is judged by: a mark that is set between the two lies before it.
    pub(super) fn committed(&self, digest: &Digest) {
        self.pending.lock().push(digest.clone());
    }

    /// Whether files have to be looked at before they are served.
    pub(super) fn has_suspects(&self) -> bool {
        !self.all_clear.load(Ordering::Acquire)
    }

    /// The walk has looked at every file, or the last stop was clean.
    pub(super) fn all_clear(&self) {
        self.all_clear.store(true, Ordering::Release);
        self.cleared.lock().clear();
    }
}

impl Inner {
    pub(super) fn settle(&self) -> Result<(), StoreError> {
        if self.read_only {
            return Ok(());
        }
        let marked = self.settling.marked.load(Ordering::Acquire);
        if self.settling.has_suspects() || (marked && self.settling.pending.lock().is_empty()) {
            return Ok(());
        }
        // Before the look at what is pending: what is committed from now on is younger than the mark. One second of
        // grace, for file times are coarser than clocks, and a file is renamed before it is pending.
        let at = SystemTime::now().checked_sub(Duration::from_secs(1)).unwrap_or(UNIX_EPOCH);
        let pending = std::mem::take(&mut *self.settling.pending.lock());
        if let Err(error) = self.sync_all(&pending).and_then(|()| self.mark_settled(at)) {
            self.settling.pending.lock().extend(pending);
            return Err(error);
        }
        self.settling.marked.store(true, Ordering::Release);
        Ok(())
    }

    fn sync_all(&self, digests: &[Digest]) -> Result<(), StoreError> {
        for digest in digests {
            let path = self.layout.blob(digest);
            // What has become pushed content since was synced then.
            if self.index.blob(digest).is_some_and(|blob| blob.class == Class::Pushed) {
                continue;
            }
            let Some(file) = optional(fs::open(&path)).at("open", &path)? else { continue };
            if let Err(error) = fs::sync_data(&file) {
                // It may be lost, and the next sync would not say so again. It can be fetched again.
                tracing::error!(%digest, %error, "cannot sync {digest}: {error}");
                self.quarantine(digest, &file)?;
            }
        }
        Ok(())
    }

    fn mark_settled(&self, at: SystemTime) -> Result<(), StoreError> {
        let mark = Mark { boot: self.settling.boot.clone(), at };
        let (path, temporary) = (self.layout.settled(), Temporary::new(self.layout.temporary()));
        let written = self.layout.within(temporary.path(), fs::create_new).and_then(|mut file| {
            fs::write_all(&mut file, mark.to_text().as_bytes())?;
            fs::sync_all(&file)
        });
        written.at("write", temporary.path())?;
        fs::rename(temporary.path(), &path).at("rename", &path)?;
        sync_folder(self.layout.root()).at("sync", self.layout.root())
    }

    /// Whether an open file may be served as this digest: it was committed before the last mark, or it has been hashed.
    pub(super) fn is_trusted(&self, digest: &Digest, file: &File) -> io::Result<bool> {
        let Some(since) = self.settling.suspect_since else { return Ok(true) };
        if !self.settling.has_suspects() || self.settling.cleared.lock().contains(digest) {
            return Ok(true);
        }
        // The rename of the commit sets it; the last write may have been long before.
        let metadata = file.metadata()?;
        let changed =
            Duration::new(metadata.ctime().try_into().unwrap_or(0), metadata.ctime_nsec().try_into().unwrap_or(0));
        if UNIX_EPOCH.checked_add(changed).is_some_and(|changed| changed <= since) {
            return Ok(true);
        }
        let (hasher, _) = hash(file, digest.algorithm())?;
        let right = hasher.finish() == *digest;
        if right {
            self.settling.cleared.lock().insert(digest.clone());
        }
        Ok(right)
    }

    /// Moves the file that was `seen` not to be what its name says out of the way, for somebody to look at. A file that
    /// has taken its place meanwhile stays.
    pub(super) fn quarantine(&self, digest: &Digest, seen: &File) -> Result<(), StoreError> {
        if self.read_only {
            tracing::error!(%digest, "the file of {digest} holds something else, and stays where it is");
            return Ok(());
        }
        let _locked = self.digests.lock(digest);
        let path = self.layout.blob(digest);
        if is_still_at(&path, seen).at("stat", &path)? { self.set_blob_aside(digest, &path) } else { Ok(()) }
    }

    /// The same of whatever stands there. With the lock of the digest held.
    pub(super) fn set_blob_aside(&self, digest: &Digest, path: &Path) -> Result<(), StoreError> {
        self.layout.within(&self.layout.quarantined(digest), |aside| fs::rename(path, aside)).at("rename", path)?;
        self.open_files.forget(digest);
        self.record_gone(digest);
        tracing::error!(%digest, "the file of {digest} is not to be trusted; it is moved to quarantine/");
        Ok(())
    }
}

/// Whether an open file is the one that stands at this path now. While it is open, no other file gets its inode.
pub(super) fn is_still_at(path: &Path, file: &File) -> io::Result<bool> {
    let seen = file.metadata()?;
    let there = optional(fs::metadata(path))?;
    Ok(there.is_some_and(|there| (there.dev(), there.ino()) == (seen.dev(), seen.ino())))
}

impl Mark {
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
    fn a_mark_reads_back_and_a_cut_one_does_not() {
        let mark = Mark { boot: "b-1".into(), at: UNIX_EPOCH + Duration::new(1_800_000_000, 5) };
        let text = mark.to_text();
        let read = Mark::parse(&text).unwrap();
        assert_eq!((read.boot, read.at), (mark.boot, mark.at));
        for cut in 0..text.len() {
            assert!(Mark::parse(&text[..cut]).is_none());
        }
    }
}

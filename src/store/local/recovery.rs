//! Recovery of the index: at the start, or later if the disk had no room for it then, or the index has failed since.
//!
//! A cache that has filled its disk must start. sled does not fail cleanly when a write finds no room, so it is not opened on
//! such a disk. First, cached content is evicted, the least recently touched first. That order comes from the files, because
//! without an index there is no order of last use. Where nothing can be evicted, there is no index: stored content is served,
//! lists come from the folders, and nothing else is evicted until there is room.

use std::collections::BinaryHeap;
use std::time::SystemTime;

use super::Local;
use super::layout::digest_of_file;
use crate::events::EvictionReason;
use crate::oci::{Algorithm, Digest};
use crate::store::cache::Evict;
use crate::store::error::{At, StoreError, is_full, optional};
use crate::store::fs::{self, DirEntry, Metadata};
use crate::store::index::IndexCondition;
use crate::store::records::Class;

/// The index is not opened with less free space: sled writes half a megabyte at a time.
const MIN_FREE_BYTES: u64 = 1 << 20;
/// Smallest number of free inodes for an index, because sled creates several files.
const MIN_FREE_INODES: u64 = 16;
/// Free space that is made for an index: this, and the next for each blob, which is several times what its records take.
const INDEX_ROOM_BYTES: u64 = 4 << 20;
const INDEX_ROOM_BYTES_PER_BLOB: u64 = 1 << 10;
/// The number of oldest files that are considered for eviction.
const MAX_CANDIDATES: usize = 10_000;
const MAX_OPEN_ATTEMPTS: usize = 3;

/// A file of cached content: when it was last read or written, its digest, and its length in bytes.
type CachedFile = (SystemTime, Digest, u64);

impl Local {
    /// Opens the index, unless it is open and works. False if the disk has no room for it.
    pub(in crate::store) fn recover_index(&self) -> Result<bool, StoreError> {
        self.index.close_failed();
        if self.index.is_open() {
            return Ok(true);
        }
        self.require_writable()?;
        for _ in 0..MAX_OPEN_ATTEMPTS {
            if !self.is_short_for_index(MIN_FREE_BYTES) {
                let (path, aside) = (self.layout.index(), self.layout.corrupt_index());
                let is_current = !fs::exists(&self.layout.index_outdated());
                let trusted = is_current && !self.content.durability().is_distrusted();
                match self.index.open(&path, &aside, trusted) {
                    Ok(condition) => {
                        self.index_opened(&condition);
                        return Ok(true);
                    }
                    Err(error) if is_full(&error) => {}
                    Err(error) => return Err(error).at("open", &path),
                }
            }
            if !self.make_room_for_index()? {
                break;
            }
        }
        self.mark_index_outdated();
        Ok(false)
    }

    fn index_opened(&self, condition: &IndexCondition) {
        let space = self.cache.space();
        // If the order of last use is complete, the index is opened again, and the order has the exact sum.
        if !self.cache.is_order_complete() {
            space.set_cached(self.index.bytes(Class::Cached));
        }
        match condition {
            IndexCondition::Clean => space.set_names(self.index.names()),
            IndexCondition::Unclean | IndexCondition::New | IndexCondition::Corrupt(_) => space.count_names_anew(),
        }
        let _ = fs::remove_file(&self.layout.index_outdated());
    }

    /// Files change without the index from now on. The file says so should there be no room to change the index itself.
    fn mark_index_outdated(&self) {
        let path = self.layout.index_outdated();
        if !fs::exists(&path)
            && let Err(error) = fs::write(&path, b"")
        {
            tracing::warn!(path = %path.display(), %error, "cannot mark the index as outdated");
        }
    }

    /// Whether the disk has less than `bytes` or no inodes for an index.
    fn is_short_for_index(&self, bytes: u64) -> bool {
        let space = self.cache.space();
        space.free().is_some_and(|free| free < bytes) || space.free_inodes().is_some_and(|free| free < MIN_FREE_INODES)
    }

    /// Evicts cached content. Whether there may be room for an index now.
    fn make_room_for_index(&self) -> Result<bool, StoreError> {
        // A command that only looks at the folder knows of no pins, and is not expected to remove anything.
        if !self.cache.space().is_bounded() {
            return Ok(false);
        }
        let _ = fs::remove_dir_all(&self.layout.corrupt_index());
        let (oldest, blobs) = self.oldest_cached_files()?;
        let room = INDEX_ROOM_BYTES + blobs * INDEX_ROOM_BYTES_PER_BLOB;
        let is_short = || self.is_short_for_index(room);
        if !is_short() {
            return Ok(true);
        }
        self.refresh_pins()?;
        self.mark_index_outdated();
        let (mut files, mut bytes) = (0, 0);
        for (_, digest, size) in oldest {
            if !is_short() {
                break;
            }
            if self.cache.is_pinned(&digest) || !self.evict(&digest, EvictionReason::Disk)? {
                continue;
            }
            files += 1;
            bytes += size;
        }
        if files > 0 {
            tracing::warn!(files, bytes, "the disk had no room for the index; evicted cached content");
        }
        Ok(files > 0)
    }

    /// The oldest files of cached content, the oldest first, and the number of all content files.
    fn oldest_cached_files(&self) -> Result<(Vec<CachedFile>, u64), StoreError> {
        let (mut oldest, mut blobs) = (BinaryHeap::<CachedFile>::new(), 0);
        for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
            for first in 0..=u8::MAX {
                let folder = self.layout.blob_folder(algorithm, first);
                let Some(entries) = optional(fs::read_dir(&folder)).at("read", &folder)? else { continue };
                for entry in entries {
                    let entry = entry.at("read", &folder)?;
                    blobs += 1;
                    let Some(cached) = self.cached_file(algorithm, &entry) else { continue };
                    oldest.push(cached);
                    if oldest.len() > MAX_CANDIDATES {
                        oldest.pop();
                    }
                }
            }
        }
        Ok((oldest.into_sorted_vec(), blobs))
    }

    /// `None` if it is no content, is gone by now, or is marked as pushed.
    fn cached_file(&self, algorithm: Algorithm, entry: &DirEntry) -> Option<CachedFile> {
        let digest = digest_of_file(algorithm, &entry.file_name())?;
        let metadata = entry.metadata().ok().filter(Metadata::is_file)?;
        if self.has_pushed_mode(&metadata) {
            return None;
        }
        let written = metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH);
        let read = metadata.accessed().unwrap_or(written);
        Some((written.max(read), digest, metadata.len()))
    }
}

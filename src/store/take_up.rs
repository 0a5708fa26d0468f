//! Taking the index up: at the start, or later where the disk had no room for it.
//!
//! A cache that has filled its disk must start. sled does not fail cleanly where a write finds no room, so it is not let near
//! such a disk: first cached content makes way, the least lately touched first, by what the files say, for there is no order
//! of last use without an index. Where none can, there is no index: what is here is served, lists come from the folders, and
//! nothing else is evicted until there is room.

use std::collections::BinaryHeap;
use std::fs::{DirEntry, Metadata};
use std::time::SystemTime;

use super::blobs::is_marked_pushed;
use super::error::{At, StoreError, is_full, optional};
use super::evict::EvictionReason;
use super::index::Found;
use super::reconcile::digest_of_file;
use super::records::Class;
use super::{Inner, Store, fs};
use crate::oci::{Algorithm, Digest};

/// Below this nothing is tried: sled writes half a megabyte at a time.
const LEAST_ROOM: u64 = 1 << 20;
/// What is made free for an index: this, and so much for each blob, which is several times what its records take.
const ROOM: u64 = 4 << 20;
const ROOM_OF_BLOB: u64 = 1 << 10;
/// The oldest files, of which those go that may.
const OLDEST: usize = 10_000;
const TRIES: usize = 3;

/// Cached content by age, as its file tells it.
type Aged = (SystemTime, Digest, u64);

impl Store {
    /// Whether there is no index, for the disk has no room for it.
    pub fn lacks_index(&self) -> bool {
        !self.inner.read_only && !self.inner.index.is_open()
    }
}

impl Inner {
    /// Opens the index, if that has not been done; false if the disk has no room for it.
    pub(super) fn take_up_index(&self) -> Result<bool, StoreError> {
        if self.index.is_open() {
            return Ok(true);
        }
        self.check_writes()?;
        for _ in 0..TRIES {
            if self.space.free().is_none_or(|free| free >= LEAST_ROOM) {
                let trusted = !self.layout.index_behind().exists();
                match self.index.open(&self.layout, trusted) {
                    Ok(found) => {
                        self.index_is_open(found);
                        return Ok(true);
                    }
                    Err(error) if is_full(&error) => {}
                    Err(error) => return Err(error).at("open", &self.layout.index()),
                }
            }
            if !self.make_room_for_index()? {
                break;
            }
        }
        self.fall_behind();
        Ok(false)
    }

    fn index_is_open(&self, found: Found) {
        self.space.set_cached(self.index.bytes(Class::Cached));
        match found {
            Found::Clean => self.space.set_names(self.index.names()),
            Found::Unclean | Found::New | Found::SetAside(_) => self.space.count_names_anew(),
        }
        let _ = fs::remove_file(&self.layout.index_behind());
        let _ = self.index_found.set(found);
    }

    /// What an index of an earlier run says is not to be believed from now on, should there be no room for a better mark.
    fn fall_behind(&self) {
        let path = self.layout.index_behind();
        if !path.exists()
            && let Err(error) = fs::write(&path, b"")
        {
            tracing::warn!(%error, "cannot write {}: {error}", path.display());
        }
    }

    /// Whether there may be room for an index now.
    fn make_room_for_index(&self) -> Result<bool, StoreError> {
        // A command on a folder that nobody serves knows of no pins, and nobody expects it to remove anything.
        if !self.space.is_bounded() {
            return Ok(false);
        }
        let _ = fs::remove_dir_all(&self.layout.odd_index());
        let (oldest, blobs) = self.oldest_files()?;
        let room = ROOM + blobs * ROOM_OF_BLOB;
        let is_short = || self.space.free().is_some_and(|free| free < room);
        if !is_short() {
            return Ok(true);
        }
        self.refresh_pins()?;
        self.fall_behind();
        let (mut files, mut bytes) = (0, 0);
        for (_, digest, size) in oldest {
            if !is_short() {
                break;
            }
            if self.recency.segments.lock().is_pinned(&digest) || !self.evict(&digest, EvictionReason::Disk)? {
                continue;
            }
            files += 1;
            bytes += size;
        }
        if files > 0 {
            tracing::warn!(files, bytes, "the disk has no room for the index: {files} cached files made way");
        }
        Ok(files > 0)
    }

    /// The oldest files of content that may go as far as they tell, the oldest first, and how many blobs there are.
    fn oldest_files(&self) -> Result<(Vec<Aged>, u64), StoreError> {
        let (mut oldest, mut blobs) = (BinaryHeap::<Aged>::new(), 0);
        for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
            for first in 0..=u8::MAX {
                let folder = self.layout.blob_folder(algorithm, first);
                let Some(entries) = optional(fs::read_dir(&folder)).at("read", &folder)? else { continue };
                for entry in entries {
                    let entry = entry.at("read", &folder)?;
                    blobs += 1;
                    let Some(aged) = self.aged(algorithm, &entry) else { continue };
                    oldest.push(aged);
                    if oldest.len() > OLDEST {
                        oldest.pop();
                    }
                }
            }
        }
        Ok((oldest.into_sorted_vec(), blobs))
    }

    /// `None` if it is no content, gone meanwhile, or says that it is pushed.
    fn aged(&self, algorithm: Algorithm, entry: &DirEntry) -> Option<Aged> {
        let digest = digest_of_file(algorithm, &entry.file_name())?;
        let metadata = entry.metadata().ok().filter(Metadata::is_file)?;
        if self.keeps_modes && is_marked_pushed(&metadata) {
            return None;
        }
        let written = metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH);
        let read = metadata.accessed().unwrap_or(written);
        Some((written.max(read), digest, metadata.len()))
    }
}

//! Copies blobs from a source to the store. The store hashes what it receives, and takes it only under its digest.

use std::cell::Cell;
use std::io;

use futures_util::StreamExt;

use super::manifests::{Importer, Outcome, Stop};
use super::registry::prefix;
use super::tree::Part;
use crate::oci::Digest;
use crate::store::{NAME_BYTES, Store, StoreError, pump};

/// The part of `cache.max_size` that an import leaves free. The evictor would free it again.
const FREE_PART: u64 = 20;

/// Why a blob was not copied.
enum CopyError {
    Source(io::Error),
    Store(StoreError),
    Cancelled,
}

impl From<StoreError> for CopyError {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

impl Importer<'_, '_> {
    /// Makes a blob of the source readable in the repository.
    pub(super) fn blob(&mut self, digest: &Digest) -> Result<Outcome, Stop> {
        if let Some(known) = self.blobs.get(digest) {
            return Ok(*known);
        }
        self.require_continue()?;
        self.needed.insert(prefix(digest));
        let outcome = match self.content.blob(digest) {
            Ok(None) => Outcome::Absent,
            Ok(Some(part)) => self.present_blob(digest, part)?,
            Err(error) => self.failed_blob(digest, format!("it cannot be read: {error}")),
        };
        self.blobs.insert(digest.clone(), outcome);
        Ok(outcome)
    }

    fn failed_blob(&mut self, digest: &Digest, reason: String) -> Outcome {
        self.report.failed("blob", self.name_of(digest), reason);
        Outcome::Failed
    }

    fn present_blob(&mut self, digest: &Digest, part: Part) -> Result<Outcome, Stop> {
        if self.is_known(digest)? || (self.dry_run && !self.planned.insert(prefix(digest))) {
            self.report.summary.known_blobs += 1;
            return Ok(Outcome::Present);
        }
        let length = part.length();
        if !self.is_local() && !self.has_room(length, 1)? {
            return Ok(Outcome::NoRoom);
        }
        if let (Some(store), false) = (self.store, self.dry_run) {
            let copied = if self.is_local() { self.push(store, digest, part) } else { self.cache(store, digest, part) };
            self.report.current_bytes = 0;
            match copied {
                Ok(()) => {}
                Err(CopyError::Store(StoreError::DigestMismatch { .. })) => {
                    return Ok(self.failed_blob(digest, "it is corrupt: its content has another digest".to_owned()));
                }
                Err(CopyError::Source(error)) => {
                    return Ok(self.failed_blob(digest, format!("it cannot be read: {error}")));
                }
                Err(CopyError::Store(error)) => return Err(Stop::Store(error)),
                Err(CopyError::Cancelled) => return Err(Stop::Cancelled),
            }
        }
        self.report.summary.blobs += 1;
        self.report.summary.bytes += length;
        Ok(Outcome::Present)
    }

    /// Whether the content is stored. Then it is made readable in the repository.
    fn is_known(&mut self, digest: &Digest) -> Result<bool, Stop> {
        let Some(store) = self.store else { return Ok(false) };
        let stored = self.wait(store.blob(digest))?.map(|blob| blob.len());
        let Some(length) = stored else { return Ok(false) };
        let member = self.wait(store.member(&self.repo, digest))?;
        if self.dry_run || member.is_some_and(|member| member.proven) {
            return Ok(true);
        }
        if self.is_local() {
            return Ok(self.wait(store.adopt(&self.repo, digest))?);
        }
        self.wait(store.link_blob(&self.repo, digest, Some(length)))?;
        Ok(true)
    }

    /// Copies pushed content. It is durable when this returns.
    fn push(&mut self, store: &Store, digest: &Digest, part: Part) -> Result<(), CopyError> {
        let repo = self.repo.clone();
        self.wait(store.require_room_for_push(part.length()))?;
        let upload = self.wait(store.create_upload(&repo, digest.algorithm()))?;
        self.copy(part, |chunks| upload.append(chunks))?;
        Ok(self.wait(upload.finish(&repo, digest))?)
    }

    /// Copies cached content.
    fn cache(&mut self, store: &Store, digest: &Digest, part: Part) -> Result<(), CopyError> {
        let repo = self.repo.clone();
        let spool = self.wait(store.begin(digest.algorithm(), Some(part.length())))?;
        let position = Cell::new(0);
        self.copy(part, |chunks| {
            let at = position.get();
            position.set(at + chunks.iter().map(|chunk| chunk.len() as u64).sum::<u64>());
            spool.write_at(at, chunks)
        })?;
        Ok(self.wait(store.commit(spool, digest, &repo))?)
    }

    fn copy<A>(&mut self, part: Part, append: impl Fn(Vec<bytes::Bytes>) -> A) -> Result<(), CopyError>
    where
        A: Future<Output = Result<u64, StoreError>>,
    {
        let chunks = part.stream().map(|chunk| chunk.map_err(CopyError::Source));
        let (report, stop) = (&mut *self.report, self.stop);
        let progress = |length| {
            report.current_bytes = length;
            let continues = report.progress() && !stop.load(std::sync::atomic::Ordering::Relaxed);
            if continues { Ok(()) } else { Err(CopyError::Cancelled) }
        };
        tokio::runtime::Handle::current().block_on(pump(chunks, append, progress)).map(drop)
    }

    /// Removes the links of all blobs, so that no empty repository stays. Its content waits for the collector.
    pub(super) fn forget_blobs(&mut self) -> Result<(), Stop> {
        let (Some(store), false) = (self.store, self.dry_run) else { return Ok(()) };
        for digest in self.blobs.keys() {
            self.wait(store.unlink_blob(&self.repo, digest))?;
        }
        Ok(())
    }

    /// Whether cached content of `bytes` with this number of names fits without an eviction. Content that clients use here is
    /// not evicted for content that they used elsewhere.
    pub(super) fn has_room(&mut self, bytes: u64, names: u64) -> Result<bool, Stop> {
        let Some(store) = self.store else { return Ok(true) };
        let bounds = store.bounds();
        let needed = bytes.saturating_add(names * NAME_BYTES);
        let fits_cache = store.used().saturating_add(needed) <= bounds.max_size - bounds.max_size / FREE_PART;
        let free = store.disk().map_or(u64::MAX, |disk| disk.free_bytes);
        if fits_cache && free.saturating_sub(needed) >= bounds.min_free {
            return Ok(true);
        }
        self.report.summary.without_room += 1;
        self.report.summary.bytes_without_room += bytes;
        Ok(false)
    }
}

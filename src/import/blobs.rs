//! Copies blobs from a source to the store. The store hashes what it receives, and takes it only under its digest.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use futures_util::{StreamExt, stream};

use super::manifests::{Importer, Outcome, Stop};
use super::registry::prefix;
use super::report::Report;
use super::tree::Part;
use crate::oci::{Digest, RepoId};
use crate::store::{NAME_BYTES, Store, StoreError, pump};

/// Blobs of a manifest that are copied at the same time. Most of them are small, and wait for the disk to sync them.
const MAX_COPIES: usize = 4;
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

/// Copies to one repository, all of them on one thread.
struct Copies<'a, 'r> {
    store: &'a Store,
    repo: RepoId,
    stop: &'a AtomicBool,
    report: RefCell<&'a mut Report<'r>>,
}

// === impl Importer ===

impl Importer<'_, '_> {
    /// Makes a blob of the source readable in the repository.
    pub(super) fn blob(&mut self, digest: &Digest) -> Result<Outcome, Stop> {
        self.copy_blobs(&[digest])?;
        Ok(self.blobs.get(digest).copied().unwrap_or(Outcome::Absent))
    }

    /// Makes different blobs of the source readable in the repository. [`Importer::blob`] has the outcome of each.
    pub(super) fn copy_blobs(&mut self, digests: &[&Digest]) -> Result<(), Stop> {
        let (mut to_copy, mut waiting_bytes) = (Vec::new(), 0);
        for digest in digests {
            if self.blobs.contains_key(digest) {
                continue;
            }
            self.require_continue()?;
            self.needed.insert(prefix(digest));
            let outcome = match self.content.blob(digest) {
                Ok(None) => Outcome::Absent,
                Ok(Some(part)) => match self.without_copy(digest, part.length(), waiting_bytes)? {
                    Some(outcome) => outcome,
                    None => {
                        waiting_bytes += part.length();
                        to_copy.push(((*digest).clone(), part));
                        continue;
                    }
                },
                Err(error) => self.failed_blob(digest, format!("it cannot be read: {error}")),
            };
            self.blobs.insert((*digest).clone(), outcome);
        }
        self.copy_all(to_copy)
    }

    /// The outcome for a blob that need not or cannot be copied. `waiting_bytes` are those of other blobs that will be.
    fn without_copy(&mut self, digest: &Digest, bytes: u64, waiting_bytes: u64) -> Result<Option<Outcome>, Stop> {
        if self.is_known(digest)? || (self.dry_run && !self.planned.insert(prefix(digest))) {
            self.report.summary.known_blobs += 1;
            return Ok(Some(Outcome::Present));
        }
        if !self.is_local() && !self.has_room(bytes, waiting_bytes, 1)? {
            return Ok(Some(Outcome::NoRoom));
        }
        if self.dry_run {
            self.report.summary.blobs += 1;
            self.report.summary.bytes += bytes;
            return Ok(Some(Outcome::Present));
        }
        Ok(None)
    }

    fn copy_all(&mut self, to_copy: Vec<(Digest, Part)>) -> Result<(), Stop> {
        let (Some(store), false) = (self.store, to_copy.is_empty()) else { return Ok(()) };
        let report = RefCell::new(&mut *self.report);
        let copies = Copies { store, repo: self.repo.clone(), stop: self.stop, report };
        let copied = stream::iter(to_copy).map(|(digest, part)| copies.copy(digest, part)).buffer_unordered(MAX_COPIES);
        let copied: Vec<_> = tokio::runtime::Handle::current().block_on(copied.collect());
        for (digest, copied) in copied {
            let outcome = match copied {
                Ok(()) => Outcome::Present,
                Err(CopyError::Store(StoreError::DigestMismatch { .. })) => {
                    self.failed_blob(&digest, "it is corrupt: its content has another digest".to_owned())
                }
                Err(CopyError::Source(error)) => self.failed_blob(&digest, format!("it cannot be read: {error}")),
                Err(CopyError::Store(error)) => return Err(Stop::Store(error)),
                Err(CopyError::Cancelled) => return Err(Stop::Cancelled),
            };
            self.blobs.insert(digest, outcome);
        }
        Ok(())
    }

    fn failed_blob(&mut self, digest: &Digest, reason: String) -> Outcome {
        self.report.failed("blob", self.name_of(digest), reason);
        Outcome::Failed
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

    /// Whether cached content of `bytes` with this number of names fits without an eviction, beside `waiting_bytes`. Content
    /// that clients use here is not evicted for content that they used elsewhere.
    pub(super) fn has_room(&mut self, bytes: u64, waiting_bytes: u64, names: u64) -> Result<bool, Stop> {
        let Some(store) = self.store else { return Ok(true) };
        let bounds = store.bounds();
        let needed = bytes.saturating_add(waiting_bytes).saturating_add(names * NAME_BYTES);
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

// === impl Copies ===

impl Copies<'_, '_> {
    async fn copy(&self, digest: Digest, part: Part) -> (Digest, Result<(), CopyError>) {
        let (length, received) = (part.length(), Cell::new(0));
        let copied = match self.repo.scope.is_local() {
            true => self.push(&digest, part, &received).await,
            false => self.cache(&digest, part, &received).await,
        };
        let mut report = self.report.borrow_mut();
        report.current_bytes -= received.get();
        if copied.is_ok() {
            report.summary.blobs += 1;
            report.summary.bytes += length;
        }
        (digest, copied)
    }

    /// Copies pushed content. It is durable when this returns.
    async fn push(&self, digest: &Digest, part: Part, received: &Cell<u64>) -> Result<(), CopyError> {
        self.store.require_room_for_push(part.length()).await?;
        let upload = self.store.create_upload(&self.repo, digest.algorithm()).await?;
        self.receive(part, |chunks| upload.append(chunks), received).await?;
        Ok(upload.finish(&self.repo, digest).await?)
    }

    /// Copies cached content.
    async fn cache(&self, digest: &Digest, part: Part, received: &Cell<u64>) -> Result<(), CopyError> {
        let spool = self.store.begin(digest.algorithm(), Some(part.length())).await?;
        let position = Cell::new(0);
        let write = |chunks: Vec<Bytes>| {
            let at = position.get();
            position.set(at + chunks.iter().map(|chunk| chunk.len() as u64).sum::<u64>());
            spool.write_at(at, chunks)
        };
        self.receive(part, write, received).await?;
        Ok(self.store.commit(spool, digest, &self.repo).await?)
    }

    /// Passes all bytes to `append`. `received` is the number of bytes so far.
    async fn receive<A>(
        &self,
        part: Part,
        append: impl Fn(Vec<Bytes>) -> A,
        received: &Cell<u64>,
    ) -> Result<(), CopyError>
    where
        A: Future<Output = Result<u64, StoreError>>,
    {
        let chunks = part.stream().map(|chunk| chunk.map_err(CopyError::Source));
        let progress = |length| {
            let mut report = self.report.borrow_mut();
            report.current_bytes += length - received.replace(length);
            let continues = report.progress() && !self.stop.load(Ordering::Relaxed);
            if continues { Ok(()) } else { Err(CopyError::Cancelled) }
        };
        pump(chunks, append, progress).await.map(drop)
    }
}

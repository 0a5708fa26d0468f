//! Imports manifests with everything that they need.
//!
//! A manifest of a local repository is stored only if its content is. One of a mirrored repository is stored in any case,
//! because its upstream has what is missing.

use std::collections::{HashMap, HashSet};
use std::fmt::Debug;
use std::future::Future;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use tokio::runtime::Handle;

use super::registry::prefix;
use super::report::Report;
use super::tree::Part;
use crate::oci::{Child, Digest, Manifest, ManifestError, RepoId};
use crate::store::{NewManifest, Store, StoreError};

/// Indexes within indexes that are followed.
const MAX_DEPTH: usize = 8;
/// References that the reason of a failure names.
const MAX_NAMED: usize = 3;

/// The content of one repository of a source. All functions block.
pub(super) trait SourceContent: Debug + Send + Sync {
    /// A manifest, which has at most [`Manifest::MAX_LENGTH`] bytes; `None` if the repository does not have it.
    fn manifest(&self, digest: &Digest) -> io::Result<Option<Bytes>>;

    /// A blob; `None` if the repository does not have it.
    fn blob(&self, digest: &Digest) -> io::Result<Option<Part>>;
}

/// What became of content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// It is in the repository now.
    Present,
    /// The source does not have it.
    Absent,
    /// It is damaged, or something that it needs is. That was reported.
    Failed,
    /// It does not fit into the cache.
    NoRoom,
}

/// Why the import ends early.
#[derive(Debug)]
pub(super) enum Stop {
    /// The client has left, or the server stops.
    Cancelled,
    Store(StoreError),
}

impl From<StoreError> for Stop {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

/// The import of one repository.
pub(super) struct Importer<'a, 'r> {
    pub(super) repo: RepoId,
    pub(super) content: &'a dyn SourceContent,
    /// `None` in a dry run without a data folder.
    pub(super) store: Option<&'a Store>,
    pub(super) dry_run: bool,
    pub(super) stop: &'a AtomicBool,
    pub(super) report: &'a mut Report<'r>,
    /// What the manifests of all repositories refer to, by the first bytes of the digests.
    pub(super) needed: &'a mut HashSet<u64>,
    /// What a dry run would have copied, in the same form.
    pub(super) planned: &'a mut HashSet<u64>,
    pub(super) manifests: HashMap<Digest, Outcome>,
    pub(super) blobs: HashMap<Digest, Outcome>,
}

/// What the references of a manifest came to.
#[derive(Default)]
struct References {
    missing: Vec<String>,
    failed: Vec<String>,
    /// Manifests of an index.
    present: u64,
    absent: u64,
}

impl Importer<'_, '_> {
    /// Runs an operation of the store to its end.
    pub(super) fn wait<T>(&self, operation: impl Future<Output = T>) -> T {
        Handle::current().block_on(operation)
    }

    pub(super) fn is_local(&self) -> bool {
        self.repo.scope.is_local()
    }

    pub(super) fn require_continue(&mut self) -> Result<(), Stop> {
        if self.report.progress() && !self.stop.load(Ordering::Relaxed) { Ok(()) } else { Err(Stop::Cancelled) }
    }

    /// Imports a manifest after everything that it needs.
    pub(super) fn manifest(&mut self, digest: &Digest, depth: usize) -> Result<Outcome, Stop> {
        if let Some(known) = self.manifests.get(digest) {
            return Ok(*known);
        }
        self.require_continue()?;
        let outcome = match self.read(digest, depth) {
            Ok(Some((bytes, manifest))) => self.complete(digest, bytes, manifest, depth)?,
            Ok(None) => Outcome::Absent,
            Err(reason) => {
                self.report.failed("manifest", self.name_of(digest), reason);
                Outcome::Failed
            }
        };
        self.manifests.insert(digest.clone(), outcome);
        Ok(outcome)
    }

    /// Reads and verifies a manifest.
    fn read(&mut self, digest: &Digest, depth: usize) -> Result<Option<(Bytes, Manifest)>, String> {
        if depth > MAX_DEPTH {
            return Err(format!("more than {MAX_DEPTH} indexes are within each other"));
        }
        let read = self.content.manifest(digest).map_err(|error| format!("it cannot be read: {error}"));
        self.needed.insert(prefix(digest));
        let Some(bytes) = read? else { return Ok(None) };
        if Digest::of(digest.algorithm(), &bytes) != *digest {
            return Err("it is corrupt: its content has another digest".to_owned());
        }
        let parsed = Manifest::parse_mirrored(&bytes).map_err(|error| match error {
            ManifestError::SchemaVersion => {
                "manifests of schema version 1 are not supported; pull the image with Docker, and push it again"
                    .to_owned()
            }
            error => error.to_string(),
        })?;
        Ok(Some((bytes, parsed)))
    }

    fn complete(&mut self, digest: &Digest, bytes: Bytes, manifest: Manifest, depth: usize) -> Result<Outcome, Stop> {
        let references = self.references(&manifest, depth)?;
        if self.is_local() {
            if let Some(reason) = references.fault() {
                self.report.failed("manifest", self.name_of(digest), reason);
                return Ok(Outcome::Failed);
            }
            if references.absent > 0 {
                self.report.summary.sparse_indexes += 1;
            }
        }
        self.store_manifest(digest, bytes, manifest)
    }

    fn references(&mut self, manifest: &Manifest, depth: usize) -> Result<References, Stop> {
        let mut references = References { missing: manifest.unsupported.clone(), ..References::default() };
        let mut seen = HashSet::new();
        let children: Vec<&Child> = manifest.children.iter().filter(|child| seen.insert(&child.digest)).collect();
        let blobs: Vec<&Digest> =
            children.iter().filter(|child| !child.is_manifest).map(|child| &child.digest).collect();
        self.copy_blobs(&blobs)?;
        for child in children {
            let outcome = self.reference(child, depth)?;
            references.present += u64::from(child.is_manifest && outcome == Outcome::Present);
            match outcome {
                Outcome::Absent if child.is_manifest => references.absent += 1,
                Outcome::Absent if !child.optional => references.missing.push(child.digest.to_string()),
                Outcome::Failed => references.failed.push(child.digest.to_string()),
                Outcome::Present | Outcome::Absent | Outcome::NoRoom => {}
            }
        }
        Ok(references)
    }

    /// Imports what a manifest refers to. An entry of an index may be a blob, as in BuildKit's cache.
    fn reference(&mut self, child: &Child, depth: usize) -> Result<Outcome, Stop> {
        if child.is_manifest {
            let outcome = self.manifest(&child.digest, depth + 1)?;
            if outcome != Outcome::Absent || !child.may_be_blob {
                return Ok(outcome);
            }
        }
        self.blob(&child.digest)
    }

    fn store_manifest(&mut self, digest: &Digest, bytes: Bytes, manifest: Manifest) -> Result<Outcome, Stop> {
        if let Some(store) = self.store
            && self.wait(store.manifest(&self.repo, digest))?.is_some()
        {
            self.report.summary.known_manifests += 1;
            return Ok(Outcome::Present);
        }
        let names = manifest.children.len() as u64 + 2;
        if !self.is_local() && !self.has_room(bytes.len() as u64, 0, names)? {
            return Ok(Outcome::NoRoom);
        }
        self.report.summary.manifests += 1;
        if let (Some(store), false) = (self.store, self.dry_run) {
            let media_type = manifest.guess_media_type();
            let new = NewManifest { digest: digest.clone(), media_type, bytes, manifest };
            self.wait(store.put_manifest(&self.repo, new, Vec::new()))?;
        }
        Ok(Outcome::Present)
    }

    /// As in an image name, such as `team/app@sha256:…`.
    pub(super) fn name_of(&self, digest: &Digest) -> String {
        format!("{}@{digest}", self.repo)
    }
}

impl References {
    /// Why the manifest cannot be in a local repository; `None` if it can.
    fn fault(&self) -> Option<String> {
        let named = |digests: &[String]| {
            let more = if digests.len() > MAX_NAMED { " and others" } else { "" };
            format!("{}{more}", digests[..digests.len().min(MAX_NAMED)].join(", "))
        };
        if !self.failed.is_empty() {
            return Some(format!("it needs content that is left out: {}", named(&self.failed)));
        }
        if !self.missing.is_empty() {
            return Some(format!("it needs content that the source does not have: {}", named(&self.missing)));
        }
        (self.absent > 0 && self.present == 0).then(|| "the source has none of the images in this index".to_owned())
    }
}

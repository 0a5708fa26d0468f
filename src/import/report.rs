//! What an import tells while it runs, and at its end.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::printable::prefix;

/// How often progress is reported.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(200);
/// Largest number of bytes of a name or reason. They may be text of the source.
const MAX_TEXT_BYTES: usize = 1000;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum ImportEvent {
    Progress(ImportProgress),
    /// A repository that has been worked through.
    Repository(ImportedRepository),
    Left(LeftOut),
    Done(ImportSummary),
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImportProgress {
    pub repositories: u64,
    pub manifests: u64,
    /// Blobs that were copied, or would be.
    pub blobs: u64,
    /// Their bytes, including those of the blob that is being copied.
    pub bytes: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImportedRepository {
    /// The name in this server, with the host if it is that of an upstream.
    pub repository: String,
    /// Manifests that are here now, also those that were here before.
    pub manifests: u64,
    pub tags: u64,
}

/// Something of the source that is not imported.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeftOut {
    /// What it is: `repository`, `tag`, `manifest`, `blob`, `link` or `image`.
    pub kind: String,
    /// Its name, such as `team/app:v1` or `team/app@sha256:…`.
    pub name: String,
    pub reason: String,
    /// Whether something is lost or damaged, rather than left on purpose.
    pub failed: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImportSummary {
    /// The kind of the source.
    pub source: String,
    /// Whether nothing was written.
    pub dry_run: bool,
    pub repositories: u64,
    /// Manifests that were stored, or would be, and those that were here before.
    pub manifests: u64,
    pub known_manifests: u64,
    pub tags: u64,
    /// Tags that are here with the same manifest, and those that are here with another one and stay.
    pub known_tags: u64,
    pub kept_tags: u64,
    /// Blobs that were copied, or would be, with their bytes.
    pub blobs: u64,
    pub bytes: u64,
    /// Blobs that were here before, of any repository.
    pub known_blobs: u64,
    /// Things that failed: see [`LeftOut::failed`].
    pub failed: u64,
    /// Indexes of which the source has some images only.
    pub sparse_indexes: u64,
    /// Cached content for which there is no room.
    pub without_room: u64,
    pub bytes_without_room: u64,
    /// Repositories without manifests and tags, and those with manifests and no tags. The latter are imported.
    pub empty_repositories: u64,
    pub untagged_repositories: u64,
    /// Manifests that were deleted in the source, and tags that point to one.
    pub deleted_manifests: u64,
    pub dangling_tags: u64,
    /// Uploads that were not finished.
    pub uploads: u64,
    /// Blobs that no imported manifest refers to, with their bytes.
    pub unreferenced_blobs: u64,
    pub unreferenced_bytes: u64,
    /// Local images that clients which name docker.io do not reach.
    pub hidden_images: u64,
    /// Why the import ended before it was complete.
    pub stopped: Option<String>,
}

/// Counts, and passes events to the client.
pub(super) struct Report<'a> {
    sink: &'a mut (dyn FnMut(ImportEvent) -> bool + Send),
    last_progress: Instant,
    /// Whether the client still listens.
    continues: bool,
    /// Bytes of the blob that is being copied.
    pub(super) current_bytes: u64,
    pub(super) summary: ImportSummary,
}

impl ImportSummary {
    /// Whether everything that the source has is here now.
    pub fn is_complete(&self) -> bool {
        self.failed == 0 && self.without_room == 0 && self.stopped.is_none()
    }
}

impl<'a> Report<'a> {
    pub(super) fn new(sink: &'a mut (dyn FnMut(ImportEvent) -> bool + Send), summary: ImportSummary) -> Self {
        Self { sink, last_progress: Instant::now(), continues: true, current_bytes: 0, summary }
    }

    /// Reports progress now and then. False if the client has left.
    pub(super) fn progress(&mut self) -> bool {
        if self.last_progress.elapsed() >= PROGRESS_INTERVAL {
            self.last_progress = Instant::now();
            let ImportSummary { repositories, manifests, known_manifests, blobs, bytes, .. } = self.summary;
            let (manifests, bytes) = (manifests + known_manifests, bytes + self.current_bytes);
            self.send(ImportEvent::Progress(ImportProgress { repositories, manifests, blobs, bytes }));
        }
        self.continues
    }

    pub(super) fn repository(&mut self, repository: ImportedRepository) {
        self.send(ImportEvent::Repository(repository));
    }

    /// Something is lost or damaged.
    pub(super) fn failed(&mut self, kind: &str, name: String, reason: impl Into<String>) {
        self.summary.failed += 1;
        self.left_out(kind, &name, &reason.into(), true);
    }

    /// Something is left on purpose.
    pub(super) fn left(&mut self, kind: &str, name: String, reason: impl Into<String>) {
        self.left_out(kind, &name, &reason.into(), false);
    }

    fn left_out(&mut self, kind: &str, name: &str, reason: &str, failed: bool) {
        let [name, reason] = [name, reason].map(|text| prefix(text, MAX_TEXT_BYTES).to_owned());
        self.send(ImportEvent::Left(LeftOut { kind: kind.to_owned(), name, reason, failed }));
    }

    fn send(&mut self, event: ImportEvent) {
        self.continues &= (self.sink)(event);
    }
}

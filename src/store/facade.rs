//! [`Store`]: what the rest of the program sees of the store.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::oneshot;
use uuid::Uuid;

use super::cache::{Bounds, EVICTOR_THREAD, lower_priority};
use super::content::Content;
use super::error::StoreError;
use super::file_range::FileRange;
use super::fs::DiskState;
use super::index::IndexCondition;
use super::local::{Local, LocalContent, LocalNames, LocalUploads, OpenError, View};
use super::names::{MayRead, Names, NewManifest};
use super::records::{Class, Member, Page, StoredManifest, TagRecord};
use super::settings::StoreSettings;
use super::spool::Spool;
use super::upkeep::{self, CollectRules, Collected, ScrubPart, ScrubPlace, ScrubWatch, Swept, UsageEvent};
use super::uploads::{Upload, UploadError, Uploads};
use crate::events::Events;
use crate::oci::{Algorithm, Digest, RepoId, RepoName, Scope, Tag};

/// A handle on the store. Clones share it.
#[derive(Clone, Debug)]
pub struct Store {
    parts: Arc<Parts>,
}

/// A handle that does not keep the store open.
#[derive(Clone, Debug)]
pub struct WeakStore(Weak<Parts>);

#[derive(Debug)]
struct Parts {
    names: Box<dyn Names>,
    content: Box<dyn Content>,
    uploads: Box<dyn Uploads>,
    /// The data folder of this machine. Upkeep works on it, whatever the contracts above stand on.
    local: Arc<Local>,
}

// === opening and closing ===

impl Store {
    /// Opens a data folder without bounds, and creates it if it does not exist. Blocks.
    ///
    /// # Errors
    /// When another process uses it, when it cannot be written, or when its file system cannot hold a store.
    pub fn open(root: &Path) -> Result<Self, OpenError> {
        Self::open_with(root, StoreSettings::default())
    }

    /// As [`Store::open`], with settings.
    pub fn open_with(root: &Path, settings: StoreSettings) -> Result<Self, OpenError> {
        Ok(Self::assemble(Local::open(root, settings)?))
    }

    /// Opens a data folder that must not be changed. Blocks.
    ///
    /// # Errors
    /// When a process that writes uses it, or when it is no data folder.
    pub fn open_read_only(root: &Path, events: Events) -> Result<Self, OpenError> {
        Ok(Self::assemble(Local::open_read_only(root, events)?))
    }

    /// Where another implementation of the contracts plugs in.
    fn assemble(local: Arc<Local>) -> Self {
        let parts = Parts {
            names: Box::new(LocalNames::new(local.clone())),
            content: Box::new(LocalContent::new(local.clone())),
            uploads: Box::new(LocalUploads::new(local.clone())),
            local,
        };
        Self { parts: Arc::new(parts) }
    }

    pub fn downgrade(&self) -> WeakStore {
        WeakStore(Arc::downgrade(&self.parts))
    }

    /// Waits for operations in progress, and marks a clean stop.
    pub async fn close(&self) {
        self.parts.local.close().await;
    }

    /// The identity of the data folder, created with it.
    pub fn instance(&self) -> Uuid {
        self.parts.local.instance()
    }

    /// The secret that signs tokens, made when it is first needed. Blocks.
    pub fn token_secret(&self) -> Result<Vec<u8>, StoreError> {
        self.parts.local.token_secret()
    }

    /// The text with the machine tokens; `None` if there is none yet. Blocks.
    pub fn machine_tokens(&self) -> Result<Option<Vec<u8>>, StoreError> {
        self.parts.local.machine_tokens()
    }

    /// Replaces the text with the machine tokens, at once and durably. Blocks.
    pub fn put_machine_tokens(&self, text: &[u8]) -> Result<(), StoreError> {
        self.parts.local.put_machine_tokens(text)
    }

    /// Whether the data folder is never written.
    pub fn is_read_only(&self) -> bool {
        self.parts.local.is_read_only()
    }

    /// Whether a file can be written. Tries to write one, unless the last try was less than a second ago and no write
    /// has failed since.
    pub async fn check_writable(&self) -> Result<(), StoreError> {
        self.parts.local.check_writable().await
    }

    /// Checks again whether a file can be written if the last check or a later write failed.
    pub async fn recheck_writable(&self) -> Result<(), StoreError> {
        self.parts.local.recheck_writable().await;
        Ok(())
    }

    /// Why the last check could not write a file. `None`: it could, or there was none.
    pub fn write_failure(&self) -> Option<StoreError> {
        self.parts.local.write_failure()
    }

    /// The bounds of the cache that are in force.
    pub fn bounds(&self) -> Bounds {
        self.parts.local.cache().space().bounds()
    }

    /// The state of the disk; `None` if it is unknown. Blocks.
    pub fn disk(&self) -> Option<DiskState> {
        self.parts.local.cache().space().disk()
    }

    /// The changes of the store.
    pub fn events(&self) -> &Events {
        self.parts.local.events()
    }

    #[cfg(test)]
    pub(in crate::store) fn local(&self) -> &Arc<Local> {
        &self.parts.local
    }
}

impl WeakStore {
    pub fn upgrade(&self) -> Option<Store> {
        Some(Store { parts: self.0.upgrade()? })
    }
}

// === names: see the contract in `names` ===

impl Store {
    pub fn is_local(&self, name: &RepoName) -> bool {
        self.parts.names.is_local(name)
    }

    pub async fn repository_exists(&self, repo: &RepoId) -> Result<bool, StoreError> {
        self.parts.names.repository_exists(repo).await
    }

    pub async fn member(&self, repo: &RepoId, digest: &Digest) -> Result<Option<Member>, StoreError> {
        match self.parts.names.cached_member(repo, digest) {
            Some(member) => Ok(Some(member)),
            None => self.parts.names.member(repo, digest).await,
        }
    }

    pub async fn link_blob(&self, repo: &RepoId, digest: &Digest, size: Option<u64>) -> Result<(), StoreError> {
        self.parts.names.link_blob(repo, digest, size).await
    }

    pub async fn unlink_blob(&self, repo: &RepoId, digest: &Digest) -> Result<bool, StoreError> {
        self.parts.names.unlink_blob(repo, digest).await
    }

    pub async fn manifest(&self, repo: &RepoId, digest: &Digest) -> Result<Option<Arc<StoredManifest>>, StoreError> {
        match self.parts.names.cached_manifest(repo, digest) {
            Some(manifest) => Ok(Some(manifest)),
            None => self.parts.names.manifest(repo, digest).await,
        }
    }

    /// The manifest if it is in memory.
    pub fn cached_manifest(&self, repo: &RepoId, digest: &Digest) -> Option<Arc<StoredManifest>> {
        self.parts.names.cached_manifest(repo, digest)
    }

    pub async fn has_manifest(&self, repo: &RepoId, digest: &Digest) -> Result<bool, StoreError> {
        self.parts.names.has_manifest(repo, digest).await
    }

    pub async fn put_manifest(
        &self,
        repo: &RepoId,
        new: NewManifest,
        tags: Vec<Tag>,
    ) -> Result<Arc<StoredManifest>, StoreError> {
        self.parts.names.put_manifest(repo, new, tags).await
    }

    pub async fn delete_manifest(&self, repo: &RepoId, digest: &Digest) -> Result<bool, StoreError> {
        self.parts.names.delete_manifest(repo, digest).await
    }

    pub async fn tag(&self, repo: &RepoId, tag: &Tag) -> Result<Option<TagRecord>, StoreError> {
        match self.parts.names.cached_tag(repo, tag) {
            Some(record) => Ok(Some(record)),
            None => self.parts.names.tag(repo, tag).await,
        }
    }

    /// The record of a tag if it is in memory. It may have been confirmed later than its file says.
    pub fn cached_tag(&self, repo: &RepoId, tag: &Tag) -> Option<TagRecord> {
        self.parts.names.cached_tag(repo, tag)
    }

    pub async fn compare_and_set_tag(
        &self,
        repo: &RepoId,
        tag: &Tag,
        old: Option<Digest>,
        new: TagRecord,
        rewrite: Duration,
    ) -> Result<bool, StoreError> {
        self.parts.names.compare_and_set_tag(repo, tag, old, new, rewrite).await
    }

    pub async fn delete_tag(&self, repo: &RepoId, tag: &Tag) -> Result<bool, StoreError> {
        self.parts.names.delete_tag(repo, tag).await
    }

    pub async fn tags(&self, repo: &RepoId, after: &str, limit: usize) -> Result<Page, StoreError> {
        self.parts.names.tags(repo, after, limit).await
    }

    pub async fn local_repositories(&self, after: &str, limit: usize) -> Result<Page, StoreError> {
        self.parts.names.local_repositories(after, limit).await
    }

    pub async fn referrers(&self, repo: &RepoId, subject: &Digest) -> Result<Vec<Digest>, StoreError> {
        self.parts.names.referrers(repo, subject).await
    }

    pub async fn find_pushed(&self, digest: &Digest, may_read: MayRead) -> Result<Option<RepoId>, StoreError> {
        self.parts.names.find_pushed(digest, may_read).await
    }

    pub async fn find_proven(
        &self,
        scope: &Scope,
        digest: &Digest,
        may_share: MayRead,
    ) -> Result<Option<RepoId>, StoreError> {
        self.parts.names.find_proven(scope, digest, may_share).await
    }
}

// === notes: what upstreams said ===

impl Store {
    /// Returns the note of a mirrored repository: a document of the miss engine. It may be missing at any time.
    pub async fn note(&self, repo: &RepoId) -> Result<Option<Vec<u8>>, StoreError> {
        let repo = repo.clone();
        self.parts.local.run(move |local| local.read_note(&repo)).await
    }

    /// Replaces the note of a mirrored repository by what `change` makes of it, under the repository's lock. `None`: it
    /// stays as it is. A note of more than 1 MiB is not stored.
    pub async fn change_note(
        &self,
        repo: &RepoId,
        change: impl FnOnce(Option<Vec<u8>>) -> Option<Vec<u8>> + Send + 'static,
    ) -> Result<(), StoreError> {
        let repo = repo.clone();
        self.parts.local.run(move |local| local.change_note(&repo, change)).await
    }
}

// === content: see the contract in `content` ===

impl Store {
    /// All of the content of a digest; `None` if it is not stored. Who may read it is not asked: see [`Store::member`].
    pub async fn blob(&self, digest: &Digest) -> Result<Option<FileRange>, StoreError> {
        match self.parts.content.try_open(digest) {
            Some(content) => Ok(Some(content)),
            None => self.parts.content.open(digest).await,
        }
    }

    /// As [`Store::blob`], for the repository that `member` is a record of. The length is compared with that record, or
    /// with the manifests while the index does not know it. A file may have become shorter while no process ran.
    pub async fn blob_of(
        &self,
        repo: &RepoId,
        digest: &Digest,
        member: Member,
    ) -> Result<Option<FileRange>, StoreError> {
        // Read before the file is opened: the walk that makes the index ready may find the file corrupt in the
        // meantime.
        let is_indexed = member.size.is_some() || self.parts.local.index().is_ready();
        let Some(blob) = self.blob(digest).await? else { return Ok(None) };
        let is_doubtful = !is_indexed || member.size.is_some_and(|size| size != blob.len());
        if is_doubtful { self.parts.content.open_doubtful(repo, digest).await } else { Ok(Some(blob)) }
    }

    /// The content of a manifest, whichever repository it is stored for.
    pub async fn manifest_content(&self, digest: &Digest) -> Result<Option<Bytes>, StoreError> {
        self.parts.content.read_manifest(digest).await
    }

    pub async fn begin(&self, algorithm: Algorithm, expected: Option<u64>) -> Result<Spool, StoreError> {
        self.parts.content.begin(algorithm, expected).await
    }

    pub async fn commit(&self, spool: Spool, digest: &Digest, repo: &RepoId) -> Result<(), StoreError> {
        spool.commit(digest, repo).await
    }

    pub async fn adopt(&self, repo: &RepoId, digest: &Digest) -> Result<bool, StoreError> {
        self.parts.content.adopt(repo, digest).await
    }

    /// Notes that a manifest of a mirrored repository was served: its children will be asked for next. Never waits.
    pub fn note_served(&self, manifest: &Arc<StoredManifest>) {
        if manifest.is_use_due() {
            self.parts.local.cache().note_manifest(manifest);
        }
    }
}

// === uploads: see the contract in `uploads` ===

impl Store {
    pub async fn create_upload(&self, repo: &RepoId, algorithm: Algorithm) -> Result<Upload, StoreError> {
        self.parts.uploads.create(repo, algorithm).await
    }

    pub async fn upload(&self, repo: &RepoId, id: &str) -> Result<Upload, UploadError> {
        self.parts.uploads.find(repo, id).await
    }

    pub async fn require_room_for_push(&self, bytes: u64) -> Result<(), StoreError> {
        self.parts.uploads.require_room(bytes).await
    }

    pub async fn expire_uploads(&self, age: Duration) -> Result<usize, StoreError> {
        self.parts.uploads.expire(age).await
    }
}

// === the cache ===

impl Store {
    /// Bytes of content of a class, as far as the index knows.
    pub fn bytes(&self, class: Class) -> u64 {
        self.parts.local.index().bytes(class)
    }

    /// Bytes that count towards the bounds: cached content, names of mirrored repositories, and fills.
    pub fn used(&self) -> u64 {
        self.parts.local.cache().space().used()
    }

    /// Whether the index agrees with the files and the order of last use is complete. Nothing is evicted before.
    pub fn can_evict(&self) -> bool {
        let local = &self.parts.local;
        local.index().is_ready() && local.cache().is_order_complete()
    }

    /// Restores the order of last use of an earlier run, unless that was done before. Blocks for as long as that takes.
    /// Nothing is evicted before.
    pub fn restore_recency(&self) {
        let local = &self.parts.local;
        if !local.cache().is_order_complete() {
            local.cache().restore_uses(local.index());
        }
    }

    /// Puts noted uses in order, and evicts what the bounds ask for. If a reservation had to wait for room, evicts
    /// some more. Runs slowly and with low priority, so that requests are not affected.
    ///
    /// # Errors
    /// When a pin cannot be read; [`StoreError::Task`] when no thread can be started.
    pub async fn evict_in_background(&self) -> Result<(), StoreError> {
        let is_short = self.parts.local.run(|local| {
            local.close_idle_files();
            local.cache().is_short(&**local)
        });
        if !is_short.await? {
            return Ok(());
        }
        let stop = Arc::new(AtomicBool::new(false));
        let _stopped_on_drop = StopOnDrop(stop.clone());
        let (local, operation) = (self.parts.local.clone(), self.parts.local.operations().token());
        let (sender, result) = oneshot::channel();
        // A thread of its own: a thread of the blocking pool would keep its low priority for its next task.
        let evictor = thread::Builder::new().name(EVICTOR_THREAD.to_owned()).spawn(move || {
            lower_priority();
            let done = local.cache().evict_in_background(&*local, &stop);
            drop(local);
            drop(operation);
            let _ = sender.send(done);
        });
        evictor.map_err(|_| StoreError::Task)?;
        result.await.map_err(|_| StoreError::Task)?
    }
}

// === index and durability ===

impl Store {
    /// Why the index was found corrupt at the start, if it was.
    pub fn index_corruption(&self) -> Option<&str> {
        match self.parts.local.index().found()? {
            IndexCondition::Corrupt(reason) => Some(reason),
            IndexCondition::Clean | IndexCondition::Unclean | IndexCondition::New => None,
        }
    }

    /// Whether there is no index because the disk has no room for it.
    pub fn lacks_index(&self) -> bool {
        !self.is_read_only() && !self.parts.local.index().is_open()
    }

    /// Whether the index must be reconciled with the files before lists and sums can come from it.
    pub fn needs_reconcile(&self) -> bool {
        !self.parts.local.index().is_ready()
    }

    /// Reconciles the index with the files, until done or until `stop` is set. Blocks for as long as that takes.
    pub fn reconcile(&self, stop: &AtomicBool) {
        upkeep::reconcile(&self.parts.local, stop);
    }

    /// Writes changes of the index to the disk.
    pub async fn flush_index(&self) -> Result<(), StoreError> {
        self.parts
            .local
            .run(|local| {
                local.flush_index();
                Ok(())
            })
            .await
    }

    /// Makes cached content durable that was committed since the last call.
    pub async fn sync_committed(&self) -> Result<(), StoreError> {
        self.parts.local.run(|local| local.sync_committed()).await
    }
}

// === upkeep ===

impl Store {
    /// Runs a walk on the blocking pool. It is told to stop when the caller stops waiting, and [`Store::close`] waits
    /// for it.
    pub async fn walk<T: Send + 'static>(
        &self,
        walk: impl FnOnce(&Self, &AtomicBool) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let stop = Arc::new(AtomicBool::new(false));
        let _stopped_on_drop = StopOnDrop(stop.clone());
        let store = self.clone();
        let walk = self.parts.local.operations().spawn_blocking(move || walk(&store, &stop));
        walk.await.map_err(|_| StoreError::Task)?
    }

    /// A pass of the collector. Blocks for as long as a walk of the local names takes, or until `stop` is set.
    /// `progress` is called with the number of repositories that were looked at.
    pub fn collect(
        &self,
        rules: CollectRules,
        stop: &AtomicBool,
        progress: &dyn Fn(u64),
    ) -> Result<Collected, StoreError> {
        upkeep::collect(&self.parts.local, rules, stop, progress)
    }

    /// Removes unneeded names of mirrored repositories, including tags that no upstream has confirmed for
    /// `unconfirmed`. Blocks for as long as a walk of all names takes, or until `stop` is set.
    pub fn sweep(&self, unconfirmed: Duration, stop: &AtomicBool) -> Result<Swept, StoreError> {
        upkeep::sweep(&self.parts.local, unconfirmed, stop)
    }

    /// Scrubs one part. With `repair`, moves corrupt files aside. Whether it came to the end, and the watch.
    ///
    /// # Errors
    /// When folders cannot be listed, or descriptors or memory are lacking. A file that the disk cannot read is a
    /// finding.
    pub async fn scrub<W>(&self, part: ScrubPart, repair: bool, mut watch: W) -> Result<(bool, W), StoreError>
    where
        W: ScrubWatch + Send + 'static,
    {
        self.parts
            .local
            .run(move |local| {
                let complete = upkeep::scrub(local, &part, repair, &mut watch)?;
                Ok((complete, watch))
            })
            .await
    }

    /// How far the background scrub is; `None` if there never was one.
    pub async fn scrub_place(&self) -> Result<Option<ScrubPlace>, StoreError> {
        self.parts.local.run(|local| upkeep::scrub_place(local)).await
    }

    /// Stores how far the background scrub is. Blocks.
    pub fn keep_scrub_place(&self, place: &ScrubPlace) -> Result<(), StoreError> {
        upkeep::keep_scrub_place(&self.parts.local, place)
    }

    /// As [`Store::keep_scrub_place`], on the blocking pool.
    pub async fn end_scrub(&self, place: ScrubPlace) -> Result<(), StoreError> {
        self.parts.local.run(move |local| upkeep::keep_scrub_place(local, &place)).await
    }

    /// Walks names and blobs and calls `report` with what they take. It returns false to stop the walk.
    pub async fn usage<F>(&self, mut report: F) -> Result<(), StoreError>
    where
        F: FnMut(UsageEvent) -> bool + Send + 'static,
    {
        self.parts.local.run(move |local| upkeep::usage(local, &mut report)).await
    }

    /// Takes or renews a lease that holds back removals of content for `time`. Whether it was held before. Blocks
    /// while an unlink is in progress.
    pub fn hold_deletions(&self, name: &str, time: Duration) -> bool {
        self.parts.local.leases().hold(name, time)
    }

    /// Ends a lease. Whether it was held.
    pub fn release_deletions(&self, name: &str) -> bool {
        self.parts.local.leases().release(name)
    }

    /// Whether a lease holds back removals of content.
    pub fn deletions_held(&self) -> bool {
        self.parts.local.leases().are_held()
    }

    /// A look at the files of this store.
    pub fn view(&self) -> View {
        View::of(self.parts.local.layout().root())
    }
}

/// Sets a flag when it is dropped.
struct StopOnDrop(Arc<AtomicBool>);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

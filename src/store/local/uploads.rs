//! Push sessions in `uploads/<uuid>/`. The file `data` has the received bytes, and `repository` the repository and the
//! algorithm.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use uuid::Uuid;

use super::Local;
use super::growing_file::{self, GrowingFile};
use crate::oci::{Algorithm, Digest, RepoId};
use crate::store::error::{At, StoreError, optional};
use crate::store::fs;
use crate::store::records::Class;
use crate::store::uploads::{Upload, UploadError, UploadSession, Uploads};

/// An empty session expires after one hour. The client can create another.
const MAX_EMPTY_SESSION_AGE: Duration = Duration::from_secs(60 * 60);

/// Inodes of a session: its folder, its bytes, and its description.
const SESSION_FILES: u64 = 3;

/// The sessions that this process has used, by id.
#[derive(Debug, Default)]
pub(super) struct Sessions {
    open: Mutex<HashMap<Uuid, Arc<Session>>>,
}

#[derive(Debug)]
struct Session {
    repo: String,
    file: Arc<GrowingFile>,
    /// A request or its unfinished write uses the session.
    busy: AtomicBool,
}

/// Keeps a session busy. A request holds it. A write holds it too, because a write continues after its request ends.
#[derive(Debug)]
struct BusySession(Arc<Session>);

/// A session that is used by one request.
#[derive(Debug)]
struct LocalUpload {
    local: Arc<Local>,
    id: Uuid,
    session: Arc<BusySession>,
    /// Whether the session outlives this request.
    kept: bool,
}

/// [`Uploads`] over the files of a data folder.
#[derive(Debug)]
pub(in crate::store) struct LocalUploads(Arc<Local>);

impl LocalUploads {
    pub(in crate::store) fn new(local: Arc<Local>) -> Self {
        Self(local)
    }
}

#[async_trait]
impl Uploads for LocalUploads {
    async fn create(&self, repo: &RepoId, algorithm: Algorithm) -> Result<Upload, StoreError> {
        let repo = repo.name.to_string();
        self.0
            .run(move |local| {
                local.require_writable()?;
                local.cache.require_inodes(SESSION_FILES, &**local)?;
                let id = Uuid::new_v4();
                let folder = local.layout.upload(id);
                local.layout.with_folder(&folder, fs::create_dir).at("create", &folder)?;
                let file = create_files(&folder, &repo, algorithm).inspect_err(|_| drop(remove_folder(&folder)))?;
                let session = Arc::new(Session { repo, file: Arc::new(file), busy: AtomicBool::new(true) });
                local.uploads.open.lock().insert(id, session.clone());
                let session = Arc::new(BusySession(session));
                Ok(Box::new(LocalUpload { local: local.clone(), id, session, kept: false }) as Upload)
            })
            .await
    }

    async fn find(&self, repo: &RepoId, id: &str) -> Result<Upload, UploadError> {
        let id = Uuid::parse_str(id).map_err(|_| UploadError::Unknown)?;
        let local = &self.0;
        let session = local.run(move |local| local.find_session(id)).await?.ok_or(UploadError::Unknown)?;
        if session.repo != repo.name.as_str() {
            return Err(UploadError::Unknown);
        }
        if session.busy.swap(true, Ordering::AcqRel) {
            return Err(UploadError::Busy);
        }
        let session = Arc::new(BusySession(session));
        let upload = LocalUpload { local: local.clone(), id, session, kept: true };
        // Another request may have finished the session before this request acquired it.
        if !local.uploads.open.lock().contains_key(&id) {
            return Err(UploadError::Unknown);
        }
        Ok(Box::new(upload))
    }

    async fn require_room(&self, bytes: u64) -> Result<(), StoreError> {
        self.0.run(move |local| local.cache.require_disk_room(bytes, 0, &**local)).await
    }

    async fn expire(&self, age: Duration) -> Result<usize, StoreError> {
        self.0.run(move |local| local.expire_uploads(age)).await
    }
}

#[async_trait]
impl UploadSession for LocalUpload {
    fn id(&self) -> Uuid {
        self.id
    }

    fn keep(&mut self) {
        self.kept = true;
    }

    fn length(&self) -> u64 {
        self.session.0.file.len()
    }

    async fn append(&self, chunks: Vec<Bytes>) -> Result<u64, StoreError> {
        let (busy, local) = (self.session.clone(), self.local.clone());
        let arriving = chunks.iter().map(|chunk| chunk.len() as u64).sum();
        let prepare = move || local.cache.require_disk_room(arriving, 0, &*local).map(|()| busy);
        let appended = growing_file::append(self.session.0.file.clone(), chunks, prepare).await;
        appended.inspect_err(|error| self.local.note_failure(error))
    }

    async fn finish(self: Box<Self>, repo: &RepoId, digest: &Digest) -> Result<(), StoreError> {
        let (repo, digest) = (repo.clone(), digest.clone());
        let local = self.local.clone();
        local.run(move |_| self.commit(&repo, &digest)).await
    }

    async fn cancel(self: Box<Self>) -> Result<(), StoreError> {
        crate::store::blocking(move || self.remove()).await?
    }
}

// === impl LocalUpload ===

impl LocalUpload {
    fn commit(&self, repo: &RepoId, digest: &Digest) -> Result<(), StoreError> {
        let local = &self.local;
        let data = data_path(&local.layout.upload(self.id));
        let file = &self.session.0.file;
        let (length, found) = file.digest(digest.algorithm()).at("read", &data)?;
        if found != *digest {
            self.remove()?;
            return Err(StoreError::DigestMismatch { digest: found, length });
        }
        // A failed append may have left bytes behind.
        let on_disk = fs::metadata(&data).at("stat", &data)?.len();
        if on_disk != length {
            file.truncate_to_length().at("truncate", &data)?;
        }
        let _pending = local.content.pending_links().announce(digest);
        if let Err(error) = local.commit_file(&data, digest, length, Class::Pushed) {
            // After a failed fsync the bytes may be lost, and the next fsync does not report that again. The client must send
            // them again.
            let _ = self.remove();
            return Err(error);
        }
        local.link_pushed_blob(repo, digest, length)?;
        self.remove()
    }

    fn remove(&self) -> Result<(), StoreError> {
        self.local.uploads.open.lock().remove(&self.id);
        remove_folder(&self.local.layout.upload(self.id))
    }
}

impl Drop for LocalUpload {
    fn drop(&mut self) {
        let is_open = !self.kept && self.local.uploads.open.lock().contains_key(&self.id);
        if is_open && let Err(error) = self.remove() {
            tracing::warn!(%error, "cannot remove an abandoned upload; it stays until it expires");
        }
    }
}

// === impl BusySession ===

impl Drop for BusySession {
    fn drop(&mut self) {
        self.0.busy.store(false, Ordering::Release);
    }
}

// === on the blocking pool ===

impl Local {
    fn find_session(&self, id: Uuid) -> Result<Option<Arc<Session>>, StoreError> {
        if let Some(session) = self.uploads.open.lock().get(&id) {
            return Ok(Some(session.clone()));
        }
        let folder = self.layout.upload(id);
        let description = folder.join("repository");
        let Some(text) = optional(fs::read_to_string(&description)).at("read", &description)? else { return Ok(None) };
        let mut lines = text.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n'));
        let (Some(repo), Some(Ok(algorithm))) = (lines.next(), lines.next().map(str::parse)) else { return Ok(None) };
        let data = data_path(&folder);
        let Some(file) = optional(GrowingFile::resume(&data, algorithm)).at("open", &data)? else { return Ok(None) };
        let session = Session { repo: repo.to_owned(), file: Arc::new(file.closed()), busy: AtomicBool::new(false) };
        // Two requests may resume a session at the same time. Both use the session that was inserted first.
        Ok(Some(self.uploads.open.lock().entry(id).or_insert_with(|| Arc::new(session)).clone()))
    }

    fn expire_uploads(&self, age: Duration) -> Result<usize, StoreError> {
        let uploads = self.layout.uploads();
        let mut expired = 0;
        for entry in fs::read_dir(&uploads).at("read", &uploads)? {
            let folder = entry.at("read", &uploads)?.path();
            if idle_time(&folder) < max_age(&folder, age) || !self.forget_session(&folder) {
                continue;
            }
            remove_folder(&folder)?;
            expired += 1;
        }
        Ok(expired)
    }

    /// Forgets the session of a folder. Returns false if a request uses it.
    fn forget_session(&self, folder: &Path) -> bool {
        let id = folder.file_name().and_then(|name| name.to_str()).and_then(|name| Uuid::parse_str(name).ok());
        let Some(id) = id else { return true };
        let mut open = self.uploads.open.lock();
        if open.get(&id).is_some_and(|session| session.busy.load(Ordering::Acquire)) {
            return false;
        }
        open.remove(&id);
        true
    }
}

fn idle_time(folder: &Path) -> Duration {
    let changed = [data_path(folder), folder.to_owned()]
        .iter()
        .filter_map(|path| fs::metadata(path).and_then(|found| found.modified()).ok())
        .max();
    changed.and_then(|changed| SystemTime::now().duration_since(changed).ok()).unwrap_or_default()
}

fn max_age(folder: &Path, age: Duration) -> Duration {
    let is_empty = fs::metadata(&data_path(folder)).is_ok_and(|data| data.len() == 0);
    if is_empty { age.min(MAX_EMPTY_SESSION_AGE) } else { age }
}

fn create_files(folder: &Path, repo: &str, algorithm: Algorithm) -> Result<GrowingFile, StoreError> {
    let data = data_path(folder);
    let file = GrowingFile::create(&data, algorithm).at("create", &data)?;
    let description = folder.join("repository");
    fs::write(&description, format!("{repo}\n{}\n", algorithm.as_str())).at("write", &description)?;
    Ok(file.closed())
}

fn data_path(folder: &Path) -> PathBuf {
    folder.join("data")
}

fn remove_folder(path: &Path) -> Result<(), StoreError> {
    optional(fs::remove_dir_all(path)).at("remove", path).map(drop)
}

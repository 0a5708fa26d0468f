//! Push sessions: `uploads/<uuid>/`, open until they are finished, cancelled or abandoned; they survive a restart.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use parking_lot::Mutex;
use uuid::Uuid;

use super::error::{At, StoreError, optional};
use super::fs;
use super::growing::{self, GrowingFile};
use super::records::Class;
use super::{Inner, Store, blocking};
use crate::oci::{Algorithm, Digest, RepoId};

/// A session that is still empty is abandoned sooner.
const EMPTY_AGE: Duration = Duration::from_secs(60 * 60);

/// The sessions that this process has touched.
#[derive(Debug, Default)]
pub(super) struct Uploads {
    open: Mutex<HashMap<Uuid, Arc<Session>>>,
}

#[derive(Debug)]
struct Session {
    repo: String,
    file: Arc<GrowingFile>,
    busy: AtomicBool,
}

/// A session in the hands of one request; others find it busy until this is dropped and what it began has ended.
#[derive(Debug)]
pub struct Upload {
    store: Arc<Inner>,
    id: Uuid,
    session: Arc<Held>,
    /// Whether it outlives this request. Nobody can go on with a session of which nobody was told.
    kept: bool,
}

/// Held by the request and by each of its writes, which go on when the request's client has left.
#[derive(Debug)]
struct Held(Arc<Session>);

#[derive(Debug, thiserror::Error)]
pub enum UploadError {
    #[error("no such upload in this repository")]
    Unknown,
    #[error("another request is writing to this upload")]
    Busy,
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Store {
    /// Opens a session for a blob of `repo`, to be hashed with `algorithm` as it comes. It ends when it is dropped, unless
    /// it is kept.
    pub async fn create_upload(&self, repo: &RepoId, algorithm: Algorithm) -> Result<Upload, StoreError> {
        let repo = repo.name.to_string();
        self.run(move |inner| {
            inner.check_writes()?;
            let id = Uuid::new_v4();
            let folder = inner.layout.upload(id);
            inner.layout.within(&folder, fs::create_dir).at("create", &folder)?;
            let file = begin(&folder, &repo, algorithm).inspect_err(|_| drop(remove_folder(&folder)))?;
            let session = Arc::new(Session { repo, file: Arc::new(file), busy: AtomicBool::new(true) });
            inner.uploads.open.lock().insert(id, session.clone());
            Ok(Upload { store: inner.clone(), id, session: Arc::new(Held(session)), kept: false })
        })
        .await
    }

    /// Takes hold of an open session, reading again what an earlier process received.
    pub async fn upload(&self, repo: &RepoId, id: &str) -> Result<Upload, UploadError> {
        let id = Uuid::parse_str(id).map_err(|_| UploadError::Unknown)?;
        let repo = repo.name.to_string();
        let session = self.run(move |inner| inner.find_upload(id)).await?.ok_or(UploadError::Unknown)?;
        if session.repo != repo {
            return Err(UploadError::Unknown);
        }
        if session.busy.swap(true, Ordering::AcqRel) {
            return Err(UploadError::Busy);
        }
        let upload = Upload { store: self.inner.clone(), id, session: Arc::new(Held(session)), kept: true };
        // It may have been finished between the look and the hold.
        if !self.inner.uploads.open.lock().contains_key(&id) {
            return Err(UploadError::Unknown);
        }
        Ok(upload)
    }

    /// Sees to it that the disk has room for `bytes` of a push: cached content makes way.
    ///
    /// # Errors
    /// [`StoreError::NoRoom`] if it has not; nothing is set aside if it has.
    pub async fn room_for_push(&self, bytes: u64) -> Result<(), StoreError> {
        self.run(move |inner| inner.need_disk(bytes)).await
    }

    /// Removes sessions that nobody has written to for `age`; how many.
    pub async fn expire_uploads(&self, age: Duration) -> Result<usize, StoreError> {
        self.run(move |inner| inner.expire_uploads(age)).await
    }
}

impl Upload {
    pub fn id(&self) -> Uuid {
        self.id
    }

    /// Leaves the session open for later requests.
    pub fn keep(&mut self) {
        self.kept = true;
    }

    /// Bytes received so far.
    pub fn length(&self) -> u64 {
        self.session.file.len()
    }

    /// Writes `chunks` on the blocking pool, and hashes them behind; the new length.
    pub async fn append(&self, chunks: Vec<Bytes>) -> Result<u64, StoreError> {
        let (held, store) = (self.session.clone(), self.store.clone());
        let coming = chunks.iter().map(|chunk| chunk.len() as u64).sum();
        growing::append(self.session.file.clone(), chunks, move || store.need_disk(coming).map(|()| held)).await
    }

    /// Ends the session: the content becomes a blob of its repository, on the disk before this returns.
    ///
    /// # Errors
    /// [`StoreError::DigestMismatch`] if the content is not what `digest` names; the session is then over, too.
    pub async fn finish(self, repo: &RepoId, digest: &Digest) -> Result<(), StoreError> {
        let (repo, digest) = (repo.clone(), digest.clone());
        let operations = self.store.operations.clone();
        let finished = operations.spawn_blocking(move || {
            let folder = self.store.layout.upload(self.id);
            let data = data_path(&folder);
            let (length, found) = self.session.file.digest(digest.algorithm()).at("read", &data)?;
            if found != digest {
                self.remove()?;
                return Err(StoreError::DigestMismatch { digest: found, found: length });
            }
            // Should an append have failed, and the file not let itself be cut back then.
            let on_disk = fs::metadata(&data).at("stat", &data)?.len();
            if on_disk != length {
                self.session.file.cut_to_length().at("truncate", &data)?;
            }
            let _held = self.store.coming.hold(&digest);
            if let Err(error) = self.store.commit_file(&data, &digest, length, Class::Pushed) {
                // What a sync has failed for may be lost, and the next sync does not say so again: it has to be sent again.
                let _ = self.remove();
                return Err(error);
            }
            self.store.link_blob(&repo, &digest, Some(length))?;
            self.remove()
        });
        finished.await.map_err(|_| StoreError::Task)?
    }

    /// Ends the session and forgets what it received.
    pub async fn cancel(self) -> Result<(), StoreError> {
        blocking(move || self.remove()).await?
    }

    fn remove(&self) -> Result<(), StoreError> {
        self.store.uploads.open.lock().remove(&self.id);
        remove_folder(&self.store.layout.upload(self.id))
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        let is_open = !self.kept && self.store.uploads.open.lock().contains_key(&self.id);
        if is_open && let Err(error) = self.remove() {
            tracing::warn!(%error, "an upload that was given up is left until it expires: {error}");
        }
    }
}

impl std::ops::Deref for Held {
    type Target = Session;

    fn deref(&self) -> &Session {
        &self.0
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.0.busy.store(false, Ordering::Release);
    }
}

impl Inner {
    fn find_upload(self: &Arc<Self>, id: Uuid) -> Result<Option<Arc<Session>>, StoreError> {
        if let Some(session) = self.uploads.open.lock().get(&id) {
            return Ok(Some(session.clone()));
        }
        let folder = self.layout.upload(id);
        let head = folder.join("repository");
        let Some(text) = optional(fs::read_to_string(&head)).at("read", &head)? else { return Ok(None) };
        let mut lines = text.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n'));
        let (Some(repo), Some(Ok(algorithm))) = (lines.next(), lines.next().map(str::parse)) else { return Ok(None) };
        let data = data_path(&folder);
        let Some(file) = optional(GrowingFile::resume(&data, algorithm)).at("open", &data)? else { return Ok(None) };
        let session = Session { repo: repo.to_owned(), file: Arc::new(file.closed()), busy: AtomicBool::new(false) };
        // Two requests may have read it again at once: the first one's session counts.
        Ok(Some(self.uploads.open.lock().entry(id).or_insert_with(|| Arc::new(session)).clone()))
    }

    pub(super) fn expire_uploads(&self, age: Duration) -> Result<usize, StoreError> {
        let uploads = self.layout.uploads();
        let now = SystemTime::now();
        let mut expired = 0;
        for entry in fs::read_dir(&uploads).at("read", &uploads)? {
            let folder = entry.at("read", &uploads)?.path();
            let touched = [data_path(&folder), folder.clone()]
                .iter()
                .filter_map(|path| fs::metadata(path).and_then(|found| found.modified()).ok())
                .max();
            // One that nothing was ever sent to costs its client nothing to open again.
            let empty = fs::metadata(&data_path(&folder)).is_ok_and(|data| data.len() == 0);
            let age = if empty { age.min(EMPTY_AGE) } else { age };
            let idle = touched.and_then(|touched| now.duration_since(touched).ok()).unwrap_or_default();
            let id = folder.file_name().and_then(|name| name.to_str()).and_then(|name| Uuid::parse_str(name).ok());
            if idle < age {
                continue;
            }
            if let Some(id) = id {
                let mut open = self.uploads.open.lock();
                if open.get(&id).is_some_and(|session| session.busy.load(Ordering::Acquire)) {
                    continue;
                }
                open.remove(&id);
            }
            remove_folder(&folder)?;
            expired += 1;
        }
        Ok(expired)
    }
}

/// What is in the folder of a new session.
fn begin(folder: &Path, repo: &str, algorithm: Algorithm) -> Result<GrowingFile, StoreError> {
    let data = data_path(folder);
    let file = GrowingFile::create(&data, algorithm).at("create", &data)?;
    let head = folder.join("repository");
    fs::write(&head, format!("{repo}\n{}\n", algorithm.as_str())).at("write", &head)?;
    Ok(file.closed())
}

fn data_path(folder: &Path) -> std::path::PathBuf {
    folder.join("data")
}

fn remove_folder(path: &Path) -> Result<(), StoreError> {
    optional(fs::remove_dir_all(path)).at("remove", path).map(drop)
}

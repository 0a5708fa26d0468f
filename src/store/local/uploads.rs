//! Push sessions in `uploads/<uuid>/`. The file `data` has the received bytes, and `repository` the name of the
//! repository, the algorithm and the scope.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use tokio::time::sleep;
use uuid::Uuid;

use super::Local;
use super::growing_file::{self, GrowingFile};
use super::sessions::{Admission, BusySession, Session, Unavailable, undo_path};
use crate::oci::{Algorithm, Digest, RepoId, Scope};
use crate::store::error::{At, StoreError, optional};
use crate::store::fs;
use crate::store::records::Class;
use crate::store::uploads::{Upload, UploadError, UploadSession, Uploads};

/// An empty session expires after one hour. The client can create another.
const MAX_EMPTY_SESSION_AGE: Duration = Duration::from_secs(60 * 60);
/// How long a push waits for idle sessions to give way.
const ADMISSION_TIMEOUT: Duration = Duration::from_secs(10);
/// Inodes of a session: its folder, its bytes, and its description.
const SESSION_FILES: u64 = 3;

/// A session that is used by one request.
#[derive(Debug)]
struct LocalUpload {
    local: Arc<Local>,
    id: Uuid,
    busy: Arc<BusySession>,
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

    /// Removes idle sessions until they are within their bounds.
    async fn admit(&self) -> Result<(), StoreError> {
        let deadline = Instant::now() + ADMISSION_TIMEOUT;
        loop {
            let now = Instant::now();
            match self.0.uploads.admission(now) {
                Admission::Admitted => return Ok(()),
                Admission::Remove(id) => self.0.run(move |local| local.give_way(id)).await?,
                Admission::Wait(wait) if now + wait <= deadline => sleep(wait).await,
                Admission::Wait(_) => return Err(StoreError::TooManyUploads),
            }
        }
    }
}

#[async_trait]
impl Uploads for LocalUploads {
    async fn create(&self, repo: &RepoId, algorithm: Algorithm) -> Result<Upload, StoreError> {
        self.admit().await?;
        let repo = repo.clone();
        self.0
            .run(move |local| {
                local.require_writable()?;
                local.cache.require_inodes(SESSION_FILES, &**local)?;
                let id = Uuid::new_v4();
                let folder = local.layout.upload(id);
                local.layout.with_folder(&folder, fs::create_dir).at("create", &folder)?;
                let file = create_files(&folder, &repo, algorithm).inspect_err(|_| drop(remove_folder(&folder)))?;
                let session = local.uploads.insert(id, Session::new(repo, &folder, file));
                let busy = local.uploads.acquire(id, &session).map_err(|_| StoreError::Task)?;
                Ok(Box::new(LocalUpload { local: local.clone(), id, busy: Arc::new(busy), kept: false }) as Upload)
            })
            .await
    }

    async fn find(&self, repo: &RepoId, id: &str) -> Result<Upload, UploadError> {
        let id = Uuid::parse_str(id).map_err(|_| UploadError::Unknown)?;
        let local = &self.0;
        let session = local.run(move |local| local.find_session(id)).await?.ok_or(UploadError::Unknown)?;
        if session.repo != *repo {
            return Err(UploadError::Unknown);
        }
        match local.uploads.acquire(id, &session) {
            Ok(busy) => Ok(Box::new(LocalUpload { local: local.clone(), id, busy: Arc::new(busy), kept: true })),
            Err(Unavailable::Unknown) => Err(UploadError::Unknown),
            Err(Unavailable::Busy) => Err(UploadError::Busy),
        }
    }

    async fn require_room(&self, bytes: u64) -> Result<(), StoreError> {
        self.admit().await?;
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
        self.busy.session().file.len()
    }

    async fn append(&self, chunks: Vec<Bytes>) -> Result<u64, StoreError> {
        let (busy, local) = (self.busy.clone(), self.local.clone());
        let arriving = chunks.iter().map(|chunk| chunk.len() as u64).sum();
        let prepare = move || local.cache.require_disk_room(arriving, 0, &*local).map(|()| busy);
        let appended = growing_file::append(self.busy.session().file.clone(), chunks, prepare).await;
        appended.inspect_err(|error| self.local.note_failure(error))
    }

    async fn begin_last_chunk(&self) -> Result<(), StoreError> {
        let (busy, folder) = (self.busy.clone(), self.local.layout.upload(self.id));
        self.local.run(move |_| busy.begin_last_chunk().at("write", &undo_path(&folder))).await
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
        let file = &self.busy.session().file;
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
        self.local.uploads.remove(self.id);
        remove_folder(&self.local.layout.upload(self.id))
    }
}

impl Drop for LocalUpload {
    fn drop(&mut self) {
        let is_open = !self.kept && self.local.uploads.is_open(self.id);
        if is_open && let Err(error) = self.remove() {
            tracing::warn!(%error, "cannot remove an abandoned upload; it stays until it expires");
        }
    }
}

// === on the blocking pool ===

impl Local {
    /// Counts the sessions of an earlier process.
    pub(super) fn count_uploads(&self) -> Result<(), StoreError> {
        let uploads = self.layout.uploads();
        for entry in fs::read_dir(&uploads).at("read", &uploads)? {
            let folder = entry.at("read", &uploads)?.path();
            let Some(id) = id_of(&folder) else { continue };
            let bytes = fs::metadata(&data_path(&folder)).map_or(0, |data| data.len());
            let description = fs::read_to_string(&folder.join("repository")).ok();
            let repo = description.and_then(|text| parse_description(&text)).map(|(repo, _)| repo);
            self.uploads.found(id, repo, bytes, self.idle_time(&folder));
        }
        Ok(())
    }

    fn find_session(&self, id: Uuid) -> Result<Option<Arc<Session>>, StoreError> {
        if let Some(session) = self.uploads.get(id) {
            return Ok(Some(session));
        }
        let folder = self.layout.upload(id);
        let description = folder.join("repository");
        let Some(text) = optional(fs::read_to_string(&description)).at("read", &description)? else { return Ok(None) };
        let Some((repo, algorithm)) = parse_description(&text) else { return Ok(None) };
        let data = data_path(&folder);
        let Some(file) = optional(GrowingFile::resume(&data, algorithm, undo_length(&folder)?)).at("open", &data)?
        else {
            return Ok(None);
        };
        let _ = fs::remove_file(&undo_path(&folder));
        // Two requests may resume a session at the same time. Both use the session that was inserted first.
        Ok(Some(self.uploads.insert(id, Session::new(repo, &folder, file.closed()))))
    }

    fn expire_uploads(&self, age: Duration) -> Result<usize, StoreError> {
        let uploads = self.layout.uploads();
        let mut expired = 0;
        for entry in fs::read_dir(&uploads).at("read", &uploads)? {
            let folder = entry.at("read", &uploads)?.path();
            let is_busy = || id_of(&folder).is_some_and(|id| !self.uploads.remove_idle(id));
            if self.idle_time(&folder) < max_age(&folder, age) || is_busy() {
                continue;
            }
            remove_folder(&folder)?;
            expired += 1;
        }
        Ok(expired)
    }

    /// Removes a session that no request uses, because there are too many.
    fn give_way(&self, id: Uuid) -> Result<(), StoreError> {
        if !self.uploads.remove_idle(id) {
            return Ok(());
        }
        tracing::warn!(
            upload = %id,
            "removed an unfinished upload; push.max_unfinished and push.max_unfinished_size bound them"
        );
        remove_folder(&self.layout.upload(id))
    }

    fn idle_time(&self, folder: &Path) -> Duration {
        let found = [fs::metadata(&data_path(folder)), fs::folder_metadata(folder)];
        let changed = found.into_iter().filter_map(|found| found.and_then(|found| found.modified()).ok()).max();
        changed.map(|changed| self.ages.age(changed)).unwrap_or_default()
    }
}

fn id_of(folder: &Path) -> Option<Uuid> {
    folder.file_name().and_then(|name| name.to_str()).and_then(|name| Uuid::parse_str(name).ok())
}

fn max_age(folder: &Path, age: Duration) -> Duration {
    let is_empty = fs::metadata(&data_path(folder)).is_ok_and(|data| data.len() == 0);
    if is_empty { age.min(MAX_EMPTY_SESSION_AGE) } else { age }
}

fn create_files(folder: &Path, repo: &RepoId, algorithm: Algorithm) -> Result<GrowingFile, StoreError> {
    let data = data_path(folder);
    let file = GrowingFile::create(&data, algorithm).at("create", &data)?;
    let description = folder.join("repository");
    let text = format!("{}\n{}\n{}\n", repo.name, algorithm.as_str(), repo.scope.as_str());
    fs::write(&description, text).at("write", &description)?;
    Ok(file.closed())
}

/// The repository and the algorithm of a session. Earlier versions did not write the scope, which was always local.
fn parse_description(text: &str) -> Option<(RepoId, Algorithm)> {
    let mut lines = text.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n'));
    let (name, algorithm) = (lines.next()?.parse().ok()?, lines.next()?.parse().ok()?);
    let scope = match lines.next() {
        None | Some("local") => Scope::Local,
        Some(upstream) => Scope::Upstream(upstream.into()),
    };
    Some((RepoId::new(scope, name), algorithm))
}

/// The length that a session had before its last chunk, if that chunk did not arrive completely.
fn undo_length(folder: &Path) -> Result<Option<u64>, StoreError> {
    let path = undo_path(folder);
    let text = optional(fs::read_to_string(&path)).at("read", &path)?;
    // A crash may have cut the text short. Without it nothing of the last chunk was written.
    Ok(text.and_then(|text| text.strip_suffix('\n')?.parse().ok()))
}

fn data_path(folder: &Path) -> PathBuf {
    folder.join("data")
}

fn remove_folder(path: &Path) -> Result<(), StoreError> {
    let removed = match fs::remove_dir_all(path) {
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => fs::remove_file(path),
        removed => removed,
    };
    optional(removed).at("remove", path).map(drop)
}

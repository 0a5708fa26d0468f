//! Where everything is in the data folder. The only place that builds paths.

use std::io;
use std::path::{Path, PathBuf};

use parking_lot::Mutex;
use uuid::Uuid;

use super::error::{At, StoreError};
use super::fs;
use crate::oci::{Algorithm, Digest, RepoId, Tag};

/// The folders of the store, all on one file system so that a rename commits.
#[derive(Clone, Debug)]
pub(super) struct Layout {
    root: PathBuf,
}

impl Layout {
    pub(super) fn new(root: &Path) -> Self {
        Self { root: root.to_owned() }
    }

    /// Makes the folders, the 256 of each algorithm included, so that a commit creates none.
    pub(super) fn create(&self) -> Result<(), StoreError> {
        for folder in ["blobs", "repositories", "uploads", "spool", "quarantine"] {
            let path = self.root.join(folder);
            fs::create_dir_all(&path).at("create", &path)?;
        }
        for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
            for byte in 0..=255u8 {
                let path = self.blob_folder(algorithm, byte);
                fs::create_dir_all(&path).at("create", &path)?;
            }
            let path = self.root.join("blobs").join(algorithm.as_str());
            sync_folder(&path).at("sync", &path)?;
        }
        Ok(())
    }

    /// Runs `operation` on a path in one of the store's own folders. One that somebody has removed is made again; but not where
    /// all of them are gone: that is a disk that is not mounted any more.
    pub(super) fn within<T>(&self, path: &Path, operation: impl Fn(&Path) -> io::Result<T>) -> io::Result<T> {
        let done = operation(path);
        let folder = path.parent().unwrap_or(&self.root);
        let is_missing = |error: &io::Error| error.kind() == io::ErrorKind::NotFound && !folder.exists();
        if !done.as_ref().is_err_and(is_missing) || !self.lock().exists() {
            return done;
        }
        create_folders(folder, true)?;
        tracing::error!("{} was removed by somebody; it is made again", folder.display());
        operation(path)
    }

    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    pub(super) fn lock(&self) -> PathBuf {
        self.root.join("lock")
    }

    pub(super) fn id(&self) -> PathBuf {
        self.root.join("id")
    }

    pub(super) fn settled(&self) -> PathBuf {
        self.root.join("settled")
    }

    pub(super) fn quarantined(&self, digest: &Digest) -> PathBuf {
        let name = format!("{}-{}-{}", digest.algorithm().as_str(), digest.hex(), Uuid::new_v4().simple());
        self.quarantine().join(name)
    }

    /// For the file of a name that says nothing.
    pub(super) fn quarantined_name(&self) -> PathBuf {
        self.quarantine().join(format!("name-{}", Uuid::new_v4().simple()))
    }

    pub(super) fn quarantine(&self) -> PathBuf {
        self.root.join("quarantine")
    }

    /// How far the slow scrub is.
    pub(super) fn scrub(&self) -> PathBuf {
        self.root.join("scrub")
    }

    pub(super) fn index(&self) -> PathBuf {
        self.root.join("index")
    }

    pub(super) fn odd_index(&self) -> PathBuf {
        self.root.join("index.odd")
    }

    /// Says that files have changed without the index.
    pub(super) fn index_behind(&self) -> PathBuf {
        self.root.join("index.behind")
    }

    pub(super) fn spool(&self) -> PathBuf {
        self.root.join("spool")
    }

    /// A name nobody has used: two fills of one digest never meet, and a leftover hangs nobody.
    pub(super) fn temporary(&self) -> PathBuf {
        self.spool().join(Uuid::new_v4().to_string())
    }

    pub(super) fn blobs(&self, algorithm: Algorithm) -> PathBuf {
        self.root.join("blobs").join(algorithm.as_str())
    }

    pub(super) fn blob_folder(&self, algorithm: Algorithm, first: u8) -> PathBuf {
        self.blobs(algorithm).join(format!("{first:02x}"))
    }

    pub(super) fn blob(&self, digest: &Digest) -> PathBuf {
        self.blob_folder(digest.algorithm(), digest.as_bytes()[0]).join(digest.hex())
    }

    pub(super) fn uploads(&self) -> PathBuf {
        self.root.join("uploads")
    }

    pub(super) fn upload(&self, id: Uuid) -> PathBuf {
        self.uploads().join(id.to_string())
    }

    pub(super) fn repositories(&self) -> PathBuf {
        self.root.join("repositories")
    }

    pub(super) fn repository(&self, repo: &RepoId) -> PathBuf {
        self.repositories().join(repo.scope.as_str()).join(repo.name.as_str())
    }

    pub(super) fn tags(&self, repo: &RepoId) -> PathBuf {
        self.repository(repo).join("_tags")
    }

    pub(super) fn tag(&self, repo: &RepoId, tag: &Tag) -> PathBuf {
        self.tags(repo).join(tag.as_str())
    }

    pub(super) fn manifests(&self, repo: &RepoId) -> PathBuf {
        self.repository(repo).join("_manifests")
    }

    pub(super) fn manifest_link(&self, repo: &RepoId, digest: &Digest) -> PathBuf {
        self.manifests(repo).join(digest.algorithm().as_str()).join(digest.hex())
    }

    /// A folder for each subject.
    pub(super) fn referrer_folders(&self, repo: &RepoId) -> PathBuf {
        self.repository(repo).join("_referrers")
    }

    /// The manifests of a repository that name this one as their subject.
    pub(super) fn referrers(&self, repo: &RepoId, subject: &Digest) -> PathBuf {
        self.referrer_folders(repo).join(subject.algorithm().as_str()).join(subject.hex())
    }

    pub(super) fn referrer_link(&self, repo: &RepoId, subject: &Digest, digest: &Digest) -> PathBuf {
        self.referrers(repo, subject).join(format!("{}-{}", digest.algorithm().as_str(), digest.hex()))
    }

    /// Removes the folders of a repository that has no names, and those above it that are then empty; whether it had none.
    pub(super) fn remove_empty(&self, repo: &RepoId) -> bool {
        // Nobody may be creating a folder below one that goes.
        let _one = CREATING.lock();
        let repository = self.repository(repo);
        // The last one says that the repository exists.
        for kinds in [&["_tags", "_manifests", "_referrers"][..], &["_blobs"]] {
            let gone: Vec<bool> = kinds.iter().map(|kind| remove_empty_below(&repository.join(kind), 2)).collect();
            if gone.contains(&false) {
                return false;
            }
        }
        let scope = self.repositories().join(repo.scope.as_str());
        for folder in repository.ancestors().take_while(|folder| **folder != scope) {
            if fs::remove_dir(folder).is_err() {
                break;
            }
        }
        true
    }

    /// Present in every repository that anything was ever stored in.
    pub(super) fn blob_links(&self, repo: &RepoId) -> PathBuf {
        self.repository(repo).join("_blobs")
    }

    pub(super) fn blob_link(&self, repo: &RepoId, digest: &Digest) -> PathBuf {
        self.blob_links(repo).join(digest.algorithm().as_str()).join(digest.hex())
    }
}

/// A temporary file that goes when this is dropped, unless it has been moved away.
pub(super) struct Temporary(PathBuf);

impl Temporary {
    pub(super) fn new(path: PathBuf) -> Self {
        Self(path)
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// Removes a folder and those up to `depth` below it, as far as they are empty; whether it is gone.
fn remove_empty_below(folder: &Path, depth: usize) -> bool {
    if depth > 0
        && let Ok(entries) = fs::read_dir(folder)
    {
        for entry in entries.flatten() {
            remove_empty_below(&entry.path(), depth - 1);
        }
    }
    match fs::remove_dir(folder) {
        Ok(()) => true,
        Err(error) => error.kind() == io::ErrorKind::NotFound,
    }
}

/// Makes a folder's entries durable.
pub(super) fn sync_folder(path: &Path) -> io::Result<()> {
    fs::sync_all(&fs::open(path)?)
}

/// One at a time: who finds a folder that another has just made must not get ahead of that one's sync.
static CREATING: Mutex<()> = Mutex::new(());

/// Creates `path` and the folders above it that are missing; with `durable`, syncs the parent of each new one.
pub(super) fn create_folders(path: &Path, durable: bool) -> io::Result<()> {
    if path.is_dir() && !durable {
        return Ok(());
    }
    let _one = CREATING.lock();
    create_missing(path, durable)
}

fn create_missing(path: &Path, durable: bool) -> io::Result<()> {
    match fs::create_dir(path) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let parent = path.parent().ok_or(error)?;
            create_missing(parent, durable)?;
            match fs::create_dir(path) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
                _ => {}
            }
        }
        Err(error) => return Err(error),
    }
    match path.parent() {
        // Left where it is, the next to find it would take it for durable.
        Some(parent) if durable => sync_folder(parent).inspect_err(|_| drop(fs::remove_dir(path))),
        _ => Ok(()),
    }
}

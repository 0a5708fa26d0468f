//! Where everything is in the data folder. No other module builds paths in it.

use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};

use parking_lot::Mutex;
use uuid::Uuid;

use crate::oci::{Algorithm, Digest, RepoId, Tag};
use crate::store::error::{At, StoreError};
use crate::store::fs;

/// The paths of a data folder. All of it is on one file system, so that a rename commits.
#[derive(Clone, Debug)]
pub(in crate::store) struct Layout {
    root: PathBuf,
}

impl Layout {
    pub(in crate::store) fn new(root: &Path) -> Self {
        Self { root: root.to_owned() }
    }

    /// Creates the folders, including the 256 of each algorithm, so that a commit creates none.
    pub(in crate::store) fn create(&self) -> Result<(), StoreError> {
        for folder in ["blobs", "repositories", "uploads", "spool", "quarantine", "notes"] {
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

    /// Runs `operation` on a path in one of the store's own folders. If that folder was removed, it is created again. It is
    /// not if all folders are gone, because then the disk is no longer mounted.
    pub(in crate::store) fn with_folder<T>(
        &self,
        path: &Path,
        operation: impl Fn(&Path) -> io::Result<T>,
    ) -> io::Result<T> {
        let done = operation(path);
        let folder = path.parent().unwrap_or(&self.root);
        let is_missing = |error: &io::Error| error.kind() == io::ErrorKind::NotFound && !fs::exists(folder);
        if !done.as_ref().is_err_and(is_missing) || !fs::exists(&self.lock()) {
            return done;
        }
        create_folders(folder, true)?;
        tracing::error!(folder = %folder.display(), "a folder of the store was removed from outside; it is created again");
        operation(path)
    }

    /// Renames a file. A folder in its place is moved to `quarantine/`; a rename replaces anything else.
    pub(in crate::store) fn replace(&self, from: &Path, to: &Path) -> io::Result<()> {
        match fs::rename(from, to) {
            Err(error) if error.kind() == io::ErrorKind::IsADirectory => {
                let aside = self.quarantined_name();
                self.with_folder(&aside, |aside| fs::rename(to, aside))?;
                let (path, aside) = (to.display(), aside.display());
                tracing::error!(%path, %aside, "a folder was in the place of a file; it is moved to quarantine/");
                fs::rename(from, to)
            }
            renamed => renamed,
        }
    }

    pub(in crate::store) fn root(&self) -> &Path {
        &self.root
    }

    pub(in crate::store) fn lock(&self) -> PathBuf {
        self.root.join("lock")
    }

    pub(in crate::store) fn id(&self) -> PathBuf {
        self.root.join("id")
    }

    /// The format of the folder.
    pub(in crate::store) fn format(&self) -> PathBuf {
        self.root.join("format")
    }

    /// The path of the durability record: the time of the last fsync of cached content.
    pub(in crate::store) fn durability_record(&self) -> PathBuf {
        self.root.join("settled")
    }

    /// A new name in `quarantine/` for the file of a digest.
    pub(in crate::store) fn quarantined(&self, digest: &Digest) -> PathBuf {
        let name = format!("{}-{}-{}", digest.algorithm().as_str(), digest.hex(), Uuid::new_v4().simple());
        self.quarantine().join(name)
    }

    /// A new name in `quarantine/` for a corrupt name file.
    pub(in crate::store) fn quarantined_name(&self) -> PathBuf {
        self.quarantine().join(format!("name-{}", Uuid::new_v4().simple()))
    }

    pub(in crate::store) fn quarantine(&self) -> PathBuf {
        self.root.join("quarantine")
    }

    /// The gaps of the wall clock, see `ages`.
    pub(in crate::store) fn ages(&self) -> PathBuf {
        self.root.join("ages")
    }

    /// The secret that signs tokens.
    pub(in crate::store) fn token_secret(&self) -> PathBuf {
        self.root.join("state").join("token-secret")
    }

    /// The machine tokens: their names, and the hashes of their secrets.
    pub(in crate::store) fn machine_tokens(&self) -> PathBuf {
        self.root.join("state").join("machine-tokens.json")
    }

    /// How far the background scrub is.
    pub(in crate::store) fn scrub(&self) -> PathBuf {
        self.root.join("scrub")
    }

    pub(in crate::store) fn index(&self) -> PathBuf {
        self.root.join("index")
    }

    pub(in crate::store) fn corrupt_index(&self) -> PathBuf {
        self.root.join("index.odd")
    }

    /// Exists while files change without the index.
    pub(in crate::store) fn index_outdated(&self) -> PathBuf {
        self.root.join("index.behind")
    }

    pub(in crate::store) fn spool(&self) -> PathBuf {
        self.root.join("spool")
    }

    /// A new name: two fills of one digest never use the same file, and a leftover is never in the way.
    pub(in crate::store) fn temporary(&self) -> PathBuf {
        self.spool().join(Uuid::new_v4().to_string())
    }

    pub(in crate::store) fn blobs(&self, algorithm: Algorithm) -> PathBuf {
        self.root.join("blobs").join(algorithm.as_str())
    }

    pub(in crate::store) fn blob_folder(&self, algorithm: Algorithm, first: u8) -> PathBuf {
        self.blobs(algorithm).join(format!("{first:02x}"))
    }

    pub(in crate::store) fn blob(&self, digest: &Digest) -> PathBuf {
        self.blob_folder(digest.algorithm(), digest.as_bytes()[0]).join(digest.hex())
    }

    pub(in crate::store) fn uploads(&self) -> PathBuf {
        self.root.join("uploads")
    }

    pub(in crate::store) fn upload(&self, id: Uuid) -> PathBuf {
        self.uploads().join(id.to_string())
    }

    pub(in crate::store) fn repositories(&self) -> PathBuf {
        self.root.join("repositories")
    }

    pub(in crate::store) fn repository(&self, repo: &RepoId) -> PathBuf {
        self.repositories().join(repo.scope.as_str()).join(repo.name.as_str())
    }

    pub(in crate::store) fn tags(&self, repo: &RepoId) -> PathBuf {
        self.repository(repo).join("_tags")
    }

    pub(in crate::store) fn tag(&self, repo: &RepoId, tag: &Tag) -> PathBuf {
        self.tags(repo).join(tag.as_str())
    }

    pub(in crate::store) fn manifests(&self, repo: &RepoId) -> PathBuf {
        self.repository(repo).join("_manifests")
    }

    pub(in crate::store) fn manifest_link(&self, repo: &RepoId, digest: &Digest) -> PathBuf {
        self.manifests(repo).join(digest.algorithm().as_str()).join(digest.hex())
    }

    /// Holds a folder for each subject.
    pub(in crate::store) fn referrer_folders(&self, repo: &RepoId) -> PathBuf {
        self.repository(repo).join("_referrers")
    }

    /// The manifests of a repository that name this one as their subject.
    pub(in crate::store) fn referrers(&self, repo: &RepoId, subject: &Digest) -> PathBuf {
        self.referrer_folders(repo).join(subject.algorithm().as_str()).join(subject.hex())
    }

    pub(in crate::store) fn referrer_link(&self, repo: &RepoId, subject: &Digest, digest: &Digest) -> PathBuf {
        self.referrers(repo, subject).join(format!("{}-{}", digest.algorithm().as_str(), digest.hex()))
    }

    /// Removes the folders of a repository without names, and the folders above it that are then empty. False if it has
    /// names.
    pub(in crate::store) fn remove_empty(&self, repo: &RepoId) -> bool {
        // No other thread may create a folder below one that is removed.
        let _creating = CREATING_FOLDERS.lock();
        let repository = self.repository(repo);
        // `_blobs` last: it says that the repository exists.
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
    pub(in crate::store) fn blob_links(&self, repo: &RepoId) -> PathBuf {
        self.repository(repo).join("_blobs")
    }

    pub(in crate::store) fn blob_link(&self, repo: &RepoId, digest: &Digest) -> PathBuf {
        self.blob_links(repo).join(digest.algorithm().as_str()).join(digest.hex())
    }
}

/// The digest that a content file or a link is named after; `None` for any other file.
pub(in crate::store) fn digest_of_file(algorithm: Algorithm, name: &OsStr) -> Option<Digest> {
    format!("{}:{}", algorithm.as_str(), name.to_str()?).parse().ok()
}

/// A temporary file. It is removed when this is dropped, unless it has been renamed.
pub(in crate::store) struct Temporary(PathBuf);

impl Temporary {
    pub(in crate::store) fn new(path: PathBuf) -> Self {
        Self(path)
    }

    pub(in crate::store) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// Removes a folder and the folders up to `depth` levels below it, as far as they are empty. Whether the folder is gone.
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
pub(in crate::store) fn sync_folder(path: &Path) -> io::Result<()> {
    fs::sync_all(&fs::open_folder(path)?)
}

/// Held while folders are created: a thread that finds a new folder must not go on before the creator has synced it.
static CREATING_FOLDERS: Mutex<()> = Mutex::new(());

/// Creates `path` and the missing folders above it. With `durable`, syncs the parent of each new one.
pub(in crate::store) fn create_folders(path: &Path, durable: bool) -> io::Result<()> {
    if fs::is_dir(path) && !durable {
        return Ok(());
    }
    let _creating = CREATING_FOLDERS.lock();
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
        // If it stayed, the next thread to find it would take it for durable.
        Some(parent) if durable => sync_folder(parent).inspect_err(|_| drop(fs::remove_dir(path))),
        _ => Ok(()),
    }
}

//! containerd's folder of hosts files (`config_path`): writes Roadstead's files into it, and removes them again.
//!
//! A file with [`MARK`] at its beginning is Roadstead's. No content of other files is ever lost: a file of others stays, or,
//! if the operator has asked for that, is saved beside the new one and put back later. A new file appears by rename, so
//! containerd never reads a part of one.

use std::fmt;
use std::fs::{self, File, Permissions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::fs::FlockOperation;
use rustix::io::Errno;

use super::server_url::ServerUrl;

/// Begins the first line of each written file. The URL of the server follows.
const MARK: &str = "# Written by `roadstead client-config` for ";
const HOSTS_FILE: &str = "hosts.toml";
/// Where a file of others is saved. containerd does not read it while there is a hosts file.
const SAVED_FILE: &str = "hosts.toml.roadstead-saved";
/// A file that is being written. One that is left over from an interrupted run is removed by the next run.
const TEMPORARY_FILE: &str = ".hosts.toml.roadstead-new";
/// containerd may run as any user, and nothing in the files is secret.
const FILE_MODE: u32 = 0o644;
const FOLDER_MODE: u32 = 0o755;
/// How long to wait for another process of Roadstead, which holds the lock for the time of a few fsyncs.
const LOCK_TIMEOUT: Duration = Duration::from_secs(5);
const LOCK_POLL_INTERVAL: Duration = Duration::from_millis(20);
/// A larger file is of others.
const MAX_FILE_BYTES: u64 = 64 << 10;

/// Why the files cannot be written or removed. Each is one line.
#[derive(Debug, thiserror::Error)]
pub enum HostsError {
    #[error("there is no folder {}; create it, or name the folder that containerd's config_path names", .0.display())]
    NoFolder(PathBuf),
    #[error(
        "{} was not written by Roadstead; add the server to it by hand, or use --force, which saves it until --remove",
        .0.display()
    )]
    Foreign(PathBuf),
    #[error("{} is not a folder, or is a symbolic link; remove it if containerd does not need it", .0.display())]
    NotAFolder(PathBuf),
    #[error(
        "{} is kept for --remove, but {} was not written by Roadstead either; remove the one that is not needed",
        saved.display(), file.display()
    )]
    SavedTwice { saved: PathBuf, file: PathBuf },
    #[error("another process changes {}; run the command again when it has ended", .0.display())]
    Busy(PathBuf),
    #[error("cannot {action} {}: {error}; run the command as a user who may change this folder", path.display())]
    Io { action: &'static str, path: PathBuf, error: io::Error },
}

/// What became of a file. As text, it is a line for the operator.
#[derive(Debug)]
pub(super) enum Change {
    Written(PathBuf),
    Unchanged(PathBuf),
    Saved(PathBuf),
    Removed(PathBuf),
    Restored(PathBuf),
    /// A file of others is in the place of ours, so the saved one stays.
    KeptSaved(PathBuf),
}

/// What is at the place of a hosts file.
enum Place {
    Free,
    /// A file of Roadstead.
    Ours(String),
    /// A file of others, or something that is not a file.
    Foreign,
}

/// The folder, locked against other processes of Roadstead.
#[derive(Debug)]
pub(super) struct HostsFolder {
    path: PathBuf,
    _lock: File,
}

/// The folder of one registry within it.
struct HostFolder(PathBuf);

// === impl HostsFolder ===

impl HostsFolder {
    /// Opens the folder to write files, and creates it if its parent exists. Blocks, as all functions here do.
    pub(super) fn create(path: &Path) -> Result<Self, HostsError> {
        if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty() && !parent.is_dir()) {
            return Err(HostsError::NoFolder(parent.to_owned()));
        }
        create_folder(path)?;
        Self::lock(path)
    }

    /// Opens the folder to remove files. `None`: it does not exist, so there is nothing to remove.
    pub(super) fn open(path: &Path) -> Result<Option<Self>, HostsError> {
        match fs::metadata(path) {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            _ => Self::lock(path).map(Some),
        }
    }

    fn lock(path: &Path) -> Result<Self, HostsError> {
        if !path.is_dir() {
            return Err(HostsError::NoFolder(path.to_owned()));
        }
        let lock = File::open(path).during("open", path)?;
        let deadline = Instant::now() + LOCK_TIMEOUT;
        loop {
            match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(Self { path: path.to_owned(), _lock: lock }),
                Err(Errno::WOULDBLOCK) if Instant::now() < deadline => sleep(LOCK_POLL_INTERVAL),
                Err(Errno::WOULDBLOCK) => return Err(HostsError::Busy(path.to_owned())),
                Err(error) => return Err(io::Error::from(error)).during("lock", path),
            }
        }
    }

    /// Writes a hosts file for each registry. Nothing is changed if one of them cannot be replaced. A file that is already
    /// as it should be is not touched.
    ///
    /// With `force`, a file of others is saved and replaced.
    pub(super) fn write(
        &self,
        url: &ServerUrl,
        files: &[(&str, String)],
        force: bool,
    ) -> Result<Vec<Change>, HostsError> {
        let folder_of = |registry: &&str| HostFolder(self.path.join(registry));
        for (registry, _) in files {
            folder_of(registry).check_replaceable(force)?;
        }
        let mut changes = Vec::new();
        for (registry, content) in files {
            folder_of(registry).write(&marked(url, content), &mut changes)?;
        }
        sync_folder(&self.path)?;
        Ok(changes)
    }

    /// Removes the files that were written for this server, or for any, and puts saved files back. Files of others stay.
    pub(super) fn remove(&self, url: Option<&ServerUrl>) -> Result<Vec<Change>, HostsError> {
        let mark = url.map_or_else(|| MARK.to_owned(), first_line);
        let mut changes = Vec::new();
        for entry in fs::read_dir(&self.path).during("read", &self.path)? {
            let entry = entry.during("read", &self.path)?;
            // The type of the entry itself: links lead to folders of others.
            if entry.file_type().during("read", &entry.path())?.is_dir() {
                HostFolder(entry.path()).remove(&mark, &mut changes)?;
            }
        }
        sync_folder(&self.path)?;
        Ok(changes)
    }
}

// === impl HostFolder ===

impl HostFolder {
    fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    fn place(&self) -> Result<Place, HostsError> {
        let path = self.file(HOSTS_FILE);
        let found = match fs::symlink_metadata(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Place::Free),
            found => found.during("read", &path)?,
        };
        if !found.is_file() || found.len() > MAX_FILE_BYTES {
            return Ok(Place::Foreign);
        }
        let bytes = fs::read(&path).during("read", &path)?;
        Ok(match String::from_utf8(bytes) {
            Ok(text) if text.starts_with(MARK) => Place::Ours(text),
            _ => Place::Foreign,
        })
    }

    fn has_saved(&self) -> bool {
        fs::symlink_metadata(self.file(SAVED_FILE)).is_ok()
    }

    fn check_replaceable(&self, force: bool) -> Result<(), HostsError> {
        let is_folder = match fs::symlink_metadata(&self.0) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            found => found.during("read", &self.0)?.is_dir(),
        };
        if !is_folder {
            return Err(HostsError::NotAFolder(self.0.clone()));
        }
        match self.place()? {
            Place::Foreign if !force => Err(HostsError::Foreign(self.file(HOSTS_FILE))),
            Place::Foreign if self.has_saved() => {
                Err(HostsError::SavedTwice { saved: self.file(SAVED_FILE), file: self.file(HOSTS_FILE) })
            }
            _ => Ok(()),
        }
    }

    fn write(&self, content: &str, changes: &mut Vec<Change>) -> Result<(), HostsError> {
        create_folder(&self.0)?;
        let path = self.file(HOSTS_FILE);
        let place = self.place()?;
        if matches!(&place, Place::Ours(written) if written == content) {
            changes.push(Change::Unchanged(path));
            return Ok(());
        }
        let temporary = self.file(TEMPORARY_FILE);
        remove_file(&temporary)?;
        let written = write_new(&temporary, content).during("write", &temporary);
        written.and_then(|()| self.replace(place, &temporary, changes)).inspect_err(|_| {
            // The next run removes it if this fails.
            let _ = fs::remove_file(&temporary);
        })?;
        sync_folder(&self.0)?;
        changes.push(Change::Written(path));
        Ok(())
    }

    fn replace(&self, place: Place, temporary: &Path, changes: &mut Vec<Change>) -> Result<(), HostsError> {
        let path = self.file(HOSTS_FILE);
        if matches!(place, Place::Foreign) {
            let saved = self.file(SAVED_FILE);
            fs::rename(&path, &saved).during("rename", &path)?;
            changes.push(Change::Saved(saved));
        }
        fs::rename(temporary, &path).during("write", &path)
    }

    fn remove(&self, mark: &str, changes: &mut Vec<Change>) -> Result<(), HostsError> {
        remove_file(&self.file(TEMPORARY_FILE))?;
        let (path, saved) = (self.file(HOSTS_FILE), self.file(SAVED_FILE));
        match (self.place()?, self.has_saved()) {
            (Place::Ours(text), _) if !text.starts_with(mark) => return Ok(()),
            (Place::Foreign, false) | (Place::Free, false) => return Ok(()),
            (Place::Foreign, true) => {
                changes.push(Change::KeptSaved(saved));
                return Ok(());
            }
            // The rename also removes our file, so that there is a hosts file at every moment.
            (Place::Ours(_) | Place::Free, true) => {
                fs::rename(&saved, &path).during("restore", &path)?;
                changes.push(Change::Restored(path));
            }
            (Place::Ours(_), false) => {
                remove_file(&path)?;
                changes.push(Change::Removed(path));
            }
        }
        sync_folder(&self.0)?;
        match fs::remove_dir(&self.0) {
            Err(error) if error.kind() == ErrorKind::DirectoryNotEmpty => Ok(()),
            removed => removed.during("remove", &self.0),
        }
    }
}

/// The first line of a file for this server, with its end, so that no URL is the beginning of another one.
fn first_line(url: &ServerUrl) -> String {
    format!("{MARK}{url}\n")
}

fn marked(url: &ServerUrl, content: &str) -> String {
    format!(
        "{}# It replaces and removes this file, so do not edit it. containerd reads it at each pull.\n{content}",
        first_line(url)
    )
}

// === file operations ===

fn create_folder(path: &Path) -> Result<(), HostsError> {
    match fs::create_dir(path) {
        // Whatever the umask is.
        Ok(()) => fs::set_permissions(path, Permissions::from_mode(FOLDER_MODE)).during("create", path),
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(error).during("create", path),
    }
}

/// Writes a file that does not exist yet, and fsyncs it.
fn write_new(path: &Path, content: &str) -> io::Result<()> {
    let mut file = File::options().create_new(true).write(true).mode(FILE_MODE).open(path)?;
    file.set_permissions(Permissions::from_mode(FILE_MODE))?;
    file.write_all(content.as_bytes())?;
    file.sync_all()
}

/// Removes a file, if there is one.
fn remove_file(path: &Path) -> Result<(), HostsError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        removed => removed.during("remove", path),
    }
}

fn sync_folder(path: &Path) -> Result<(), HostsError> {
    File::open(path).and_then(|folder| folder.sync_all()).during("sync", path)
}

/// Names the operation and the path of an I/O error.
trait During<T> {
    fn during(self, action: &'static str, path: &Path) -> Result<T, HostsError>;
}

impl<T> During<T> for io::Result<T> {
    fn during(self, action: &'static str, path: &Path) -> Result<T, HostsError> {
        self.map_err(|error| HostsError::Io { action, path: path.to_owned(), error })
    }
}

// === impl Change ===

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Written(path) => write!(f, "wrote {}", path.display()),
            Self::Unchanged(path) => write!(f, "{} is up to date", path.display()),
            Self::Saved(path) => write!(f, "saved the file of another program as {}", path.display()),
            Self::Removed(path) => write!(f, "removed {}", path.display()),
            Self::Restored(path) => write!(f, "restored {}", path.display()),
            Self::KeptSaved(path) => {
                write!(f, "kept {}, because another program has written a new file", path.display())
            }
        }
    }
}

//! `roadstead prepare-data`: creates the data folder and gives it to the user of the server. A folder of the host that is
//! mounted into a container belongs to root, and the image has no `chown`.

use std::fs::{self, DirBuilder, File, Permissions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use clap::Args;
use rustix::fs::OFlags;

use super::CliError;
use super::options::ConfigOptions;
use super::output::print;

/// The mode of data folders.
const FOLDER_MODE: u32 = 0o700;
/// The one entry of a new file system.
const LOST_AND_FOUND: &str = "lost+found";

#[derive(Args, Debug)]
pub struct PrepareData {
    /// The numbers of the user and the group of the server, such as 65532:65532.
    #[arg(long, value_name = "UID:GID")]
    owner: Owner,

    #[command(flatten)]
    options: ConfigOptions,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Owner {
    user: u32,
    group: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not the numbers of a user and a group; write for example 65532:65532")]
struct InvalidOwner;

/// Why the folder cannot be prepared. Each is one line.
#[derive(Debug, thiserror::Error)]
pub enum PrepareDataError {
    #[error("cannot {action} the data folder {}: {error}", path.display())]
    Io { action: &'static str, path: PathBuf, error: io::Error },
    #[error(
        "the data folder {folder} has files and belongs to user {owner}; \
         stop the server and run: chown -R {wanted_user}:{wanted_group} {folder}",
        folder = path.display()
    )]
    InUse { path: PathBuf, owner: u32, wanted_user: u32, wanted_group: u32 },
}

// === impl PrepareData ===

impl PrepareData {
    pub(super) fn run(self) -> Result<(), CliError> {
        // Without a slash at the end, after which a link would be followed.
        let path: PathBuf = self.options.load()?.storage.path.components().collect();
        let done = if prepare(&path, self.owner)? { "belongs now" } else { "belongs already" };
        print(&format!("the data folder {} {done} to {}:{}\n", path.display(), self.owner.user, self.owner.group))
    }
}

/// Returns whether anything had to be changed. A folder of another user is taken only if it is empty: its files would stay
/// unreadable for the server.
fn prepare(path: &Path, owner: Owner) -> Result<bool, PrepareDataError> {
    let failed = |action| move |error| PrepareDataError::Io { action, path: path.to_owned(), error };
    let created = create(path).map_err(failed("create"))?;
    // Before the folder is opened: root without capabilities cannot open a folder of another user.
    let found = fs::symlink_metadata(path).map_err(failed("open"))?;
    if found.is_dir() && (found.uid(), found.gid()) == (owner.user, owner.group) {
        return Ok(created);
    }
    // The folder itself: a link may lead anywhere, and this runs as root.
    let flags = (OFlags::DIRECTORY | OFlags::NOFOLLOW).bits().cast_signed();
    let folder = File::options().read(true).custom_flags(flags).open(path).map_err(failed("open"))?;
    if !is_empty(path).map_err(failed("read"))? {
        let (wanted_user, wanted_group) = (owner.user, owner.group);
        return Err(PrepareDataError::InUse { path: path.to_owned(), owner: found.uid(), wanted_user, wanted_group });
    }
    // The mode first: without further rights, only the owner may change it.
    folder.set_permissions(Permissions::from_mode(FOLDER_MODE)).map_err(failed("change"))?;
    fchown(&folder, Some(owner.user), Some(owner.group)).map_err(failed("change the owner of"))?;
    Ok(true)
}

fn create(path: &Path) -> io::Result<bool> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    match DirBuilder::new().mode(FOLDER_MODE).create(path) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(false),
        created => created.map(|()| true),
    }
}

fn is_empty(path: &Path) -> io::Result<bool> {
    for entry in fs::read_dir(path)? {
        if entry?.file_name() != LOST_AND_FOUND {
            return Ok(false);
        }
    }
    Ok(true)
}

impl FromStr for Owner {
    type Err = InvalidOwner;

    fn from_str(text: &str) -> Result<Self, InvalidOwner> {
        let (user, group) = text.split_once(':').ok_or(InvalidOwner)?;
        // The largest number means "no change" to the kernel.
        let number = |text: &str| text.parse().ok().filter(|number| *number != u32::MAX).ok_or(InvalidOwner);
        Ok(Self { user: number(user)?, group: number(group)? })
    }
}

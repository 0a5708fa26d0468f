//! The only door of the store to the file system. The functions are named as those of `std::fs` and do the same.
//!
//! The tests of the store make each operation fail in turn (`faults`), and the test `layers::file_access` finds code
//! that does not come through here. Exceptions: sled works on the files of `index/` itself; reads and metadata of a
//! file that is already open change nothing (`file_range`, `local::{growing_file, sparse_file}`,
//! `upkeep::scrub::read`); and `flock` locks the open lock file (`local::folder`).

use std::fs::{self as system, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::{FallocateFlags, OFlags};
use rustix::io::Errno;

use super::error::optional;
#[cfg(test)]
use super::faults::{alter, pass, pass_change, pass_write};
pub(in crate::store) use std::fs::{DirEntry, File, Metadata, Permissions, ReadDir};

/// Modes of new files and folders: only the user of the server has access. A umask can remove permissions; `main` sets
/// one that removes none of these.
const FILE_MODE: u32 = 0o600;
const FOLDER_MODE: u32 = 0o700;
/// Largest small file in bytes. Names, marks and records of the store are smaller.
const MAX_SMALL_FILE_BYTES: u64 = 1 << 20;

/// Where a test can make an operation fail.
#[cfg(not(test))]
#[inline(always)]
fn pass() -> io::Result<()> {
    Ok(())
}

/// As [`pass`], for an operation that changes the file system.
#[cfg(not(test))]
#[inline(always)]
fn pass_change() -> io::Result<()> {
    Ok(())
}

/// Where a test can report another state of the disk.
#[cfg(not(test))]
#[inline(always)]
fn alter(disk: DiskState) -> DiskState {
    disk
}

#[cfg(not(test))]
#[inline(always)]
fn pass_write(bytes: &[u8], write: impl FnOnce(&[u8]) -> io::Result<()>) -> io::Result<()> {
    write(bytes)
}

// === files ===

/// A new file to read and write; an existing one of that name is an error.
pub(in crate::store) fn create_new(path: &Path) -> io::Result<File> {
    pass_change()?;
    File::options().create_new(true).read(true).write(true).mode(FILE_MODE).open(path)
}

/// An existing file, to read. For anything but a regular file, the error is one that [`optional`] treats as a missing
/// file.
pub(in crate::store) fn open(path: &Path) -> io::Result<File> {
    pass()?;
    open_regular(File::options().read(true), OFlags::empty(), path)
}

/// An existing file, to read and write. Otherwise as [`open`].
pub(in crate::store) fn open_to_write(path: &Path) -> io::Result<File> {
    pass_change()?;
    open_regular(File::options().read(true).write(true), OFlags::empty(), path)
}

/// Opens a regular file. Neither follows a link nor waits for the other end of a pipe.
fn open_regular(options: &mut OpenOptions, flags: OFlags, path: &Path) -> io::Result<File> {
    let flags = OFlags::NONBLOCK | OFlags::NOFOLLOW | flags;
    let opened = options.custom_flags(flags.bits().cast_signed()).open(path);
    let file = opened.map_err(|error| match Errno::from_io_error(&error) {
        // `LOOP`: a link. `NXIO`: a socket, or a pipe without a reader.
        Some(Errno::LOOP | Errno::NXIO) => irregular(),
        _ => error,
    })?;
    if file.metadata()?.is_file() { Ok(file) } else { Err(irregular()) }
}

/// Something else is in the place of a regular file.
fn irregular() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "it is not a regular file")
}

/// A folder, to sync it.
pub(in crate::store) fn open_folder(path: &Path) -> io::Result<File> {
    pass()?;
    File::open(path)
}

/// The lock file of a data folder: created if it does not exist, opened to read and write, and not truncated.
pub(in crate::store) fn open_lock_file(path: &Path) -> io::Result<File> {
    pass_change()?;
    File::options().create(true).truncate(false).read(true).write(true).mode(FILE_MODE).open(path)
}

/// An existing file, to read past the page cache (`O_DIRECT`). `EINVAL` where the file system does not support that.
pub(in crate::store) fn open_direct(path: &Path) -> io::Result<File> {
    pass()?;
    open_regular(File::options().read(true), OFlags::DIRECT, path)
}

pub(in crate::store) fn write_all(file: &mut File, bytes: &[u8]) -> io::Result<()> {
    pass_write(bytes, |bytes| file.write_all(bytes))
}

pub(in crate::store) fn write_all_at(file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
    pass_write(bytes, |bytes| file.write_all_at(bytes, offset))
}

pub(in crate::store) fn set_len(file: &File, length: u64) -> io::Result<()> {
    pass_change()?;
    file.set_len(length)
}

pub(in crate::store) fn set_permissions(file: &File, permissions: Permissions) -> io::Result<()> {
    pass_change()?;
    file.set_permissions(permissions)
}

/// Reserves the blocks of the first `bytes` bytes without changing the file's length.
pub(in crate::store) fn fallocate(file: &File, bytes: u64) -> io::Result<()> {
    pass_change()?;
    Ok(rustix::fs::fallocate(file, FallocateFlags::KEEP_SIZE, 0, bytes)?)
}

pub(in crate::store) fn sync_all(file: &File) -> io::Result<()> {
    pass()?;
    file.sync_all()
}

pub(in crate::store) fn sync_data(file: &File) -> io::Result<()> {
    pass()?;
    file.sync_data()
}

// === by path ===

/// Whether there is anything at `path`; also false if that cannot be told.
pub(in crate::store) fn exists(path: &Path) -> bool {
    path.exists()
}

/// Whether there is a regular file at `path`. False if that is unknown.
pub(in crate::store) fn is_file(path: &Path) -> bool {
    system::symlink_metadata(path).is_ok_and(|found| found.is_file())
}

/// Whether there is a folder at `path`; also false if that cannot be told.
pub(in crate::store) fn is_dir(path: &Path) -> bool {
    path.is_dir()
}

/// Whether an open file is the one that `path` names now. While a file is open, no other file gets its inode.
pub(in crate::store) fn is_still_at(path: &Path, file: &File) -> io::Result<bool> {
    let opened = file.metadata()?;
    let named = optional(metadata(path))?;
    Ok(named.is_some_and(|named| (named.dev(), named.ino()) == (opened.dev(), opened.ino())))
}

pub(in crate::store) fn write(path: &Path, bytes: impl AsRef<[u8]>) -> io::Result<()> {
    pass_change()?;
    let mut options = File::options();
    options.create(true).truncate(true).write(true).mode(FILE_MODE);
    let mut file = open_regular(&mut options, OFlags::empty(), path)?;
    write_all(&mut file, bytes.as_ref())
}

/// The content of a small regular file that the store itself wrote. A file of more than [`MAX_SMALL_FILE_BYTES`] is an
/// error.
pub(in crate::store) fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    open(path)?.take(MAX_SMALL_FILE_BYTES + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_SMALL_FILE_BYTES { Err(io::ErrorKind::InvalidData.into()) } else { Ok(bytes) }
}

/// As [`read`], as text.
pub(in crate::store) fn read_to_string(path: &Path) -> io::Result<String> {
    String::from_utf8(read(path)?).map_err(|_| io::ErrorKind::InvalidData.into())
}

/// The metadata of a regular file. For anything else, the error is one that [`optional`] treats as a missing file.
pub(in crate::store) fn metadata(path: &Path) -> io::Result<Metadata> {
    pass()?;
    let found = system::symlink_metadata(path)?;
    if found.is_file() { Ok(found) } else { Err(irregular()) }
}

pub(in crate::store) fn folder_metadata(path: &Path) -> io::Result<Metadata> {
    pass()?;
    system::symlink_metadata(path)
}

pub(in crate::store) fn rename(from: &Path, to: &Path) -> io::Result<()> {
    pass_change()?;
    system::rename(from, to)
}

pub(in crate::store) fn remove_file(path: &Path) -> io::Result<()> {
    pass_change()?;
    system::remove_file(path)
}

// === folders ===

pub(in crate::store) fn read_dir(path: &Path) -> io::Result<ReadDir> {
    pass()?;
    system::read_dir(path)
}

pub(in crate::store) fn create_dir(path: &Path) -> io::Result<()> {
    pass_change()?;
    system::DirBuilder::new().mode(FOLDER_MODE).create(path)
}

pub(in crate::store) fn create_dir_all(path: &Path) -> io::Result<()> {
    pass_change()?;
    system::DirBuilder::new().recursive(true).mode(FOLDER_MODE).create(path)
}

pub(in crate::store) fn remove_dir(path: &Path) -> io::Result<()> {
    pass_change()?;
    system::remove_dir(path)
}

pub(in crate::store) fn remove_dir_all(path: &Path) -> io::Result<()> {
    pass_change()?;
    system::remove_dir_all(path)
}

// === the disk ===

/// The state of a file system as it reports it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DiskState {
    /// Its size in bytes. 0: unknown.
    pub bytes: u64,
    /// Bytes that are free for this process.
    pub free_bytes: u64,
    /// All its inodes. 0: it does not count them.
    pub inodes: u64,
    /// Inodes that are free for this process.
    pub free_inodes: u64,
}

/// The state of the file system that holds `path`.
pub(in crate::store) fn disk_state(path: &Path) -> io::Result<DiskState> {
    let found = rustix::fs::statvfs(path)?;
    Ok(alter(DiskState {
        bytes: found.f_blocks.saturating_mul(found.f_frsize),
        free_bytes: found.f_bavail.saturating_mul(found.f_frsize),
        inodes: found.f_files,
        free_inodes: found.f_favail,
    }))
}

/// As [`disk_state`], for a path that may not exist yet: uses the nearest existing folder above it.
pub(in crate::store) fn future_disk_state(path: &Path) -> io::Result<DiskState> {
    let existing = path.ancestors().find(|folder| exists(folder));
    // A relative path without an existing folder is below the working folder.
    disk_state(existing.unwrap_or(Path::new(".")))
}

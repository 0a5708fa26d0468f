//! The file operations of the store, named as those of `std::fs` and doing the same. All that it changes goes through
//! here, and what it reads on the way: the tests of the store make each of them fail in turn (`faults`).

use std::fs as system;
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::{FallocateFlags, OFlags};

#[cfg(test)]
use super::faults::{pass, pass_write};
pub(super) use std::fs::{File, Metadata, Permissions, ReadDir};

/// Where a test may say no.
#[cfg(not(test))]
#[inline(always)]
fn pass() -> io::Result<()> {
    Ok(())
}

#[cfg(not(test))]
#[inline(always)]
fn pass_write(bytes: &[u8], write: impl FnOnce(&[u8]) -> io::Result<()>) -> io::Result<()> {
    write(bytes)
}

// === files ===

/// A new file to read and write; an existing one of that name is an error.
pub(super) fn create_new(path: &Path) -> io::Result<File> {
    pass()?;
    File::options().create_new(true).read(true).write(true).open(path)
}

/// An existing file, to read.
pub(super) fn open(path: &Path) -> io::Result<File> {
    pass()?;
    // What is no file, a pipe, is not waited for.
    let flags = OFlags::NONBLOCK.bits().cast_signed();
    File::options().read(true).custom_flags(flags).open(path)
}

/// An existing file, to read and write.
pub(super) fn open_to_write(path: &Path) -> io::Result<File> {
    pass()?;
    File::options().read(true).write(true).open(path)
}

pub(super) fn write_all(file: &mut File, bytes: &[u8]) -> io::Result<()> {
    pass_write(bytes, |bytes| file.write_all(bytes))
}

pub(super) fn write_all_at(file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
    pass_write(bytes, |bytes| file.write_all_at(bytes, offset))
}

pub(super) fn set_len(file: &File, length: u64) -> io::Result<()> {
    pass()?;
    file.set_len(length)
}

pub(super) fn set_permissions(file: &File, permissions: Permissions) -> io::Result<()> {
    pass()?;
    file.set_permissions(permissions)
}

/// Sets blocks aside without changing the length.
pub(super) fn fallocate(file: &File, bytes: u64) -> io::Result<()> {
    pass()?;
    Ok(rustix::fs::fallocate(file, FallocateFlags::KEEP_SIZE, 0, bytes)?)
}

pub(super) fn sync_all(file: &File) -> io::Result<()> {
    pass()?;
    file.sync_all()
}

pub(super) fn sync_data(file: &File) -> io::Result<()> {
    pass()?;
    file.sync_data()
}

// === by path ===

pub(super) fn write(path: &Path, bytes: impl AsRef<[u8]>) -> io::Result<()> {
    pass()?;
    let mut file = File::create(path)?;
    write_all(&mut file, bytes.as_ref())
}

pub(super) fn read(path: &Path) -> io::Result<Vec<u8>> {
    pass()?;
    system::read(path)
}

pub(super) fn read_to_string(path: &Path) -> io::Result<String> {
    pass()?;
    system::read_to_string(path)
}

pub(super) fn metadata(path: &Path) -> io::Result<Metadata> {
    pass()?;
    system::metadata(path)
}

pub(super) fn rename(from: &Path, to: &Path) -> io::Result<()> {
    pass()?;
    system::rename(from, to)
}

pub(super) fn remove_file(path: &Path) -> io::Result<()> {
    pass()?;
    system::remove_file(path)
}

// === folders ===

pub(super) fn read_dir(path: &Path) -> io::Result<ReadDir> {
    pass()?;
    system::read_dir(path)
}

pub(super) fn create_dir(path: &Path) -> io::Result<()> {
    pass()?;
    system::create_dir(path)
}

pub(super) fn create_dir_all(path: &Path) -> io::Result<()> {
    pass()?;
    system::create_dir_all(path)
}

pub(super) fn remove_dir(path: &Path) -> io::Result<()> {
    pass()?;
    system::remove_dir(path)
}

pub(super) fn remove_dir_all(path: &Path) -> io::Result<()> {
    pass()?;
    system::remove_dir_all(path)
}

//! Reads small files that an operator names, such as certificates, keys and passwords, and detects whether they
//! changed.

use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::OFlags;

/// Largest accepted file in bytes.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// Identifies a version of a file by device, inode, modification time and size. `None`: the file does not exist.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp(Option<[i64; 5]>);

/// Opens a regular file or character device for reading. Blocks.
///
/// Other types are an error: opening a pipe would wait for a writer.
pub fn open(path: &Path) -> io::Result<File> {
    let nonblocking = OFlags::NONBLOCK.bits().cast_signed();
    let file = OpenOptions::new().read(true).custom_flags(nonblocking).open(path)?;
    let kind = file.metadata()?.file_type();
    // `/dev/null` counts as an empty file.
    if !kind.is_file() && !kind.is_char_device() {
        return Err(io::Error::other("is not a file"));
    }
    Ok(file)
}

/// Reads a complete file. Blocks.
///
/// # Errors
/// If it cannot be opened by [`open`] or read, or is larger than 1 MiB.
pub fn read(path: &Path) -> io::Result<Vec<u8>> {
    read_opened(open(path)?)
}

/// Reads the rest of an opened file. Blocks.
///
/// # Errors
/// If it cannot be read or is larger than 1 MiB.
pub fn read_opened(file: File) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err(io::Error::other("is larger than 1 MiB"));
    }
    Ok(bytes)
}

// === impl Stamp ===

impl Stamp {
    /// The stamp of the file at `path`. Blocks.
    pub fn of(path: &Path) -> Self {
        Self(std::fs::metadata(path).ok().map(|metadata| stamp_of(&metadata)))
    }
}

impl From<&Metadata> for Stamp {
    fn from(metadata: &Metadata) -> Self {
        Self(Some(stamp_of(metadata)))
    }
}

fn stamp_of(metadata: &Metadata) -> [i64; 5] {
    let (device, inode) = (metadata.dev().cast_signed(), metadata.ino().cast_signed());
    [device, inode, metadata.mtime(), metadata.mtime_nsec(), metadata.size().cast_signed()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_small_regular_files_are_read() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let error = |name: &str| read(&at(name)).unwrap_err().to_string();
        std::fs::write(at("small"), "a").unwrap();
        std::os::unix::fs::symlink(at("small"), at("link")).unwrap();
        assert_eq!(read(&at("link")).unwrap(), b"a");
        std::fs::write(at("large"), vec![0; (MAX_FILE_BYTES + 1) as usize]).unwrap();
        assert_eq!(error("large"), "is larger than 1 MiB");
        std::fs::create_dir(at("folder")).unwrap();
        assert_eq!(error("folder"), "is not a file");
        let pipe = std::process::Command::new("mkfifo").arg(at("pipe")).status().unwrap();
        assert!(pipe.success());
        assert_eq!(error("pipe"), "is not a file");
        assert!(error("none").contains("No such file"));
        assert_eq!(read(Path::new("/dev/null")).unwrap(), b"");
    }

    #[test]
    fn written_or_replaced_file_has_another_stamp() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        let none = Stamp::of(&path);
        std::fs::write(&path, "one").unwrap();
        let one = Stamp::of(&path);
        assert_eq!((one == none, one == Stamp::of(&path)), (false, true));
        std::fs::write(folder.path().join("other"), "two").unwrap();
        std::fs::rename(folder.path().join("other"), &path).unwrap();
        assert_ne!(Stamp::of(&path), one);
    }
}

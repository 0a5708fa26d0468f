//! Files that an operator names: certificates, keys, passwords. They are small, and they change while we run.

use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::OFlags;

/// Bytes; nothing of this kind is larger.
const MOST: u64 = 1 << 20;

/// What another content has another of; `None` where there is no file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp(Option<[i64; 5]>);

/// Opens a file and nothing else: a pipe without a writer would hold us for ever. Blocks.
pub fn open(path: &Path) -> io::Result<File> {
    let nonblocking = OFlags::NONBLOCK.bits().cast_signed();
    let file = OpenOptions::new().read(true).custom_flags(nonblocking).open(path)?;
    let kind = file.metadata()?.file_type();
    // `/dev/null` is a fine empty file.
    if !kind.is_file() && !kind.is_char_device() {
        return Err(io::Error::other("is not a file"));
    }
    Ok(file)
}

/// All of a file, as far as it is a small one. Blocks.
pub fn read(path: &Path) -> io::Result<Vec<u8>> {
    read_opened(open(path)?)
}

pub fn read_opened(file: File) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.take(MOST + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MOST {
        return Err(io::Error::other("is larger than 1 MiB"));
    }
    Ok(bytes)
}

// === impl Stamp ===

impl Stamp {
    /// Blocks.
    pub fn of(path: &Path) -> Self {
        Self(std::fs::metadata(path).ok().map(|metadata| numbers(&metadata)))
    }
}

impl From<&Metadata> for Stamp {
    fn from(metadata: &Metadata) -> Self {
        Self(Some(numbers(metadata)))
    }
}

fn numbers(metadata: &Metadata) -> [i64; 5] {
    let (device, inode) = (metadata.dev().cast_signed(), metadata.ino().cast_signed());
    [device, inode, metadata.mtime(), metadata.mtime_nsec(), metadata.size().cast_signed()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_small_files_are_read_and_nothing_is_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let error = |name: &str| read(&at(name)).unwrap_err().to_string();
        std::fs::write(at("small"), "a").unwrap();
        std::os::unix::fs::symlink(at("small"), at("link")).unwrap();
        assert_eq!(read(&at("link")).unwrap(), b"a");
        std::fs::write(at("large"), vec![0; (MOST + 1) as usize]).unwrap();
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
    fn a_file_that_was_written_or_replaced_has_another_stamp() {
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

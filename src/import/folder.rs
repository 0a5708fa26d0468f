//! A folder whose files are read without leaving it: no symbolic link below it is followed.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, open, openat, statat};
use rustix::io::Errno;

/// An open folder. Paths below it are relative, with `/` between their components, and have no `..`.
#[derive(Debug)]
pub(super) struct Folder(OwnedFd);

const FOLDER: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

impl Folder {
    /// Opens the folder at `path`, which may be a symbolic link.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        Ok(Self(open(path, FOLDER, Mode::empty())?))
    }

    /// The folder at `path` below this one; `None` if there is none.
    ///
    /// # Errors
    /// If it cannot be opened, or if something else is in its place.
    pub(super) fn folder(&self, path: &str) -> io::Result<Option<Self>> {
        let mut at = openat(&self.0, ".", FOLDER, Mode::empty())?;
        for component in path.split('/') {
            match openat(&at, component, FOLDER | OFlags::NOFOLLOW, Mode::empty()) {
                Ok(next) => at = next,
                Err(Errno::NOENT) => return Ok(None),
                Err(Errno::LOOP | Errno::NOTDIR) => return Err(irregular("it is not a folder, or a link to one")),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(Some(Self(at)))
    }

    /// The regular file at `path` below this folder, to read; `None` if there is none.
    ///
    /// # Errors
    /// If it cannot be opened, or if something else is in its place.
    pub(super) fn file(&self, path: &str) -> io::Result<Option<File>> {
        let (folder, name) = match path.rsplit_once('/') {
            Some((folder, name)) => (self.folder(folder)?, name),
            None => (None, path),
        };
        if folder.is_none() && path.contains('/') {
            return Ok(None);
        }
        let folder = folder.as_ref().unwrap_or(self);
        // Without waiting for the other end of a pipe.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = match openat(&folder.0, name, flags, Mode::empty()) {
            Ok(file) => File::from(file),
            Err(Errno::NOENT) => return Ok(None),
            Err(Errno::LOOP | Errno::NXIO) => return Err(irregular("it is not a regular file")),
            Err(error) => return Err(error.into()),
        };
        if file.metadata()?.is_file() { Ok(Some(file)) } else { Err(irregular("it is not a regular file")) }
    }

    /// The length in bytes of the regular file at `path`, without opening it; `None` if there is none.
    pub(super) fn length(&self, path: &str) -> io::Result<Option<u64>> {
        let Some((folder, name)) = path.rsplit_once('/') else { return Ok(None) };
        let Some(folder) = self.folder(folder)? else { return Ok(None) };
        match statat(&folder.0, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(found) if FileType::from_raw_mode(found.st_mode) == FileType::RegularFile => {
                Ok(Some(u64::try_from(found.st_size).unwrap_or(0)))
            }
            Ok(_) | Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// The names in the folder at `path`, sorted; none if there is no such folder. Names that are not UTF-8 are left out:
    /// no name of a registry is one.
    pub(super) fn names(&self, path: &str) -> io::Result<Vec<String>> {
        match self.folder(path)? {
            Some(folder) => folder.own_names(),
            None => Ok(Vec::new()),
        }
    }

    fn own_names(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in Dir::read_from(&self.0)? {
            let entry = entry?;
            match entry.file_name().to_str() {
                Ok("." | "..") | Err(_) => {}
                Ok(name) => names.push(name.to_owned()),
            }
        }
        names.sort_unstable();
        Ok(names)
    }
}

fn irregular(text: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn links_out_of_the_folder_are_not_followed() {
        let outside = tempfile::tempdir().unwrap();
        std::fs::write(outside.path().join("secret"), "x").unwrap();
        let inside = tempfile::tempdir().unwrap();
        std::fs::create_dir(inside.path().join("real")).unwrap();
        std::fs::write(inside.path().join("real/file"), "four").unwrap();
        symlink(outside.path(), inside.path().join("link")).unwrap();
        symlink(outside.path().join("secret"), inside.path().join("real/link")).unwrap();
        rustix::fs::mkfifoat(rustix::fs::CWD, inside.path().join("real/pipe"), Mode::RWXU).unwrap();
        let folder = Folder::open(inside.path()).unwrap();
        assert!(folder.file("real/file").unwrap().is_some());
        assert_eq!(folder.length("real/file").unwrap(), Some(4));
        assert_eq!(folder.names("real").unwrap(), ["file", "link", "pipe"]);
        for refused in ["link/secret", "real/link", "real/pipe", "real"] {
            assert!(folder.file(refused).is_err(), "{refused}");
        }
        assert!(folder.names("link").is_err());
        for absent in ["no", "no/file", "real/no"] {
            assert!(folder.file(absent).unwrap().is_none(), "{absent}");
        }
        assert_eq!((folder.names("no").unwrap().len(), folder.length("real/link").unwrap()), (0, None));
    }
}

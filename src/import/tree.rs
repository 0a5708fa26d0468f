//! The files of a source, wherever they are: in a folder, or in a tar file.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use futures_util::{Stream, stream};

use super::folder::Folder;
use super::tar::TarIndex;

/// Bytes of one read.
const READ_BYTES: usize = 1 << 20;

#[derive(Debug)]
pub(super) enum Tree {
    Folder(Folder),
    Archive(TarIndex),
}

/// A file of a source: all of a file, or a part of a tar file.
#[derive(Clone, Debug)]
pub(super) struct Part {
    file: Arc<File>,
    start: u64,
    length: u64,
}

impl Tree {
    /// The file at `path`, which may be the text of a source; `None` if there is none, or if the path is not relative or has
    /// components such as `..`.
    pub(super) fn file(&self, path: &str) -> io::Result<Option<Part>> {
        if path.split('/').any(|component| matches!(component, "" | "." | "..") || component.contains('\0')) {
            return Ok(None);
        }
        match self {
            Self::Folder(folder) => folder.file(path)?.map(Part::of_file).transpose(),
            Self::Archive(archive) => Ok(archive.file(path)),
        }
    }

    /// The content of the file at `path`, if it has at most `max` bytes.
    ///
    /// # Errors
    /// If it is longer, or cannot be read.
    pub(super) fn read(&self, path: &str, max: u64) -> io::Result<Option<Bytes>> {
        self.file(path)?.map(|part| part.read(max)).transpose()
    }
}

impl Part {
    pub(super) fn new(file: Arc<File>, start: u64, length: u64) -> Self {
        Self { file, start, length }
    }

    pub(super) fn of_file(file: File) -> io::Result<Self> {
        let length = file.metadata()?.len();
        Ok(Self::new(Arc::new(file), 0, length))
    }

    /// The length in bytes when it was opened.
    pub(super) fn length(&self) -> u64 {
        self.length
    }

    /// When the file was last written, or the tar file that it is in.
    pub(super) fn modified(&self) -> Option<SystemTime> {
        self.file.metadata().and_then(|metadata| metadata.modified()).ok()
    }

    /// All bytes, if there are at most `max`.
    pub(super) fn read(&self, max: u64) -> io::Result<Bytes> {
        if self.length > max {
            let text = format!("it has {} bytes, and at most {max} are read", self.length);
            return Err(io::Error::new(io::ErrorKind::InvalidData, text));
        }
        self.begin(self.length as usize)
    }

    /// The first `count` bytes, or all if there are fewer.
    pub(super) fn begin(&self, count: usize) -> io::Result<Bytes> {
        let mut bytes = vec![0; count.min(usize::try_from(self.length).unwrap_or(usize::MAX))];
        self.file.read_exact_at(&mut bytes, self.start)?;
        Ok(bytes.into())
    }

    /// All bytes in order, each item at most 1 MiB. Reads when it is polled, so it blocks.
    ///
    /// # Errors
    /// If a read fails, or the file has become shorter.
    pub(super) fn stream(self) -> impl Stream<Item = io::Result<Bytes>> {
        let end = self.start + self.length;
        stream::unfold(Some(self.start), move |at| {
            let next = at.filter(|at| *at < end).map(|at| {
                let mut bytes = vec![0; READ_BYTES.min((end - at) as usize)];
                let read = self.file.read_exact_at(&mut bytes, at);
                let after = read.is_ok().then(|| at + bytes.len() as u64);
                (read.map(|()| bytes.into()), after)
            });
            async { next }
        })
    }
}

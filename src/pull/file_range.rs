//! A range of an open local file: the only handle on local bytes that the miss engine has.
//!
//! This file alone knows how the store opens blobs and spools. A range stays readable when the file loses its name.

use std::io;

use bytes::Bytes;

use crate::oci::ByteRange;
use crate::store::{Blob, BlobReader, Spool};

/// The bytes `start..end` of an open file. Clones share the descriptor and have positions of their own.
#[derive(Clone, Debug)]
pub struct FileRange {
    reader: BlobReader,
    start: u64,
    end: u64,
}

impl FileRange {
    /// All of a stored blob.
    pub fn of_blob(blob: &Blob) -> Self {
        Self { reader: blob.reader.clone(), start: 0, end: blob.length }
    }

    /// The first `length` bytes of a spool, which must have been appended.
    pub(super) fn of_spool(spool: &Spool, length: u64) -> Self {
        Self { reader: spool.reader(), start: 0, end: length }
    }

    /// Another range of the same file, in positions of that file.
    pub fn with_range(&self, range: ByteRange) -> Self {
        Self { reader: self.reader.clone(), start: range.start, end: range.end }
    }

    /// Makes the range end further on, where the file has grown.
    pub(super) fn extend_to(&mut self, end: u64) {
        self.end = self.end.max(end);
    }

    pub fn reader(&self) -> &BlobReader {
        &self.reader
    }

    /// The position in the file of the first byte that has not been read.
    pub fn start(&self) -> u64 {
        self.start
    }

    /// The position in the file after the last byte.
    pub fn end(&self) -> u64 {
        self.end
    }

    /// Reads the next bytes and moves the start past them; `None` at the end of the range.
    ///
    /// # Errors
    /// Those of the file; `UnexpectedEof` if it is shorter than the range.
    pub async fn next(&mut self) -> io::Result<Option<Bytes>> {
        if self.start >= self.end {
            return Ok(None);
        }
        let bytes = self.reader.read_at(self.start, self.end - self.start).await?;
        self.start += bytes.len() as u64;
        Ok(Some(bytes))
    }
}

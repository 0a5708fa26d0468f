//! The content of a response. Its bytes come from a file, from a running fill, or from a bypass.

use bytes::Bytes;

use super::bypass::{CompleteBypass, RangeBypass};
use super::error::ContentError;
use super::fill::Follower;
use crate::oci::{ByteRange, Selected};
use crate::store::FileRange;
use crate::telemetry::CacheResult;

/// The content of a response: its complete length, the selected part, and the bytes of that part.
#[derive(Debug)]
pub struct Content {
    /// In bytes. `None` if the upstream does not send the length; the content is then served completely.
    pub total: Option<u64>,
    pub body: ContentBody,
    pub result: CacheResult,
}

#[derive(Debug)]
pub enum ContentBody {
    Whole(ContentStream),
    Part(ByteRange, ContentStream),
    /// Two or more parts, in the order of the request.
    Parts(Vec<(ByteRange, ContentStream)>),
}

#[derive(Debug)]
pub enum ContentStream {
    File(FileRange),
    Follow(Box<Follower>),
    RangeBypass(Box<RangeBypass>),
    CompleteBypass(Box<CompleteBypass>),
}

impl Content {
    /// Returns a stored blob, or the selected parts of it.
    pub fn of_blob(blob: &FileRange, selected: Selected, result: CacheResult) -> Self {
        Self::of_file(blob, blob.len(), selected, result)
    }

    /// Returns the selected parts of content of `length` bytes from `file`.
    pub(super) fn of_file(file: &FileRange, length: u64, selected: Selected, result: CacheResult) -> Self {
        let stream = |part: ByteRange| ContentStream::File(file.with_range(part));
        let body = match selected {
            Selected::Whole => ContentBody::Whole(stream(ByteRange::whole(length))),
            Selected::Part(part) => ContentBody::Part(part, stream(part)),
            Selected::Parts(parts) => ContentBody::Parts(parts.into_iter().map(|part| (part, stream(part))).collect()),
        };
        Self { total: Some(length), body, result }
    }
}

impl ContentStream {
    /// Returns the next bytes, or `None` at the end.
    ///
    /// # Errors
    /// If the body cannot be completed. The connection to the client must then end with an error.
    pub async fn next(&mut self) -> Result<Option<Bytes>, ContentError> {
        match self {
            Self::File(range) => Ok(range.read().await?),
            Self::Follow(follower) => follower.next().await,
            Self::RangeBypass(bypass) => bypass.next().await,
            Self::CompleteBypass(bypass) => bypass.next().await,
        }
    }
}

//! Bytes on their way to a client: from a file, from a fill that is still running, or straight from an upstream.

use bytes::Bytes;

use super::direct::{Bypass, Direct};
use super::error::ContentError;
use super::follower::Follower;
use crate::oci::{ByteRange, Selected};
use crate::store::FileRange;
use crate::telemetry::CacheResult;
use crate::upstream::UpstreamBody;

/// What is served: its whole length, which of it, and the bytes of that.
#[derive(Debug)]
pub struct Content {
    /// Unknown only where the upstream does not say, and then the whole is served.
    pub total: Option<u64>,
    pub body: ContentBody,
    pub result: CacheResult,
}

#[derive(Debug)]
pub enum ContentBody {
    Whole(ContentStream),
    Part(ByteRange, ContentStream),
    /// Two or more parts, in the order in which they were asked for.
    Parts(Vec<(ByteRange, ContentStream)>),
}

#[derive(Debug)]
pub enum ContentStream {
    File(FileRange),
    Follow(Box<Follower>),
    Passthrough { body: Box<UpstreamBody>, left: u64, _bypass: Bypass },
    Direct(Box<Direct>),
}

impl Content {
    /// Content that is here, or the parts of it that are selected.
    pub fn of_blob(blob: &FileRange, selected: Selected, result: CacheResult) -> Self {
        Self::of_reader(blob, blob.len(), selected, result)
    }

    pub(super) fn of_reader(reader: &FileRange, length: u64, selected: Selected, result: CacheResult) -> Self {
        let stream = |part: ByteRange| ContentStream::File(reader.part(part.start..part.end));
        let body = match selected {
            Selected::Whole => ContentBody::Whole(stream(ByteRange::whole(length))),
            Selected::Part(part) => ContentBody::Part(part, stream(part)),
            Selected::Parts(parts) => ContentBody::Parts(parts.into_iter().map(|part| (part, stream(part))).collect()),
        };
        Self { total: Some(length), body, result }
    }
}

impl ContentStream {
    /// The next bytes, or `None` at the end.
    pub async fn next(&mut self) -> Result<Option<Bytes>, ContentError> {
        match self {
            Self::File(range) => Ok(range.read().await?),
            Self::Follow(follower) => follower.next().await,
            Self::Direct(direct) => direct.next().await,
            Self::Passthrough { body, left, .. } => match body.chunk().await? {
                None if *left == 0 => Ok(None),
                Some(bytes) if bytes.len() as u64 <= *left => {
                    *left -= bytes.len() as u64;
                    Ok(Some(bytes))
                }
                _ => Err(ContentError::Length),
            },
        }
    }
}

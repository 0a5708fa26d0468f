//! Bytes on their way to a client: from a file, from a fill that is still running, or straight from an upstream.

use std::io;

use bytes::Bytes;

use super::follower::Follower;
use crate::oci::ByteRange;
use crate::store::{Blob, BlobReader};
use crate::telemetry::CacheResult;
use crate::upstream::{UpstreamBody, UpstreamError};

/// What is served: its whole length, which part of it, and the bytes of that part.
#[derive(Debug)]
pub struct Content {
    /// Unknown only where the upstream does not say, and then the whole is served.
    pub total: Option<u64>,
    /// The part, if a part was asked for.
    pub range: Option<ByteRange>,
    pub bytes: ContentStream,
    pub result: CacheResult,
}

#[derive(Debug)]
pub enum ContentStream {
    File { reader: BlobReader, next: u64, end: u64 },
    Follow(Box<Follower>),
    Passthrough { body: Box<UpstreamBody>, left: u64 },
}

/// Why a body ends before its end. The client's connection ends with it, so that it cannot take a part for the whole.
#[derive(Debug, thiserror::Error)]
pub enum ContentError {
    #[error("the file cannot be read: {0}")]
    Read(#[from] io::Error),
    #[error("the fill it follows failed: {0}")]
    Fill(#[from] super::PullError),
    #[error("the fill it follows began again after bytes had been sent")]
    Restarted,
    #[error(transparent)]
    Upstream(#[from] UpstreamError),
    #[error("the upstream sent another number of bytes than it said")]
    Length,
}

impl Content {
    /// A blob that is here, or a part of it.
    pub fn of_blob(blob: &Blob, range: Option<ByteRange>, result: CacheResult) -> Self {
        let part = range.unwrap_or(ByteRange::whole(blob.length));
        let bytes = ContentStream::File { reader: blob.reader.clone(), next: part.start, end: part.end };
        Self { total: Some(blob.length), range, bytes, result }
    }

    /// The length of what is served.
    pub fn length(&self) -> Option<u64> {
        self.range.map(|range| range.len()).or(self.total)
    }
}

impl ContentStream {
    /// The next bytes, or `None` at the end.
    pub async fn next(&mut self) -> Result<Option<Bytes>, ContentError> {
        match self {
            Self::File { next, end, .. } if next == end => Ok(None),
            Self::File { reader, next, end } => {
                let bytes = reader.read_at(*next, *end - *next).await?;
                *next += bytes.len() as u64;
                Ok(Some(bytes))
            }
            Self::Follow(follower) => follower.next().await,
            Self::Passthrough { body, left } => match body.chunk().await? {
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

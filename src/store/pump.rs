//! Moving a stream into a growing file: the next bytes are received while earlier ones are written and hashed.

use std::future::Future;
use std::pin::pin;

use bytes::Bytes;
use futures_util::{Stream, StreamExt};

use super::StoreError;

/// Bytes that are taken from the stream while earlier ones are written. One transfer holds up to three times this
/// many, and a chunk more each: those received, those being written, and those being hashed (of a spool, up to 1
/// MiB).
const RECEIVE_AHEAD_BYTES: usize = 384 << 10;

/// Appends all of `stream`. Calls `progress` with the new length in bytes after every append. Returns the final length.
///
/// # Errors
/// An error of the stream, after everything before it was appended; errors of `append` and `progress`.
pub async fn pump<E, A>(
    stream: impl Stream<Item = Result<Bytes, E>>,
    append: impl Fn(Vec<Bytes>) -> A,
    mut progress: impl FnMut(u64) -> Result<(), E>,
) -> Result<u64, E>
where
    A: Future<Output = Result<u64, StoreError>>,
    E: From<StoreError>,
{
    let mut stream = pin!(stream.fuse());
    let mut length = 0;
    let mut received = ReceivedChunks::default();
    let mut ended: Option<Result<(), E>> = None;
    loop {
        if received.chunks.is_empty() {
            match ended.take() {
                Some(end) => return end.map(|()| length),
                None => received.take(stream.next().await, &mut ended),
            }
            continue;
        }
        let mut write = pin!(append(received.drain()));
        length = loop {
            tokio::select! {
                biased;
                written = &mut write => break written?,
                chunk = stream.next(), if ended.is_none() && received.bytes < RECEIVE_AHEAD_BYTES => received.take(chunk, &mut ended),
            }
        };
        progress(length)?;
    }
}

/// Chunks that were received while others are written.
#[derive(Default)]
struct ReceivedChunks {
    chunks: Vec<Bytes>,
    bytes: usize,
}

impl ReceivedChunks {
    /// Keeps a chunk, or records how the stream ended.
    fn take<E>(&mut self, chunk: Option<Result<Bytes, E>>, ended: &mut Option<Result<(), E>>) {
        match chunk {
            Some(Ok(chunk)) if chunk.is_empty() => {}
            Some(Ok(chunk)) => {
                self.bytes += chunk.len();
                self.chunks.push(chunk);
            }
            Some(Err(error)) => *ended = Some(Err(error)),
            None => *ended = Some(Ok(())),
        }
    }

    fn drain(&mut self) -> Vec<Bytes> {
        self.bytes = 0;
        std::mem::take(&mut self.chunks)
    }
}

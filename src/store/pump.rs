//! Moving a stream into a growing file: the next bytes come in while earlier ones are written, and others hashed.

use std::future::Future;
use std::pin::pin;

use bytes::Bytes;
use futures_util::{Stream, StreamExt};

use super::StoreError;

/// Bytes taken from the stream while earlier ones are being written. What one transfer holds at most, beside a chunk each, is
/// three times this: what has come, what is being written and what is being hashed.
const WRITE_AHEAD: usize = 384 << 10;

/// Appends all of `stream`, and tells `progress` the new length after every append; the length at the end.
///
/// # Errors
/// The stream's, after what came before it was appended; those of `append` and `progress`.
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
    let mut waiting = Waiting::default();
    let mut ended: Option<Result<(), E>> = None;
    loop {
        if waiting.chunks.is_empty() {
            match ended.take() {
                Some(end) => return end.map(|()| length),
                None => waiting.take(stream.next().await, &mut ended),
            }
            continue;
        }
        let mut write = pin!(append(waiting.drain()));
        length = loop {
            tokio::select! {
                biased;
                written = &mut write => break written?,
                chunk = stream.next(), if ended.is_none() && waiting.bytes < WRITE_AHEAD => waiting.take(chunk, &mut ended),
            }
        };
        progress(length)?;
    }
}

/// Chunks that came while others were being written.
#[derive(Default)]
struct Waiting {
    chunks: Vec<Bytes>,
    bytes: usize,
}

impl Waiting {
    /// Keeps a chunk, or notes how the stream ended.
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

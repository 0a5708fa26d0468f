//! Bypasses: transfers past the store, each for one client.
//!
//! A range far ahead of a fill's mark is forwarded as it arrives; the client verifies the blob. A complete blob that cannot be
//! stored is verified like in a fill, with its tail held back in memory.

use std::fmt;
use std::sync::Arc;

use bytes::{Buf, Bytes, BytesMut};
use futures_util::StreamExt;
use tokio::time::{Instant, timeout_at};

use super::error::{ContentError, PullError};
use super::held_back_tail::HELD_BACK_TAIL_BYTES;
use super::slots::{Slots, Turn};
use super::source::{ByteStream, Transfer};
use crate::oci::{Digest, Hasher, RepoId};
use crate::store::READ_BYTES;
use crate::telemetry::{InFlight, Metrics};

/// The slots of bypasses. Fills have separate slots, because a slow client keeps its bypass for long and must not delay fills.
pub(super) struct Bypasses {
    slots: Slots,
    metrics: Arc<Metrics>,
}

/// The permission for one bypass. Drop releases it.
#[derive(Debug)]
pub(super) struct BypassSlot {
    _turn: Turn,
    _counted: InFlight,
}

/// A transfer of a range past the store.
pub struct RangeBypass {
    bytes: ByteStream,
    /// Bytes that are not yet received.
    left: u64,
    _slot: BypassSlot,
}

/// A transfer of a complete blob past the store.
pub struct CompleteBypass {
    metrics: Arc<Metrics>,
    source: Arc<str>,
    digest: Digest,
    bytes: ByteStream,
    /// `None` once the blob has been verified.
    hasher: Option<Hasher>,
    total: Option<u64>,
    received: u64,
    /// Bytes that were received and not sent: at most the tail and one chunk. They are copies, because a chunk of one byte can
    /// keep a large buffer alive.
    unsent: BytesMut,
    _slot: BypassSlot,
}

// === impl Bypasses ===

impl Bypasses {
    pub(super) fn new(max_bypasses: usize, metrics: Arc<Metrics>) -> Self {
        Self { slots: Slots::new(max_bypasses, []), metrics }
    }

    /// Waits for a slot. `size` is the number of bytes to transfer, if it is known.
    ///
    /// # Errors
    /// `Busy` at the deadline; it names `source`.
    pub(super) async fn slot(
        &self,
        repo: &RepoId,
        size: Option<u64>,
        source: &Arc<str>,
        deadline: Instant,
    ) -> Result<BypassSlot, PullError> {
        let mut turn = self.slots.request(repo, size);
        if !turn.is_slot() {
            let _waiting = self.metrics.bypass_waiting();
            timeout_at(deadline, turn.wait()).await.map_err(|_| PullError::Busy { upstream: source.clone() })?;
        }
        Ok(self.take(turn))
    }

    /// Returns a slot, if one is free.
    pub(super) fn free_slot(&self, repo: &RepoId, size: u64) -> Option<BypassSlot> {
        let turn = self.slots.request(repo, Some(size));
        turn.is_slot().then(|| self.take(turn))
    }

    fn take(&self, turn: Turn) -> BypassSlot {
        BypassSlot { _turn: turn, _counted: self.metrics.bypass_started() }
    }

    /// Starts a bypass of a complete blob. `total` is its length in bytes, if it is known.
    pub(super) fn complete(
        &self,
        transfer: Transfer,
        source: &Arc<str>,
        digest: &Digest,
        total: Option<u64>,
        slot: BypassSlot,
    ) -> CompleteBypass {
        CompleteBypass {
            metrics: self.metrics.clone(),
            source: source.clone(),
            digest: digest.clone(),
            bytes: transfer.bytes,
            hasher: Some(digest.algorithm().hasher()),
            total,
            received: 0,
            unsent: BytesMut::new(),
            _slot: slot,
        }
    }
}

// === impl RangeBypass ===

impl RangeBypass {
    /// Starts a bypass of a range of `length` bytes.
    pub(super) fn new(transfer: Transfer, length: u64, slot: BypassSlot) -> Self {
        Self { bytes: transfer.bytes, left: length, _slot: slot }
    }

    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, ContentError> {
        match self.bytes.next().await.transpose()? {
            None if self.left == 0 => Ok(None),
            Some(bytes) if bytes.len() as u64 <= self.left => {
                self.left -= bytes.len() as u64;
                Ok(Some(bytes))
            }
            _ => Err(ContentError::Length),
        }
    }
}

impl fmt::Debug for RangeBypass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RangeBypass").field("left", &self.left).finish_non_exhaustive()
    }
}

// === impl CompleteBypass ===

impl CompleteBypass {
    /// Returns the next bytes that may be sent, or `None` at the end.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, ContentError> {
        self.receive().await?;
        let held_back = if self.hasher.is_some() { HELD_BACK_TAIL_BYTES as usize } else { 0 };
        let next = self.unsent.len().saturating_sub(held_back).min(READ_BYTES);
        if next == 0 {
            return Ok(None);
        }
        let frame = Bytes::copy_from_slice(&self.unsent[..next]);
        self.unsent.advance(next);
        Ok(Some(frame))
    }

    /// Receives until there are bytes before the held-back tail, or the blob is complete and verified.
    pub(super) async fn receive(&mut self) -> Result<(), PullError> {
        while let Some(hasher) = &mut self.hasher {
            if self.unsent.len() as u64 > HELD_BACK_TAIL_BYTES {
                return Ok(());
            }
            match self.bytes.next().await.transpose()? {
                Some(bytes) => {
                    hasher.update(&bytes);
                    self.received += bytes.len() as u64;
                    self.unsent.extend_from_slice(&bytes);
                }
                None => {
                    let right_length = self.total.is_none_or(|total| total == self.received);
                    let digest = self.hasher.take().map(Hasher::finish);
                    if !right_length || digest.as_ref() != Some(&self.digest) {
                        return Err(self.wrong_content());
                    }
                }
            }
        }
        Ok(())
    }

    fn wrong_content(&self) -> PullError {
        self.metrics.digest_mismatch(&self.source);
        PullError::WrongContent { upstream: self.source.clone(), digest: self.digest.clone() }
    }
}

impl fmt::Debug for CompleteBypass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CompleteBypass")
            .field("digest", &self.digest)
            .field("received", &self.received)
            .finish_non_exhaustive()
    }
}

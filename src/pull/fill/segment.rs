//! A segment: a range of the blob. Transfers write it into the spool in order, one transfer at a time.
//!
//! This is pure bookkeeping. An attempt has exactly one segment, from the first byte of the blob to its end.

use crate::oci::ByteRange;

#[derive(Debug, PartialEq, Eq)]
pub(super) struct Segment {
    /// The position of the next byte to receive.
    position: u64,
    /// The position after the last byte; `None` if the blob's length is not known.
    end: Option<u64>,
}

/// More bytes arrived than the segment has.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Overrun;

impl Segment {
    /// Returns the segment of a complete blob of this length.
    pub(super) fn complete(total: Option<u64>) -> Self {
        Self { position: 0, end: total }
    }

    pub(super) fn position(&self) -> u64 {
        self.position
    }

    pub(super) fn end(&self) -> Option<u64> {
        self.end
    }

    /// Records that all bytes up to `position` were received.
    pub(super) fn advance_to(&mut self, position: u64) -> Result<(), Overrun> {
        self.position = position;
        if self.end.is_some_and(|end| position > end) { Err(Overrun) } else { Ok(()) }
    }

    /// Whether all bytes were received. False if the length is not known.
    pub(super) fn is_complete(&self) -> bool {
        self.end == Some(self.position)
    }

    /// Whether bytes are missing. False if the length is not known.
    pub(super) fn is_short(&self) -> bool {
        self.end.is_some_and(|end| self.position < end)
    }

    /// Returns the range to request after an interruption. `None` if nothing was received or the length is not known: then only
    /// the complete blob can be requested, because some registries refuse open ranges.
    pub(super) fn rest(&self) -> Option<ByteRange> {
        let end = self.end.filter(|_| self.position > 0)?;
        (self.position < end).then_some(ByteRange { start: self.position, end })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rest_is_a_closed_range_once_bytes_came_and_the_length_is_known() {
        let mut segment = Segment::complete(Some(10));
        assert_eq!((segment.rest(), segment.is_short()), (None, true));
        assert_eq!(segment.advance_to(4), Ok(()));
        assert_eq!(segment.rest(), Some(ByteRange { start: 4, end: 10 }));
        assert_eq!(segment.advance_to(10), Ok(()));
        assert!(segment.is_complete() && !segment.is_short() && segment.rest().is_none());
        assert_eq!(segment.advance_to(11), Err(Overrun));
    }

    #[test]
    fn a_segment_of_unknown_length_is_never_complete_nor_short() {
        let mut segment = Segment::complete(None);
        assert_eq!(segment.advance_to(4), Ok(()));
        assert!(!segment.is_complete() && !segment.is_short() && segment.rest().is_none());
    }
}

//! A set of bytes of a file, as disjoint ranges that do not touch. Pure bookkeeping.

use std::collections::BTreeMap;

use crate::oci::ByteRange;

#[derive(Debug, Default)]
pub(super) struct Intervals {
    /// The end of each range by its start.
    ends: BTreeMap<u64, u64>,
    bytes: u64,
}

impl Intervals {
    /// Adds a range that does not overlap the set. An empty range adds nothing.
    pub(super) fn insert(&mut self, ByteRange { mut start, mut end }: ByteRange) {
        if start >= end {
            return;
        }
        self.bytes += end - start;
        if let Some((&before, &before_end)) = self.ends.range(..start).next_back()
            && before_end == start
        {
            start = before;
        }
        if let Some(after_end) = self.ends.remove(&end) {
            end = after_end;
        }
        self.ends.insert(start, end);
    }

    /// Whether the set has a byte of `range`.
    pub(super) fn overlaps(&self, range: ByteRange) -> bool {
        self.ends.range(..range.end).next_back().is_some_and(|(_, &end)| end > range.start)
    }

    /// The number of bytes of the set that come before all missing ones.
    pub(super) fn prefix(&self) -> u64 {
        self.ends.get(&0).copied().unwrap_or(0)
    }

    /// The position after the last byte of the set.
    pub(super) fn end(&self) -> u64 {
        self.ends.last_key_value().map_or(0, |(_, end)| *end)
    }

    /// The number of bytes of the set.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_join_where_they_touch() {
        let mut set = Intervals::default();
        let range = |start, end| ByteRange { start, end };
        for (added, prefix, bytes) in [
            (range(10, 20), 0, 10),
            (range(30, 40), 0, 20),
            (range(0, 5), 5, 25),
            (range(5, 5), 5, 25),
            (range(5, 10), 20, 30),
            (range(20, 30), 40, 40),
        ] {
            assert!(!set.overlaps(added));
            set.insert(added);
            assert_eq!((set.prefix(), set.bytes()), (prefix, bytes), "{added:?}");
        }
        assert_eq!(set.ends.len(), 1);
    }

    #[test]
    fn overlaps_are_found_at_every_edge() {
        let mut set = Intervals::default();
        set.insert(ByteRange { start: 10, end: 20 });
        for (start, end, overlaps) in [
            (0, 10, false),
            (0, 11, true),
            (19, 25, true),
            (20, 25, false),
            (12, 13, true),
            (0, 100, true),
            (12, 12, false),
        ] {
            assert_eq!(set.overlaps(ByteRange { start, end }) && start < end, overlaps, "{start}..{end}");
        }
    }
}

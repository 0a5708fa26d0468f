//! The `Range` header (RFC 9110, section 14).

use std::fmt::Write;

/// `bytes `, three numbers of up to 20 digits, and what is between them.
const LONGEST_CONTENT_RANGE: usize = 68;

/// One range of the header as asked for, not yet measured against a length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Range {
    /// `a-b`, inclusive; the end may lie beyond the content.
    Closed(u64, u64),
    /// `a-`
    From(u64),
    /// `-n`: the last n bytes.
    Last(u64),
}

/// What a `Range` header asks for. A header that does not parse is no header (RFC 9110, 14.2): the whole is served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RangeSet(Vec<Range>);

/// A satisfiable range of content whose length is known: `start < end <= length`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ByteRange {
    pub start: u64,
    /// Exclusive.
    pub end: u64,
}

/// What of a content of known length is to be served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Selected {
    Whole,
    Part(ByteRange),
    /// Two or more.
    Parts(Vec<ByteRange>),
}

/// No part that is asked for lies within the content (RFC 9110, 15.5.17).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unsatisfiable;

/// More ranges than any client here sends in one request; beyond it the whole is served (RFC 9110, 14.2).
const MAX_RANGES: usize = 256;

// === impl RangeSet ===

impl RangeSet {
    /// `None` where the header is to be ignored: another unit, nonsense, or too many ranges.
    pub fn parse(header: &str) -> Option<Self> {
        let (unit, list) = header.split_once('=')?;
        if !unit.trim().eq_ignore_ascii_case("bytes") {
            return None;
        }
        let ranges = list
            .split(',')
            .map(str::trim)
            .filter(|range| !range.is_empty())
            .take(MAX_RANGES + 1)
            .map(Range::parse)
            .collect::<Option<Vec<_>>>()?;
        (!ranges.is_empty() && ranges.len() <= MAX_RANGES).then_some(Self(ranges))
    }

    /// The parts of content of `length` that are meant. Ranges beyond it are left out; together longer than the content,
    /// they are served as the whole (RFC 9110, 14.2 on overlapping ranges).
    pub fn select(&self, length: u64) -> Result<Selected, Unsatisfiable> {
        let parts: Vec<ByteRange> = self.0.iter().filter_map(|range| range.within(length)).collect();
        match parts.as_slice() {
            [] => Err(Unsatisfiable),
            [part] => Ok(Selected::Part(*part)),
            parts if parts.iter().map(|part| u128::from(part.len())).sum::<u128>() > u128::from(length) => {
                Ok(Selected::Whole)
            }
            _ => Ok(Selected::Parts(parts)),
        }
    }
}

// === impl Range ===

impl Range {
    fn parse(text: &str) -> Option<Self> {
        let (first, last) = text.split_once('-')?;
        match (first.trim(), last.trim()) {
            ("", last) => number(last).map(Self::Last),
            (first, "") => number(first).map(Self::From),
            (first, last) => Some(Self::Closed(number(first)?, number(last)?)),
        }
    }

    /// The bytes of content of `length` that are meant, clamped to it; `None` where it is unsatisfiable.
    pub fn within(self, length: u64) -> Option<ByteRange> {
        let (start, end) = match self {
            Self::Closed(start, last) if start <= last => (start, last.saturating_add(1).min(length)),
            Self::Closed(..) => return None,
            Self::From(start) => (start, length),
            Self::Last(count) => (length.saturating_sub(count), length),
        };
        (start < end).then_some(ByteRange { start, end })
    }
}

/// Digits only (no sign); a number too large for u64 lies beyond any content.
fn number(text: &str) -> Option<u64> {
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    Some(text.parse().unwrap_or(u64::MAX))
}

// === impl ByteRange ===

impl ByteRange {
    pub fn whole(length: u64) -> Self {
        Self { start: 0, end: length }
    }

    pub fn len(&self) -> u64 {
        self.end - self.start
    }

    pub fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// The `Content-Range` value (RFC 9110, 14.4).
    pub fn content_range(&self, length: u64) -> String {
        let mut text = String::with_capacity(LONGEST_CONTENT_RANGE);
        // To a string it cannot fail.
        let _ = write!(text, "bytes {}-{}/{length}", self.start, self.end.saturating_sub(1));
        text
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn of_2048(header: &str) -> Option<(u64, u64)> {
        let range = RangeSet::parse(header).unwrap().0[0];
        range.within(2048).map(|range| (range.start, range.end))
    }

    #[test]
    fn single_ranges_are_clamped_or_unsatisfiable() {
        assert_eq!(of_2048("bytes=500-1499"), Some((500, 1500)));
        assert_eq!(of_2048("bytes=500-"), Some((500, 2048)));
        assert_eq!(of_2048("bytes=-500"), Some((1548, 2048)));
        assert_eq!(of_2048("Bytes = 2000-5000"), Some((2000, 2048)));
        assert_eq!(of_2048("bytes=-99999999999999999999999"), Some((0, 2048)));
        assert_eq!(of_2048("bytes=2048-"), None);
        assert_eq!(of_2048("bytes=5000-10000"), None);
        assert_eq!(of_2048("bytes=500-0"), None);
        assert_eq!(of_2048("bytes=-0"), None);
        assert_eq!(Range::From(0).within(0), None);
        assert_eq!(Range::Last(5).within(0), None);
    }

    #[test]
    fn what_does_not_parse_is_ignored() {
        for header in [
            "",
            "bytes",
            "bytes=",
            "items=0-1",
            "bytes=a-b",
            "bytes=1",
            "bytes=--1",
            "bytes=+1-2",
            "bytes=1-2-3",
            "bytes=0-1,x",
        ] {
            assert_eq!(RangeSet::parse(header), None, "{header}");
        }
        assert_eq!(RangeSet::parse("bytes=0-0, 5-9 ,-1").unwrap().0.len(), 3);
        assert_eq!(RangeSet::parse(&format!("bytes={}0-0", "0-0,".repeat(300))), None);
    }

    #[test]
    fn several_ranges_are_selected_in_order_without_those_beyond() {
        let select = |header: &str| RangeSet::parse(header).unwrap().select(100);
        let part = |start, end| ByteRange { start, end };
        assert_eq!(select("bytes=50-59,0-9,200-"), Ok(Selected::Parts(vec![part(50, 60), part(0, 10)])));
        assert_eq!(select("bytes=200-,5-6"), Ok(Selected::Part(part(5, 7))));
        assert_eq!(select("bytes=200-,-0"), Err(Unsatisfiable));
        assert_eq!(select("bytes=0-,0-,0-"), Ok(Selected::Whole));
    }

    proptest! {
        #[test]
        fn a_satisfied_range_lies_within_the_content(text in "(bytes=)?[0-9,\\- ]{0,30}", length in any::<u64>()) {
            for range in RangeSet::parse(&text).iter().flat_map(|set| &set.0) {
                if let Some(range) = range.within(length) {
                    prop_assert!(range.start < range.end && range.end <= length);
                }
            }
        }

        #[test]
        fn what_prints_parses_back(
            ranges in prop::collection::vec((any::<u64>(), any::<u64>(), 0..3_u8), 1..9),
            length in any::<u64>(),
        ) {
            let ranges: Vec<Range> = ranges.into_iter().map(|(a, b, kind)| match kind {
                0 => Range::Closed(a, b),
                1 => Range::From(a),
                _ => Range::Last(b),
            }).collect();
            let print = |range: &Range| match range {
                Range::Closed(first, last) => format!("{first}-{last}"),
                Range::From(first) => format!("{first}-"),
                Range::Last(count) => format!("-{count}"),
            };
            let header = format!("bytes={}", ranges.iter().map(print).collect::<Vec<_>>().join(", "));
            let set = RangeSet::parse(&header).unwrap();
            prop_assert_eq!(&set.0, &ranges);
            match set.select(length) {
                Ok(Selected::Parts(parts)) => {
                    prop_assert!(parts.len() > 1 && parts.iter().all(|part| part.start < part.end && part.end <= length));
                }
                Ok(Selected::Part(part)) => prop_assert!(part.start < part.end && part.end <= length),
                Ok(Selected::Whole) => prop_assert!(ranges.len() > 1),
                Err(Unsatisfiable) => prop_assert!(ranges.iter().all(|range| range.within(length).is_none())),
            }
        }

        #[test]
        fn no_input_panics(text in ".{0,60}", length in any::<u64>()) {
            let _ = RangeSet::parse(&text).map(|set| set.select(length));
            let _ = RangeSet::parse(&format!("bytes={text}")).map(|set| set.select(length));
        }
    }
}

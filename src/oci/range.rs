//! The `Range` request header for bytes (RFC 9110, section 14).

use std::fmt::Write;

/// Longest `Content-Range` value: `bytes `, three numbers of up to 20 digits, `-` and `/`.
const MAX_CONTENT_RANGE_BYTES: usize = 68;

/// One range of the header, before it is compared with the length of the content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Range {
    /// `a-b`: first and last byte, both inclusive. The last byte may lie beyond the content.
    Closed(u64, u64),
    /// `a-`: from this byte to the end.
    From(u64),
    /// `-n`: the last `n` bytes.
    Last(u64),
}

/// A parsed `Range` header, at least one range. A header that cannot be parsed is ignored, and the complete content is
/// sent (RFC 9110, section 14.2).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RangeSet(Vec<Range>);

/// A satisfiable range of content of known length, in bytes: `start < end <= length`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ByteRange {
    /// First byte.
    pub start: u64,
    /// One past the last byte.
    pub end: u64,
}

/// Which part of the content to send.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Selected {
    /// The complete content (200).
    Whole,
    /// One range (206).
    Part(ByteRange),
    /// Two or more ranges in the order of the header (206, `multipart/byteranges`).
    Parts(Vec<ByteRange>),
}

/// None of the requested ranges overlaps the content (416; RFC 9110, section 15.5.17).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unsatisfiable;

/// Largest number of ranges in one header. No known client sends more; beyond it the complete content is sent.
const MAX_RANGES: usize = 256;

// === impl RangeSet ===

impl RangeSet {
    /// Parses the value of a `Range` header.
    ///
    /// `None` if the header is to be ignored: another unit than bytes, a malformed range, or too many ranges.
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

    /// Selects the requested parts of content of `length` bytes.
    ///
    /// Unsatisfiable ranges are skipped. Ranges that overlap so much that they are together longer than the content
    /// select the complete content (RFC 9110, section 14.2).
    ///
    /// # Errors
    /// [`Unsatisfiable`] if no range overlaps the content.
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

    /// Clamps the range to content of `length` bytes; `None` if it does not overlap the content.
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

/// Parses digits without a sign. A number too large for `u64` lies beyond any content.
fn number(text: &str) -> Option<u64> {
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    Some(text.parse().unwrap_or(u64::MAX))
}

// === impl ByteRange ===

impl ByteRange {
    /// The range of all bytes of content of `length` bytes. Empty for `length` 0.
    pub fn whole(length: u64) -> Self {
        Self { start: 0, end: length }
    }

    /// Number of bytes.
    pub fn len(&self) -> u64 {
        self.end - self.start
    }

    /// Whether the range has no bytes: only the complete range of empty content.
    pub fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// The `Content-Range` value of this range in content of `length` bytes (RFC 9110, section 14.4).
    pub fn content_range(&self, length: u64) -> String {
        let mut text = String::with_capacity(MAX_CONTENT_RANGE_BYTES);
        // Writing to a `String` cannot fail.
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
    fn malformed_headers_are_ignored() {
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
    fn several_ranges_keep_order_and_skip_unsatisfiable_ones() {
        let select = |header: &str| RangeSet::parse(header).unwrap().select(100);
        let part = |start, end| ByteRange { start, end };
        assert_eq!(select("bytes=50-59,0-9,200-"), Ok(Selected::Parts(vec![part(50, 60), part(0, 10)])));
        assert_eq!(select("bytes=200-,5-6"), Ok(Selected::Part(part(5, 7))));
        assert_eq!(select("bytes=200-,-0"), Err(Unsatisfiable));
        assert_eq!(select("bytes=0-,0-,0-"), Ok(Selected::Whole));
    }

    #[test]
    fn overlapping_ranges_are_accepted() {
        let select = |header: &str| RangeSet::parse(header).unwrap().select(100);
        assert_eq!(select("bytes=0-60,40-80,50-99"), Ok(Selected::Whole));
        let parts = [(0, 11), (5, 16), (8, 21)].map(|(start, end)| ByteRange { start, end });
        assert_eq!(select("bytes=0-10,5-15,8-20"), Ok(Selected::Parts(parts.to_vec())));
    }

    proptest! {
        #[test]
        fn selected_range_lies_within_the_content(text in "(bytes=)?[0-9,\\- ]{0,30}", length in any::<u64>()) {
            for range in RangeSet::parse(&text).iter().flat_map(|set| &set.0) {
                if let Some(range) = range.within(length) {
                    prop_assert!(range.start < range.end && range.end <= length);
                }
            }
        }

        #[test]
        fn printed_ranges_parse_back(
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

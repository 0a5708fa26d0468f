//! Parsing and formatting of durations and sizes.

use std::num::IntErrorKind;
use std::time::Duration;

/// Longest accepted duration. A longer one is a mistake, and would overflow the clock that it is added to.
const MAX_DURATION: Duration = Duration::from_secs(100 * 366 * 24 * 60 * 60);

/// Units of sizes in order of preference for formatting. Case is ignored when parsing.
const UNITS: [(&str, u64); 9] = [
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("TB", 1_000_000_000_000),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("kB", 1_000),
    ("B", 1),
];

/// The largest size that fits into `u64`, in the largest unit.
pub(super) const LARGEST_SIZE: &str = "16777215TiB";

/// Why a text is not accepted as a size.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum SizeError {
    /// Not a number with a known unit.
    Shape,
    /// More bytes than fit into `u64`.
    TooLarge,
}

/// A size in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Size(pub(super) u64);

/// Parses a duration such as `60s` or `1h 30m`; `None` if it is malformed or longer than a hundred years.
pub(super) fn parse_duration(text: &str) -> Option<Duration> {
    humantime::parse_duration(text).ok().filter(|duration| *duration <= MAX_DURATION)
}

/// Formats a duration as in the documentation: `30d`, `1h 30m`, `0s`.
pub fn format_duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let nanos = u64::from(duration.subsec_nanos());
    let parts = [
        (seconds / 86_400, "d"),
        (seconds / 3600 % 24, "h"),
        (seconds / 60 % 60, "m"),
        (seconds % 60, "s"),
        (nanos / 1_000_000, "ms"),
        (nanos / 1000 % 1000, "us"),
        (nanos % 1000, "ns"),
    ];
    let parts = parts.iter().filter(|(count, _)| *count > 0).map(|(count, unit)| format!("{count}{unit}"));
    let text = parts.collect::<Vec<_>>().join(" ");
    if text.is_empty() { "0s".to_owned() } else { text }
}

/// Parses a size such as `20GiB`, `1.5 TB` or `1000` (bytes). `20G` is rejected, as it is ambiguous between 10⁹ and
/// 2³⁰.
pub(super) fn parse_size(text: &str) -> Result<Size, SizeError> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let unit = match unit.trim() {
        "" => 1,
        unit => UNITS.iter().find(|(name, _)| name.eq_ignore_ascii_case(unit)).ok_or(SizeError::Shape)?.1,
    };
    match number.parse::<u64>() {
        Ok(number) => return number.checked_mul(unit).map(Size).ok_or(SizeError::TooLarge),
        Err(error) if *error.kind() == IntErrorKind::PosOverflow => return Err(SizeError::TooLarge),
        Err(_) => {}
    }
    let bytes = number.parse::<f64>().map_err(|_| SizeError::Shape)? * unit as f64;
    // Above 2⁵³ bytes, `f64` is not exact.
    match bytes {
        bytes if bytes.fract() != 0.0 && unit == 1 => Err(SizeError::Shape),
        bytes if bytes >= (1u64 << 53) as f64 => Err(SizeError::TooLarge),
        bytes => Ok(Size(bytes as u64)),
    }
}

/// Formats a size in the first unit of [`UNITS`] that divides it.
pub(super) fn format_size(bytes: u64) -> String {
    let unit = UNITS.iter().find(|(_, unit)| bytes != 0 && bytes.is_multiple_of(*unit));
    unit.map_or_else(|| "0B".to_owned(), |(name, unit)| format!("{}{name}", bytes / unit))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_with_and_without_units() {
        let cases = [
            ("20GiB", Ok(20 << 30)),
            ("2GB", Ok(2_000_000_000)),
            ("2 gb", Ok(2_000_000_000)),
            ("512 KiB", Ok(512 << 10)),
            ("1.5GiB", Ok(3 << 29)),
            ("0", Ok(0)),
            ("1000", Ok(1000)),
            ("12B", Ok(12)),
            ("20G", Err(SizeError::Shape)),
            ("20Gi", Err(SizeError::Shape)),
            ("GiB", Err(SizeError::Shape)),
            ("-1GiB", Err(SizeError::Shape)),
            ("1.2.3GiB", Err(SizeError::Shape)),
            ("1.5", Err(SizeError::Shape)),
            ("", Err(SizeError::Shape)),
            ("16777215TiB", Ok(16_777_215 << 40)),
            ("16777216TiB", Err(SizeError::TooLarge)),
            ("99999999999999999999", Err(SizeError::TooLarge)),
            ("9999999.5TiB", Err(SizeError::TooLarge)),
            ("20 parsecs", Err(SizeError::Shape)),
        ];
        for (text, bytes) in cases {
            assert_eq!(parse_size(text), bytes.map(Size), "{text}");
        }
    }

    #[test]
    fn durations_are_read_up_to_a_hundred_years() {
        let cases = [
            ("60s", Some(60)),
            ("10m", Some(600)),
            ("1h 30m", Some(5400)),
            ("30d", Some(2_592_000)),
            ("0s", Some(0)),
            ("60", None),
            ("", None),
            ("-1s", None),
            ("60 parsecs", None),
            ("200years", None),
        ];
        for (text, seconds) in cases {
            assert_eq!(parse_duration(text), seconds.map(Duration::from_secs), "{text}");
        }
    }

    #[test]
    fn formatted_values_parse_back() {
        for bytes in [0, 1, 1000, 1024, 1_500_000, 20 << 30, u64::MAX] {
            assert_eq!(parse_size(&format_size(bytes)), Ok(Size(bytes)), "{bytes}");
        }
        for (seconds, text) in
            [(0, "0s"), (60, "1m"), (5400, "1h 30m"), (2_592_000, "30d"), (40_000_000, "462d 23h 6m 40s")]
        {
            assert_eq!(format_duration(Duration::from_secs(seconds)), text);
        }
        let fine = Duration::from_nanos(1_002_003_004);
        assert_eq!((format_duration(fine).as_str(), parse_duration("1s 2ms 3us 4ns")), ("1s 2ms 3us 4ns", Some(fine)));
        for seconds in [0, 1, 60, 90, 3600, 2_592_000, 40_000_000] {
            let duration = Duration::from_secs(seconds);
            assert_eq!(parse_duration(&format_duration(duration)), Some(duration), "{seconds}");
        }
    }
}

//! Durations and sizes, as people write them.

use std::time::Duration;

/// Longer waits are mistakes, and would overflow the clock they are added to.
const LONGEST: Duration = Duration::from_secs(100 * 366 * 24 * 60 * 60);

/// Most telling first, for printing. `kB` and `KB` are both common.
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

/// A number of bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Size(pub(super) u64);

pub(super) fn parse_duration(text: &str) -> Option<Duration> {
    humantime::parse_duration(text).ok().filter(|duration| *duration <= LONGEST)
}

pub(super) fn format_duration(duration: Duration) -> String {
    humantime::format_duration(duration).to_string()
}

/// `20GiB`, `1.5 TB`, `1000` (bytes). `20G` is refused: some mean 10⁹ by it and some 2³⁰.
pub(super) fn parse_size(text: &str) -> Option<Size> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let unit = match unit.trim() {
        "" => 1,
        unit => UNITS.iter().find(|(name, _)| name.eq_ignore_ascii_case(unit))?.1,
    };
    if let Ok(number) = number.parse::<u64>() {
        return number.checked_mul(unit).map(Size);
    }
    let bytes = number.parse::<f64>().ok()? * unit as f64;
    // Exact enough for a fraction of a unit; beyond 2⁵³ the figure is a mistake anyway.
    (bytes.fract() == 0.0 || unit > 1)
        .then_some(bytes)
        .filter(|bytes| *bytes < (1u64 << 53) as f64)
        .map(|b| Size(b as u64))
}

/// In the largest unit that divides it.
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
            ("20GiB", Some(20 << 30)),
            ("2GB", Some(2_000_000_000)),
            ("2 gb", Some(2_000_000_000)),
            ("512 KiB", Some(512 << 10)),
            ("1.5GiB", Some(3 << 29)),
            ("0", Some(0)),
            ("1000", Some(1000)),
            ("12B", Some(12)),
            ("20G", None),
            ("20Gi", None),
            ("GiB", None),
            ("-1GiB", None),
            ("1.2.3GiB", None),
            ("1.5", None),
            ("", None),
            ("99999999TiB", None),
            ("20 parsecs", None),
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
    fn what_is_printed_is_read_back() {
        for bytes in [0, 1, 1000, 1024, 1_500_000, 20 << 30, u64::MAX] {
            assert_eq!(parse_size(&format_size(bytes)), Some(Size(bytes)), "{bytes}");
        }
        for seconds in [0, 1, 60, 90, 3600, 2_592_000, 40_000_000] {
            let duration = Duration::from_secs(seconds);
            assert_eq!(parse_duration(&format_duration(duration)), Some(duration), "{seconds}");
        }
    }
}

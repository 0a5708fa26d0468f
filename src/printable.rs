//! Text of clients, upstreams and images, made safe for a log, a terminal or a header: on one line, without characters
//! that control a terminal or change the order of the text, and of limited length.

use std::fmt::{self, Display, Write};

/// Largest number of bytes of a name or value that are shown. Valid names are shorter.
const MAX_SHOWN_BYTES: usize = 512;

/// Text of a client, an upstream or an image, to be shown. Its `Display` escapes as [`escape`] does, and shortens.
#[derive(Clone, Copy, Debug)]
pub struct Printable<'a>(pub &'a str);

impl Display for Printable<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = prefix(self.0, MAX_SHOWN_BYTES);
        escape(f, shown)?;
        let left_out = self.0.len() - shown.len();
        if left_out > 0 { write!(f, "… ({left_out} more bytes)") } else { Ok(()) }
    }
}

/// Whether a character must not be shown as it is: C0 and C1 controls, line and paragraph separators, and marks that
/// change the direction of the text around them.
pub fn is_unprintable(c: char) -> bool {
    matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
        || c.is_control()
}

/// Writes text with each [unprintable](is_unprintable) character as an escape of Rust, such as `\n` or `\u{1b}`.
pub fn escape(out: &mut impl Write, text: &str) -> fmt::Result {
    for part in text.split_inclusive(is_unprintable) {
        let mut plain = part.chars();
        match plain.next_back() {
            Some(last) if is_unprintable(last) => write!(out, "{}{}", plain.as_str(), last.escape_default())?,
            _ => out.write_str(part)?,
        }
    }
    Ok(())
}

/// The text on one line, with each [unprintable](is_unprintable) character escaped.
pub fn line(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    // Writing to a string does not fail.
    let _ = escape(&mut escaped, text);
    escaped
}

/// The text with each [unprintable](is_unprintable) character but line ends and tabs escaped, for output of several
/// lines.
pub fn lines(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for line in text.split_inclusive(['\n', '\t']) {
        let end = line.strip_suffix(['\n', '\t']).map_or(line.len(), str::len);
        // Writing to a string does not fail.
        let _ = escape(&mut escaped, &line[..end]);
        escaped.push_str(&line[end..]);
    }
    escaped
}

/// JSON with each [unprintable](is_unprintable) character but line ends as an escape of JSON. JSON itself allows most
/// of them inside of strings, and has none elsewhere.
pub fn json(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        if is_unprintable(c) && c != '\n' {
            // Each of them has at most four hexadecimal digits.
            let _ = write!(escaped, "\\u{:04x}", u32::from(c));
        } else {
            escaped.push(c);
        }
    }
    escaped
}

/// The longest prefix that has at most `max` bytes when it is escaped.
pub fn prefix(text: &str, max: usize) -> &str {
    /// No escape is longer than `\u{2028}`.
    const ESCAPE_BYTES: usize = 8;
    let mut shown = 0;
    let is_too_much = |(_, c): &(usize, char)| {
        shown += if is_unprintable(*c) { ESCAPE_BYTES } else { c.len_utf8() };
        shown > max
    };
    let end = text.char_indices().find(is_too_much).map_or(text.len(), |(end, _)| end);
    &text[..end]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn terminal_controls_and_direction_marks_are_escaped() {
        for (text, shown) in [
            ("team/app:v1", "team/app:v1"),
            ("ümlaut 日本", "ümlaut 日本"),
            ("a\nb\r\tc", r"a\nb\r\tc"),
            ("\u{1b}[31mred\u{7}", r"\u{1b}[31mred\u{7}"),
            ("del\u{7f}", r"del\u{7f}"),
            ("c1\u{9b}2J\u{85}", r"c1\u{9b}2J\u{85}"),
            ("a\u{2028}b\u{2029}c", r"a\u{2028}b\u{2029}c"),
            ("\u{202e}gpj.exe\u{2066}x\u{2069}\u{200f}", r"\u{202e}gpj.exe\u{2066}x\u{2069}\u{200f}"),
        ] {
            assert_eq!(Printable(text).to_string(), shown);
        }
    }

    #[test]
    fn escaped_json_is_the_same_json() {
        let value = serde_json::json!({ "a\u{9b}": ["\u{1b}[2J\n", "\u{202e}x\u{2028}\u{7f}\u{feff}ü"], "b": 1 });
        for text in [value.to_string(), format!("{value:#}")] {
            let escaped = json(&text);
            assert!(!escaped.chars().any(|c| is_unprintable(c) && c != '\n'), "{escaped}");
            assert_eq!(serde_json::from_str::<serde_json::Value>(&escaped).unwrap(), value);
        }
    }

    #[test]
    fn line_ends_of_multi_line_output_are_kept() {
        assert_eq!(lines("a\tb\n\u{1b}[2Jc\r\n\u{85}"), "a\tb\n\\u{1b}[2Jc\\r\n\\u{85}");
    }

    #[test]
    fn long_text_is_shortened() {
        let text = "ü".repeat(1000);
        let shown = Printable(&text).to_string();
        assert!(shown.starts_with("üü") && shown.ends_with("… (1488 more bytes)") && shown.len() < 600, "{shown}");
        assert!(Printable(&"\u{1b}".repeat(1000)).to_string().len() < 600);
    }
}

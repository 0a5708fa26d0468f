//! Text of clients and upstreams in the log: on one line, without control characters, and not too long.

use std::fmt::{self, Debug, Write as _};
use std::io::{self, Write};

use serde_json::Value;
use tracing::field::Field;
use tracing_subscriber::field::{MakeExt, RecordFields};
use tracing_subscriber::fmt::format::{Writer, debug_fn};
use tracing_subscriber::fmt::{FormatFields, MakeWriter};

use super::writer::LineWriter;
use crate::printable;

/// Largest size in bytes of one field, or of the message.
const MAX_FIELD_BYTES: usize = 2 << 10;

/// Formats the fields and the message of a line of text.
pub(super) struct OneLine;

/// Escapes and shortens the values in lines of JSON.
#[derive(Clone)]
pub(super) struct JsonLines(pub(super) LineWriter);

/// Writes text with its unprintable characters escaped, up to a number of bytes.
struct Shortened<'a, W> {
    out: &'a mut W,
    /// Bytes that may still be written.
    left: usize,
    /// Bytes of the value that are not written.
    left_out: usize,
}

// === impl OneLine ===

impl<'w> FormatFields<'w> for OneLine {
    fn format_fields<R: RecordFields>(&self, writer: Writer<'w>, fields: R) -> fmt::Result {
        // Without colours, because their escape sequences are control characters.
        debug_fn(write_field).delimited(" ").format_fields(writer, fields)
    }
}

fn write_field(out: &mut Writer<'_>, field: &Field, value: &dyn Debug) -> fmt::Result {
    match field.name() {
        "message" => {}
        name => write!(out, "{}=", name.strip_prefix("r#").unwrap_or(name))?,
    }
    let mut shortened = Shortened { out, left: MAX_FIELD_BYTES, left_out: 0 };
    write!(shortened, "{value:?}")?;
    shortened.finish()
}

// === impl JsonLines ===

impl Write for JsonLines {
    /// `line` is a complete line.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(line);
        self.0.write_all(json_line(&text).as_bytes())?;
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

impl MakeWriter<'_> for JsonLines {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        self.clone()
    }
}

fn json_line(line: &str) -> String {
    // Only a long line can have a long value.
    if line.len() > MAX_FIELD_BYTES
        && let Ok(mut value) = serde_json::from_str(line)
    {
        shorten(&mut value);
        return printable::json(&value.to_string()) + "\n";
    }
    printable::json(line)
}

fn shorten(value: &mut Value) {
    match value {
        Value::String(text) => {
            let kept = printable::prefix(text, MAX_FIELD_BYTES).len();
            if kept < text.len() {
                let rest = left_out(text.len() - kept);
                text.truncate(kept);
                text.push_str(&rest);
            }
        }
        Value::Array(values) => values.iter_mut().for_each(shorten),
        Value::Object(values) => values.values_mut().for_each(shorten),
        _ => {}
    }
}

fn left_out(bytes: usize) -> String {
    format!("… ({bytes} more bytes)")
}

// === impl Shortened ===

impl<W: fmt::Write> Shortened<'_, W> {
    /// Says how much was left out.
    fn finish(self) -> fmt::Result {
        if self.left_out > 0 { self.out.write_str(&left_out(self.left_out)) } else { Ok(()) }
    }
}

impl<W: fmt::Write> fmt::Write for Shortened<'_, W> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let kept = printable::prefix(text, self.left);
        let mut escaped = String::with_capacity(kept.len());
        printable::escape(&mut escaped, kept)?;
        // After the first text that did not fit, nothing else is written.
        self.left = if kept.len() < text.len() { 0 } else { self.left.saturating_sub(escaped.len()) };
        self.left_out += text.len() - kept.len();
        self.out.write_str(&escaped)
    }
}

#[cfg(test)]
mod tests {
    use tracing_subscriber::fmt;
    use tracing_subscriber::layer::SubscriberExt;

    use super::super::shared_output::SharedOutput;
    use super::*;

    /// Text of a client in every kind of field.
    fn log(text: &str) {
        let span = tracing::info_span!("request", name = %text, quoted = text);
        let _entered = span.enter();
        tracing::info!(name = %text, quoted = text, debug = ?text, r#type = %text, "pushed {text}");
    }

    fn logged_text(text: &str) -> String {
        let out = SharedOutput::default();
        let copy = out.clone();
        let layer = fmt::layer().with_ansi(false).fmt_fields(OneLine).with_writer(move || copy.clone());
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), || log(text));
        String::from_utf8(std::mem::take(&mut *out.0.lock())).unwrap()
    }

    fn logged_json(text: &str) -> String {
        let out = SharedOutput::default();
        let (writer, flush) = LineWriter::start(out.clone(), |_| String::new()).unwrap();
        let layer = fmt::layer().json().flatten_event(true).with_writer(JsonLines(writer));
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), || log(text));
        drop(flush);
        String::from_utf8(std::mem::take(&mut *out.0.lock())).unwrap()
    }

    #[test]
    fn text_of_clients_stays_on_its_line_and_is_printable() {
        for text in [
            "\n2026-01-01T00:00:00Z  INFO FORGED",
            "\r\u{1b}[2J\u{7}\u{8}\u{7f}",
            "\u{9b}2J\u{85}FORGED\u{90}",
            "\u{2028}FORGED\u{2029}",
            "\u{202e}txt.exe\u{2066}\u{200f}\u{61c}",
        ] {
            for line in [logged_text(text), logged_json(text)] {
                let line = line.strip_suffix('\n').unwrap();
                assert!(!line.contains(printable::is_unprintable), "{line:?}");
            }
            let json: Value = serde_json::from_str(&logged_json(text)).unwrap();
            assert_eq!(json["name"], text, "JSON keeps the text itself");
        }
        assert!(
            logged_text("a").ends_with("pushed a name=a quoted=\"a\" debug=\"a\" type=a\n"),
            "{}",
            logged_text("a")
        );
    }

    #[test]
    fn every_field_is_short() {
        for text in ["A".repeat(60_000), "\u{1b}".repeat(60_000), "日".repeat(20_000)] {
            let json: Value = serde_json::from_str(&logged_json(&text)).unwrap();
            for field in ["name", "quoted", "message"] {
                let value = json[field].as_str().unwrap();
                assert!(
                    value.len() < MAX_FIELD_BYTES + 50 && value.ends_with("more bytes)"),
                    "{field}: {}",
                    value.len()
                );
            }
            let line = logged_text(&text);
            assert!(line.matches("more bytes)").count() >= 4 && line.len() < 8 * MAX_FIELD_BYTES, "{}", line.len());
        }
    }
}

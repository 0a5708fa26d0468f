//! The output of commands: text or JSON on the standard output, progress on the standard error stream.

use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

use clap::ValueEnum;

use super::CliError;
use crate::printable::{self, Printable};

/// A progress line is redrawn at most this often.
const REDRAW_INTERVAL: Duration = Duration::from_millis(100);

/// The format of a command's output.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Output {
    Text,
    Json,
}

/// Writes text to the standard output. Names and values of clients, upstreams and images may contain line ends, so they
/// must be [`Printable`](crate::printable::Printable).
pub fn print(text: &str) -> Result<(), CliError> {
    io::stdout().write_all(printable::lines(text).as_bytes()).map_err(CliError::Output)
}

/// Writes what the program itself made, such as a script, to the standard output.
pub fn print_bytes(bytes: &[u8]) -> Result<(), CliError> {
    io::stdout().write_all(bytes).map_err(CliError::Output)
}

/// Writes JSON and a line end to the standard output.
pub fn print_json(json: &str) -> Result<(), CliError> {
    io::stdout().write_all((printable::json(json) + "\n").as_bytes()).map_err(CliError::Output)
}

/// A number of bytes as text, in decimal units.
pub fn bytes(count: u64) -> String {
    match count {
        0..10_000 => format!("{count} B"),
        10_000..1_000_000 => format!("{:.1} kB", count as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} MB", count as f64 / 1e6),
        _ => format!("{:.1} GB", count as f64 / 1e9),
    }
}

/// A line that shows progress on a terminal. Draws nothing where the standard error stream is not a terminal.
#[derive(Debug)]
pub struct ProgressLine {
    on_terminal: bool,
    drawn: Option<Instant>,
}

impl ProgressLine {
    pub fn new(output: Output) -> Self {
        Self { on_terminal: output == Output::Text && io::stderr().is_terminal(), drawn: None }
    }

    /// Replaces the line, unless it was drawn a moment ago.
    pub fn draw(&mut self, text: impl FnOnce() -> String) {
        if self.on_terminal && self.drawn.is_none_or(|drawn| drawn.elapsed() >= REDRAW_INTERVAL) {
            self.drawn = Some(Instant::now());
            // If the terminal is gone, only progress is lost.
            let _ = write!(io::stderr(), "\r\x1b[K{}", Printable(&text()));
        }
    }

    /// Removes the line. Call it before anything else is printed.
    pub fn clear(&mut self) {
        if self.drawn.take().is_some() {
            let _ = write!(io::stderr(), "\r\x1b[K");
        }
    }
}

/// A progress bar such as `[######----]`, with 30 places.
pub fn bar(per_mille: u16) -> String {
    const WIDTH: usize = 30;
    let done = usize::from(per_mille.min(1000)) * WIDTH / 1000;
    format!("[{}{}]", "#".repeat(done), "-".repeat(WIDTH - done))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_short() {
        let shown = [0, 9_999, 10_000, 999_900, 1_234_567, 999_900_000, 2_147_483_648].map(bytes);
        assert_eq!(shown, ["0 B", "9999 B", "10.0 kB", "999.9 kB", "1.2 MB", "999.9 MB", "2.1 GB"]);
    }

    #[test]
    fn the_width_of_a_bar_is_constant() {
        assert_eq!(bar(0), format!("[{}]", "-".repeat(30)));
        assert_eq!(bar(500), format!("[{}{}]", "#".repeat(15), "-".repeat(15)));
        assert_eq!(bar(1000), format!("[{}]", "#".repeat(30)));
    }
}

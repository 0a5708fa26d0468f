//! Logs: lines on the standard error stream, as text or JSON, filtered by `RUST_LOG`.

use std::io::{self, IsTerminal};

use tracing_subscriber::EnvFilter;
use tracing_subscriber::util::TryInitError;
use tracing_subscriber::{fmt, layer::SubscriberExt, util::SubscriberInitExt};

use super::log_fields::{JsonLines, OneLine};
use super::writer::{FlushGuard, LineWriter};
use crate::config::LogFormat;

/// The filter that applies without `RUST_LOG`.
const DEFAULT_FILTER: &str = "roadstead=info,warn";

/// Why logging cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    #[error("cannot parse RUST_LOG: {0}; write for example RUST_LOG=\"{DEFAULT_FILTER}\"")]
    Filter(tracing_subscriber::filter::ParseError),
    #[error("cannot start the thread that writes log lines: {0}")]
    Thread(io::Error),
    #[error("logging is already set up: {0}")]
    AlreadySetUp(TryInitError),
}

/// Sets up logging. Call it once in a process. Dropping the guard waits until queued lines are written.
///
/// # Errors
/// If `RUST_LOG` cannot be parsed, the thread cannot be started, or logging is already set up.
pub fn init(format: LogFormat) -> Result<FlushGuard, LogError> {
    let filter = match std::env::var(EnvFilter::DEFAULT_ENV) {
        Ok(filter) if !filter.is_empty() => EnvFilter::try_new(filter).map_err(LogError::Filter)?,
        _ => EnvFilter::new(DEFAULT_FILTER),
    };
    let (writer, flush) = LineWriter::start(io::stderr(), dropped(format)).map_err(LogError::Thread)?;
    let registry = tracing_subscriber::registry().with(filter);
    let installed = match format {
        LogFormat::Text => {
            let layer = fmt::layer().with_ansi(wants_colours()).fmt_fields(OneLine).with_writer(writer);
            registry.with(layer).try_init()
        }
        LogFormat::Json => {
            let layer = fmt::layer().json().flatten_event(true).with_writer(JsonLines(writer));
            registry.with(layer).try_init()
        }
    };
    installed.map(|()| flush).map_err(LogError::AlreadySetUp)
}

/// Whether lines are coloured: on a terminal, unless `NO_COLOR` is set.
fn wants_colours() -> bool {
    io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// Returns a function that formats the line about dropped lines, in the format of the other lines.
fn dropped(format: LogFormat) -> fn(u64) -> String {
    match format {
        LogFormat::Text => |lines| format!("WARN log lines were dropped because the output was too slow lines={lines}"),
        LogFormat::Json => |lines| {
            let message = "log lines were dropped because the output was too slow";
            serde_json::json!({ "level": "WARN", "message": message, "lines": lines }).to_string()
        },
    }
}

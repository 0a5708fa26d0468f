//! Log lines: to the standard error stream, as text or JSON, filtered by `RUST_LOG`.

use std::io::{self, IsTerminal};

use tracing_subscriber::EnvFilter;
use tracing_subscriber::util::TryInitError;
use tracing_subscriber::{fmt, layer::SubscriberExt, util::SubscriberInitExt};

use super::writer::{FlushGuard, LineWriter};
use crate::config::LogFormat;

/// What is logged without `RUST_LOG`.
const DEFAULT_FILTER: &str = "roadstead=info,warn";

#[derive(Debug, thiserror::Error)]
pub enum LogError {
    #[error("RUST_LOG: {0}; write for example RUST_LOG=\"{DEFAULT_FILTER}\"")]
    Filter(tracing_subscriber::filter::ParseError),
    #[error("the thread that writes log lines cannot be started: {0}")]
    Thread(io::Error),
    #[error("log lines have a destination already: {0}")]
    Twice(TryInitError),
}

/// Once in a process. Lines that wait are written when the guard is dropped.
pub fn init(format: LogFormat) -> Result<FlushGuard, LogError> {
    let filter = match std::env::var(EnvFilter::DEFAULT_ENV) {
        Ok(filter) if !filter.is_empty() => EnvFilter::try_new(filter).map_err(LogError::Filter)?,
        _ => EnvFilter::new(DEFAULT_FILTER),
    };
    let (writer, flush) = LineWriter::start(io::stderr(), dropped(format)).map_err(LogError::Thread)?;
    let registry = tracing_subscriber::registry().with(filter);
    let installed = match format {
        LogFormat::Text => registry.with(fmt::layer().with_ansi(colours()).with_writer(writer)).try_init(),
        LogFormat::Json => registry.with(fmt::layer().json().flatten_event(true).with_writer(writer)).try_init(),
    };
    installed.map(|()| flush).map_err(LogError::Twice)
}

/// For people at a terminal, unless they ask for none.
fn colours() -> bool {
    io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// The line that says how many were dropped, in the shape of all others.
fn dropped(format: LogFormat) -> fn(u64) -> String {
    match format {
        LogFormat::Text => |lines| format!("WARN {lines} log lines were dropped: they were not read fast enough"),
        LogFormat::Json => |lines| {
            let message = "log lines were dropped: they were not read fast enough";
            serde_json::json!({ "level": "WARN", "message": message, "lines": lines }).to_string()
        },
    }
}

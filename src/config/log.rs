//! `[log]`: the format of log lines. `RUST_LOG` selects what is logged.

use std::fmt;

/// `[log]`
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LogConfig {
    /// Format of each line.
    pub format: LogFormat,
}

/// Format of log lines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// Text for people, one line per event.
    #[default]
    Text,
    /// One JSON object per event.
    Json,
}

// === impl LogFormat ===

impl LogFormat {
    /// The names of all formats in the configuration.
    pub const NAMES: [&str; 2] = ["text", "json"];

    /// The format of this name.
    pub(super) fn parse(name: &str) -> Option<Self> {
        match name {
            "text" => Some(Self::Text),
            "json" => Some(Self::Json),
            _ => None,
        }
    }
}

impl fmt::Display for LogFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Text => "text",
            Self::Json => "json",
        })
    }
}

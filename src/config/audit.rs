//! `[audit]`: what is recorded about logins, changes and refusals, and where.

use std::path::PathBuf;

/// `[audit]`
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AuditConfig {
    /// The file of the records. `None`: they are in the log, if there are users.
    pub file: Option<PathBuf>,
    /// Whether pulls are recorded, too.
    pub pulls: bool,
}

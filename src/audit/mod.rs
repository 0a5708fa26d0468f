//! The audit log: one record for each login, change and refusal, for the operator.
//!
//! `http` and `control` make the records. They go to the log with the target `roadstead::audit`, or as lines of JSON to a
//! file of their own (`file`). Nothing waits for either: both have a bounded queue, and what does not fit is counted. Text of
//! clients is shortened and escaped. Records that clients can cause at will have a limit for each client and for all
//! (`limits`), so that a flood does not fill a disk.
//!
//! No record holds a password, a token, or a name that is no user's: people type their password as their name at times.

mod file;
mod limits;
mod record;

use std::io;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::config::{AuditConfig, Config};
use crate::telemetry::{FlushGuard, LineWriter, Metrics};
use file::FollowedFile;
use limits::Limits;
pub use record::{Event, Record};

/// How often the records that were left out are counted in a record.
const REPORT_INTERVAL: Duration = Duration::from_secs(60);

/// Where records go. Clones share it.
#[derive(Clone, Default)]
pub struct Audit(Option<Arc<Shared>>);

struct Shared {
    /// `None`: the log.
    file: Option<LineWriter>,
    pulls: bool,
    limits: Limits,
    metrics: Arc<Metrics>,
}

/// `audit.file` cannot be opened.
#[derive(Debug, thiserror::Error)]
#[error("cannot write the file of audit.file, {}: {error}", path.display())]
pub struct AuditFileError {
    path: PathBuf,
    error: io::Error,
}

// === impl Audit ===

impl Audit {
    /// Opens the file, which blocks. The guard waits for queued records when it is dropped.
    pub fn open(config: &Config, metrics: &Arc<Metrics>) -> Result<(Self, Option<FlushGuard>), AuditFileError> {
        let AuditConfig { file, pulls } = &config.audit;
        if config.auth.is_none() && file.is_none() && !pulls {
            return Ok((Self::default(), None));
        }
        let (file, flush) = match file {
            None => (None, None),
            Some(path) => {
                let failed = |error| AuditFileError { path: path.clone(), error };
                let out = FollowedFile::open(path, metrics.clone()).map_err(failed)?;
                let (file, flush) = LineWriter::start(out, record::dropped).map_err(failed)?;
                (Some(file), Some(flush))
            }
        };
        let shared = Shared { file, pulls: *pulls, limits: Limits::default(), metrics: metrics.clone() };
        Ok((Self(Some(Arc::new(shared))), flush))
    }

    /// Whether anything is recorded.
    pub fn is_on(&self) -> bool {
        self.0.is_some()
    }

    /// Whether pulls are recorded.
    pub fn has_pulls(&self) -> bool {
        self.0.as_ref().is_some_and(|shared| shared.pulls)
    }

    /// Writes a record. Never waits and never fails.
    pub fn write(&self, record: &Record<'_>) {
        if let Some(shared) = &self.0 {
            shared.write(record);
        }
    }

    /// Writes a record that clients can cause at will, unless there were too many of its kind lately. `about` tells the
    /// subjects of one client apart.
    pub fn write_limited(
        &self,
        event: Event,
        client: Option<IpAddr>,
        about: &str,
        record: impl FnOnce() -> Record<'static>,
    ) {
        let Some(shared) = &self.0 else { return };
        if shared.limits.admits(event, client, about, Instant::now()) {
            shared.write(&record());
        }
    }

    /// Writes how many records were left out, every minute, until it is dropped.
    pub async fn report_left_out(self) {
        let Some(shared) = &self.0 else { return };
        let mut turns = tokio::time::interval(REPORT_INTERVAL);
        turns.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            turns.tick().await;
            shared.report();
        }
    }

    /// Writes how many records were left out since the last time.
    pub fn report(&self) {
        if let Some(shared) = &self.0 {
            shared.report();
        }
    }
}

impl Shared {
    fn write(&self, record: &Record<'_>) {
        match &self.file {
            None => record.log(),
            Some(file) => {
                if !file.queue(record.to_line().as_bytes()) {
                    self.metrics.audit_dropped(1);
                }
            }
        }
    }

    fn report(&self) {
        for (event, count) in self.limits.take_left_out() {
            self.metrics.audit_dropped(count);
            let outcome = format!("{count} more like this were left out");
            self.write(&Record { outcome: Some(outcome.into()), ..Record::new(event) });
        }
    }
}

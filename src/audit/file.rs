//! A file that is appended to, and opened again when it was renamed or removed: by logrotate, or by hand.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::telemetry::Metrics;

/// How often it is checked whether the file is still the one at its path.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// Nobody but the user of the server reads it.
const MODE: u32 = 0o600;

/// Used by the thread of a `LineWriter`, so it may block.
pub(super) struct FollowedFile {
    path: PathBuf,
    file: File,
    checked: Instant,
    /// Whether the last write failed, so that a failure is logged once.
    has_failed: bool,
    /// Counts the lines that are lost.
    metrics: Arc<Metrics>,
}

// === impl FollowedFile ===

impl FollowedFile {
    pub(super) fn open(path: &Path, metrics: Arc<Metrics>) -> io::Result<Self> {
        let file = open(path)?;
        Ok(Self { path: path.to_owned(), file, checked: Instant::now(), has_failed: false, metrics })
    }

    /// Opens the path again if another file is there, or none.
    fn follow(&mut self) -> io::Result<()> {
        let now = Instant::now();
        if !self.has_failed && now.duration_since(self.checked) < CHECK_INTERVAL {
            return Ok(());
        }
        self.checked = now;
        let ours = self.file.metadata()?;
        let is_ours = |there: std::fs::Metadata| (there.dev(), there.ino()) == (ours.dev(), ours.ino());
        if !std::fs::metadata(&self.path).is_ok_and(is_ours) {
            self.file = open(&self.path)?;
        }
        Ok(())
    }
}

fn open(path: &Path) -> io::Result<File> {
    // Opening a pipe without a reader would wait for one.
    let nonblocking = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
    OpenOptions::new().append(true).create(true).mode(MODE).custom_flags(nonblocking).open(path)
}

impl Write for FollowedFile {
    /// `line` is a complete line.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let written = self.follow().and_then(|()| self.file.write_all(line));
        let has_failed = written.is_err();
        if has_failed {
            self.metrics.audit_dropped(1);
        }
        if let Err(error) = &written
            && !self.has_failed
        {
            tracing::error!(path = %self.path.display(), %error, "cannot write the audit log; records are lost");
        } else if self.has_failed && !has_failed {
            tracing::info!(path = %self.path.display(), "the audit log is written again");
        }
        self.has_failed = has_failed;
        written.map(|()| line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn content(path: &Path) -> String {
        std::fs::read_to_string(path).unwrap()
    }

    #[test]
    fn a_renamed_removed_or_truncated_file_is_followed() {
        let folder = tempfile::tempdir().unwrap();
        let (path, old) = (folder.path().join("audit.log"), folder.path().join("audit.log.1"));
        std::fs::write(&path, "before\n").unwrap();
        let metrics = Arc::new(Metrics::new(&[]));
        let mut file = FollowedFile::open(&path, metrics.clone()).unwrap();
        let mut write = |line: &str| {
            file.checked = Instant::now().checked_sub(CHECK_INTERVAL).unwrap();
            file.write_all(line.as_bytes())
        };
        write("one\n").unwrap();
        std::fs::rename(&path, &old).unwrap();
        write("two\n").unwrap();
        assert_eq!((content(&old), content(&path)), ("before\none\n".to_owned(), "two\n".to_owned()));
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, MODE);
        std::fs::remove_file(&path).unwrap();
        write("three\n").unwrap();
        assert_eq!(content(&path), "three\n");
        File::create(&path).unwrap();
        write("four\n").unwrap();
        assert_eq!(content(&path), "four\n", "no hole where the old lines were");
        std::fs::remove_dir_all(folder.path()).unwrap();
        assert!(write("lost\n").is_err());
        std::fs::create_dir(folder.path()).unwrap();
        write("five\n").unwrap();
        assert_eq!(content(&path), "five\n");
        assert!(metrics.render().contains("roadstead_audit_dropped_total 1\n"));
    }
}

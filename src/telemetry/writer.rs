//! Writes log lines in a separate thread, so that no async worker waits for a slow terminal or log collector.
//!
//! Lines pass through a queue that is bounded in lines and in bytes. A line that does not fit is dropped and counted,
//! and the thread writes the number of dropped lines after the next line that it writes. If the output stalls, log
//! lines are lost, but no request waits and memory stays bounded.

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use tracing_subscriber::fmt::MakeWriter;

/// Maximum number of lines that wait to be written.
const MAX_QUEUED_LINES: usize = 8192;
/// Maximum bytes of the lines that wait to be written.
const MAX_QUEUED_BYTES: usize = 4 << 20;
/// Maximum time that the end of the process waits for queued lines to be written.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);
/// How often the end of the process checks whether a full queue has room for the flush request.
const FULL_QUEUE_POLL_INTERVAL: Duration = Duration::from_millis(5);

enum QueueItem {
    Line(Vec<u8>),
    /// Asks the thread to confirm that everything before this item was written.
    Flush(SyncSender<()>),
}

/// Accepts complete lines from any thread. Clones share one queue.
#[derive(Clone)]
pub struct LineWriter {
    queue: SyncSender<QueueItem>,
    counts: Arc<QueueCounts>,
}

#[derive(Default)]
struct QueueCounts {
    /// Increased by writers, decreased by the thread.
    queued_bytes: AtomicUsize,
    /// Increased by writers, reset by the thread.
    dropped_lines: AtomicU64,
}

/// On drop, waits until the queued lines are written, at most one second.
#[must_use = "dropping it waits until queued lines are written"]
pub struct FlushGuard(SyncSender<QueueItem>);

// === impl LineWriter ===

impl LineWriter {
    /// Starts a thread that writes lines to `out` until every [`LineWriter`] and the guard are dropped. `dropped`
    /// formats the line that reports a number of dropped lines.
    ///
    /// # Errors
    /// If the thread cannot be started.
    pub fn start(out: impl Write + Send + 'static, dropped: fn(u64) -> String) -> io::Result<(Self, FlushGuard)> {
        let (queue, lines) = sync_channel(MAX_QUEUED_LINES);
        let counts = Arc::<QueueCounts>::default();
        let writer = Self { queue: queue.clone(), counts: counts.clone() };
        thread::Builder::new()
            .name("log-writer".to_owned())
            .spawn(move || write_lines(&lines, &counts, out, dropped))?;
        Ok((writer, FlushGuard(queue)))
    }

    /// Queues a complete line. Returns false if it was dropped. Never waits.
    pub fn queue(&self, line: &[u8]) -> bool {
        let queued = self.counts.queued_bytes.fetch_add(line.len(), Ordering::Relaxed);
        let fits = queued + line.len() <= MAX_QUEUED_BYTES;
        let is_queued = fits && self.queue.try_send(QueueItem::Line(line.to_vec())).is_ok();
        if !is_queued {
            self.counts.queued_bytes.fetch_sub(line.len(), Ordering::Relaxed);
            self.counts.dropped_lines.fetch_add(1, Ordering::Relaxed);
        }
        is_queued
    }
}

impl Write for LineWriter {
    /// Queues or drops the complete line. Never waits and never fails.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.queue(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl MakeWriter<'_> for LineWriter {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        self.clone()
    }
}

// === impl FlushGuard ===

impl Drop for FlushGuard {
    fn drop(&mut self) {
        let (done, wait) = sync_channel(1);
        let end = Instant::now() + FLUSH_TIMEOUT;
        let mut message = QueueItem::Flush(done);
        while let Err(TrySendError::Full(unsent)) = self.0.try_send(message) {
            if Instant::now() >= end {
                return;
            }
            message = unsent;
            thread::sleep(FULL_QUEUE_POLL_INTERVAL);
        }
        let _ = wait.recv_timeout(end.saturating_duration_since(Instant::now()));
    }
}

fn write_lines(lines: &Receiver<QueueItem>, counts: &QueueCounts, mut out: impl Write, dropped: fn(u64) -> String) {
    // Write errors are ignored, because the log itself is the place to report them.
    for message in lines {
        match message {
            QueueItem::Line(line) => {
                let _ = out.write_all(&line);
                counts.queued_bytes.fetch_sub(line.len(), Ordering::Relaxed);
                let lost = counts.dropped_lines.swap(0, Ordering::Relaxed);
                if lost > 0 {
                    let _ = writeln!(out, "{}", dropped(lost));
                }
            }
            QueueItem::Flush(done) => {
                let _ = out.flush();
                let _ = done.send(());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::shared_output::SharedOutput;
    use super::*;

    #[test]
    fn guard_writes_every_line_in_order() {
        let out = SharedOutput::default();
        let (mut writer, flush) = LineWriter::start(out.clone(), |lost| format!("{lost} dropped")).unwrap();
        for number in 0..1000 {
            writeln!(writer.make_writer(), "{number}").unwrap();
        }
        writer.write_all(b"last\n").unwrap();
        drop(flush);
        let expected: String = (0..1000).map(|number| format!("{number}\n")).chain(["last\n".to_owned()]).collect();
        assert_eq!(String::from_utf8(out.0.lock().clone()).unwrap(), expected);
    }

    #[test]
    fn stalled_output_drops_lines_and_bounds_memory() {
        let out = SharedOutput::default();
        let stalled = out.0.lock();
        let (mut writer, flush) = LineWriter::start(out.clone(), |lost| format!("{lost} dropped")).unwrap();
        let line = vec![b'x'; 64 << 10];
        for _ in 0..1000 {
            writer.write_all(&line).unwrap();
        }
        assert!(writer.counts.queued_bytes.load(Ordering::Relaxed) <= MAX_QUEUED_BYTES);
        drop(stalled);
        drop(flush);
        let written = String::from_utf8(out.0.lock().clone()).unwrap();
        assert!(written.contains(" dropped\n"));
        assert!(written.len() < MAX_QUEUED_BYTES + 1024);
    }
}

//! Log lines on their way out, without a worker of the runtime ever waiting for whoever reads them.
//!
//! Lines go through a queue to a thread of their own. The queue is bounded in lines and in bytes; what does not fit
//! is dropped and counted, and the count is written as soon as there is room again. A stalled terminal or log
//! collector thus costs lines, never requests or memory.

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use tracing_subscriber::fmt::MakeWriter;

const MOST_LINES: usize = 8192;
const MOST_BYTES: usize = 4 << 20;
/// How long the end of the process waits for lines that nobody reads.
const FLUSH_WITHIN: Duration = Duration::from_secs(1);
/// How often the end of the process looks for room in a full queue.
const FULL_QUEUE_PAUSE: Duration = Duration::from_millis(5);

enum Message {
    Line(Vec<u8>),
    /// Everything before it is written: say so.
    Flush(SyncSender<()>),
}

/// Takes whole lines from any thread; clones share one queue.
#[derive(Clone)]
pub struct LineWriter {
    queue: SyncSender<Message>,
    counts: Arc<Counts>,
}

#[derive(Default)]
struct Counts {
    /// Added to by writers, subtracted from by the thread.
    queued_bytes: AtomicUsize,
    /// Added to by writers, taken by the thread.
    dropped_lines: AtomicU64,
}

/// Writes what is queued when it is dropped, as far as that is possible within a second.
#[must_use = "dropping it ends the wait for lines"]
pub struct Flush(SyncSender<Message>);

// === impl LineWriter ===

impl LineWriter {
    /// A thread that writes to `out` for as long as there is somebody to write lines. `dropped` is the line that says
    /// how many were.
    pub fn start(out: impl Write + Send + 'static, dropped: fn(u64) -> String) -> io::Result<(Self, Flush)> {
        let (queue, lines) = sync_channel(MOST_LINES);
        let counts = Arc::<Counts>::default();
        let writer = Self { queue: queue.clone(), counts: counts.clone() };
        thread::Builder::new()
            .name("log-writer".to_owned())
            .spawn(move || write_lines(&lines, &counts, out, dropped))?;
        Ok((writer, Flush(queue)))
    }
}

impl Write for LineWriter {
    /// Takes the whole line or drops it; never waits, never fails.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let queued = self.counts.queued_bytes.fetch_add(line.len(), Ordering::Relaxed);
        let fits = queued + line.len() <= MOST_BYTES;
        if !fits || self.queue.try_send(Message::Line(line.to_vec())).is_err() {
            self.counts.queued_bytes.fetch_sub(line.len(), Ordering::Relaxed);
            self.counts.dropped_lines.fetch_add(1, Ordering::Relaxed);
        }
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

// === impl Flush ===

impl Drop for Flush {
    fn drop(&mut self) {
        let (done, wait) = sync_channel(1);
        let end = Instant::now() + FLUSH_WITHIN;
        let mut message = Message::Flush(done);
        while let Err(TrySendError::Full(unsent)) = self.0.try_send(message) {
            if Instant::now() >= end {
                return;
            }
            message = unsent;
            thread::sleep(FULL_QUEUE_PAUSE);
        }
        let _ = wait.recv_timeout(end.saturating_duration_since(Instant::now()));
    }
}

fn write_lines(lines: &Receiver<Message>, counts: &Counts, mut out: impl Write, dropped: fn(u64) -> String) {
    // Errors have nowhere to go: this is where they would be written.
    for message in lines {
        match message {
            Message::Line(line) => {
                let _ = out.write_all(&line);
                counts.queued_bytes.fetch_sub(line.len(), Ordering::Relaxed);
                let lost = counts.dropped_lines.swap(0, Ordering::Relaxed);
                if lost > 0 {
                    let _ = writeln!(out, "{}", dropped(lost));
                }
            }
            Message::Flush(done) => {
                let _ = out.flush();
                let _ = done.send(());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use parking_lot::Mutex;

    use super::*;

    #[derive(Clone, Default)]
    struct Shared(Arc<Mutex<Vec<u8>>>);

    impl Write for Shared {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn every_line_is_written_in_order_before_the_guard_is_gone() {
        let out = Shared::default();
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
    fn a_reader_that_stalls_costs_lines_and_neither_time_nor_memory() {
        let out = Shared::default();
        let stalled = out.0.lock();
        let (mut writer, flush) = LineWriter::start(out.clone(), |lost| format!("{lost} dropped")).unwrap();
        let line = vec![b'x'; 64 << 10];
        for _ in 0..1000 {
            writer.write_all(&line).unwrap();
        }
        assert!(writer.counts.queued_bytes.load(Ordering::Relaxed) <= MOST_BYTES);
        drop(stalled);
        drop(flush);
        let written = String::from_utf8(out.0.lock().clone()).unwrap();
        assert!(written.contains(" dropped\n"));
        assert!(written.len() < MOST_BYTES + 1024);
    }
}

//! Interrupts a transfer of a fill that is slower than `min_rate`.
//!
//! Only the time spent waiting for the source is measured, because a slow local disk is not the source's fault. A
//! check at each chunk is enough: if no chunk arrives, `idle_timeout` ends the transfer.

use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::{StreamExt, stream};
use tokio::time::Instant;

use super::super::error::PullError;
use super::super::source::{ByteStream, MinRate};
use super::job::Job;
use crate::upstream::UpstreamError;

/// The bytes and the waiting time of the current window.
#[derive(Debug)]
struct Pace {
    min_rate: MinRate,
    waited: Duration,
    bytes: u64,
    /// Bytes that all transfers of the fill had received when the window began.
    before: u64,
}

/// Wraps a transfer of a fill so that it ends with an error if the fill falls below `min_rate`.
pub(super) fn paced(bytes: ByteStream, job: &Job) -> ByteStream {
    let (source, fill) = (job.source.name().clone(), job.fill.clone());
    let pace = Pace::new(job.source.min_rate(), fill.received.load(Ordering::Relaxed));
    let paced = stream::try_unfold((bytes, pace, source, fill), |(mut bytes, mut pace, source, fill)| async move {
        let asked = Instant::now();
        let Some(chunk) = bytes.next().await.transpose()? else { return Ok(None) };
        if pace.is_kept(asked.elapsed(), chunk.len() as u64, fill.received.load(Ordering::Relaxed)) {
            Ok(Some((chunk, (bytes, pace, source, fill))))
        } else {
            Err(PullError::Upstream(UpstreamError::Timeout { upstream: source, what: "a body below min_rate" }))
        }
    });
    paced.boxed()
}

impl Pace {
    /// `received`: bytes that all transfers of the fill have received.
    fn new(min_rate: MinRate, received: u64) -> Self {
        Self { min_rate, waited: Duration::ZERO, bytes: 0, before: received }
    }

    /// Records a chunk of `bytes` that took `waited` to arrive. Returns whether the rate is high enough: that of this
    /// transfer, or that of all transfers of the fill.
    fn is_kept(&mut self, waited: Duration, bytes: u64, received: u64) -> bool {
        self.waited += waited;
        self.bytes += bytes;
        if self.waited < self.min_rate.window {
            return true;
        }
        let expected = self.min_rate.bytes_per_second as f64 * self.waited.as_secs_f64();
        let arrived = self.bytes.max(received.saturating_sub(self.before));
        *self = Self::new(self.min_rate, received);
        arrived as f64 >= expected
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_average_over_each_window_counts() {
        let second = Duration::from_secs(1);
        let mut pace = Pace::new(MinRate { bytes_per_second: 1000, window: 10 * second }, 0);
        // A burst and then almost nothing: 10 kB in 10 s.
        assert!(pace.is_kept(second, 9_500, 0));
        assert!(pace.is_kept(9 * second, 500, 0));
        // The burst of one window does not count in the next one.
        assert!(pace.is_kept(9 * second, 500, 0));
        assert!(!pace.is_kept(second, 500, 0));
        // Other transfers of the fill are fast enough.
        assert!(pace.is_kept(10 * second, 1, 50_000) && !pace.is_kept(10 * second, 1, 50_000));
        let unbounded = MinRate { bytes_per_second: 0, window: second };
        assert!(Pace::new(unbounded, 0).is_kept(20 * second, 1, 0));
    }
}

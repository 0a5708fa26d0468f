//! Interrupts a transfer that is slower than `min_rate`.
//!
//! Only the time spent waiting for the source is measured, because a slow local disk is not the source's fault. A check at
//! each chunk is enough: if no chunk arrives, `idle_timeout` ends the transfer.

use std::sync::Arc;
use std::time::Duration;

use futures_util::{StreamExt, stream};
use tokio::time::Instant;

use super::super::error::PullError;
use super::super::source::{ByteStream, MinRate};
use crate::upstream::UpstreamError;

/// The bytes and the waiting time of the current window.
#[derive(Debug)]
struct Pace {
    min_rate: MinRate,
    waited: Duration,
    bytes: u64,
}

/// Wraps a stream so that it ends with an error if it falls below `min_rate`. `source` is the name in that error.
pub(super) fn paced(bytes: ByteStream, min_rate: MinRate, source: Arc<str>) -> ByteStream {
    let paced = stream::try_unfold((bytes, Pace::new(min_rate), source), |(mut bytes, mut pace, source)| async move {
        let asked = Instant::now();
        let Some(chunk) = bytes.next().await.transpose()? else { return Ok(None) };
        if pace.is_kept(asked.elapsed(), chunk.len() as u64) {
            Ok(Some((chunk, (bytes, pace, source))))
        } else {
            Err(PullError::Upstream(UpstreamError::Timeout { upstream: source, what: "a body below min_rate" }))
        }
    });
    paced.boxed()
}

impl Pace {
    fn new(min_rate: MinRate) -> Self {
        Self { min_rate, waited: Duration::ZERO, bytes: 0 }
    }

    /// Records a chunk of `bytes` that took `waited` to arrive. Returns whether the rate is high enough.
    fn is_kept(&mut self, waited: Duration, bytes: u64) -> bool {
        self.waited += waited;
        self.bytes += bytes;
        if self.waited < self.min_rate.window {
            return true;
        }
        let expected = self.min_rate.bytes_per_second as f64 * self.waited.as_secs_f64();
        let fast_enough = self.bytes as f64 >= expected;
        (self.waited, self.bytes) = (Duration::ZERO, 0);
        fast_enough
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_average_over_each_window_counts() {
        let second = Duration::from_secs(1);
        let mut pace = Pace::new(MinRate { bytes_per_second: 1000, window: 10 * second });
        // A burst and then almost nothing: 10 kB in 10 s.
        assert!(pace.is_kept(second, 9_500));
        assert!(pace.is_kept(9 * second, 500));
        // The burst of one window does not count in the next one.
        assert!(pace.is_kept(9 * second, 500));
        assert!(!pace.is_kept(second, 500));
        let unbounded = MinRate { bytes_per_second: 0, window: second };
        assert!(Pace::new(unbounded).is_kept(20 * second, 1));
    }
}

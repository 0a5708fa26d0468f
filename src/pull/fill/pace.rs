//! A transfer that is slower than `min_rate` counts as interrupted.
//!
//! Only the time spent waiting for the source is measured: a slow disk of ours is not the source's fault. No timer runs beside
//! the transfer, because silence ends it after `idle_timeout` anyway: a check at each chunk is enough.

use std::sync::Arc;
use std::time::Duration;

use futures_util::{StreamExt, stream};
use tokio::time::Instant;

use super::super::error::PullError;
use super::super::source::{ByteStream, MinRate};
use crate::upstream::UpstreamError;

/// What came in the current window.
#[derive(Debug)]
struct Pace {
    min_rate: MinRate,
    waited: Duration,
    bytes: u64,
}

/// The stream, which ends with an interruption if it falls below `min_rate`. `source` is named in that error.
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

    /// Whether the rate is still high enough, after a chunk of `bytes` was waited for.
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

//! A transfer that is slower than an operator accepts counts as cut.
//!
//! Only the time in which the upstream is waited for is measured: a slow disk of ours is not its fault. There is no clock
//! beside the transfer, either: silence ends after `idle_timeout` anyway, so a look at each chunk is enough.

use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::{self, Stream};
use tokio::time::Instant;

use crate::upstream::{Upstream, UpstreamBody, UpstreamError};

/// What came in the window that has begun.
#[derive(Debug)]
struct Pace {
    /// Bytes a second; zero: any.
    least: u64,
    window: Duration,
    waited: Duration,
    bytes: u64,
}

/// The body chunk by chunk, until its first error: one of those is that it comes too slowly.
pub(super) fn chunks(
    body: UpstreamBody,
    upstream: &Upstream,
) -> impl Stream<Item = Result<Bytes, UpstreamError>> + Send + use<> {
    let pace = Pace::new(upstream.min_rate(), upstream.idle_timeout());
    let name = upstream.name().clone();
    stream::try_unfold((body, pace, name), |(mut body, mut pace, name)| async move {
        let asked = Instant::now();
        let Some(chunk) = body.chunk().await? else { return Ok(None) };
        if pace.keeps(asked.elapsed(), chunk.len() as u64) {
            Ok(Some((chunk, (body, pace, name))))
        } else {
            Err(UpstreamError::Timeout { upstream: name, what: "a body below min_rate" })
        }
    })
}

impl Pace {
    fn new(least: u64, window: Duration) -> Self {
        Self { least, window, waited: Duration::ZERO, bytes: 0 }
    }

    /// Whether it is fast enough still, after `bytes` that took so long to come.
    fn keeps(&mut self, waited: Duration, bytes: u64) -> bool {
        self.waited += waited;
        self.bytes += bytes;
        if self.waited < self.window {
            return true;
        }
        let fast_enough = self.bytes as f64 >= self.least as f64 * self.waited.as_secs_f64();
        (self.waited, self.bytes) = (Duration::ZERO, 0);
        fast_enough
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_counts_is_the_average_over_a_window() {
        let second = Duration::from_secs(1);
        let mut pace = Pace::new(1000, 10 * second);
        // A burst, then nothing much: 10 kB in 10 s.
        assert!(pace.keeps(second, 9_500));
        assert!(pace.keeps(9 * second, 500));
        // The burst of one window does not help the next one.
        assert!(pace.keeps(9 * second, 500));
        assert!(!pace.keeps(second, 500));
        assert!(Pace::new(0, second).keeps(20 * second, 1), "any pace will do");
    }
}

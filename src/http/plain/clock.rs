//! A deadline that is set for every step and seldom runs out: moving it into the future touches no timer.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep_until};

/// Resolves, as a future, when the deadline that was set last has passed.
pub(super) struct Clock {
    until: Instant,
    /// Set no later than `until`; when it ends too early, it is set again.
    alarm: Pin<Box<Sleep>>,
}

impl Clock {
    pub(super) fn new(patience: Duration) -> Self {
        let until = Instant::now() + patience;
        Self { until, alarm: Box::pin(sleep_until(until)) }
    }

    /// From now on there is as much time as this.
    pub(super) fn give(&mut self, patience: Duration) {
        self.until = Instant::now() + patience;
        if self.alarm.deadline() > self.until {
            self.alarm.as_mut().reset(self.until);
        }
    }
}

impl Future for Clock {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.get_mut();
        loop {
            ready!(this.alarm.as_mut().poll(cx));
            if this.alarm.deadline() >= this.until {
                return Poll::Ready(());
            }
            this.alarm.as_mut().reset(this.until);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn it_runs_out_at_what_was_set_last() {
        let (soon, never) = (Duration::from_millis(20), Duration::from_secs(1000));
        let mut clock = Clock::new(never);
        clock.give(soon);
        (&mut clock).await;
        clock.give(soon);
        clock.give(never);
        tokio::select! {
            biased;
            () = &mut clock => panic!("there was more time"),
            () = tokio::time::sleep(3 * soon) => {}
        }
        clock.give(soon);
        (&mut clock).await;
    }
}

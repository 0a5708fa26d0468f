//! A deadline that is moved at every step and rarely passes. Moving it into the future does not touch the timer.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep_until};

/// A future that resolves when the deadline that was set last has passed.
pub(super) struct MovingDeadline {
    until: Instant,
    /// Never later than `until`. If it fires earlier, it is set again.
    timer: Pin<Box<Sleep>>,
}

impl MovingDeadline {
    pub(super) fn new(time: Duration) -> Self {
        let until = Instant::now() + time;
        Self { until, timer: Box::pin(sleep_until(until)) }
    }

    /// Moves the deadline to `time` from now, which it returns.
    pub(super) fn set(&mut self, time: Duration) -> Instant {
        let now = Instant::now();
        self.set_to(now + time);
        now
    }

    pub(super) fn set_to(&mut self, until: Instant) {
        self.until = until;
        if self.timer.deadline() > until {
            self.timer.as_mut().reset(until);
        }
    }
}

impl Future for MovingDeadline {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.get_mut();
        loop {
            ready!(this.timer.as_mut().poll(cx));
            if this.timer.deadline() >= this.until {
                return Poll::Ready(());
            }
            this.timer.as_mut().reset(this.until);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_last_deadline_counts() {
        let (soon, never) = (Duration::from_millis(20), Duration::from_secs(1000));
        let mut deadline = MovingDeadline::new(never);
        deadline.set(soon);
        (&mut deadline).await;
        deadline.set(soon);
        deadline.set(never);
        tokio::select! {
            biased;
            () = &mut deadline => panic!("the deadline was moved"),
            () = tokio::time::sleep(3 * soon) => {}
        }
        deadline.set(soon);
        (&mut deadline).await;
    }
}

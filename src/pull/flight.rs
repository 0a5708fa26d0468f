//! Flights: work that all requests for the same key share. The first request starts it, and all requests get its result.

use std::collections::HashMap;
use std::future::Future;
use std::hash::Hash;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::watch;
use tracing::Instrument;

use crate::tasks::Tasks;

/// Running work by key. Each flight is a separate task, so a requester that disconnects does not end it.
#[derive(Debug)]
pub struct Flights<K, V> {
    running: Arc<Mutex<HashMap<K, Flight<V>>>>,
    tasks: Tasks,
}

type Flight<V> = watch::Receiver<Option<V>>;

/// Whether a requester started the flight or joined it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    Led,
    Joined,
}

impl<K, V> Flights<K, V>
where
    K: Clone + Eq + Hash + Send + 'static,
    V: Clone + Send + Sync + 'static,
{
    pub fn new(tasks: Tasks) -> Self {
        Self { running: Arc::default(), tasks }
    }

    /// Returns the result of the flight for `key`. If there is none, starts it with `work`. `None` if the work was stopped or
    /// panicked.
    pub async fn run<F>(&self, key: K, work: impl FnOnce() -> F) -> (Option<V>, Role)
    where
        F: Future<Output = V> + Send + 'static,
    {
        let (mut flight, role) = self.join_or_start(key, work);
        let answer = match flight.wait_for(Option::is_some).await {
            Ok(answer) => answer.clone(),
            Err(_) => None,
        };
        (answer, role)
    }

    /// Starts `work` for `key` in the background, unless a flight for it is running.
    pub fn start<F>(&self, key: K, work: impl FnOnce() -> F)
    where
        F: Future<Output = V> + Send + 'static,
    {
        self.join_or_start(key, work);
    }

    fn join_or_start<F>(&self, key: K, work: impl FnOnce() -> F) -> (Flight<V>, Role)
    where
        F: Future<Output = V> + Send + 'static,
    {
        let mut running = self.running.lock();
        if let Some(flight) = running.get(&key) {
            return (flight.clone(), Role::Joined);
        }
        let (answer, flight) = watch::channel(None);
        running.insert(key.clone(), flight.clone());
        // Unlock before `spawn`: a runtime that shuts down drops the task at once, and dropping `landing` takes the lock.
        drop(running);
        let landing = Landing { running: self.running.clone(), key };
        // The log lines of the work carry the id of the request that started it.
        let work = work().in_current_span();
        self.tasks.spawn(async move {
            // Dropped last, so that the result is published before the entry is removed.
            let _landing = landing;
            let answer = answer;
            let value = work.await;
            answer.send_replace(Some(value));
        });
        (flight, Role::Led)
    }
}

/// Removes the entry when it is dropped, also if the work panics or is stopped.
struct Landing<K: Eq + Hash, V> {
    running: Arc<Mutex<HashMap<K, Flight<V>>>>,
    key: K,
}

impl<K: Eq + Hash, V> Drop for Landing<K, V> {
    fn drop(&mut self) {
        self.running.lock().remove(&self.key);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use tokio::sync::Semaphore;

    use super::*;

    #[tokio::test]
    async fn requests_share_one_flight_even_when_the_first_one_leaves() {
        let flights = Arc::new(Flights::<&str, u32>::new(Tasks::new()));
        let (asked, gate) = (Arc::new(AtomicU32::new(0)), Arc::new(Semaphore::new(0)));
        let ask = || {
            let (flights, asked, gate) = (flights.clone(), asked.clone(), gate.clone());
            tokio::spawn(async move {
                flights
                    .run("key", || async move {
                        let _open = gate.acquire().await;
                        asked.fetch_add(1, Ordering::Relaxed) + 7
                    })
                    .await
            })
        };
        let first = ask();
        tokio::task::yield_now().await;
        let others: Vec<_> = (0..5).map(|_| ask()).collect();
        tokio::task::yield_now().await;
        first.abort();
        gate.add_permits(1);
        for other in others {
            assert_eq!(other.await.unwrap(), (Some(7), Role::Joined));
        }
        while !flights.running.lock().is_empty() {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn work_that_panics_or_stops_has_no_result_and_leaves_no_entry() {
        let tasks = Tasks::new();
        let flights = Flights::<u8, ()>::new(tasks.clone());
        assert_eq!(flights.run(1, || async { panic!("on purpose") }).await, (None, Role::Led));
        let stopped = tokio::join!(flights.run(2, std::future::pending), tasks.stop()).0;
        assert_eq!(stopped, (None, Role::Led));
        assert!(flights.running.lock().is_empty());
    }
}

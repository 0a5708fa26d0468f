//! Places for connections: how many may be open, and which connection is ended for a new one (*gives way*).
//!
//! If all places are taken, the connection that has been without a request for longest ends, as in nginx. A connection
//! with a request in progress stays. If no connection is unused, one ends that its client has half-closed before the
//! response began. If every connection has one, a few reserved places remain. They answer health
//! checks, and 503 to other requests.
//!
//! A request costs two atomic operations on the state of its own connection. The list of connections is locked only
//! when a connection opens or closes, and when one has to give way.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

/// Number of reserved places. They are used while all other places have a request in progress.
const RESERVED_PLACES: usize = 8;
/// Largest number of long unused connections that one search remembers, so that a flood of new connections needs few
/// searches.
const MAX_CANDIDATES: usize = 64;
/// Shortest time between two warnings that every place has a request in progress.
const WARNING_INTERVAL: Duration = Duration::from_secs(60);

/// The low bits of a state: the number of requests in progress. The others: microseconds from the start of the server
/// to the time since which the connection has been unused.
const COUNT_BITS: u32 = 16;
const COUNT_MASK: u64 = (1 << COUNT_BITS) - 1;
/// The state of a connection that has given way. Requests that begin afterwards do not reach [`COUNT_MASK`].
const GAVE_WAY: u64 = COUNT_MASK / 2;

/// All places of a server.
pub(super) struct Places {
    usual: Arc<Group>,
    reserved: Arc<Group>,
    /// Held while one new connection gets its place, so that another listener does not take the place that was freed
    /// for it.
    admission: tokio::sync::Mutex<Admission>,
}

#[derive(Default)]
struct Admission {
    /// When the last warning was logged.
    warned: Option<Instant>,
}

/// Places of one kind.
struct Group {
    free: Arc<Semaphore>,
    is_reserved: bool,
    /// Times in the states of the connections count from here.
    start: Instant,
    open: Mutex<OpenConnections>,
}

#[derive(Default)]
struct OpenConnections {
    next_key: u64,
    by_key: HashMap<u64, Arc<Activity>>,
    /// The longest unused connections at the last search, with their states. Every other connection has been used
    /// since.
    candidates: VecDeque<(u64, Arc<Activity>)>,
}

/// The place of one open connection. Dropping it frees the place.
pub(super) struct Place {
    group: Arc<Group>,
    key: u64,
    activity: Arc<Activity>,
    _permit: OwnedSemaphorePermit,
}

/// Whether a connection has a request in progress, or since when it has none. Written by the connection, and read when
/// a new connection needs a place.
pub(super) struct Activity {
    state: AtomicU64,
    /// The client has half-closed the connection, and its response has not begun.
    is_half_closed: AtomicBool,
    /// Times in the state count from here.
    start: Instant,
    /// Cancelled when the connection is to end: at once if it gave way, otherwise after the requests in progress.
    ending: CancellationToken,
}

/// A connection that waits although its client has ended its side.
struct HalfClosed<'a>(&'a Activity);

impl<'a> HalfClosed<'a> {
    fn begin(activity: &'a Activity) -> Self {
        activity.is_half_closed.store(true, Ordering::Release);
        Self(activity)
    }
}

impl Drop for HalfClosed<'_> {
    fn drop(&mut self) {
        self.0.is_half_closed.store(false, Ordering::Release);
    }
}

// === impl Places ===

impl Places {
    pub(super) fn new(max_connections: usize) -> Self {
        Self {
            usual: Group::new(max_connections, false),
            reserved: Group::new(RESERVED_PLACES, true),
            admission: tokio::sync::Mutex::default(),
        }
    }

    /// A place for a new connection. Waits only while all places, also the reserved ones, have a request in progress.
    /// `ending` must not be shared with another connection.
    pub(super) async fn take(&self, ending: CancellationToken) -> Place {
        let mut admission = self.admission.lock().await;
        let (group, permit) = match Group::admit(&self.usual).await {
            Some(permit) => (&self.usual, permit),
            None => {
                admission.warn();
                match Group::admit(&self.reserved).await {
                    Some(permit) => (&self.reserved, permit),
                    None => tokio::select! {
                        permit = Group::permit(&self.usual) => (&self.usual, permit),
                        permit = Group::permit(&self.reserved) => (&self.reserved, permit),
                    },
                }
            }
        };
        drop(admission);
        Group::open(group, permit, ending)
    }
}

impl Admission {
    fn warn(&mut self) {
        if self.warned.is_none_or(|last| last.elapsed() >= WARNING_INTERVAL) {
            self.warned = Some(Instant::now());
            tracing::warn!(
                "every connection has a request in progress; new ones get 503 until one ends; raise server.max_connections"
            );
        }
    }
}

// === impl Group ===

impl Group {
    fn new(places: usize, is_reserved: bool) -> Arc<Self> {
        let free = Arc::new(Semaphore::new(places));
        Arc::new(Self { free, is_reserved, start: Instant::now(), open: Mutex::default() })
    }

    /// A free place, or that of an unused connection, which gives way; `None` if all have a request in progress.
    async fn admit(group: &Arc<Self>) -> Option<OwnedSemaphorePermit> {
        if let Ok(permit) = group.free.clone().try_acquire_owned() {
            return Some(permit);
        }
        // The lock is not held across the wait.
        let gives_way = group.open.lock().end_one();
        if gives_way { Some(Self::permit(group).await) } else { None }
    }

    async fn permit(group: &Arc<Self>) -> OwnedSemaphorePermit {
        match group.free.clone().acquire_owned().await {
            Ok(permit) => permit,
            // The semaphore is never closed.
            Err(_) => std::future::pending().await,
        }
    }

    fn open(group: &Arc<Self>, permit: OwnedSemaphorePermit, ending: CancellationToken) -> Place {
        let state = AtomicU64::new(0);
        let activity = Arc::new(Activity { state, is_half_closed: AtomicBool::new(false), start: group.start, ending });
        activity.rest(Instant::now());
        let mut open = group.open.lock();
        let key = open.next_key;
        open.next_key += 1;
        open.by_key.insert(key, activity.clone());
        Place { group: group.clone(), key, activity, _permit: permit }
    }
}

// === impl OpenConnections ===

impl OpenConnections {
    /// Ends the connection that has been without a request for longest. If there is none, ends a
    /// half-closed connection, because its client may have left. False if there is none of either kind.
    fn end_one(&mut self) -> bool {
        self.end_longest_unused() || self.end_half_closed()
    }

    fn end_half_closed(&self) -> bool {
        self.by_key.values().any(|activity| {
            let gives_way = activity.is_half_closed.swap(false, Ordering::AcqRel);
            if gives_way {
                activity.state.store(GAVE_WAY, Ordering::Release);
                activity.ending.cancel();
            }
            gives_way
        })
    }

    fn end_longest_unused(&mut self) -> bool {
        if self.end_candidate() {
            return true;
        }
        let states = self.by_key.values().map(|activity| (activity.state.load(Ordering::Acquire), activity));
        let mut unused: Vec<_> = states.filter(|(state, _)| state & COUNT_MASK == 0).collect();
        if unused.len() > MAX_CANDIDATES {
            unused.select_nth_unstable_by_key(MAX_CANDIDATES, |(state, _)| *state);
            unused.truncate(MAX_CANDIDATES);
        }
        unused.sort_unstable_by_key(|(state, _)| *state);
        self.candidates = unused.into_iter().map(|(state, activity)| (state, activity.clone())).collect();
        self.end_candidate()
    }

    /// Ends the first candidate that has not been used since the search.
    fn end_candidate(&mut self) -> bool {
        while let Some((state, activity)) = self.candidates.pop_front() {
            if activity.state.compare_exchange(state, GAVE_WAY, Ordering::AcqRel, Ordering::Relaxed).is_ok() {
                activity.ending.cancel();
                return true;
            }
        }
        false
    }
}

// === impl Place ===

impl Place {
    pub(super) fn activity(&self) -> &Arc<Activity> {
        &self.activity
    }

    /// Whether the connection is at a reserved place, where it may send one request, a health check.
    pub(super) fn is_reserved(&self) -> bool {
        self.group.is_reserved
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // If the connection is still among the candidates, it must not be counted as one that gives way.
        self.activity.state.store(GAVE_WAY, Ordering::Release);
        self.group.open.lock().by_key.remove(&self.key);
    }
}

// === impl Activity ===

impl Activity {
    /// A request begins. False if the connection has given way: then it ends without a response.
    #[must_use]
    pub(super) fn begin(&self) -> bool {
        self.state.fetch_add(1, Ordering::AcqRel) & COUNT_MASK < GAVE_WAY
    }

    /// The only request of the connection has ended at this time. One store, for the fast path.
    pub(super) fn rest(&self, now: Instant) {
        self.state.store(self.unused_since(now), Ordering::Release);
    }

    /// One of several requests of the connection has ended.
    pub(super) fn end(&self) {
        let unused = self.unused_since(Instant::now());
        let ended = |state| Some(if state & COUNT_MASK == 1 { unused } else { state - 1 });
        let _ = self.state.fetch_update(Ordering::AcqRel, Ordering::Acquire, ended);
    }

    /// Marks the connection as half-closed until the future is dropped. Resolves when the connection has given way.
    pub(super) async fn half_closed(&self) {
        let _waiting = HalfClosed::begin(self);
        self.given_way().await;
    }

    /// Whether the connection has given way to another one.
    pub(super) fn gave_way(&self) -> bool {
        self.state.load(Ordering::Acquire) & COUNT_MASK >= GAVE_WAY
    }

    /// Resolves when the connection is to end without a response.
    pub(super) async fn given_way(&self) {
        self.ending.cancelled().await;
        if !self.gave_way() {
            std::future::pending().await
        }
    }

    /// Resolves when the connection is to end after the requests in progress.
    pub(super) fn ending(&self) -> &CancellationToken {
        &self.ending
    }

    fn unused_since(&self, now: Instant) -> u64 {
        let micros = now.saturating_duration_since(self.start).as_micros();
        u64::try_from(micros).unwrap_or(u64::MAX) << COUNT_BITS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn take(places: &Places) -> Place {
        places.take(CancellationToken::new()).await
    }

    /// Polls a waiting new connection once, and leaves it waiting.
    fn is_waiting<T>(future: std::pin::Pin<&mut impl Future<Output = T>>) -> bool {
        futures_util::FutureExt::now_or_never(future).is_none()
    }

    #[tokio::test]
    async fn the_longest_unused_connection_gives_way() {
        let places = Places::new(3);
        let (first, second, third) = (take(&places).await, take(&places).await, take(&places).await);
        // The first one was used after the others were opened, and the second one has a request in progress.
        assert!(first.activity().begin() && second.activity().begin());
        first.activity().rest(Instant::now() + Duration::from_millis(1));
        let mut newcomer = std::pin::pin!(take(&places));
        assert!(is_waiting(newcomer.as_mut()));
        assert!(third.activity().gave_way() && third.activity().ending().is_cancelled());
        assert!(!first.activity().gave_way() && !second.activity().gave_way());
        assert!(!third.activity().begin(), "a request that comes now is not served");
        drop(third);
        assert!(!newcomer.await.is_reserved());
    }

    #[tokio::test]
    async fn a_candidate_that_was_used_or_has_left_is_passed_over() {
        let places = Places::new(4);
        let mut held = Vec::new();
        for _ in 0..4 {
            held.push(take(&places).await);
        }
        let mut newcomer = Box::pin(take(&places));
        assert!(is_waiting(newcomer.as_mut()) && held[0].activity().gave_way());
        held.remove(0);
        held.push(newcomer.await);
        // Now the second one is used, and the third one leaves.
        assert!(held[0].activity().begin());
        held[0].activity().rest(Instant::now() + Duration::from_millis(1));
        held.remove(1);
        held.push(take(&places).await);
        let mut newcomer = Box::pin(take(&places));
        assert!(is_waiting(newcomer.as_mut()));
        let gave_way: Vec<bool> = held.iter().map(|place| place.activity().gave_way()).collect();
        assert_eq!(gave_way, [false, true, false, false]);
    }

    #[tokio::test]
    async fn reserved_places_are_left_when_every_connection_has_a_request() {
        let places = Places::new(2);
        let busy = [take(&places).await, take(&places).await];
        assert!(busy.iter().all(|place| place.activity().begin()));
        let mut reserved = Vec::new();
        for _ in 0..RESERVED_PLACES {
            reserved.push(take(&places).await);
        }
        assert!(reserved.iter().all(Place::is_reserved));
        let mut newcomer = Box::pin(take(&places));
        assert!(is_waiting(newcomer.as_mut()) && reserved[0].activity().gave_way(), "silent ones give way there, too");
        reserved.remove(0);
        assert!(newcomer.await.is_reserved());
        busy[1].activity().end();
        let mut newcomer = Box::pin(take(&places));
        assert!(is_waiting(newcomer.as_mut()) && busy[1].activity().gave_way() && !busy[0].activity().gave_way());
    }

    #[tokio::test]
    async fn a_connection_is_in_use_until_its_last_request_ends() {
        let places = Places::new(1);
        let place = take(&places).await;
        let in_use = || place.activity().state.load(Ordering::Acquire) & COUNT_MASK;
        assert!(place.activity().begin() && place.activity().begin());
        place.activity().end();
        assert_eq!(in_use(), 1);
        place.activity().end();
        assert_eq!(in_use(), 0);
        assert!(!place.activity().gave_way());
    }
}

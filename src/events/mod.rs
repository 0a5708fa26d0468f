//! What changed: one event for each change of the store, emitted after the change is durable.
//!
//! If a change is visible and its sync has failed, the operation fails and the event is emitted all the same: the second
//! attempt would find nothing to change, and subscribers must not miss a change that clients see.
//!
//! Each operation emits its event at one place. An *observer* is called in line with the change and misses nothing; it
//! must be quick and must not block. Metrics are an observer, so that a counter is exact. A *stream* is for everything
//! else: it is bounded, and a subscriber that falls behind learns how many events it missed.

use std::fmt;
use std::sync::Arc;

use tokio::sync::broadcast;

use crate::oci::{Digest, RepoId, Tag};

/// Events that a stream holds for its slowest subscriber. Beyond that the oldest are dropped.
const STREAM_EVENTS: usize = 1024;

/// A change of the store. Events of mirrored repositories are about cached content, those of local ones about pushes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoreEvent {
    /// A manifest was stored in a repository, for the first time or again. The tags that move with it have events of their own,
    /// which follow.
    ManifestStored {
        repo: RepoId,
        digest: Digest,
        media_type: String,
        bytes: u64,
    },
    /// A manifest was removed from a repository: by a client, by the collector, or with its evicted content.
    ManifestRemoved {
        repo: RepoId,
        digest: Digest,
    },
    /// A tag points to another manifest than before. `previous` is `None` for a new tag.
    TagMoved {
        repo: RepoId,
        tag: Tag,
        digest: Digest,
        previous: Option<Digest>,
    },
    TagRemoved {
        repo: RepoId,
        tag: Tag,
    },
    /// A blob became part of a local repository, by an upload or by a mount.
    BlobPushed {
        repo: RepoId,
        digest: Digest,
        bytes: u64,
    },
    /// A blob is no longer part of a local repository. Its content may still be part of others.
    BlobRemoved {
        repo: RepoId,
        digest: Digest,
    },
    /// A blob was fetched from an upstream and is cached.
    BlobCached {
        repo: RepoId,
        digest: Digest,
        bytes: u64,
    },
    /// Cached content was removed to make room.
    Evicted {
        digest: Digest,
        bytes: u64,
        reason: EvictionReason,
    },
    /// Pushed content that no repository refers to was removed.
    Collected {
        digest: Digest,
        bytes: u64,
    },
    /// The file of some content did not have its digest, and was moved to `quarantine/`.
    Quarantined {
        digest: Digest,
    },
}

/// Why content was evicted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EvictionReason {
    /// The cache exceeded `cache.max_size`.
    Size,
    /// The disk had less room than `cache.min_free`, whatever took it.
    Disk,
}

impl EvictionReason {
    pub const ALL: [Self; 2] = [Self::Size, Self::Disk];

    /// The value of the metric label `reason`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Size => "size",
            Self::Disk => "disk",
        }
    }
}

/// Called for each event, in line with the change.
pub type Observer = Box<dyn Fn(&StoreEvent) + Send + Sync>;

/// Where events are emitted. Clones share it.
#[derive(Clone)]
pub struct Events {
    shared: Arc<Shared>,
}

struct Shared {
    observers: Vec<Observer>,
    stream: broadcast::Sender<Arc<StoreEvent>>,
}

/// The events from the time of the subscription on.
#[derive(Debug)]
pub struct EventStream(broadcast::Receiver<Arc<StoreEvent>>);

/// What a stream yields.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Received {
    Event(Arc<StoreEvent>),
    /// The subscriber was too slow: so many events were dropped here.
    Missed(u64),
}

// === impl Events ===

impl Events {
    pub fn new(observers: Vec<Observer>) -> Self {
        let (stream, _) = broadcast::channel(STREAM_EVENTS);
        Self { shared: Arc::new(Shared { observers, stream }) }
    }

    /// Sends the event to observers and subscribers. Never waits. Call it after the change is durable.
    pub fn emit(&self, event: StoreEvent) {
        for observer in &self.shared.observers {
            observer(&event);
        }
        if self.shared.stream.receiver_count() > 0 {
            // An error means that the last subscriber has just left.
            let _ = self.shared.stream.send(Arc::new(event));
        }
    }

    pub fn subscribe(&self) -> EventStream {
        EventStream(self.shared.stream.subscribe())
    }
}

impl Default for Events {
    /// Without observers.
    fn default() -> Self {
        Self::new(Vec::new())
    }
}

impl fmt::Debug for Events {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Events").field("observers", &self.shared.observers.len()).finish_non_exhaustive()
    }
}

// === impl EventStream ===

impl EventStream {
    /// The next event; `None` once the store is gone.
    pub async fn next(&mut self) -> Option<Received> {
        match self.0.recv().await {
            Ok(event) => Some(Received::Event(event)),
            Err(broadcast::error::RecvError::Lagged(missed)) => Some(Received::Missed(missed)),
            Err(broadcast::error::RecvError::Closed) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::oci::Algorithm;

    fn quarantined(number: usize) -> StoreEvent {
        StoreEvent::Quarantined { digest: Digest::of(Algorithm::Sha256, &number.to_be_bytes()) }
    }

    #[tokio::test]
    async fn a_slow_subscriber_learns_what_it_missed_and_an_observer_misses_nothing() {
        let observed = Arc::new(AtomicUsize::new(0));
        let counter = observed.clone();
        let count: Observer = Box::new(move |_| {
            counter.fetch_add(1, Ordering::Relaxed);
        });
        let events = Events::new(vec![count]);
        events.emit(quarantined(0));
        let mut stream = events.subscribe();
        for number in 1..=STREAM_EVENTS + 3 {
            events.emit(quarantined(number));
        }
        assert_eq!(observed.load(Ordering::Relaxed), STREAM_EVENTS + 4);
        assert_eq!(stream.next().await, Some(Received::Missed(3)));
        assert_eq!(stream.next().await, Some(Received::Event(Arc::new(quarantined(4)))));
        drop(events);
        let mut rest = 0;
        while stream.next().await.is_some() {
            rest += 1;
        }
        assert_eq!(rest, STREAM_EVENTS - 1);
    }
}

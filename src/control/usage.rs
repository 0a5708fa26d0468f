//! `du`: disk usage by upstream and repository.

use super::lines::Event;
use crate::store::{Store, StoreError, UsageEvent};

impl Event for UsageEvent {
    fn is_progress(&self) -> bool {
        matches!(self, Self::Progress { .. })
    }
}

/// Walks the store. Calls `sink` with the usage, on a blocking thread. If `sink` returns false, the walk ends.
pub async fn usage(store: Store, sink: impl FnMut(UsageEvent) -> bool + Send + 'static) -> Result<(), StoreError> {
    store.usage(sink).await
}

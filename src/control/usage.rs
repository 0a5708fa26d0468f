//! `du`: what takes how much room.

use super::lines::Event;
use crate::store::{Store, StoreError, UsageEvent};

impl Event for UsageEvent {
    fn is_progress(&self) -> bool {
        matches!(self, Self::Progress { .. })
    }
}

/// Tells `sink`, on a blocking thread, what takes how much room, until it returns false.
pub async fn usage(store: Store, sink: impl FnMut(UsageEvent) -> bool + Send + 'static) -> Result<(), StoreError> {
    store.usage(sink).await
}

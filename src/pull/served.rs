//! A manifest to serve, and how the engine obtained it.

use std::sync::Arc;

use super::flight::Role;
use crate::store::StoredManifest;
use crate::telemetry::CacheResult;

/// A manifest to serve.
#[derive(Clone, Debug)]
pub struct Served {
    pub manifest: Arc<StoredManifest>,
    pub result: CacheResult,
    /// The tag could not be confirmed in time (RFC 9111, 4.2.4), by this server or by an upstream that is a Roadstead.
    pub stale: bool,
}

impl Served {
    pub fn new(manifest: Arc<StoredManifest>, result: CacheResult) -> Self {
        Self { manifest, result, stale: result == CacheResult::Stale }
    }

    pub(super) fn or_stale(mut self, stale: bool) -> Self {
        self.stale |= stale;
        self
    }

    /// Sets the cache result of one of the requests that shared a flight. A request that joined a miss did not cause it.
    pub(super) fn counted_for(mut self, role: Role) -> Self {
        if role == Role::Joined && self.result == CacheResult::Miss {
            self.result = CacheResult::Joined;
        }
        self
    }
}

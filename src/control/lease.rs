//! `backup-lease`: leases that hold back removals of content while a backup copies it.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::config::format_duration;
use crate::store::Store;

/// Maximum duration of a lease. A longer backup renews its lease.
pub const MAX_LEASE_TIME: Duration = Duration::from_secs(7 * 24 * 60 * 60);

/// The request of `POST /v1/lease`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LeaseRequest {
    /// The name of the lease. Taking a lease again renews it.
    pub name: String,
    /// The duration of the lease without a renewal, in seconds.
    pub seconds: u64,
    /// The request renews the lease. The response then says whether the lease was still held.
    pub renew: bool,
}

/// The response of `POST /v1/lease`.
#[derive(Debug, Serialize, Deserialize)]
pub struct Lease {
    /// False if the request renews a lease that was no longer held. The lease is held again from now on.
    pub unbroken: bool,
}

/// The request of `POST /v1/release`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReleaseRequest {
    pub name: String,
}

/// The response of `POST /v1/release`.
#[derive(Debug, Serialize, Deserialize)]
pub struct Released {
    pub was_held: bool,
}

/// Takes or renews a lease. The lease is held when this returns.
///
/// # Errors
/// A text, if the time is too long or the task panicked.
pub async fn take(store: Store, request: LeaseRequest) -> Result<Lease, String> {
    let time = Duration::from_secs(request.seconds);
    if time > MAX_LEASE_TIME {
        return Err(format!(
            "a lease lasts at most {}; take a shorter one and renew it",
            format_duration(MAX_LEASE_TIME)
        ));
    }
    let LeaseRequest { name, renew, .. } = request;
    // Taking a lease waits for an unlink in progress.
    let held = tokio::task::spawn_blocking(move || {
        let held = store.hold_deletions(&name, time);
        if !held {
            tracing::info!(name, seconds = time.as_secs(), "a backup lease holds back removals of content");
        }
        held
    });
    let was_held = held.await.map_err(|error| error.to_string())?;
    Ok(Lease { unbroken: was_held || !renew })
}

/// Ends a lease.
pub fn release(store: &Store, request: &ReleaseRequest) -> Released {
    let was_held = store.release_deletions(&request.name);
    tracing::info!(name = request.name, "released a backup lease");
    Released { was_held }
}

//! `backup-lease`: nothing that a backup may still copy is unlinked.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::config::format_duration;
use crate::store::Store;

/// A backup that takes longer renews its lease.
pub const LONGEST: Duration = Duration::from_secs(7 * 24 * 60 * 60);

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Question {
    /// Whose lease: taking it again renews it.
    pub name: String,
    pub seconds: u64,
    /// Only renew: whoever has copied under a lease that is gone has copied without one.
    pub renew: bool,
}

#[derive(Debug, Serialize, Deserialize)]
pub struct Lease {
    /// False when a lease was to be renewed that was not held any more. It is held again.
    pub unbroken: bool,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Release {
    pub name: String,
}

#[derive(Debug, Serialize, Deserialize)]
pub struct Released {
    pub was_held: bool,
}

/// Takes or renews a lease; what it answers with is true from before the answer.
pub async fn take(store: Store, question: Question) -> Result<Lease, String> {
    let time = Duration::from_secs(question.seconds);
    if time > LONGEST {
        return Err(format!("a lease lasts at most {}", format_duration(LONGEST)));
    }
    let Question { name, renew, .. } = question;
    // It waits for an unlink that is under way.
    let held = tokio::task::spawn_blocking(move || {
        let held = store.hold_deletions(&name, time);
        if !held {
            tracing::info!(name, seconds = time.as_secs(), "a backup lease holds deletions of content: {name}");
        }
        held
    });
    let was_held = held.await.map_err(|error| error.to_string())?;
    Ok(Lease { unbroken: was_held || !renew })
}

pub fn release(store: &Store, question: &Release) -> Released {
    let was_held = store.release_deletions(&question.name);
    tracing::info!(name = question.name, "the backup lease {} has ended", question.name);
    Released { was_held }
}

//! Fills: each transfers one blob from its source into the store, while any number of followers read it.
//!
//! - `registry`: the running fills, their followers, and the cancelling of orphans. `job`: the data of one fill.
//! - `run`: the task of one fill. It takes a slot, makes attempts, commits the blob, and publishes the outcome.
//! - `attempt`: one spool file, its hash, and its verification.
//! - `segments`: which bytes of the file were received, are being received, or are wanted. `window`: how far ahead.
//! - `transfer`: the transfers that receive the segments. `inflow`: the bytes of one of them, at least at `min_rate`
//!   (`pace`). `resume`: requests a segment, and its rest after an interruption.
//! - `progress`: the state of the fill, as it publishes it. `follower`: a request that reads the file.

mod attempt;
mod follower;
mod inflow;
mod job;
mod pace;
mod progress;
mod registry;
mod resume;
mod run;
mod segments;
#[cfg(test)]
mod tests;
mod transfer;
mod window;

use std::sync::Arc;

use super::context::Context;
use super::slots::Slots;
use crate::oci::Digest;
use crate::tasks::Tasks;
use registry::{Entered, Registry};
use run::Run;

pub use follower::Follower;
pub(super) use follower::{Readiness, Start};
pub(super) use registry::{Following, Requester};
pub(super) use segments::MAX_WAIT_DISTANCE_BYTES;
pub(super) use window::window;

/// All fills of the engine.
pub(super) struct Fills {
    registry: Arc<Registry>,
    context: Arc<Context>,
    tasks: Tasks,
}

/// How a request takes part in a fill.
pub(super) enum Joined {
    /// The request started the fill.
    Led(Following),
    /// The fill was already running.
    Followed(Following),
    /// The running fill uses another source. The requester must first prove that its own repository has the blob.
    NeedsProof,
}

impl Fills {
    pub(super) fn new(context: Arc<Context>, slots: Slots, tasks: Tasks) -> Self {
        Self { registry: Arc::new(Registry::new(slots)), context, tasks }
    }

    /// Whether a fill of this digest is running.
    pub(super) fn is_running(&self, digest: &Digest) -> bool {
        self.registry.is_running(digest)
    }

    /// Follows the fill of `digest`. If none is running, starts one from the requester's source.
    pub(super) fn join(&self, digest: &Digest, requester: &Requester) -> Joined {
        match self.registry.enter(digest, requester) {
            Entered::NeedsProof => Joined::NeedsProof,
            Entered::Followed(following) => Joined::Followed(following),
            Entered::Led { following, entry, publisher } => {
                let run = Run::new(&self.context, &self.registry, requester.source.clone(), &following, publisher);
                self.tasks.spawn(async move {
                    // The entry is dropped after the outcome is published, and also if the task panics or is stopped.
                    let _entry = entry;
                    run.run().await;
                });
                Joined::Led(following)
            }
        }
    }

    /// Cancels all fills without followers.
    pub(super) fn abandon_orphans(&self) {
        self.registry.abandon_orphans();
    }
}

//! Fills: each brings one blob from its source into the store, while any number of followers read it.
//!
//! - `registry`: which fills run, how many clients follow them, and which are abandoned. `job`: what one fill works with.
//! - `run`: the task of one fill. It takes a slot, makes attempts, commits the blob, and publishes the outcome.
//! - `attempt`: one spool file from byte zero, its hash, and its verification.
//! - `segment`: which bytes of the file are missing. `transfer` brings them, at least at `min_rate` (`pace`), and `resume`
//!   requests the rest after an interruption.
//! - `progress`: what may be read of the file, as the fill publishes it. `follower`: a client that reads it.
//!
//! An attempt has one segment today, the complete blob, and what may be read is one range that ends at the mark. Several
//! segments over one file need changes in three places: `attempt` (a list of segments, and which transfer serves which),
//! `Extent` in `progress` (what may be read around a position), and the spool (writes at a position). Followers, sources and
//! `resume` stay as they are.

mod attempt;
mod follower;
mod job;
mod pace;
mod progress;
mod registry;
mod resume;
mod run;
mod segment;
#[cfg(test)]
mod tests;
mod transfer;

use std::sync::Arc;

use super::context::Context;
use super::slots::Slots;
use crate::oci::Digest;
use crate::tasks::Tasks;
use registry::{Entered, Registry};
use run::Run;

pub use follower::Follower;
pub(super) use follower::Start;
pub(super) use registry::{Following, Requester};

/// All fills of the engine.
pub(super) struct Fills {
    registry: Arc<Registry>,
    context: Arc<Context>,
    tasks: Tasks,
}

/// How a request takes part in a fill.
pub(super) enum Joined {
    /// It started the fill.
    Led(Following),
    /// The fill was running.
    Followed(Following),
    /// The fill runs with other rights: the requester needs a proof that its own repository has the blob.
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

    /// Follows the fill of `digest`, and starts it from the requester's source if none is running.
    pub(super) fn join(&self, digest: &Digest, requester: &Requester) -> Joined {
        match self.registry.enter(digest, requester) {
            Entered::NeedsProof => Joined::NeedsProof,
            Entered::Followed(following) => Joined::Followed(following),
            Entered::Led { following, entry, publisher } => {
                let run = Run::new(&self.context, &self.registry, requester.source.clone(), &following, publisher);
                self.tasks.spawn(async move {
                    // Dropped after the outcome is published, and also if the task panics or is stopped.
                    let _entry = entry;
                    run.run().await;
                });
                Joined::Led(following)
            }
        }
    }

    /// Abandons all fills without followers.
    pub(super) fn abandon_orphans(&self) {
        self.registry.abandon_orphans();
    }
}

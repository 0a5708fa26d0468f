//! Upkeep: the walks over the whole store. They run beside requests and can be stopped.
//!
//! A walk looks and decides; what it changes, it changes by operations of `local`, each under the locks of what it touches.

mod collector;
mod reconcile;
mod scrub;
mod sweep;
mod usage;

pub use collector::{CollectRules, Collected};
pub use scrub::{Finding, Problem, ScrubPart, ScrubPlace, ScrubWatch};
pub use sweep::Swept;
pub use usage::{Amount, DiskUsage, RepositoryUsage, ScopeUsage, StoredAmount, TotalUsage, UsageEvent};

pub(in crate::store) use collector::collect;
pub(in crate::store) use reconcile::reconcile;
pub(in crate::store) use scrub::{keep_scrub_place, scrub, scrub_place};
pub(in crate::store) use sweep::sweep;
pub(in crate::store) use usage::usage;

//! What the process says about itself: metrics and logs.

mod families;
pub mod logs;
pub mod metrics;
mod outcome;
mod series;

pub use metrics::{InFlight, Metrics};
pub use outcome::{CacheResult, ContentKind, StorageClass};

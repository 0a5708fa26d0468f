//! What the process says about itself: metrics and logs.

mod families;
pub mod logs;
mod metrics;
mod outcome;
mod series;
mod writer;

pub use metrics::{InFlight, Metrics};
pub use outcome::{CacheResult, ContentKind, StorageClass};
pub use writer::FlushGuard;

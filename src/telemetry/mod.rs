//! Metrics and logs of the process.

mod families;
mod log_fields;
pub mod logs;
mod metrics;
mod observer;
mod outcome;
#[cfg(test)]
mod reference;
mod request;
mod series;
#[cfg(test)]
mod shared_output;
mod storage;
mod writer;

pub use metrics::{InFlight, Metrics};
pub use outcome::{CacheResult, ContentKind, StorageClass};
pub use request::{REQUEST_ID, RequestTrace};
pub use storage::{DiskReading, StorageReading};
pub use writer::{FlushGuard, LineWriter};

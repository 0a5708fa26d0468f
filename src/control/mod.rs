//! What an operator asks of a running server: `control.sock` in the data folder, for the user who runs the server alone.
//!
//! HTTP/1.1 over a Unix socket. Each operation is `POST /v1/<operation>` with a JSON object; it answers with one, or, if it
//! takes long, with one a line as it goes (`lines`). An operation is a function on a [`Store`](crate::store::Store), so the
//! command line runs the same one on a folder that nobody serves.

pub mod explain;
pub mod gc;
pub mod lease;
pub mod lines;
mod routes;
pub mod scrub;
mod socket;
pub mod usage;
mod wanted;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::time::Instant;

use crate::config::Config;
use crate::pull::Puller;
use crate::store::Store;
use crate::tasks::Tasks;
use crate::telemetry::Metrics;

pub use socket::ControlSocket;

/// What the operations work with.
pub struct Control {
    pub store: Store,
    pub config: Arc<Config>,
    pub metrics: Arc<Metrics>,
    pub puller: Puller,
    /// When the server began.
    pub since: Instant,
    /// Own what an operation starts.
    pub tasks: Tasks,
}

/// Where the server of a data folder listens.
pub fn path(data: &Path) -> PathBuf {
    data.join("control.sock")
}

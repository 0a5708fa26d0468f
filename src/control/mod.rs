//! Operations on a running server, over `control.sock` in the data folder. Only the user that runs the server can connect.
//!
//! The protocol is HTTP/1.1 over a Unix socket. Each operation is `POST /v1/<operation>` with a JSON object. Its response is a
//! JSON object. A long operation sends a JSON object for each event (`lines`). An operation is a function on a
//! [`Store`](crate::store::Store), so that a command can call it on a data folder without a running server.

pub mod explain;
mod explain_query;
pub mod gc;
pub mod import;
pub mod lease;
pub mod lines;
pub mod machine_tokens;
pub mod reload;
mod routes;
pub mod scrub;
mod socket;
pub mod usage;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::time::Instant;

use crate::access::MachineTokens;
use crate::audit::{Audit, Event, Record};
use crate::config::Config;
use crate::pull::Puller;
use crate::store::Store;
use crate::tasks::Tasks;
use crate::telemetry::Metrics;

pub use reload::{ConfigSource, Reloader};
pub use socket::ControlSocket;

/// The parts of the server that the operations use.
pub struct Control {
    pub store: Store,
    pub config: Arc<Config>,
    pub metrics: Arc<Metrics>,
    pub puller: Puller,
    pub audit: Audit,
    pub reloader: Arc<Reloader>,
    /// `None` without `[auth]`.
    pub machine_tokens: Option<Arc<MachineTokens>>,
    /// The time at which the server was started.
    pub since: Instant,
    /// The group of the tasks that an operation starts.
    pub tasks: Tasks,
}

/// The kind of credentials of an operator in the audit log: the permission to open the socket.
const SOCKET: &str = "socket";

impl Control {
    /// Records an operation that changes something.
    fn record(&self, operation: &'static str, outcome: &'static str) {
        let (reference, outcome) = (Some(operation.into()), Some(outcome.into()));
        self.audit.write(&Record { how: Some(SOCKET), reference, outcome, ..Record::new(Event::Admin) });
    }
}

/// Returns the path of the socket of a data folder.
pub fn socket_path(data: &Path) -> PathBuf {
    data.join("control.sock")
}

//! The socket: creates it at the start, serves its connections, and removes it at the stop.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use http::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use socket2::{Domain, SockAddr, Socket, Type};
use tokio::net::UnixListener;
use tokio::sync::Semaphore;
use tower_service::Service;

use super::{Control, routes, socket_path};

/// Maximum number of connections that wait to be accepted.
const BACKLOG: i32 = 64;
/// Maximum number of open connections.
const MAX_CONNECTIONS: usize = 16;
/// Maximum time to receive the headers of a request.
const HEADERS_TIMEOUT: Duration = Duration::from_secs(15);
/// The pause after a failure to accept a connection.
const ACCEPT_RETRY_PAUSE: Duration = Duration::from_millis(100);

/// The file of the socket. Drop removes it. It must be dropped before the lock of the data folder is released, because after
/// that the file may belong to the next server.
#[derive(Debug)]
pub struct ControlSocket(PathBuf);

impl ControlSocket {
    /// Listens in the data folder. The caller holds the lock of the folder. If that fails, logs a warning and returns `None`,
    /// because the server can run without the socket.
    pub fn listen(data: &Path, control: Arc<Control>) -> Option<Self> {
        let path = socket_path(data);
        let listener = match bind(&path) {
            Ok(listener) => listener,
            Err(error) => {
                let path = path.display();
                tracing::warn!(%path, %error, "cannot listen for commands; du, gc, scrub, token and explain need a stopped server");
                return None;
            }
        };
        let tasks = control.tasks.clone();
        tasks.spawn(accept(listener, control));
        Some(Self(path))
    }
}

impl Drop for ControlSocket {
    fn drop(&mut self) {
        // If this fails, the next start removes the file.
        let _ = fs::remove_file(&self.0);
    }
}

fn bind(path: &Path) -> io::Result<UnixListener> {
    // The caller holds the lock of the folder, so an existing file is from a server that has ended.
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.bind(&SockAddr::unix(path)?)?;
    // No client can connect before the socket listens.
    fs::set_permissions(path, Permissions::from_mode(0o600))?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    UnixListener::from_std(socket.into())
}

async fn accept(listener: UnixListener, control: Arc<Control>) {
    let router = routes::router(control.clone());
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let Ok(slot) = slots.clone().acquire_owned().await else { return };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::error!(%error, "cannot accept a connection on control.sock");
                tokio::time::sleep(ACCEPT_RETRY_PAUSE).await;
                continue;
            }
        };
        let router = router.clone();
        let service = service_fn(move |request: Request<Incoming>| router.clone().call(request.map(Body::new)));
        let mut builder = http1::Builder::new();
        builder.timer(TokioTimer::new()).header_read_timeout(HEADERS_TIMEOUT);
        let connection = builder.serve_connection(TokioIo::new(stream), service);
        control.tasks.spawn(async move {
            let _slot = slot;
            if let Err(error) = pin!(connection).await {
                tracing::debug!(%error, "a connection to control.sock failed");
            }
        });
    }
}

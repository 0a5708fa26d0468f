//! The socket: made at the start, gone at the stop, and who comes in by it.

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

use super::{Control, path, routes};

const BACKLOG: i32 = 16;
/// Connections at once.
const MOST: usize = 16;
const HEAD_WITHIN: Duration = Duration::from_secs(15);
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The socket's file, removed when this is dropped: before the folder's lock, or it may be the next server's.
#[derive(Debug)]
pub struct ControlSocket(PathBuf);

impl ControlSocket {
    /// Listens in the data folder, whose lock the caller holds. A server is of use without it: that it cannot is said once.
    pub fn listen(data: &Path, control: Arc<Control>) -> Option<Self> {
        let path = path(data);
        let listener = match bind(&path) {
            Ok(listener) => listener,
            Err(error) => {
                let shown = path.display();
                tracing::warn!(%error, "cannot listen on {shown}: {error}; du, scrub and the like work after a stop only");
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
        // What is left is removed by the next start.
        let _ = fs::remove_file(&self.0);
    }
}

fn bind(path: &Path) -> io::Result<UnixListener> {
    // Whoever listened there is gone, for the folder is ours.
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.bind(&SockAddr::unix(path)?)?;
    // Nobody can connect before it listens.
    fs::set_permissions(path, Permissions::from_mode(0o600))?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    UnixListener::from_std(socket.into())
}

async fn accept(listener: UnixListener, control: Arc<Control>) {
    let router = routes::router(control.clone());
    let slots = Arc::new(Semaphore::new(MOST));
    loop {
        let Ok(slot) = slots.clone().acquire_owned().await else { return };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::error!(%error, "cannot accept on control.sock: {error}");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let router = router.clone();
        let service = service_fn(move |request: Request<Incoming>| router.clone().call(request.map(Body::new)));
        let mut builder = http1::Builder::new();
        builder.timer(TokioTimer::new()).header_read_timeout(HEAD_WITHIN);
        let connection = builder.serve_connection(TokioIo::new(stream), service);
        control.tasks.spawn(async move {
            let _slot = slot;
            if let Err(error) = pin!(connection).await {
                tracing::debug!(%error, "a connection to control.sock ended: {error}");
            }
        });
    }
}

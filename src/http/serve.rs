//! The accept loop: connections, how many, with which bounds, and how they end.

use std::future::Future;
use std::io;
use std::net::{SocketAddr, TcpListener as StdListener};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use http::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tower_service::Service;

use super::body::Guarded;
use super::connection::{Deadlines, Requests, TimedStream};
use crate::config::{ListenAddr, ServerConfig};
use crate::tasks::Tasks;

/// What one connection may hold on its way in and, beside one frame, on its way out.
const BUFFER: usize = 128 << 10;
const BACKLOG: i32 = 1024;
/// Pause after an accept that failed for want of descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The sockets of an address, bound and listening.
pub struct Listeners {
    sockets: Vec<TcpListener>,
}

/// Connections of all listeners.
pub struct Server {
    config: ServerConfig,
    router: Router,
    tasks: Tasks,
}

// === impl Listeners ===

impl Listeners {
    /// Binds every address that `listen` means; an address family that this machine lacks is left out if another is there.
    pub fn bind(listen: &ListenAddr) -> io::Result<Self> {
        let mut sockets = Vec::new();
        let mut failure = None;
        for mut address in listen.socket_addrs()? {
            // With port 0, the second family takes the port that the first one got.
            if let (0, Some(first)) = (address.port(), sockets.first().map(TcpListener::local_addr)) {
                address.set_port(first?.port());
            }
            match bind(address) {
                Ok(socket) => sockets.push(TcpListener::from_std(socket)?),
                Err(error) if error.raw_os_error() == Some(rustix::io::Errno::AFNOSUPPORT.raw_os_error()) => {
                    failure = Some(error);
                }
                Err(error) if address.is_ipv6() && error.kind() == io::ErrorKind::AddrNotAvailable => {
                    failure = Some(error);
                }
                Err(error) => return Err(error),
            }
        }
        match failure {
            Some(error) if sockets.is_empty() => Err(error),
            None if sockets.is_empty() => Err(io::ErrorKind::AddrNotAvailable.into()),
            _ => Ok(Self { sockets }),
        }
    }

    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.sockets.first().ok_or(io::ErrorKind::AddrNotAvailable)?.local_addr()
    }
}

fn bind(address: SocketAddr) -> io::Result<StdListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

// === impl Server ===

impl Server {
    pub fn new(config: ServerConfig, router: Router, tasks: Tasks) -> Self {
        Self { config, router, tasks }
    }

    /// Accepts until `stop` resolves, then lets running requests end for up to `drain_timeout`.
    pub async fn run(self, listeners: Listeners, stop: impl Future<Output = ()>) {
        let server = Arc::new(self);
        let graceful = Arc::new(GracefulShutdown::new());
        let accepting = Tasks::new();
        let slots = Arc::new(Semaphore::new(server.config.max_connections));
        for socket in listeners.sockets {
            let (server, graceful, slots) = (server.clone(), graceful.clone(), slots.clone());
            accepting.spawn(async move { server.accept(socket, slots, &graceful).await });
        }
        stop.await;
        // The listeners close with their tasks: a client that comes now is refused and can go elsewhere.
        accepting.stop().await;
        if let Some(graceful) = Arc::into_inner(graceful)
            && tokio::time::timeout(server.config.drain_timeout, graceful.shutdown()).await.is_err()
        {
            tracing::warn!("some transfers did not end in time and are cut");
        }
    }

    async fn accept(self: &Arc<Self>, socket: TcpListener, slots: Arc<Semaphore>, graceful: &GracefulShutdown) {
        loop {
            let Ok(slot) = slots.clone().acquire_owned().await else { return };
            match socket.accept().await {
                Ok((stream, _peer)) => self.connect(stream, slot, graceful),
                Err(error) if is_of_the_connection(&error) => {}
                Err(error) => {
                    tracing::error!(%error, "cannot accept connections: {error}");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    fn connect(self: &Arc<Self>, stream: TcpStream, slot: OwnedSemaphorePermit, graceful: &GracefulShutdown) {
        // Without it a small answer may wait 40 ms for the client's acknowledgement.
        let _ = stream.set_nodelay(true);
        let requests = Arc::new(Requests::default());
        let deadlines = Deadlines {
            head: self.config.head_timeout,
            idle: self.config.keep_alive,
            progress: self.config.progress_timeout,
        };
        let io = TokioIo::new(TimedStream::new(stream, deadlines, requests.clone()));
        let router = self.router.clone();
        let service = service_fn(move |request: Request<Incoming>| {
            let guard = requests.begin();
            let answer = router.clone().call(request.map(Body::new));
            async move { answer.await.map(|response| response.map(|body| Guarded::wrap(body, guard))) }
        });
        // HTTP/1.1 only: HTTP/2 comes with TLS, where clients speak it, and has to be bounded by stream then.
        let mut builder = http1::Builder::new();
        builder.max_buf_size(BUFFER).timer(TokioTimer::new()).header_read_timeout(None);
        let connection = graceful.watch(builder.serve_connection(io, service));
        self.tasks.spawn(async move {
            let _slot = slot;
            if let Err(error) = pin!(connection).await {
                tracing::debug!(%error, "a connection ended: {error}");
            }
        });
    }
}

/// Errors that are the peer's and say nothing about the next one.
fn is_of_the_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset | io::ErrorKind::ConnectionRefused
    )
}

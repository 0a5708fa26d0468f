//! The accept loop: listening sockets, the number of connections, and how they end.

use std::future::Future;
use std::io;
use std::net::{SocketAddr, TcpListener as StdListener};
use std::sync::Arc;
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::Site;
use super::connection::Deadlines;
use super::places::{Place, Places};
use super::protocols::Connections;
use super::tls::Certificates;
use crate::access::TrustedProxies;
use crate::config::{ListenAddr, ServerConfig};
use crate::tasks::Tasks;

/// Connections that the kernel queues before they are accepted.
const BACKLOG: i32 = 1024;
/// Pause after an accept that failed because descriptors or memory were lacking.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The listening sockets of an address.
pub struct Listeners {
    sockets: Vec<TcpListener>,
}

/// Serves the connections of all listeners.
pub struct Server {
    config: ServerConfig,
    connections: Connections,
    tasks: Tasks,
    /// Cancelled when connections are to end after the requests in progress.
    draining: CancellationToken,
    /// The open connections.
    open: TaskTracker,
}

// === impl Listeners ===

impl Listeners {
    /// Binds every address that `listen` means. An address family that the machine lacks is left out if another one works.
    pub fn bind(listen: &ListenAddr) -> io::Result<Self> {
        let mut sockets = Vec::new();
        let mut failure = None;
        for mut address in listen.socket_addrs()? {
            // With port 0, the second address family uses the port that the first one got.
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

    /// Uses listening sockets that another program has opened.
    ///
    /// # Errors
    /// If there is none, or one of them cannot be used without blocking.
    pub fn inherit(sockets: Vec<StdListener>) -> io::Result<Self> {
        if sockets.is_empty() {
            return Err(io::ErrorKind::AddrNotAvailable.into());
        }
        let adopt = |socket: StdListener| {
            socket.set_nonblocking(true)?;
            TcpListener::from_std(socket)
        };
        Ok(Self { sockets: sockets.into_iter().map(adopt).collect::<io::Result<_>>()? })
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
    /// With `certificates`, every connection uses TLS.
    pub fn new(config: ServerConfig, site: Site, certificates: Option<Certificates>, tasks: Tasks) -> Self {
        let deadlines =
            Deadlines { headers: config.head_timeout, idle: config.keep_alive, progress: config.progress_timeout };
        let proxies = TrustedProxies::new(&config.trusted_proxies);
        let connections = Connections::new(site, deadlines, certificates, proxies, tasks.clone());
        Self { config, connections, tasks, draining: CancellationToken::new(), open: TaskTracker::new() }
    }

    /// Accepts connections until `stop` resolves, then waits up to `drain_timeout` for requests in progress.
    pub async fn run(self, listeners: Listeners, stop: impl Future<Output = ()>) {
        let server = Arc::new(self);
        let accepting = Tasks::new();
        let places = Arc::new(Places::new(server.config.max_connections));
        for socket in listeners.sockets {
            let (server, places) = (server.clone(), places.clone());
            accepting.spawn(async move { server.accept(socket, places).await });
        }
        stop.await;
        // The listeners close with their tasks. New clients are refused and can go to another server.
        accepting.stop().await;
        server.draining.cancel();
        server.open.close();
        if tokio::time::timeout(server.config.drain_timeout, server.open.wait()).await.is_err() {
            tracing::warn!("some transfers did not end within server.drain_timeout and are cut");
        }
    }

    async fn accept(self: &Arc<Self>, socket: TcpListener, places: Arc<Places>) {
        loop {
            match socket.accept().await {
                // Each connection has its own token. A shared one would be contended, and could not end one connection
                // alone.
                Ok((stream, _peer)) => self.connect(stream, places.take(self.draining.child_token()).await),
                Err(error) if is_of_the_connection(&error) => {}
                Err(error) => {
                    tracing::error!(%error, "cannot accept connections");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    fn connect(self: &Arc<Self>, stream: TcpStream, place: Place) {
        let (server, open) = (self.clone(), self.open.token());
        self.tasks.spawn(async move {
            let _open = open;
            server.connections.serve(stream, place).await;
        });
    }
}

/// Errors of one connection, which say nothing about the next one.
fn is_of_the_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset | io::ErrorKind::ConnectionRefused
    )
}

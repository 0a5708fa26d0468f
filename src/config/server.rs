//! `[server]`: the port, and how long we wait for whoever connects to it.

use std::path::PathBuf;
use std::time::Duration;

use super::ListenAddr;

#[derive(Clone, Debug, PartialEq)]
pub struct ServerConfig {
    pub listen: ListenAddr,
    /// What clients call this server, as `host` or `host:port`.
    pub names: Vec<String>,
    /// Domains below which each upstream has a host: `docker-io.<domain>` is docker.io.
    pub host_routes: Vec<String>,
    /// Connections served at once; the next one waits.
    pub max_connections: usize,
    /// For a request's head to arrive.
    pub head_timeout: Duration,
    /// For the next request on an idle connection.
    pub keep_alive: Duration,
    /// For the next byte of an upload, or for a client to take the next byte of an answer.
    pub progress_timeout: Duration,
    /// For transfers to end after a stop was asked for.
    pub drain_timeout: Duration,
    /// Without it the port speaks plain HTTP.
    pub tls: Option<TlsConfig>,
}

/// `[server.tls]`: PEM files, read again when they change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsConfig {
    /// Our certificate, and those that lead to its root.
    pub cert: PathBuf,
    pub key: PathBuf,
    /// Only clients with a certificate of these authorities may connect.
    pub client_ca: Option<PathBuf>,
}

impl Default for ServerConfig {
    fn default() -> Self {
        Self {
            listen: ListenAddr::default(),
            names: Vec::new(),
            host_routes: Vec::new(),
            max_connections: 4096,
            head_timeout: Duration::from_secs(15),
            keep_alive: Duration::from_secs(120),
            progress_timeout: Duration::from_secs(60),
            drain_timeout: Duration::from_secs(20),
            tls: None,
        }
    }
}

//! `[server]`: the address to listen on, and the limits for clients.

use std::path::PathBuf;
use std::time::Duration;

use http::{HeaderName, HeaderValue};
use ipnet::IpNet;

use super::ListenAddr;

/// `[server]`
#[derive(Clone, Debug, PartialEq)]
pub struct ServerConfig {
    /// Address and port to listen on.
    pub listen: ListenAddr,
    /// The server's own names, as `host` or `host:port`.
    pub names: Vec<String>,
    /// Domains below which each upstream has a host name: `docker-io.<domain>` is docker.io.
    pub host_routes: Vec<String>,
    /// The URL under which clients reach this server, without a slash at the end. `None`: the one that a request came to.
    pub external_url: Option<String>,
    /// The networks of proxies whose `X-Forwarded-…` headers are believed.
    pub trusted_proxies: Vec<IpNet>,
    /// Largest number of open connections. The longest unused one gives way to a new one.
    pub max_connections: usize,
    /// Time limit for the headers of a request to arrive.
    pub head_timeout: Duration,
    /// Time limit for the next request on an idle connection.
    pub keep_alive: Duration,
    /// Time limit for the next bytes of an upload, or for a client to accept the next bytes of a response.
    pub progress_timeout: Duration,
    /// Time limit for transfers to end after the server was asked to stop.
    pub drain_timeout: Duration,
    /// TLS. `None`: plain HTTP.
    pub tls: Option<TlsConfig>,
    /// Headers of every response, in addition to its own: `http.headers` of `registry:2`.
    pub response_headers: Vec<(HeaderName, HeaderValue)>,
}

/// `[server.tls]`: PEM files, read again when they change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsConfig {
    /// The server's certificate, followed by its intermediate certificates.
    pub cert: PathBuf,
    /// The private key of the certificate.
    pub key: PathBuf,
    /// Authorities of client certificates.
    pub client_ca: Option<PathBuf>,
    /// Whether clients need such a certificate. Without `client_ca` none is asked for.
    pub client_auth: ClientAuth,
}

/// Whether clients need a certificate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ClientAuth {
    #[default]
    Required,
    /// A client without one may connect.
    Optional,
}

impl ClientAuth {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Required => "required",
            Self::Optional => "optional",
        }
    }
}

impl Default for ServerConfig {
    fn default() -> Self {
        Self {
            listen: ListenAddr::default(),
            names: Vec::new(),
            host_routes: Vec::new(),
            external_url: None,
            trusted_proxies: Vec::new(),
            max_connections: 4096,
            head_timeout: Duration::from_secs(15),
            keep_alive: Duration::from_secs(120),
            progress_timeout: Duration::from_secs(60),
            drain_timeout: Duration::from_secs(20),
            tls: None,
            response_headers: Vec::new(),
        }
    }
}

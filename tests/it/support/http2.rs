//! An HTTP/2 client over TLS on one connection. Its windows open only as it reads.

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Empty;
use hyper::body::Incoming;
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::crypto::ring;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, ServerName};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// The initial window of the protocol.
pub const WINDOW_BYTES: u32 = 65_535;

pub struct Http2 {
    requests: SendRequest<Empty<Bytes>>,
    addr: SocketAddr,
    /// Ends when the connection does.
    pub connection: JoinHandle<hyper::Result<()>>,
}

impl Http2 {
    pub async fn connect(addr: SocketAddr, ca: &str) -> Self {
        let mut builder = http2::Builder::new(TokioExecutor::new());
        builder.initial_stream_window_size(WINDOW_BYTES).initial_connection_window_size(64 << 20);
        let stream = tls(addr, ca, &["h2"]).await.expect("a handshake");
        assert_eq!(stream.get_ref().1.alpn_protocol(), Some(b"h2".as_slice()));
        let (requests, connection) = builder.handshake(TokioIo::new(stream)).await.expect("an HTTP/2 connection");
        Self { requests, addr, connection: tokio::spawn(connection) }
    }

    /// The headers of a response; the body is unread.
    pub async fn get(&self, path: &str) -> hyper::Result<Response<Incoming>> {
        let mut requests = self.requests.clone();
        requests.ready().await?;
        let request = Request::get(format!("https://{}{path}", self.addr)).body(Empty::new());
        requests.send_request(request.expect("a request")).await
    }
}

/// An encrypted connection of a client that trusts this authority alone and offers these protocols.
pub async fn tls(addr: SocketAddr, ca: &str, alpn: &[&str]) -> std::io::Result<TlsStream<TcpStream>> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(ca.as_bytes()).expect("a certificate")).expect("an authority");
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
    let builder = builder.with_safe_default_protocol_versions().expect("versions of TLS");
    let mut config = builder.with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
    let name = ServerName::try_from("localhost").expect("a name");
    TlsConnector::from(Arc::new(config)).connect(name, TcpStream::connect(addr).await?).await
}

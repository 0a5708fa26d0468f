//! TLS of the listening port: the certificate, which is read again when its files change, and the handshake.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::RwLock;
use rustls::crypto::ring;
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use rustls_pki_types::pem::{self, PemObject};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use x509_cert::Certificate;
use x509_cert::der::Decode;

use crate::access::VerifiedCertificate;
use crate::config::{ClientAuth, TlsConfig};
use crate::file::{self, Stamp};

const HTTP2: &[u8] = b"h2";
const HTTP1: &[u8] = b"http/1.1";
/// How often the files are checked for changes.
const CHECK_INTERVAL: Duration = Duration::from_secs(2);
/// The response to a client that sends plain HTTP.
const NOT_TLS: &str = "HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\nConnection: close\r\n\r\n\
                       This port expects HTTPS, but received plain HTTP.\n";

/// A file of `[server.tls]` that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("{}: {error}", path.display())]
    Read { path: PathBuf, error: io::Error },
    #[error("{} must contain {wanted}, but {cause}", path.display())]
    Pem { path: PathBuf, wanted: &'static str, cause: &'static str },
    #[error("{}: the key does not belong to the certificate in {}", key.display(), cert.display())]
    KeyMismatch { cert: PathBuf, key: PathBuf },
    #[error("{} contains no certificate", .0.display())]
    Empty(PathBuf),
    #[error("{}: {error}", path.display())]
    Unusable { path: PathBuf, error: rustls::Error },
    #[error("{}: {error}", path.display())]
    ClientCa { path: PathBuf, error: rustls::server::VerifierBuilderError },
}

/// The certificate in force. Clones share it.
#[derive(Clone)]
pub struct Certificates {
    files: Arc<TlsConfig>,
    current: Arc<RwLock<Arc<InForce>>>,
    /// The state of the files before they were read.
    loaded: Vec<Stamp>,
}

/// What was read from the files.
struct InForce {
    config: Arc<ServerConfig>,
    /// When the certificate expires, in seconds since 1970. `None` if it does not say so in a readable way.
    expires: Option<i64>,
}

/// A completed handshake.
pub(super) struct Handshake<S> {
    pub(super) protocol: Protocol,
    pub(super) stream: TlsStream<S>,
    /// The certificate of the client, if it has sent one.
    pub(super) certificate: Option<VerifiedCertificate>,
}

/// What ALPN has negotiated (RFC 7301).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Protocol {
    Http1,
    Http2,
}

// === impl Certificates ===

impl Certificates {
    /// Reads the files, which blocks.
    pub fn load(files: &TlsConfig) -> Result<Self, TlsError> {
        let loaded = stamps(files);
        let current = Arc::new(RwLock::new(Arc::new(read(files)?)));
        Ok(Self { files: Arc::new(files.clone()), current, loaded })
    }

    /// Follows the files until it is dropped. Files that cannot be used change nothing and are logged once. `report` gets the
    /// time at which the certificate in force expires, in seconds since 1970, or `None` if that cannot be read.
    pub async fn follow(self, report: impl Fn(Option<i64>)) {
        let mut seen = self.loaded.clone();
        report(self.current.read().expires);
        let mut turns = tokio::time::interval(CHECK_INTERVAL);
        loop {
            turns.tick().await;
            let (certificates, before) = (self.clone(), seen.clone());
            let looked = tokio::task::spawn_blocking(move || certificates.reload(before));
            if let Ok(stamps) = looked.await {
                seen = stamps;
            }
            report(self.current.read().expires);
        }
    }

    /// Reads the files again if they have changed.
    fn reload(&self, seen: Vec<Stamp>) -> Vec<Stamp> {
        let stamps = stamps(&self.files);
        if stamps == seen {
            return stamps;
        }
        match read(&self.files) {
            Ok(config) => {
                *self.current.write() = Arc::new(config);
                tracing::info!(path = %self.files.cert.display(), "took the new certificate");
            }
            Err(error) => tracing::error!(%error, "cannot use the new certificate; the certificate stays as it is"),
        }
        stamps
    }

    /// Performs the handshake on the socket as `wrap` returns it. A client that sends plain HTTP gets a plain HTTP response.
    pub(super) async fn accept<S>(
        &self,
        mut stream: TcpStream,
        wrap: impl FnOnce(TcpStream) -> S,
    ) -> io::Result<Handshake<S>>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let mut first = [0];
        if stream.peek(&mut first).await? > 0 && first.iter().all(u8::is_ascii_uppercase) {
            stream.write_all(NOT_TLS.as_bytes()).await?;
            stream.shutdown().await?;
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the client sent plain HTTP"));
        }
        let config = self.current.read().config.clone();
        let stream = TlsAcceptor::from(config).accept(wrap(stream)).await?;
        let connection = stream.get_ref().1;
        let protocol = if connection.alpn_protocol() == Some(HTTP2) { Protocol::Http2 } else { Protocol::Http1 };
        // Present only if it has been verified: without `client_ca` none is asked for.
        let certificate =
            connection.peer_certificates().and_then(<[_]>::first).map(|end| VerifiedCertificate::new(end));
        Ok(Handshake { protocol, stream, certificate })
    }
}

fn read(files: &TlsConfig) -> Result<InForce, TlsError> {
    let (chain, path) = (certificates(&files.cert)?, &files.key);
    let expires = chain.first().and_then(expiry);
    let key = PrivateKeyDer::from_pem_slice(&content(path)?);
    let key = key.map_err(|error| pem_error(path, &error, "a private key"))?;
    let unusable = |error| TlsError::Unusable { path: files.cert.clone(), error };
    let provider = Arc::new(ring::default_provider());
    let builder = ServerConfig::builder_with_provider(provider.clone());
    let builder = builder.with_safe_default_protocol_versions().map_err(unusable)?;
    let builder = match &files.client_ca {
        None => builder.with_no_client_auth(),
        Some(path) => {
            let mut roots = RootCertStore::empty();
            for root in certificates(path)? {
                roots.add(root).map_err(|error| TlsError::Unusable { path: path.clone(), error })?;
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
            let verifier = match files.client_auth {
                ClientAuth::Required => verifier.build(),
                ClientAuth::Optional => verifier.allow_unauthenticated().build(),
            };
            builder
                .with_client_cert_verifier(verifier.map_err(|error| TlsError::ClientCa { path: path.clone(), error })?)
        }
    };
    let mut config = builder.with_single_cert(chain, key).map_err(|error| match error {
        rustls::Error::InconsistentKeys(_) => TlsError::KeyMismatch { cert: files.cert.clone(), key: path.clone() },
        error => unusable(error),
    })?;
    config.alpn_protocols = vec![HTTP2.to_vec(), HTTP1.to_vec()];
    Ok(InForce { config: Arc::new(config), expires })
}

/// The end of the validity of a certificate, in seconds since 1970 (RFC 5280, section 4.1.2.5).
fn expiry(certificate: &CertificateDer<'_>) -> Option<i64> {
    let parsed = Certificate::from_der(certificate).ok()?;
    i64::try_from(parsed.tbs_certificate().validity().not_after.to_unix_duration().as_secs()).ok()
}

fn content(path: &Path) -> Result<Vec<u8>, TlsError> {
    file::read(path).map_err(|error| TlsError::Read { path: path.to_owned(), error })
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let content = content(path)?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&content).collect();
    match found {
        Ok(found) if found.is_empty() => Err(TlsError::Empty(path.to_owned())),
        Ok(found) => Ok(found),
        Err(error) => Err(pem_error(path, &error, "a certificate")),
    }
}

/// The text of the library prints PEM labels as lists of bytes.
fn pem_error(path: &Path, error: &pem::Error, wanted: &'static str) -> TlsError {
    let cause = match error {
        pem::Error::NoItemsFound => "it does not",
        pem::Error::MissingSectionEnd { .. } => "it ends in the middle",
        _ => "it is not PEM",
    };
    TlsError::Pem { path: path.to_owned(), wanted, cause }
}

fn stamps(files: &TlsConfig) -> Vec<Stamp> {
    let paths = [Some(&files.cert), Some(&files.key), files.client_ca.as_ref()];
    paths.into_iter().flatten().map(|path| Stamp::of(path)).collect()
}

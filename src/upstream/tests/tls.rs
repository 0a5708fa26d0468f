//! TLS to an upstream: trusted authorities, client certificates and offered protocols.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rustls::crypto::ring;
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig, ServerConnection, Stream};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use url::Url;

use super::{Fixture, NAME, UpstreamError, blob, manifest};
use crate::config::{ClientCertificate, UpstreamConfig};
use crate::tasks::Tasks;
use crate::telemetry::Metrics;
use crate::upstream::Upstream;

const TESTDATA: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src/upstream/testdata");

/// Serves HTTP/1.1 over TLS on 127.0.0.1, and records the protocols that each client offers.
struct TlsServer {
    url: Url,
    offers: Arc<Mutex<Vec<Vec<String>>>>,
}

impl TlsServer {
    fn start() -> Self {
        Self::start_with(false)
    }

    /// `require_certificate`: only clients with the test's client certificate may connect.
    fn start_with(require_certificate: bool) -> Self {
        let chain = vec![CertificateDer::from_pem_file(file("server.pem")).unwrap()];
        let key = PrivateKeyDer::from_pem_file(file("server.key")).unwrap();
        let provider = Arc::new(ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions();
        let config = config.unwrap();
        let config = if require_certificate {
            let mut roots = RootCertStore::empty();
            roots.add(CertificateDer::from_pem_file(file("client-ca.pem")).unwrap()).unwrap();
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build();
            config.with_client_cert_verifier(verifier.unwrap())
        } else {
            config.with_no_client_auth()
        };
        let config = config.with_single_cert(chain, key).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("https://{}/", listener.local_addr().unwrap()).parse().unwrap();
        let offers = Arc::new(Mutex::new(Vec::new()));
        let server = Self { url, offers: offers.clone() };
        let config = Arc::new(config);
        std::thread::spawn(move || {
            while let Ok((mut socket, _)) = listener.accept() {
                let mut acceptor = rustls::server::Acceptor::default();
                let hello = loop {
                    if acceptor.read_tls(&mut socket).is_err() {
                        break None;
                    }
                    if let Some(accepted) = acceptor.accept().ok().flatten() {
                        break Some(accepted);
                    }
                };
                let Some(hello) = hello else { continue };
                let alpn = hello.client_hello().alpn().into_iter().flatten();
                offers.lock().push(alpn.map(|name| String::from_utf8_lossy(name).into_owned()).collect());
                let Ok(mut tls) = hello.into_connection(config.clone()) else { continue };
                let _ = answer(&mut tls, &mut socket);
            }
        });
        server
    }

    fn upstream(&self, ca_file: Option<&str>) -> Fixture {
        Fixture::at(vec![self.url.clone()], |config| {
            config.ca_file = ca_file.map(file);
        })
    }
}

fn file(name: &str) -> PathBuf {
    Path::new(TESTDATA).join(name)
}

fn answer(tls: &mut ServerConnection, socket: &mut std::net::TcpStream) -> std::io::Result<()> {
    let mut stream = Stream::new(tls, socket);
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte)?;
        head.push(byte[0]);
    }
    stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 7\r\nconnection: close\r\n\r\ncontent")?;
    stream.flush()
}

#[tokio::test]
async fn ca_file_is_trusted_and_blobs_use_http_1() {
    let server = TlsServer::start();
    let fixture = server.upstream(Some("ca.pem"));
    assert_eq!(fixture.get(manifest()).await.unwrap(), "content");
    assert_eq!(fixture.get(blob()).await.unwrap(), "content");
    assert_eq!(*server.offers.lock(), [vec!["h2", "http/1.1"], vec!["http/1.1"]]);
}

#[tokio::test]
async fn untrusted_certificate_is_rejected() {
    let server = TlsServer::start();
    let error = server.upstream(None).get(manifest()).await.unwrap_err();
    assert!(matches!(error, UpstreamError::Certificate { .. }), "{error}");
    assert!(error.to_string().contains("certificate"), "{error}");
    assert_eq!(server.offers.lock().len(), 1, "an untrusted certificate is not retried");
}

#[tokio::test]
async fn any_certificate_is_accepted_with_insecure_skip_verify() {
    let server = TlsServer::start();
    let careless = Fixture::at(vec![server.url.clone()], |config| config.insecure_skip_verify = true);
    assert_eq!(careless.get(manifest()).await.unwrap(), "content");
    assert_eq!(careless.get(blob()).await.unwrap(), "content");
}

#[tokio::test]
async fn client_certificate_is_sent_when_required() {
    let server = TlsServer::start_with(true);
    let identified = Fixture::at(vec![server.url.clone()], |config| {
        config.ca_file = Some(file("ca.pem"));
        config.client_certificate =
            Some(ClientCertificate { certificate: file("client.pem"), key: file("client.key") });
    });
    assert_eq!(identified.get(manifest()).await.unwrap(), "content");
    assert_eq!(identified.get(blob()).await.unwrap(), "content");
    assert!(server.upstream(Some("ca.pem")).get(manifest()).await.is_err());
}

#[tokio::test]
async fn changed_client_certificate_is_reloaded_if_valid() {
    let server = TlsServer::start_with(true);
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let put = |from: &str, to: &str| std::fs::copy(file(from), at(to)).unwrap();
    put("client.pem", "cert");
    put("client.key", "key");
    let fixture = Fixture::at(vec![server.url.clone()], |config| {
        config.ca_file = Some(file("ca.pem"));
        config.client_certificate = Some(ClientCertificate { certificate: at("cert"), key: at("key") });
    });
    assert_eq!(fixture.get(manifest()).await.unwrap(), "content");
    // The certificate does not match the key yet.
    put("server.pem", "cert");
    tokio::time::sleep(Duration::from_millis(2100)).await;
    assert_eq!(fixture.get(manifest()).await.unwrap(), "content");
    // The pair matches now, but the server does not trust its authority.
    put("server.key", "key");
    let started = std::time::Instant::now();
    while fixture.get(manifest()).await.is_ok() {
        assert!(started.elapsed() < Duration::from_secs(20), "the files are not reloaded");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test]
async fn mismatched_certificate_and_key_are_a_setup_error() {
    for (certificate, key, told) in [
        ("client.pem", "server.key", "client_key"),
        ("client.pem", "client.pem", "client_key"),
        ("client.key", "client.key", "client_cert"),
    ] {
        let mut config = UpstreamConfig::new(NAME, vec!["https://r.example".parse().unwrap()]);
        config.client_certificate = Some(ClientCertificate { certificate: file(certificate), key: file(key) });
        let metrics = Arc::new(Metrics::new(&[NAME]));
        let error = Upstream::new(&config, "roadstead-test", metrics, Tasks::new()).err().unwrap().to_string();
        assert!(error.starts_with(&format!("upstream.\"{NAME}\".{told}: /")), "{error}");
    }
}

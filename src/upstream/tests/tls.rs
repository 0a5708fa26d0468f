//! TLS to an upstream: whom to trust, and which protocol to offer.

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

/// Answers HTTP/1.1 over TLS on 127.0.0.1 and notes which protocols each client offers.
struct TlsServer {
    url: Url,
    offers: Arc<Mutex<Vec<Vec<String>>>>,
}

impl TlsServer {
    fn start() -> Self {
        Self::start_asking(false)
    }

    /// `for_certificate`: only who shows the client's is let in.
    fn start_asking(for_certificate: bool) -> Self {
        let chain = vec![CertificateDer::from_pem_file(file("server.pem")).unwrap()];
        let key = PrivateKeyDer::from_pem_file(file("server.key")).unwrap();
        let provider = Arc::new(ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions();
        let config = config.unwrap();
        let config = if for_certificate {
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
async fn a_ca_file_is_trusted_and_blobs_are_kept_off_http2() {
    let server = TlsServer::start();
    let fixture = server.upstream(Some("ca.pem"));
    assert_eq!(fixture.get(manifest()).await.unwrap(), "content");
    assert_eq!(fixture.get(blob()).await.unwrap(), "content");
    assert_eq!(*server.offers.lock(), [vec!["h2", "http/1.1"], vec!["http/1.1"]]);
}

#[tokio::test]
async fn a_certificate_that_nobody_vouches_for_is_refused() {
    let server = TlsServer::start();
    let error = server.upstream(None).get(manifest()).await.unwrap_err();
    assert!(matches!(error, UpstreamError::Certificate { .. }), "{error}");
    assert!(error.to_string().contains("certificate"), "{error}");
    assert_eq!(server.offers.lock().len(), 1, "a second look makes it no better");
}

#[tokio::test]
async fn any_certificate_will_do_only_where_that_is_configured() {
    let server = TlsServer::start();
    let careless = Fixture::at(vec![server.url.clone()], |config| config.insecure_skip_verify = true);
    assert_eq!(careless.get(manifest()).await.unwrap(), "content");
    assert_eq!(careless.get(blob()).await.unwrap(), "content");
}

#[tokio::test]
async fn an_upstream_that_asks_for_a_certificate_is_shown_it() {
    let server = TlsServer::start_asking(true);
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
async fn a_new_client_certificate_is_shown_without_a_restart_and_a_broken_one_is_not() {
    let server = TlsServer::start_asking(true);
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
    // Half of it is there: no pair.
    put("server.pem", "cert");
    tokio::time::sleep(Duration::from_millis(2100)).await;
    assert_eq!(fixture.get(manifest()).await.unwrap(), "content");
    // The pair is another now, of an authority that the server does not trust.
    put("server.key", "key");
    let started = std::time::Instant::now();
    while fixture.get(manifest()).await.is_ok() {
        assert!(started.elapsed() < Duration::from_secs(20), "the files are read again");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test]
async fn a_certificate_and_a_key_that_do_not_go_together_are_told_at_the_start() {
    for (certificate, key, told) in [
        ("client.pem", "server.key", "client_key"),
        ("client.pem", "client.pem", "client_key"),
        ("client.key", "client.key", "client_cert"),
    ] {
        let mut config = UpstreamConfig::new(NAME, vec!["https://r.example".parse().unwrap()]);
        config.client_certificate = Some(ClientCertificate { certificate: file(certificate), key: file(key) });
        let metrics = Arc::new(Metrics::new(&[NAME]));
        let error = Upstream::new(&config, "roadstead-test", metrics, Tasks::new()).err().unwrap().to_string();
        assert!(error.starts_with(&format!("upstream {NAME}: {told} /")), "{error}");
    }
}

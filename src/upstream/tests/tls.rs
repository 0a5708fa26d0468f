//! TLS to an upstream: trusted authorities, client certificates and offered protocols.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use parking_lot::Mutex;
use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, SanType};
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
        Self::start_as(chain, PrivateKeyDer::from_pem_file(file("server.key")).unwrap(), require_certificate)
    }

    fn start_as(chain: Vec<CertificateDer<'static>>, key: PrivateKeyDer<'static>, require_certificate: bool) -> Self {
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

// === self-signed certificates ===

/// A certificate that is its own issuer, as `openssl req -x509` makes it, with changes.
fn self_signed(change: impl FnOnce(&mut CertificateParams)) -> (CertificateDer<'static>, PrivateKeyDer<'static>) {
    let mut params = CertificateParams::new(["127.0.0.1".to_owned()]).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    change(&mut params);
    let key = KeyPair::generate().unwrap();
    let certificate = params.self_signed(&key).unwrap().der().clone();
    (certificate, PrivateKeyDer::try_from(key.serialize_der()).unwrap())
}

/// Writes certificates as a PEM file.
fn write_pem(path: &Path, certificates: &[CertificateDer<'_>]) {
    let pem = certificates.iter().map(|der| {
        let body = base64::prelude::BASE64_STANDARD.encode(der);
        format!("-----BEGIN CERTIFICATE-----\n{body}\n-----END CERTIFICATE-----\n")
    });
    std::fs::write(path, pem.collect::<String>()).unwrap();
}

/// The answer of a server that has the certificate `shown`, to an upstream that lists `listed`.
async fn listing(
    shown: &(CertificateDer<'static>, PrivateKeyDer<'static>),
    listed: &[CertificateDer<'static>],
) -> Result<String, UpstreamError> {
    let server = TlsServer::start_as(vec![shown.0.clone()], shown.1.clone_key(), false);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ca.pem");
    write_pem(&path, listed);
    let fixture = Fixture::at(vec![server.url.clone()], |config| config.ca_file = Some(path));
    fixture.get(manifest()).await
}

#[tokio::test]
async fn a_listed_certificate_is_trusted_as_the_upstreams_own() {
    let other = self_signed(|_| {});
    let of_authority = Issuer::new(CertificateParams::new([]).unwrap(), KeyPair::generate().unwrap());
    let issued_key = KeyPair::generate().unwrap();
    let issued =
        CertificateParams::new(["127.0.0.1".to_owned()]).unwrap().signed_by(&issued_key, &of_authority).unwrap();
    let cases = [
        ("self-signed, of an authority", self_signed(|_| {})),
        ("self-signed, of no authority", self_signed(|params| params.is_ca = IsCa::ExplicitNoCa)),
        ("self-signed, without the extension", self_signed(|params| params.is_ca = IsCa::NoCa)),
        (
            "self-signed, of an authority for servers",
            self_signed(|params| params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth]),
        ),
        (
            "issued by an unknown authority",
            (issued.der().clone(), PrivateKeyDer::try_from(issued_key.serialize_der()).unwrap()),
        ),
    ];
    for (what, shown) in cases {
        assert_eq!(listing(&shown, std::slice::from_ref(&shown.0)).await.unwrap(), "content", "{what}");
        assert_eq!(
            listing(&shown, &[other.0.clone(), shown.0.clone()]).await.unwrap(),
            "content",
            "{what}, with another"
        );
        let error = listing(&shown, std::slice::from_ref(&other.0)).await.unwrap_err();
        assert!(matches!(error, UpstreamError::Certificate { .. }), "{what}, not listed: {error}");
        let text = error.to_string();
        assert!(text.contains("; if it") && text.contains(".ca_file") && !text.contains("CaUsed"), "{what}: {text}");
    }
}

#[tokio::test]
async fn a_listed_certificate_must_be_valid_and_for_the_host() {
    let day = |years| rcgen::date_time_ymd(years, 1, 1);
    let cases = [
        (
            "it is for",
            self_signed(|params| params.subject_alt_names = vec![SanType::DnsName("r.example".try_into().unwrap())]),
        ),
        (
            "it is for",
            self_signed(|params| params.subject_alt_names = vec![SanType::IpAddress("127.0.0.2".parse().unwrap())]),
        ),
        ("it is for no name", self_signed(|params| params.subject_alt_names.clear())),
        (
            "it may not be used by servers",
            self_signed(|params| params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth]),
        ),
        ("it has expired", self_signed(|params| (params.not_before, params.not_after) = (day(2001), day(2002)))),
        ("it is not valid yet", self_signed(|params| (params.not_before, params.not_after) = (day(2120), day(2121)))),
    ];
    for (expected, shown) in cases {
        let error = listing(&shown, std::slice::from_ref(&shown.0)).await.unwrap_err();
        assert!(matches!(error, UpstreamError::Certificate { .. }), "{error}");
        assert!(error.to_string().contains(expected), "{error}");
    }
}

#[tokio::test]
async fn a_connection_that_fails_is_explained_without_library_texts() {
    let plain = super::server::Server::start(|_| super::server::Reply::ok("content")).await;
    let as_tls = plain.url().as_str().replace("http:", "https:");
    let cases = [
        ("http://127.0.0.1:1/".to_owned(), "the connection was refused"),
        ("http://nowhere.invalid/".to_owned(), "the DNS lookup failed"),
        (as_tls, "it does not speak TLS; if it speaks plain HTTP, write an http URL"),
    ];
    for (url, expected) in cases {
        let error = Fixture::at(vec![url.parse().unwrap()], |_| {}).get(manifest()).await.unwrap_err();
        let text = error.to_string();
        assert!(text.contains(expected), "{url}: {text}");
        for library in ["client error", "tcp connect", "os error", "dns error", "InvalidMessage"] {
            assert!(!text.contains(library), "{url}: {text}");
        }
    }
}

//! TLS to an upstream: whom we trust, and what we show of ourselves.

use std::path::Path;
use std::sync::{Arc, OnceLock};

use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use super::error::UpstreamSetupError;
use super::identity::Identity;
use crate::config::UpstreamConfig;
use crate::file;

/// Read from files at the start, and the identity again when its files change. Cheap to hold: the system's certificates are read when an upstream is first asked.
pub(super) struct TlsSetup {
    /// Certificates to trust beside the system's.
    extra_roots: Vec<CertificateDer<'static>>,
    pub(super) identity: Option<Identity>,
    /// Whether any certificate will do.
    skips_verify: bool,
}

/// Takes every certificate. The handshake's signatures are still checked: whoever answers has the key of what it shows.
#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

// === impl TlsSetup ===

impl TlsSetup {
    pub(super) fn new(config: &UpstreamConfig) -> Result<Self, UpstreamSetupError> {
        let wrong = |key: &'static str, path: &Path, cause: String| UpstreamSetupError::TlsFile {
            upstream: config.name.clone(),
            key,
            path: path.to_owned(),
            cause,
        };
        let extra_roots = match &config.ca_file {
            Some(path) => read_roots(path).map_err(|cause| wrong("ca_file", path, cause))?,
            None => Vec::new(),
        };
        let identity = match &config.client_certificate {
            Some(files) => Some(Identity::new(&config.name, files)?),
            None => None,
        };
        Ok(Self { extra_roots, identity, skips_verify: config.insecure_skip_verify })
    }

    /// Reads the system's certificates at the first call in the process: not for the reactor.
    pub(super) fn client_config(&self) -> Result<ClientConfig, String> {
        let provider = Arc::new(ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider.clone());
        let builder = builder.with_safe_default_protocol_versions().map_err(|error| error.to_string())?;
        let builder = if self.skips_verify {
            builder.dangerous().with_custom_certificate_verifier(Arc::new(AnyCertificate(provider)))
        } else {
            builder.with_root_certificates(roots(&self.extra_roots))
        };
        let Some(identity) = &self.identity else { return Ok(builder.with_no_client_auth()) };
        let mut config = builder.with_client_cert_resolver(identity.shown());
        // A resumed session would show whom we were, not whom we are.
        config.resumption = Resumption::disabled();
        Ok(config)
    }
}

// === impl AnyCertificate ===

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// The system's certificates with `extra` ones. A machine without any is no error: plain http still works.
fn roots(extra: &[CertificateDer<'static>]) -> Arc<RootCertStore> {
    static NATIVE: OnceLock<Arc<RootCertStore>> = OnceLock::new();
    let native = NATIVE.get_or_init(|| {
        let mut store = RootCertStore::empty();
        let found = rustls_native_certs::load_native_certs();
        store.add_parsable_certificates(found.certs);
        if store.is_empty() {
            let errors = found.errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
            tracing::warn!(errors, "no CA certificates on this system: no https upstream can be verified");
        }
        Arc::new(store)
    });
    if extra.is_empty() {
        return native.clone();
    }
    let mut store = RootCertStore::clone(native);
    store.add_parsable_certificates(extra.iter().cloned());
    Arc::new(store)
}

/// At least one, each usable as a root.
fn read_roots(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let certificates = read_chain(path)?;
    let mut store = RootCertStore::empty();
    for certificate in &certificates {
        store.add(certificate.clone()).map_err(|error| error.to_string())?;
    }
    Ok(certificates)
}

/// The certificates in a PEM file; at least one.
pub(super) fn read_chain(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let content = file::read(path).map_err(|error| error.to_string())?;
    let read = CertificateDer::pem_slice_iter(&content).collect::<Result<Vec<_>, _>>();
    let certificates: Vec<CertificateDer<'static>> = read.map_err(|error| error.to_string())?;
    if certificates.is_empty() { Err("no certificate in it".to_owned()) } else { Ok(certificates) }
}

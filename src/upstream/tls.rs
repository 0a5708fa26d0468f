//! TLS to upstreams: trusted authorities and the client certificate.
//!
//! The text for a certificate that is not trusted is at `UpstreamError::Certificate` in `error`.

use std::path::Path;
use std::sync::Arc;

use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use super::error::UpstreamSetupError;
use super::identity::Identity;
use crate::config::UpstreamConfig;
use crate::trust::{read_roots, verify_with};

/// The TLS settings of one upstream. Its files are read at the start; the system's certificates are read with the first
/// request to an upstream.
pub(super) struct TlsSetup {
    /// Certificates to trust in addition to those of the system, as authorities and as the upstream's own.
    extra_roots: Vec<CertificateDer<'static>>,
    pub(super) identity: Option<Identity>,
    /// Whether the upstream's certificate is not verified.
    skips_verify: bool,
}

/// Accepts every certificate. The signatures of the handshake are still verified, so the peer has the certificate's
/// private key.
#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

// === impl TlsSetup ===

impl TlsSetup {
    /// Reads the files.
    ///
    /// # Errors
    /// If a file cannot be read or contains no certificate.
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

    /// The rustls configuration. The first call in the process reads the system's certificates, which blocks.
    pub(super) fn client_config(&self) -> Result<ClientConfig, String> {
        let provider = Arc::new(ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider.clone());
        let builder = builder.with_safe_default_protocol_versions().map_err(|error| error.to_string())?;
        let builder = if self.skips_verify {
            builder.dangerous().with_custom_certificate_verifier(Arc::new(AnyCertificate(provider)))
        } else {
            verify_with(builder, &self.extra_roots, provider)?
        };
        let Some(identity) = &self.identity else { return Ok(builder.with_no_client_auth()) };
        let mut config = builder.with_client_cert_resolver(identity.current());
        // A resumed session would keep the previous client certificate.
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

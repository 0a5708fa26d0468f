//! Trust in the certificates of `ca_file`: as authorities, and as the certificate of the server itself.
//!
//! `openssl req -x509` makes self-signed certificates that are marked as authorities. webpki accepts no such
//! certificate as that of a server, even if it is a trusted root. Go (and so Docker, containerd and `registry:2`) and
//! OpenSSL accept it if exactly that certificate is trusted. They check its name, validity and purpose, and need no
//! chain.

use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_name;
use rustls::crypto::CryptoProvider;
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, DigitallySignedStruct, RootCertStore, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

/// Verifies as webpki does, and also accepts the listed certificates.
#[derive(Debug)]
pub(super) struct ListedCertificates {
    listed: Vec<CertificateDer<'static>>,
    webpki: Arc<WebPkiServerVerifier>,
}

// === impl ListedCertificates ===

impl ListedCertificates {
    /// `roots` contains the listed certificates too.
    ///
    /// # Errors
    /// If there are no roots.
    pub(super) fn new(
        listed: &[CertificateDer<'static>],
        roots: Arc<RootCertStore>,
        provider: Arc<CryptoProvider>,
    ) -> Result<Self, String> {
        let webpki = WebPkiServerVerifier::builder_with_provider(roots, provider).build();
        Ok(Self { listed: listed.to_vec(), webpki: webpki.map_err(|error| error.to_string())? })
    }

    /// Accepts a listed certificate that webpki refuses only because it has no chain.
    fn verify_listed(
        &self,
        certificate: &CertificateDer<'_>,
        name: &ServerName<'_>,
        now: UnixTime,
        refused: rustls::Error,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if !self.listed.iter().any(|listed| listed.as_ref() == certificate.as_ref()) {
            return Err(refused);
        }
        // The other certificates of the server are left out, so that the result is about this one. webpki checks its
        // validity first.
        match self.webpki.verify_server_cert(certificate, &[], name, &[], now) {
            Ok(verified) => Ok(verified),
            Err(rustls::Error::InvalidCertificate(error)) if lacks_only_a_chain(&error) => {
                if !may_be_a_servers(certificate) {
                    return Err(CertificateError::InvalidPurpose.into());
                }
                verify_server_name(&ParsedCertificate::try_from(certificate)?, name)?;
                Ok(ServerCertVerified::assertion())
            }
            Err(error) => Err(error),
        }
    }
}

/// Whether the certificate itself is valid now, and only its issuer is in doubt. If another trusted certificate has the
/// name of its issuer, the error is a wrong signature.
fn lacks_only_a_chain(error: &CertificateError) -> bool {
    use CertificateError as Refused;
    match error {
        Refused::UnknownIssuer
        | Refused::BadSignature
        | Refused::UnsupportedSignatureAlgorithmContext { .. }
        | Refused::UnsupportedSignatureAlgorithmForPublicKeyContext { .. } => true,
        other => is_authority(other),
    }
}

/// Whether the extended key usages of a certificate, if it has any, include servers. webpki does not check them in the
/// certificate of an authority. The encodings of these object identifiers are so long that they do not occur elsewhere
/// by chance.
fn may_be_a_servers(certificate: &CertificateDer<'_>) -> bool {
    const EXTENDED_KEY_USAGE: &[u8] = &[0x06, 0x03, 0x55, 0x1d, 0x25];
    const ANY_USAGE: &[u8] = &[0x06, 0x04, 0x55, 0x1d, 0x25, 0x00];
    const SERVERS: &[u8] = &[0x06, 0x08, 0x2b, 0x06, 0x01, 0x05, 0x05, 0x07, 0x03, 0x01];
    let contains = |encoded: &[u8]| certificate.windows(encoded.len()).any(|window| window == encoded);
    !contains(EXTENDED_KEY_USAGE) || contains(ANY_USAGE) || contains(SERVERS)
}

/// Whether the certificate was refused because it is an authority's. rustls has no variant for that.
pub fn is_authority(error: &CertificateError) -> bool {
    matches!(error, CertificateError::Other(other) if other.to_string() == "CaUsedAsEndEntity")
}

impl ServerCertVerifier for ListedCertificates {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let verified = self.webpki.verify_server_cert(certificate, intermediates, name, ocsp_response, now);
        verified.or_else(|refused| self.verify_listed(certificate, name, now, refused))
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.webpki.verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.webpki.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.webpki.supported_verify_schemes()
    }
}

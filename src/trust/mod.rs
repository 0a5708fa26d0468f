//! Whom connections of this server trust: the authorities of the system, and certificates in files of the operator.

mod any_certificate;
mod listed_certificate;
mod pem;

use std::path::Path;
use std::sync::{Arc, OnceLock};

use rustls::client::WantsClientCert;
use rustls::crypto::{CryptoProvider, ring};
use rustls::{ClientConfig, ConfigBuilder, RootCertStore, WantsVerifier};
use rustls_pki_types::CertificateDer;

pub use listed_certificate::is_authority;
pub use pem::read_chain;

use any_certificate::AnyCertificate;
use listed_certificate::ListedCertificates;

/// TLS settings of a client that waits for its own certificate, if it has one.
pub type ClientTls = ConfigBuilder<ClientConfig, WantsClientCert>;

/// Trust in the authorities of the system, and in the `extra` certificates: as authorities, and as the peer's own. The
/// first call in the process reads the system's certificates, which blocks.
///
/// # Errors
/// The message for `extra` certificates that cannot be used.
pub fn verify_with(extra: &[CertificateDer<'static>]) -> Result<ClientTls, String> {
    let (builder, provider) = builder()?;
    if extra.is_empty() {
        return Ok(builder.with_root_certificates(roots(&[])));
    }
    let verifier = ListedCertificates::new(extra, roots(extra), provider)?;
    Ok(builder.dangerous().with_custom_certificate_verifier(Arc::new(verifier)))
}

/// Trust in every certificate, for a peer that the operator trusts for another reason.
///
/// # Errors
/// As [`verify_with`].
pub fn without_verification() -> Result<ClientTls, String> {
    let (builder, provider) = builder()?;
    Ok(builder.dangerous().with_custom_certificate_verifier(Arc::new(AnyCertificate(provider))))
}

fn builder() -> Result<(ConfigBuilder<ClientConfig, WantsVerifier>, Arc<CryptoProvider>), String> {
    let provider = Arc::new(ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions();
    Ok((builder.map_err(|error| error.to_string())?, provider))
}

/// Reads the system's certificates now, so that a system without any is warned about at the start. Blocks.
pub fn load_system_roots() {
    roots(&[]);
}

/// Reads the authorities in a PEM file, at least one. Blocks.
///
/// # Errors
/// The message for a file that cannot be read, or has no certificate that can be used.
pub fn read_roots(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let certificates = read_chain(path)?;
    let mut store = RootCertStore::empty();
    for certificate in &certificates {
        store.add(certificate.clone()).map_err(|error| error.to_string())?;
    }
    Ok(certificates)
}

/// The system's authorities and the `extra` ones. A system without any is not an error, as plain HTTP does not need
/// them.
fn roots(extra: &[CertificateDer<'static>]) -> Arc<RootCertStore> {
    static NATIVE: OnceLock<Arc<RootCertStore>> = OnceLock::new();
    let native = NATIVE.get_or_init(|| {
        let mut store = RootCertStore::empty();
        let found = rustls_native_certs::load_native_certs();
        store.add_parsable_certificates(found.certs);
        if store.is_empty() {
            let errors = found.errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
            tracing::warn!(
                errors,
                "this system has no CA certificates, so no https upstream can be verified; install ca-certificates, or name a file \
                 with SSL_CERT_FILE or ca_file"
            );
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

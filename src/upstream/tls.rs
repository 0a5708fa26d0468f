//! TLS to upstreams: trusted authorities and the client certificate.
//!
//! The text for a certificate that is not trusted is at `UpstreamError::Certificate` in `error`.

use std::path::Path;

use rustls::ClientConfig;
use rustls::client::Resumption;
use rustls_pki_types::CertificateDer;

use super::error::UpstreamSetupError;
use super::identity::Identity;
use crate::config::UpstreamConfig;
use crate::trust::{read_roots, verify_with, without_verification};

/// The TLS settings of one upstream. Its files are read at the start; the system's certificates are read with the first
/// request to an upstream.
pub(super) struct TlsSetup {
    /// Certificates to trust in addition to those of the system, as authorities and as the upstream's own.
    extra_roots: Vec<CertificateDer<'static>>,
    pub(super) identity: Option<Identity>,
    /// Whether the upstream's certificate is not verified.
    skips_verify: bool,
}

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
        let builder = if self.skips_verify { without_verification()? } else { verify_with(&self.extra_roots)? };
        let Some(identity) = &self.identity else { return Ok(builder.with_no_client_auth()) };
        let mut config = builder.with_client_cert_resolver(identity.current());
        // A resumed session would keep the previous client certificate.
        config.resumption = Resumption::disabled();
        Ok(config)
    }
}

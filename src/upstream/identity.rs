//! The client certificate for an upstream. It is read again when its files change.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Mutex, RwLock};
use rustls::SignatureScheme;
use rustls::client::ResolvesClientCert;
use rustls::crypto::ring;
use rustls::sign::CertifiedKey;
use rustls_pki_types::PrivateKeyDer;
use rustls_pki_types::pem::PemObject;
use tokio::time::Instant;

use super::error::UpstreamSetupError;
use crate::config::ClientCertificate;
use crate::file::{self, Stamp};
use crate::trust::read_chain;

/// Shortest time between two checks of the files.
const CHECK_INTERVAL: Duration = Duration::from_secs(2);

/// A client certificate and its files. Clones share it.
#[derive(Clone)]
pub(super) struct Identity {
    upstream: Arc<str>,
    files: Arc<ClientCertificate>,
    current: Arc<CurrentIdentity>,
    checked: Arc<Mutex<(Instant, [Stamp; 2])>>,
}

/// The certificate for new connections.
#[derive(Debug)]
pub(super) struct CurrentIdentity(RwLock<Arc<CertifiedKey>>);

// === impl Identity ===

impl Identity {
    /// Reads the files. Blocks.
    ///
    /// # Errors
    /// If a file cannot be read or the key does not match the certificate.
    pub(super) fn new(upstream: &str, files: &ClientCertificate) -> Result<Self, UpstreamSetupError> {
        let stamps = stamps(files);
        let key = read(upstream, files)?;
        Ok(Self {
            upstream: upstream.into(),
            files: Arc::new(files.clone()),
            current: Arc::new(CurrentIdentity(RwLock::new(Arc::new(key)))),
            checked: Arc::new(Mutex::new((Instant::now(), stamps))),
        })
    }

    /// The certificate resolver for new connections.
    pub(super) fn current(&self) -> Arc<CurrentIdentity> {
        self.current.clone()
    }

    /// Reads the files again if they changed. Files that cannot be used leave the previous certificate in use and are
    /// logged once.
    pub(super) async fn refresh(&self) {
        let before = {
            let mut checked = self.checked.lock();
            if checked.0.elapsed() < CHECK_INTERVAL {
                return;
            }
            checked.0 = Instant::now();
            checked.1
        };
        let this = self.clone();
        // The closure does not panic. If the pool has stopped, the server is stopping.
        let _ = tokio::task::spawn_blocking(move || this.reload(before)).await;
    }

    fn reload(&self, before: [Stamp; 2]) {
        let now = stamps(&self.files);
        if now == before {
            return;
        }
        match read(&self.upstream, &self.files) {
            Ok(key) => {
                *self.current.0.write() = Arc::new(key);
                tracing::info!(upstream = &*self.upstream, "client certificate reloaded");
            }
            Err(error) => {
                tracing::error!(%error, "cannot reload the client certificate; the previous one stays in use")
            }
        }
        self.checked.lock().1 = now;
    }
}

// === impl CurrentIdentity ===

impl ResolvesClientCert for CurrentIdentity {
    fn resolve(&self, _: &[&[u8]], schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        let key = self.0.read().clone();
        key.key.choose_scheme(schemes).is_some().then_some(key)
    }

    fn has_certs(&self) -> bool {
        true
    }
}

fn read(upstream: &str, files: &ClientCertificate) -> Result<CertifiedKey, UpstreamSetupError> {
    let wrong = |key: &'static str, cause: String| {
        let path = if key == "client_cert" { files.certificate.clone() } else { files.key.clone() };
        UpstreamSetupError::TlsFile { upstream: upstream.to_owned(), key, path, cause }
    };
    let chain = read_chain(&files.certificate).map_err(|cause| wrong("client_cert", cause))?;
    let key = file::read(&files.key).map_err(|error| wrong("client_key", error.to_string()))?;
    let key = PrivateKeyDer::from_pem_slice(&key).map_err(|error| wrong("client_key", error.to_string()))?;
    CertifiedKey::from_der(chain, key, &ring::default_provider())
        .map_err(|error| wrong("client_key", format!("does not match client_cert: {error}")))
}

fn stamps(files: &ClientCertificate) -> [Stamp; 2] {
    [Stamp::of(&files.certificate), Stamp::of(&files.key)]
}

//! The certificate that we show an upstream which asks who we are; read again when its files have changed.

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
use super::tls::read_chain;
use crate::config::ClientCertificate;
use crate::file::{self, Stamp};

/// How often the files are looked at, at most.
const INTERVAL: Duration = Duration::from_secs(2);

/// Clones share it.
#[derive(Clone)]
pub(super) struct Identity {
    upstream: Arc<str>,
    files: Arc<ClientCertificate>,
    shown: Arc<Shown>,
    looked: Arc<Mutex<(Instant, [Stamp; 2])>>,
}

/// What new connections show.
#[derive(Debug)]
pub(super) struct Shown(RwLock<Arc<CertifiedKey>>);

// === impl Identity ===

impl Identity {
    /// Reads the files, which blocks.
    pub(super) fn new(upstream: &str, files: &ClientCertificate) -> Result<Self, UpstreamSetupError> {
        let stamps = stamps(files);
        let key = read(upstream, files)?;
        Ok(Self {
            upstream: upstream.into(),
            files: Arc::new(files.clone()),
            shown: Arc::new(Shown(RwLock::new(Arc::new(key)))),
            looked: Arc::new(Mutex::new((Instant::now(), stamps))),
        })
    }

    pub(super) fn shown(&self) -> Arc<Shown> {
        self.shown.clone()
    }

    /// Takes the files if they are not as they were. Files that cannot be used change nothing and are said once.
    pub(super) async fn refresh(&self) {
        let before = {
            let mut looked = self.looked.lock();
            if looked.0.elapsed() < INTERVAL {
                return;
            }
            looked.0 = Instant::now();
            looked.1
        };
        let this = self.clone();
        // It never panics, and when the pool stops nobody asks any more.
        let _ = tokio::task::spawn_blocking(move || this.reload(before)).await;
    }

    fn reload(&self, before: [Stamp; 2]) {
        let now = stamps(&self.files);
        if now == before {
            return;
        }
        match read(&self.upstream, &self.files) {
            Ok(key) => {
                *self.shown.0.write() = Arc::new(key);
                tracing::info!(upstream = &*self.upstream, "took the new client certificate for {}", self.upstream);
            }
            Err(error) => tracing::error!(%error, "the client certificate stays as it is: {error}"),
        }
        self.looked.lock().1 = now;
    }
}

// === impl Shown ===

impl ResolvesClientCert for Shown {
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
        .map_err(|error| wrong("client_key", format!("does not go with client_cert: {error}")))
}

fn stamps(files: &ClientCertificate) -> [Stamp; 2] {
    [Stamp::of(&files.certificate), Stamp::of(&files.key)]
}

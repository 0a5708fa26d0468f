//! A certificate authority for tests, with its server and client certificates in PEM.

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, SanType};
use tempfile::TempDir;

pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    /// Its own certificate.
    pub ca: String,
    folder: TempDir,
}

/// A certificate and its key.
pub struct Signed {
    pub cert: String,
    pub key: String,
}

impl Authority {
    pub fn new() -> Self {
        let mut params = CertificateParams::new([]).expect("no names");
        params.distinguished_name.push(DnType::CommonName, "a test authority");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key");
        let ca = params.self_signed(&key).expect("a certificate").pem();
        Self { issuer: Issuer::new(params, key), ca, folder: tempfile::tempdir().expect("a temporary folder") }
    }

    /// Signs a certificate for 127.0.0.1 and localhost; `name` tells certificates apart.
    pub fn sign(&self, name: &str) -> Signed {
        let names = ["127.0.0.1", "localhost", "docker-io.cache.test"].map(str::to_owned);
        let mut params = CertificateParams::new(names).expect("plain names");
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().expect("a key");
        let cert = params.signed_by(&key, &self.issuer).expect("a certificate").pem();
        Signed { cert, key: key.serialize_pem() }
    }

    /// Signs a client certificate with these names, which has this common name.
    pub fn sign_for(&self, common_name: &str, names: Vec<SanType>) -> Signed {
        let mut params = CertificateParams::new([]).expect("no names");
        params.distinguished_name.push(DnType::CommonName, common_name);
        params.subject_alt_names = names;
        let key = KeyPair::generate().expect("a key");
        let cert = params.signed_by(&key, &self.issuer).expect("a certificate").pem();
        Signed { cert, key: key.serialize_pem() }
    }

    /// Writes a file for a server, under one of the names in [`Authority::config`], and returns its path.
    pub fn write(&self, entry: &str, text: &str) -> String {
        let path = self.folder.path().join(entry);
        // Renamed into place, as a renewal does.
        let fresh = self.folder.path().join(format!("{entry}.new"));
        std::fs::write(&fresh, text).expect("the file can be written");
        std::fs::rename(&fresh, &path).expect("the file can be put in place");
        path.to_str().expect("a plain path").to_owned()
    }

    /// `[server.tls]` with a certificate of this name.
    pub fn config(&self, name: &str) -> String {
        let signed = self.sign(name);
        let (cert, key) = (self.write("tls.crt", &signed.cert), self.write("tls.key", &signed.key));
        format!("[server.tls]\ncert = {cert:?}\nkey = {key:?}\n")
    }
}

impl Signed {
    /// Certificate and key in one text, as a client reads them.
    pub fn identity(&self) -> String {
        format!("{}{}", self.cert, self.key)
    }
}

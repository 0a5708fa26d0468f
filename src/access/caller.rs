//! What a request says about its sender, before anything of it is believed.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use http::header::AUTHORIZATION;
use http::{HeaderMap, HeaderValue};
use rustls_pki_types::CertificateDer;

use super::forwarded::{Forwarded, TrustedProxies};
use super::principal::User;
use crate::config::{CERTIFICATE_PREFIX, MAX_IDENTITY_BYTES};

/// Longest name of a certificate in bytes that is an identity.
const MAX_NAME_BYTES: usize = MAX_IDENTITY_BYTES - CERTIFICATE_PREFIX.len() - 1;

/// The other end of a connection.
#[derive(Clone, Debug)]
pub struct Peer {
    /// `None` where the kernel does not tell: the peer has gone already.
    pub address: Option<SocketAddr>,
    /// Whether the connection is TLS.
    pub is_encrypted: bool,
    /// The client certificate, if the TLS handshake verified one.
    pub certificate: Option<VerifiedCertificate>,
    /// All trusted proxies, if the peer is one of them.
    proxies: Option<TrustedProxies>,
}

/// The end-entity certificate of a client, signed by an authority of `tls.client_ca`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifiedCertificate {
    /// `cert:NAME`; `None` if it has no name that counts.
    identity: Option<Arc<User>>,
}

/// The sender of a request.
#[derive(Clone, Copy, Debug)]
pub struct Caller<'a> {
    peer: &'a Peer,
    headers: &'a HeaderMap,
}

impl Peer {
    /// A peer without TLS.
    pub fn at(address: Option<SocketAddr>) -> Self {
        Self { address, is_encrypted: false, certificate: None, proxies: None }
    }

    /// The same peer. If it is one of these proxies, what it says about its clients is believed.
    pub fn trusted_if_in(mut self, proxies: &TrustedProxies) -> Self {
        let is_proxy = self.address.is_some_and(|address| proxies.contains(address.ip()));
        self.proxies = is_proxy.then(|| proxies.clone());
        self
    }
}

impl VerifiedCertificate {
    /// The certificate in DER must have been verified by the TLS handshake.
    pub fn new(der: &[u8]) -> Self {
        let identity = certificate_name(der).map(|name| Arc::new(User::identity(CERTIFICATE_PREFIX, &name)));
        Self { identity }
    }

    pub fn identity(&self) -> Option<&Arc<User>> {
        self.identity.as_ref()
    }
}

/// The name that a certificate is an identity by: its first URI, or without one its first DNS name. Its common name never is
/// one: an authority may sign any text there. `None` if there is no name, or it cannot be an identity.
fn certificate_name(der: &[u8]) -> Option<String> {
    let der = CertificateDer::from(der);
    let certificate = webpki::EndEntityCert::try_from(&der).ok()?;
    let (uri, dns) = (certificate.valid_uri_names().next(), certificate.valid_dns_names().next());
    let name = match uri {
        Some(uri) => uri.to_owned(),
        None => dns?.to_ascii_lowercase(),
    };
    let is_plain = name.bytes().all(|byte| byte.is_ascii_graphic());
    (is_plain && !name.is_empty() && name.len() <= MAX_NAME_BYTES).then_some(name)
}

impl<'a> Caller<'a> {
    /// The sender of a request with these headers.
    pub fn new(peer: &'a Peer, headers: &'a HeaderMap) -> Self {
        Self { peer, headers }
    }

    pub fn headers(&self) -> &'a HeaderMap {
        self.headers
    }

    pub fn peer(&self) -> &'a Peer {
        self.peer
    }

    /// The address of the client, which a trusted proxy names; `None` if the kernel does not tell.
    pub fn address(&self) -> Option<IpAddr> {
        match self.forwarded() {
            Some(forwarded) => forwarded.client(),
            None => self.peer.address.map(|address| address.ip()),
        }
    }

    /// Whether the client uses TLS, as far as it is known.
    pub fn is_encrypted(&self) -> bool {
        self.forwarded().and_then(Forwarded::is_encrypted).unwrap_or(self.peer.is_encrypted)
    }

    /// The host that the client has sent to a trusted proxy, if that says so. Its characters are not checked.
    pub fn forwarded_host(&self) -> Option<&'a str> {
        self.forwarded()?.host()
    }

    /// `None` if the peer is not a trusted proxy.
    fn forwarded(&self) -> Option<Forwarded<'a>> {
        let proxies = self.peer.proxies.as_ref()?;
        Some(Forwarded { headers: self.headers, proxies, peer: self.peer.address.map(|address| address.ip()) })
    }

    /// The `Authorization` headers as they were sent, not parsed.
    pub fn authorizations(&self) -> impl Iterator<Item = &'a HeaderValue> {
        self.headers.get_all(AUTHORIZATION).iter()
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, CustomExtension, DnType, KeyPair, SanType};

    use super::*;

    /// The identity of a certificate with these names, and one as its common name.
    fn identity(names: Vec<SanType>) -> Option<String> {
        let mut params = CertificateParams::new([]).unwrap();
        params.distinguished_name.push(DnType::CommonName, "admin.example");
        params.subject_alt_names = names;
        let certificate = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
        let verified = VerifiedCertificate::new(certificate.der());
        verified.identity().map(|user| user.name().to_owned())
    }

    fn uri(text: &str) -> SanType {
        SanType::URI(text.try_into().unwrap())
    }

    fn dns(text: &str) -> SanType {
        SanType::DnsName(text.try_into().unwrap())
    }

    #[test]
    fn the_first_uri_or_else_the_first_dns_name_is_the_identity() {
        let address = || SanType::IpAddress([127, 0, 0, 1].into());
        let mail = || SanType::Rfc822Name("ann@example.com".try_into().unwrap());
        let long = format!("spiffe://{}", "a".repeat(MAX_NAME_BYTES));
        for (names, expected) in [
            (vec![], None),
            (vec![address(), mail()], None),
            (vec![dns("Node-1.Example"), dns("b.example")], Some("cert:node-1.example")),
            (vec![address(), dns("*.nodes.example")], Some("cert:*.nodes.example")),
            (vec![dns("a.example"), uri("spiffe://cluster/app"), uri("spiffe://b")], Some("cert:spiffe://cluster/app")),
            // One that cannot be an identity is not replaced by another name.
            (vec![uri("spiffe://a b"), dns("a.example")], None),
            (vec![uri("spiffe://a\nb"), uri("spiffe://b")], None),
            (vec![uri(""), dns("a.example")], None),
            (vec![uri(&long)], None),
        ] {
            assert_eq!(identity(names.clone()).as_deref(), expected, "{names:?}");
        }
    }

    #[test]
    fn damaged_certificates_and_names_are_no_identity() {
        for der in [&b""[..], b"\x30\x00", &[0xff; 100]] {
            assert_eq!(VerifiedCertificate::new(der).identity(), None);
        }
        let mut params = CertificateParams::new([]).unwrap();
        // A name whose length is beyond the end.
        let damaged =
            CustomExtension::from_oid_content(&[2, 5, 29, 17], vec![0x30, 0x05, 0x86, 0x40, b'a', b'b', b'c']);
        params.custom_extensions.push(damaged);
        let certificate = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
        assert_eq!(VerifiedCertificate::new(certificate.der()).identity(), None);
    }
}

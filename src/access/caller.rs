//! What a request says about its sender, before anything of it is believed.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use http::header::AUTHORIZATION;
use http::{HeaderMap, HeaderValue};

use super::forwarded::{Forwarded, TrustedProxies};

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

/// The end-entity certificate of a client, in DER, signed by an authority of `tls.client_ca`.
#[derive(Clone, PartialEq, Eq)]
pub struct VerifiedCertificate(Arc<[u8]>);

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
    /// `der` must have been verified by the TLS handshake.
    pub fn new(der: &[u8]) -> Self {
        Self(der.into())
    }

    pub fn der(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for VerifiedCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "VerifiedCertificate({} bytes)", self.0.len())
    }
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

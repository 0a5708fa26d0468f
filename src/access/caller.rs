//! What a request says about its sender, before anything of it is believed.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use http::header::AUTHORIZATION;
use http::{HeaderMap, HeaderValue};

/// The other end of a connection.
#[derive(Clone, Debug)]
pub struct Peer {
    /// `None` where the kernel does not tell: the peer has gone already.
    pub address: Option<SocketAddr>,
    /// The client certificate, if the TLS handshake verified one.
    pub certificate: Option<VerifiedCertificate>,
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
    /// A peer without a certificate.
    pub fn at(address: Option<SocketAddr>) -> Self {
        Self { address, certificate: None }
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

    pub fn peer(&self) -> &'a Peer {
        self.peer
    }

    /// The `Authorization` header as it was sent, not parsed.
    pub fn authorization(&self) -> Option<&'a HeaderValue> {
        self.headers.get(AUTHORIZATION)
    }
}

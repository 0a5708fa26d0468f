//! The address to listen on, as people write it: `:5000`, `localhost:5000`, `127.0.0.1:0`, `[::1]:5000`.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs};
use std::str::FromStr;

/// A host and port to listen on. The host may be a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListenAddr {
    /// Without brackets. Empty: all addresses of the machine.
    host: String,
    port: u16,
}

/// The text is not a host and port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not an address to listen on; write for example \"127.0.0.1:5000\"")]
pub struct ListenAddrError;

// === impl ListenAddr ===

impl ListenAddr {
    /// The host without brackets. Empty: all addresses of the machine.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The port. 0 lets the system choose one.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The addresses to bind, in order of preference. Resolves host names, which blocks.
    ///
    /// Bind IPv6 sockets for IPv6 only, so that `:5000` can bind both families. If the machine lacks one family, the
    /// other one is sufficient. With port 0, use the port of the first bound address for all of them.
    ///
    /// # Errors
    /// If a host name cannot be resolved.
    pub fn socket_addrs(&self) -> io::Result<Vec<SocketAddr>> {
        let ips: Vec<IpAddr> = match self.host.as_str() {
            "" => vec![Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()],
            "localhost" => vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()],
            host => match host.parse() {
                Ok(ip) => vec![ip],
                Err(_) => return Ok((host, self.port).to_socket_addrs()?.collect()),
            },
        };
        Ok(ips.into_iter().map(|ip| SocketAddr::new(ip, self.port)).collect())
    }

    /// Whether only this machine can connect. A host name other than `localhost` counts as reachable by others.
    pub fn is_loopback(&self) -> bool {
        self.host == "localhost" || self.host.parse().is_ok_and(|ip: IpAddr| ip.is_loopback())
    }
}

impl Default for ListenAddr {
    fn default() -> Self {
        Self { host: Ipv4Addr::LOCALHOST.to_string(), port: 5000 }
    }
}

impl From<SocketAddr> for ListenAddr {
    fn from(address: SocketAddr) -> Self {
        Self { host: address.ip().to_string(), port: address.port() }
    }
}

impl FromStr for ListenAddr {
    type Err = ListenAddrError;

    fn from_str(text: &str) -> Result<Self, ListenAddrError> {
        let (host, port) = text.rsplit_once(':').ok_or(ListenAddrError)?;
        let port = port.parse().map_err(|_| ListenAddrError)?;
        let host = match host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            Some(v6) => v6.parse::<Ipv6Addr>().map_err(|_| ListenAddrError)?.to_string(),
            None if host.chars().all(|c| c.is_ascii_alphanumeric() || "-._".contains(c)) => host.to_ascii_lowercase(),
            None => return Err(ListenAddrError),
        };
        Ok(Self { host, port })
    }
}

impl fmt::Display for ListenAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn usual_address_forms_are_parsed() {
        let cases = [
            (":5000", "0.0.0.0:5000 [::]:5000", false),
            ("0.0.0.0:5000", "0.0.0.0:5000", false),
            ("[::]:5000", "[::]:5000", false),
            ("localhost:5000", "127.0.0.1:5000 [::1]:5000", true),
            ("LocalHost:5000", "127.0.0.1:5000 [::1]:5000", true),
            ("127.0.0.1:0", "127.0.0.1:0", true),
            ("127.9.9.9:1", "127.9.9.9:1", true),
            ("[::1]:5000", "[::1]:5000", true),
            ("10.1.2.3:80", "10.1.2.3:80", false),
        ];
        for (text, sockets, loopback) in cases {
            let address: ListenAddr = text.parse().unwrap();
            let found: Vec<_> = address.socket_addrs().unwrap().iter().map(ToString::to_string).collect();
            assert_eq!(found.join(" "), sockets, "{text}");
            assert_eq!(address.is_loopback(), loopback, "{text}");
            assert_eq!(address.to_string().parse(), Ok(address), "{text}");
        }
    }

    #[test]
    fn invalid_addresses_are_rejected() {
        for text in ["", "5000", "localhost", "::1:5000", "[::1]", "host:70000", "http://host:80", "a b:1", "[x]:1"] {
            assert_eq!(text.parse::<ListenAddr>(), Err(ListenAddrError), "{text}");
        }
    }

    #[test]
    fn host_names_other_than_localhost_are_not_loopback() {
        assert!(!"registry.example.com:5000".parse::<ListenAddr>().unwrap().is_loopback());
    }
}

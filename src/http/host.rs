//! Which host a request names. The host may decide which upstream is meant (`server.host_routes`). So a proxy and this
//! server must not read different hosts from different fields.
//!
//! The rules of RFC 9112, section 3.2, apply: an HTTP/1.1 request has exactly one `Host`, and a target with a host of
//! its own takes precedence. A host is a name or an address as it may be in a URL: letters, digits, `.`, `-`, `_` and
//! `~`, or an IPv6 address in brackets. A port may follow.

use std::net::Ipv6Addr;

use http::header::HOST;
use http::{Request, Version};

/// A request that does not name exactly one host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HostError {
    #[error("an HTTP/1.1 request must have a Host header")]
    Missing,
    #[error("a request must have one Host header only")]
    Repeated,
    #[error("the host of the request is not a name or an address with an optional port")]
    Malformed,
}

/// Checks a request of any HTTP version.
///
/// # Errors
/// If it must be answered with 400 (RFC 9112, section 3.2).
pub(super) fn check<B>(request: &Request<B>) -> Result<(), HostError> {
    let mut hosts = request.headers().get_all(HOST).iter();
    let host = match (hosts.next(), hosts.next()) {
        (_, Some(_)) => return Err(HostError::Repeated),
        (None, None) if request.version() == Version::HTTP_11 => return Err(HostError::Missing),
        (host, None) => host,
    };
    let authority = request.uri().authority().map(|authority| authority.as_str().as_bytes());
    let all = host.map(|host| host.as_bytes()).into_iter().chain(authority);
    if all.into_iter().all(is_valid) { Ok(()) } else { Err(HostError::Malformed) }
}

/// Whether this is a host with an optional port. An empty host is not valid (RFC 9110, section 4.2.1).
pub(super) fn is_valid(host: &[u8]) -> bool {
    let port_at = host.iter().rposition(|&byte| byte == b':' || byte == b']').filter(|&at| host[at] == b':');
    let (name, port) = match port_at {
        Some(at) => (&host[..at], &host[at + 1..]),
        None => (host, &[][..]),
    };
    is_port(port) && (is_name(name) || is_ipv6(name))
}

fn is_port(port: &[u8]) -> bool {
    port.iter().all(u8::is_ascii_digit)
        && port.iter().fold(0u32, |port, digit| port.saturating_mul(10).saturating_add((digit - b'0').into())) <= 65535
}

fn is_name(name: &[u8]) -> bool {
    !name.is_empty() && name.iter().all(|&byte| byte.is_ascii_alphanumeric() || b".-_~".contains(&byte))
}

fn is_ipv6(name: &[u8]) -> bool {
    let address = name.strip_prefix(b"[").and_then(|name| name.strip_suffix(b"]"));
    address.is_some_and(|address| std::str::from_utf8(address).is_ok_and(|text| text.parse::<Ipv6Addr>().is_ok()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_names_or_addresses_with_a_port() {
        for host in
            ["a", "a.example", "A_b-c.example:5000", "10.0.0.1:80", "[::1]", "[fd00::1]:5000", "a.", "a:", "x~y"]
        {
            assert!(is_valid(host.as_bytes()), "{host}");
        }
        for host in [
            "",
            ":80",
            "a b",
            "a/b",
            "a,b",
            "user@a",
            "a:b",
            "a:65536",
            "a:99999999999",
            "a:80:80",
            "::1",
            "[::1",
            "::1]",
            "[]",
            "[a]",
            "[::1]x",
            "[::1%25eth0]",
            "a\\b",
            "a\"b",
            "a?b",
            "a#b",
            "a%2eb",
            "ä",
            "a\u{7f}",
            "*",
            "a;b",
        ] {
            assert!(!is_valid(host.as_bytes()), "{host}");
        }
    }

    #[test]
    fn exactly_one_host_is_needed_since_http_1_1() {
        let check = |version, target: &str, hosts: &[&str]| {
            let mut request = Request::builder().version(version).uri(target);
            for host in hosts {
                request = request.header(HOST, *host);
            }
            super::check(&request.body(()).unwrap())
        };
        for (version, target, hosts, expected) in [
            (Version::HTTP_11, "/v2/", &["a"][..], Ok(())),
            (Version::HTTP_11, "/v2/", &[], Err(HostError::Missing)),
            (Version::HTTP_11, "http://b/v2/", &[], Err(HostError::Missing)),
            (Version::HTTP_11, "/v2/", &["a", "a"], Err(HostError::Repeated)),
            (Version::HTTP_11, "/v2/", &["a", "b"], Err(HostError::Repeated)),
            (Version::HTTP_11, "/v2/", &[""], Err(HostError::Malformed)),
            (Version::HTTP_11, "http://b/v2/", &["a"], Ok(())),
            (Version::HTTP_11, "http://user@b/v2/", &["b"], Err(HostError::Malformed)),
            (Version::HTTP_10, "/v2/", &[], Ok(())),
            (Version::HTTP_10, "/v2/", &["a", "b"], Err(HostError::Repeated)),
            (Version::HTTP_2, "https://a/v2/", &[], Ok(())),
            (Version::HTTP_2, "https://a/v2/", &["a", "b"], Err(HostError::Repeated)),
            (Version::HTTP_2, "https://a/v2/", &["a b"], Err(HostError::Malformed)),
        ] {
            assert_eq!(check(version, target, hosts), expected, "{version:?} {target} {hosts:?}");
        }
    }
}

//! What a trusted proxy says about a request that it has passed on: `X-Forwarded-For`, `-Proto` and `-Host`, or `Forwarded`
//! of RFC 7239.
//!
//! Only a connection from `server.trusted_proxies` is asked, and no other module reads these headers. If a request has any
//! `X-Forwarded-…` header, `Forwarded` is ignored: nearly all proxies set the former and pass on the latter as a client has
//! sent it. A value that is malformed counts as missing.

use std::net::IpAddr;
use std::sync::Arc;

use http::header::{FORWARDED, HeaderName};
use http::{HeaderMap, HeaderValue};
use ipnet::IpNet;

const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
/// Proxies in a row that are followed. A longer list is not read to its end.
const MAX_HOPS: usize = 32;

/// The networks of trusted proxies. Clones share them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrustedProxies(Arc<[IpNet]>);

/// The headers of a request from a trusted proxy.
#[derive(Clone, Copy)]
pub(super) struct Forwarded<'a> {
    pub(super) headers: &'a HeaderMap,
    pub(super) proxies: &'a TrustedProxies,
    /// The address of the proxy.
    pub(super) peer: Option<IpAddr>,
}

/// An element of `Forwarded`. Its values are texts of the header, without quotes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Element<'a> {
    sender: Option<&'a str>,
    proto: Option<&'a str>,
    host: Option<&'a str>,
}

// === impl TrustedProxies ===

impl TrustedProxies {
    pub fn new(networks: &[IpNet]) -> Self {
        Self(networks.into())
    }

    /// Whether an address is that of a proxy.
    pub fn contains(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.0.iter().any(|network| network.contains(&address))
    }
}

// === impl Forwarded ===

impl<'a> Forwarded<'a> {
    /// The address of the client: from the right, the first one that is not a proxy's. If one cannot be read, that of the
    /// last proxy before it.
    pub(super) fn client(self) -> Option<IpAddr> {
        if let Some((client, _)) = self.element() {
            return client;
        }
        let mut client = self.peer;
        let lines = self.headers.get_all(FORWARDED_FOR).iter().rev();
        let entries = lines.flat_map(|line| line.as_bytes().rsplit(|byte| *byte == b','));
        for entry in entries.take(MAX_HOPS) {
            let Some(address) = std::str::from_utf8(entry).ok().and_then(address) else { break };
            client = Some(address);
            if !self.proxies.contains(address) {
                break;
            }
        }
        client
    }

    /// Whether the client has sent the request over TLS; `None` if nothing says so.
    pub(super) fn is_encrypted(self) -> Option<bool> {
        let proto = match self.element() {
            Some((_, element)) => element.proto,
            None => first(self.headers, &FORWARDED_PROTO),
        }?;
        match proto {
            https if https.eq_ignore_ascii_case("https") => Some(true),
            http if http.eq_ignore_ascii_case("http") => Some(false),
            _ => None,
        }
    }

    /// The host that the client has sent. Its characters are not checked.
    pub(super) fn host(self) -> Option<&'a str> {
        match self.element() {
            Some((_, element)) => element.host,
            None => first(self.headers, &FORWARDED_HOST),
        }
    }

    /// What `Forwarded` says, if it counts: the address of the client, and the element of the outermost trusted proxy, which
    /// is the one that the client has sent its request to. What is left of it may be forged.
    fn element(self) -> Option<(Option<IpAddr>, Element<'a>)> {
        let others = [FORWARDED_FOR, FORWARDED_PROTO, FORWARDED_HOST];
        if !self.headers.contains_key(FORWARDED) || others.iter().any(|name| self.headers.contains_key(name)) {
            return None;
        }
        let (mut client, mut believed) = (self.peer, Element::default());
        let lines = self.headers.get_all(FORWARDED).iter().rev();
        for element in lines.flat_map(|line| Elements(text(line))).take(MAX_HOPS) {
            let Some(element) = element.and_then(Element::parse) else { break };
            believed = element;
            let Some(address) = element.sender.and_then(address) else { break };
            client = Some(address);
            if !self.proxies.contains(address) {
                break;
            }
        }
        Some((client, believed))
    }
}

/// The first value of the first line, as proxies append theirs.
fn first<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    let value = text(headers.get(name)?)?.split(',').next()?.trim();
    (!value.is_empty()).then_some(value)
}

fn text(value: &HeaderValue) -> Option<&str> {
    value.to_str().ok()
}

/// An address with an optional port. IPv6 may be in brackets, and is with a port.
fn address(text: &str) -> Option<IpAddr> {
    let text = text.trim();
    let address = match text.strip_prefix('[') {
        Some(rest) => {
            let (address, port) = rest.split_once(']')?;
            let is_port = port.is_empty() || port.strip_prefix(':').is_some_and(|port| port.parse::<u16>().is_ok());
            IpAddr::V6(address.parse().ok().filter(|_| is_port)?)
        }
        None => match text.parse() {
            Ok(address) => address,
            Err(_) => IpAddr::V4(*text.parse::<std::net::SocketAddrV4>().ok()?.ip()),
        },
    };
    Some(address.to_canonical())
}

/// The elements of a line of `Forwarded`, from the right: what a proxy has appended does not depend on what a client has
/// sent before it, such as a quotation mark. `None` for what is not text or has no end.
struct Elements<'a>(Option<&'a str>);

impl<'a> Iterator for Elements<'a> {
    type Item = Option<&'a str>;

    fn next(&mut self) -> Option<Self::Item> {
        let line = self.0.take()?;
        let mut is_quoted = false;
        for (at, byte) in line.bytes().enumerate().rev() {
            match byte {
                b'"' => is_quoted = !is_quoted,
                b',' if !is_quoted => {
                    self.0 = Some(&line[..at]);
                    return Some(Some(&line[at + 1..]));
                }
                _ => {}
            }
        }
        Some((!is_quoted).then_some(line))
    }
}

impl<'a> Element<'a> {
    /// `None` if it is malformed. Escapes in quotes count as that: no address and no host has any.
    fn parse(text: &'a str) -> Option<Self> {
        let mut element = Self::default();
        for pair in text.trim().split(';') {
            let (name, value) = pair.trim().split_once('=')?;
            let value = match value.strip_prefix('"') {
                Some(rest) => rest.strip_suffix('"')?,
                None => value,
            };
            if value.is_empty() || value.contains(['"', '\\']) {
                return None;
            }
            let known = match name {
                name if name.eq_ignore_ascii_case("for") => &mut element.sender,
                name if name.eq_ignore_ascii_case("proto") => &mut element.proto,
                name if name.eq_ignore_ascii_case("host") => &mut element.host,
                _ => continue,
            };
            if known.replace(value).is_some() {
                return None;
            }
        }
        Some(element)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn proxies() -> TrustedProxies {
        let networks = ["10.0.0.0/8", "::1/128", "fd00::/8"];
        TrustedProxies::new(&networks.map(|network| network.parse().unwrap()))
    }

    fn headers(lines: &[(&str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            let name: HeaderName = name.parse().unwrap();
            headers.append(name, HeaderValue::from_bytes(value.as_bytes()).unwrap());
        }
        headers
    }

    /// The client, whether it used TLS, and the host, as the proxy 10.0.0.1 says.
    fn said(lines: &[(&str, &str)]) -> (String, Option<bool>, Option<String>) {
        let (headers, proxies) = (headers(lines), proxies());
        let forwarded = Forwarded { headers: &headers, proxies: &proxies, peer: Some("10.0.0.1".parse().unwrap()) };
        let client = forwarded.client().unwrap().to_string();
        (client, forwarded.is_encrypted(), forwarded.host().map(str::to_owned))
    }

    #[test]
    fn the_first_untrusted_address_from_the_right_is_the_client() {
        for (lines, client) in [
            (&[][..], "10.0.0.1"),
            (&["192.0.2.1"], "192.0.2.1"),
            (&["203.0.113.9, 192.0.2.1"], "192.0.2.1"),
            (&["203.0.113.9, 192.0.2.1, 10.0.0.7,10.1.2.3"], "192.0.2.1"),
            (&["203.0.113.9", "192.0.2.1", "10.0.0.7"], "192.0.2.1"),
            (&["10.0.0.9, 10.0.0.7"], "10.0.0.9"),
            (&["192.0.2.1:4711"], "192.0.2.1"),
            (&["2001:db8::1"], "2001:db8::1"),
            (&["[2001:db8::1]"], "2001:db8::1"),
            (&["[2001:db8::1]:4711, [::1]:80, fd00::2"], "2001:db8::1"),
            (&["::ffff:192.0.2.1"], "192.0.2.1"),
            (&["192.0.2.1, ::ffff:10.0.0.7"], "192.0.2.1"),
            // What cannot be read ends the list.
            (&["192.0.2.1, unknown"], "10.0.0.1"),
            (&["192.0.2.1, x, 10.0.0.7"], "10.0.0.7"),
            (&["192.0.2.1,, 10.0.0.7"], "10.0.0.7"),
            (&["192.0.2.1, 10.0.0.7,"], "10.0.0.1"),
            (&[""], "10.0.0.1"),
            (&["192.0.2.1 10.0.0.7"], "10.0.0.1"),
            (&["192.0.2.1:99999"], "10.0.0.1"),
            (&["[192.0.2.1]"], "10.0.0.1"),
            (&["[::1]x"], "10.0.0.1"),
            (&["\u{e4}"], "10.0.0.1"),
        ] {
            let lines: Vec<_> = lines.iter().map(|line| ("X-Forwarded-For", *line)).collect();
            assert_eq!(said(&lines).0, client, "{lines:?}");
        }
        let long = ["192.0.2.1"].into_iter().chain([", 10.0.0.9"; MAX_HOPS]).collect::<String>();
        assert_eq!(said(&[("X-Forwarded-For", &long)]).0, "10.0.0.9", "a long list is not read to its end");
    }

    #[test]
    fn scheme_and_host_are_the_first_of_a_list() {
        for (lines, encrypted, host) in [
            (&[][..], None, None),
            (&[("X-Forwarded-Proto", "https")], Some(true), None),
            (&[("X-Forwarded-Proto", "HTTP, https")], Some(false), None),
            (&[("X-Forwarded-Proto", "wss")], None, None),
            (&[("X-Forwarded-Proto", "")], None, None),
            (&[("X-Forwarded-Host", "cache.example:5000")], None, Some("cache.example:5000")),
            (&[("X-Forwarded-Host", "a.example , b.example")], None, Some("a.example")),
            (&[("X-Forwarded-Host", "a.example"), ("X-Forwarded-Host", "b.example")], None, Some("a.example")),
            (&[("X-Forwarded-Host", " ,b.example")], None, None),
        ] {
            let (client, found_encrypted, found_host) = said(lines);
            assert_eq!((client.as_str(), found_encrypted, found_host.as_deref()), ("10.0.0.1", encrypted, host));
        }
    }

    #[test]
    fn the_standard_header_is_believed_as_far_as_trusted_proxies_wrote_it() {
        for (lines, client, encrypted, host) in [
            (&["for=192.0.2.1;proto=https;host=a.example"][..], "192.0.2.1", Some(true), Some("a.example")),
            (
                &["For=\"192.0.2.1:80\"; Proto=HTTPS; Host=\"a.example:81\""],
                "192.0.2.1",
                Some(true),
                Some("a.example:81"),
            ),
            (&["for=\"[2001:db8::1]:80\""], "2001:db8::1", None, None),
            // The element of the outermost proxy counts, and not those that its client has sent.
            (
                &["for=203.0.113.9;host=forged;proto=http, for=192.0.2.1;host=a.example;proto=https, for=10.0.0.7"],
                "192.0.2.1",
                Some(true),
                Some("a.example"),
            ),
            (&["for=203.0.113.9;host=forged", "for=192.0.2.1;proto=https"], "192.0.2.1", Some(true), None),
            // Nor what makes them hard to read.
            (&["for=\"203.0.113.9, for=192.0.2.1"], "192.0.2.1", None, None),
            (&["x=\"\\\", for=192.0.2.1"], "192.0.2.1", None, None),
            (&["for=\"a, for=192.0.2.1\""], "10.0.0.1", None, None),
            (&["for=unknown;host=a.example"], "10.0.0.1", None, Some("a.example")),
            (&["for=_hidden, for=10.0.0.7"], "10.0.0.7", None, None),
            (&["for=192.0.2.1;for=192.0.2.2"], "10.0.0.1", None, None),
            (&["for"], "10.0.0.1", None, None),
            (&[""], "10.0.0.1", None, None),
            (&["host=\"a\\\"b\""], "10.0.0.1", None, None),
        ] {
            let lines: Vec<_> = lines.iter().map(|line| ("Forwarded", *line)).collect();
            let (found, found_encrypted, found_host) = said(&lines);
            assert_eq!(
                (found.as_str(), found_encrypted, found_host.as_deref()),
                (client, encrypted, host),
                "{lines:?}"
            );
        }
    }

    #[test]
    fn the_standard_header_is_ignored_beside_the_usual_ones() {
        let forged = ("Forwarded", "for=203.0.113.9;host=forged;proto=http");
        for usual in
            [("X-Forwarded-For", "192.0.2.1"), ("X-Forwarded-Proto", "https"), ("X-Forwarded-Host", "a.example")]
        {
            let (client, encrypted, host) = said(&[forged, usual]);
            assert!(
                client != "203.0.113.9" && encrypted != Some(false) && host.as_deref() != Some("forged"),
                "{usual:?}"
            );
        }
    }

    #[test]
    fn no_other_file_reads_these_headers() {
        fn visit(folder: &std::path::Path, found: &mut Vec<String>) {
            for entry in std::fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    visit(&path, found);
                } else if std::fs::read_to_string(&path).unwrap().to_lowercase().contains("\"x-forwarded-") {
                    found.push(path.file_name().unwrap().to_string_lossy().into_owned());
                }
            }
        }
        let mut found = Vec::new();
        visit(std::path::Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/src")), &mut found);
        found.sort();
        // `hits` has one in a test.
        assert_eq!(found, ["forwarded.rs", "hits.rs"]);
    }

    proptest! {
        #[test]
        fn any_headers_are_read_and_no_proxy_is_a_client_without_saying_so(
            value in "[ -~]{0,60}",
            name in prop::sample::select(vec!["X-Forwarded-For", "X-Forwarded-Proto", "X-Forwarded-Host", "Forwarded"]),
        ) {
            let (client, _, _) = said(&[(name, &value), ("X-Other", "1")]);
            let client: IpAddr = client.parse().unwrap();
            let is_named = value.contains(&client.to_string()) || value.contains(':');
            prop_assert!(is_named || client == "10.0.0.1".parse::<IpAddr>().unwrap());
        }
    }
}

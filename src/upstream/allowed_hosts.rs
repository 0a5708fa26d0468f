//! Which token servers may receive an upstream's credentials, and which hosts an upstream may redirect to.
//!
//! The responses of an upstream name other hosts: the token server in a challenge, the storage in a redirect. A forged
//! response must neither obtain credentials nor make the server contact services inside its own network.
//!
//! Certificates are not decided here: `tls` configures them and `error` has the texts of their rejection.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::atomic::{AtomicBool, Ordering};

use url::{Host, Url};

use crate::config::UpstreamConfig;

/// Token servers that are legitimately on another domain than their registry: (registry, token server).
const BUILTIN_TOKEN_REALMS: [(&str, &str); 1] = [("nvcr.io", "authn.nvidia.com")];

/// Scheme, host and port: the range in which a credential or token is valid.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Origin(String);

/// The rules for one upstream.
#[derive(Debug)]
pub(super) struct AllowedHosts {
    own_names: HashSet<String>,
    token_realms: Vec<String>,
    private_redirects: bool,
    /// Whether the upstream itself has a private address. For a name this is known after its first lookup, which
    /// precedes its first redirect. Set by the resolver, read by all checks.
    on_private_address: AtomicBool,
}

/// A host with a private address that an upstream may not redirect to.
#[derive(Debug, thiserror::Error)]
pub(super) enum ForbiddenAddress {
    #[error("it redirects to the private address of {host}; if that is intended, set private_redirects")]
    Private { host: String },
    #[error("it redirects to {host}, which is a metadata service of a cloud")]
    Metadata { host: String },
}

// === impl Origin ===

impl Origin {
    /// The origin of a URL.
    pub(super) fn of(url: &Url) -> Self {
        Self(url.origin().ascii_serialization())
    }
}

// === impl ForbiddenAddress ===

impl ForbiddenAddress {
    fn of(host: String, is_metadata: bool) -> Self {
        if is_metadata { Self::Metadata { host } } else { Self::Private { host } }
    }
}

// === impl AllowedHosts ===

impl AllowedHosts {
    /// Takes the rules from the upstream's configuration.
    pub(super) fn new(config: &UpstreamConfig) -> Self {
        let own_names = config.urls.iter().filter_map(|url| Some(lowercase(url.host_str()?))).collect();
        let mut token_realms: Vec<String> = config.token_realms.iter().map(|realm| lowercase(realm)).collect();
        let builtin = BUILTIN_TOKEN_REALMS.iter().filter(|(registry, _)| *registry == config.name);
        token_realms.extend(builtin.map(|(_, realm)| (*realm).to_owned()));
        Self {
            own_names,
            token_realms,
            private_redirects: config.private_redirects,
            on_private_address: AtomicBool::new(config.urls.iter().filter_map(literal).any(is_private)),
        }
    }

    /// Whether the token server at `realm` may receive the credentials for the registry at `registry`: it is the same
    /// host, has the same registrable domain, or is configured, and it does not use plain HTTP while the registry uses
    /// HTTPS.
    pub(super) fn may_see_credentials(&self, registry: &Url, realm: &Url) -> bool {
        let (Some(registry_host), Some(realm_host)) = (registry.host_str(), realm.host_str()) else {
            return false;
        };
        if realm.scheme() != "https" && registry.scheme() == "https" {
            return false;
        }
        let with_port = realm.port_or_known_default().map(|port| format!("{realm_host}:{port}"));
        let configured = |entry: &String| entry == realm_host || Some(entry) == with_port.as_ref();
        realm_host == registry_host
            || same_registrable_domain(registry, realm)
            || self.token_realms.iter().any(configured)
    }

    /// Whether a redirect may be followed. The error is the reason.
    ///
    /// Host names are accepted here; their addresses are checked after the lookup, see [`AllowedHosts::admit`].
    pub(super) fn check_redirect(&self, from: &Url, to: &Url) -> Result<(), String> {
        match (from.scheme(), to.scheme()) {
            ("http" | "https", "https") | ("http", "http") => {}
            ("https", "http") => return Err("it redirects from https to http".to_owned()),
            _ => return Err("it redirects to something that is not http".to_owned()),
        }
        self.check_address(to).map_err(|error| error.to_string())
    }

    /// Checks a URL that contains an IP address.
    pub(super) fn check_address(&self, url: &Url) -> Result<(), ForbiddenAddress> {
        let own = url.host_str().is_some_and(|host| self.own_names.contains(host));
        match literal(url) {
            Some(address) if !own && !self.may_reach(address) => {
                Err(ForbiddenAddress::of(address.to_string(), is_metadata(address)))
            }
            _ => Ok(()),
        }
    }

    /// Filters the addresses of a name: all addresses for the upstream's own names, otherwise only public ones.
    pub(super) fn admit(&self, name: &str, mut addresses: Vec<IpAddr>) -> Result<Vec<IpAddr>, ForbiddenAddress> {
        if self.own_names.contains(&lowercase(name)) {
            if addresses.iter().copied().any(is_private) {
                self.on_private_address.store(true, Ordering::Relaxed);
            }
            return Ok(addresses);
        }
        let metadata = addresses.iter().copied().any(is_metadata);
        let before = addresses.len();
        addresses.retain(|address| self.may_reach(*address));
        if addresses.is_empty() && before > 0 {
            return Err(ForbiddenAddress::of(name.to_owned(), metadata));
        }
        Ok(addresses)
    }

    /// An upstream with a private address, or with `private_redirects`, may redirect to private addresses. A metadata
    /// service of a cloud is always refused, because its responses contain credentials of this machine.
    fn may_reach(&self, address: IpAddr) -> bool {
        let neighbours = self.on_private_address.load(Ordering::Relaxed) && !is_shared(address);
        !is_metadata(address) && (self.private_redirects || neighbours || !is_private(address))
    }
}

/// Whether both hosts are names under one registrable domain (public suffix list). An IP address has no domain.
fn same_registrable_domain(one: &Url, other: &Url) -> bool {
    match (one.host(), other.host()) {
        (Some(Host::Domain(one)), Some(Host::Domain(other))) => {
            psl::domain_str(one).is_some_and(|domain| psl::domain_str(other) == Some(domain))
        }
        _ => false,
    }
}

fn literal(url: &Url) -> Option<IpAddr> {
    match url.host()? {
        Host::Ipv4(address) => Some(address.into()),
        Host::Ipv6(address) => Some(address.into()),
        Host::Domain(_) => None,
    }
}

fn lowercase(name: &str) -> String {
    name.to_ascii_lowercase()
}

/// Whether the address is a metadata service of a cloud, in any notation.
pub(super) fn is_metadata(address: IpAddr) -> bool {
    /// Amazon (also for containers), Azure, Google, OpenStack, Oracle and others use link-local addresses. The listed
    /// IPv4 addresses are those of Alibaba, Oracle Classic, and the wire server of Azure, which is a public address.
    const OTHERS: [Ipv4Addr; 3] =
        [Ipv4Addr::new(100, 100, 100, 200), Ipv4Addr::new(192, 0, 0, 192), Ipv4Addr::new(168, 63, 129, 16)];
    match address {
        IpAddr::V4(address) => address.is_link_local() || OTHERS.contains(&address),
        IpAddr::V6(address) => {
            let of_a_cloud = match address.segments() {
                // Amazon, Google, Oracle, Scaleway.
                [0xfd00, 0xec2, ..]
                | [0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254]
                | [0xfd00, 0xc1, 0, 0, 0, 0, 0xa9fe, 0xa9fe]
                | [0xfd00, 0x42, 0, 0, 0, 0, 0, 0x42] => true,
                _ => address.is_unicast_link_local(),
            };
            of_a_cloud || embedded_v4(address).into_iter().any(|address| is_metadata(address.into()))
        }
    }
}

/// Whether the address is in the space that carriers and clouds share with their customers (RFC 6598), or in that of
/// protocol assignments (RFC 6890). Services of a cloud may be there, also beside the known metadata services.
fn is_shared(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => {
            let [a, b, c, _] = address.octets();
            (a == 100 && (64..128).contains(&b)) || (a, b, c) == (192, 0, 0)
        }
        IpAddr::V6(address) => embedded_v4(address).into_iter().any(|address| is_shared(address.into())),
    }
}

/// Whether the address is not a public Internet address.
pub(super) fn is_private(address: IpAddr) -> bool {
    let is_private = match address {
        IpAddr::V4(address) => is_private_v4(address),
        IpAddr::V6(address) => {
            address.is_unspecified()
                || address.is_unique_local()
                || address.is_unicast_link_local()
                || address.is_multicast()
                || embedded_v4(address).into_iter().any(is_private_v4)
        }
    };
    is_private || is_shared(address) || is_metadata(address)
}

fn is_private_v4(address: Ipv4Addr) -> bool {
    address.is_private()
        || address.is_loopback()
        || address.is_link_local()
        || address.is_broadcast()
        || address.is_multicast()
        || address.octets()[0] == 0
}

/// The IPv4 addresses that packets to this address may reach through a translator or tunnel, or by the rules of
/// sockets.
fn embedded_v4(address: Ipv6Addr) -> Vec<Ipv4Addr> {
    let pair = |high: u16, low: u16| Ipv4Addr::from((u32::from(high) << 16) | u32::from(low));
    match address.segments() {
        // Mapped and compatible (including :: and ::1, RFC 4291), translated (RFC 2765), NAT64 (RFC 6052).
        [0, 0, 0, 0, 0, 0xffff | 0, a, b] | [0, 0, 0, 0, 0xffff, 0, a, b] | [0x64, 0xff9b, 0, 0, 0, 0, a, b] => {
            vec![pair(a, b)]
        }
        // NAT64 of one network, whose prefix may have 48, 56, 64 or 96 bits (RFC 8215; RFC 6052, section 2.2).
        [0x64, 0xff9b, 1, a, b, c, d, e] => {
            let of_48 = pair(a, (b << 8) | (c >> 8));
            let of_56 = pair((a << 8) | (b & 0xff), c);
            let of_64 = pair((b << 8) | (c >> 8), (c << 8) | (d >> 8));
            // The length is unknown. With a wrong one, zeros of the prefix or suffix are read as a part of the address.
            let is_possible = |address: &Ipv4Addr| address.octets()[0] != 0;
            [of_48, of_56, of_64, pair(d, e)].into_iter().filter(is_possible).collect()
        }
        // 6to4 (RFC 3056).
        [0x2002, a, b, ..] => vec![pair(a, b)],
        // Teredo (RFC 4380): the server, and the client with all bits inverted.
        [0x2001, 0, a, b, _, _, c, d] => vec![pair(a, b), pair(!c, !d)],
        // ISATAP (RFC 5214).
        [.., 0 | 0x200, 0x5efe, a, b] => vec![pair(a, b)],
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trust(url: &str) -> AllowedHosts {
        AllowedHosts::new(&UpstreamConfig::new("r.example", vec![url.parse().unwrap()]))
    }

    fn url(url: &str) -> Url {
        url.parse().unwrap()
    }

    #[test]
    fn credentials_go_only_to_the_same_registrable_domain() {
        let table = [
            ("https://ghcr.io", "https://ghcr.io/token", true),
            ("https://registry-1.docker.io", "https://auth.docker.io/token", true),
            ("https://registry.gitlab.com", "https://gitlab.com/jwt/auth", true),
            ("https://r.example.co.uk", "https://evil.co.uk/token", false),
            ("https://a.github.io", "https://b.github.io/token", false),
            ("https://registry-1.docker.io", "https://docker.io.evil.com/token", false),
            ("https://registry-1.docker.io", "http://auth.docker.io/token", false),
            ("https://registry-1.docker.io", "https://192.0.2.1/token", false),
            ("http://127.0.0.1:5000", "http://127.0.0.1:5001/token", true),
            ("http://127.0.0.1:5000", "http://127.0.0.2:5000/token", false),
            ("http://localhost:5000", "http://127.0.0.1:5000/token", false),
            ("https://[::1]:5000", "https://[::1]:5001/token", true),
        ];
        for (registry, realm, expected) in table {
            let allowed = trust(registry).may_see_credentials(&url(registry), &url(realm));
            assert_eq!(allowed, expected, "{registry} -> {realm}");
        }
    }

    #[test]
    fn configured_token_server_receives_credentials() {
        let mut config = UpstreamConfig::new("nvcr.io", vec![url("https://nvcr.io")]);
        let may = |config: &UpstreamConfig, realm: &str| {
            AllowedHosts::new(config).may_see_credentials(&config.urls[0], &url(realm))
        };
        assert!(may(&config, "https://authn.nvidia.com/token"));
        assert!(!may(&config, "https://sso.example/token"));
        config.token_realms = vec!["SSO.example".to_owned(), "sso.test:8443".to_owned()];
        assert!(may(&config, "https://sso.example/token"));
        assert!(may(&config, "https://sso.test:8443/token"));
        assert!(!may(&config, "https://sso.test/token"));
        assert!(!may(&config, "http://sso.example/token"));
        config.name = "other.example".to_owned();
        assert!(!may(&config, "https://authn.nvidia.com/token"));
    }

    #[test]
    fn private_addresses_are_recognised_in_every_form() {
        let private = [
            "127.0.0.1",
            "10.1.2.3",
            "172.16.0.1",
            "192.168.1.1",
            "169.254.169.254",
            "0.0.0.0",
            "100.100.100.200",
            "192.0.0.192",
            "255.255.255.255",
            "::",
            "::1",
            "fe80::1",
            "fd00::1",
            "ff02::1",
            "::ffff:10.0.0.1",
            "64:ff9b::a9fe:a9fe",
            "2002:7f00:1::",
            "168.63.129.16",
            "2002:a83f:8110::1",
            "64:ff9b:1::10.0.0.1",
            "64:ff9b:1:a00:0:100::",
            "::ffff:0:10.0.0.1",
            "2001:0:a00:1::",
            "2001:db8::5efe:10.0.0.1",
        ];
        let public = [
            "8.8.8.8",
            "100.63.0.1",
            "172.32.0.1",
            "2606:4700::1111",
            "::ffff:8.8.8.8",
            "64:ff9b::808:808",
            "64:ff9b:1::808:808",
            "64:ff9b:1:808:8:800::",
            "2002:808:808::1",
            "168.63.129.17",
        ];
        for address in private {
            assert!(is_private(address.parse().unwrap()), "{address}");
        }
        for address in public {
            assert!(!is_private(address.parse().unwrap()), "{address}");
        }
    }

    #[test]
    fn metadata_services_are_recognised_in_every_notation() {
        let services = [
            "169.254.169.254",
            "169.254.170.2",
            "169.254.170.23",
            "169.254.0.23",
            "100.100.100.200",
            "192.0.0.192",
            "168.63.129.16",
            "fd00:ec2::254",
            "fd00:ec2::23",
            "fd20:ce::254",
            "fd00:c1::a9fe:a9fe",
            "fd00:42::42",
            "fe80::a9fe:a9fe",
        ];
        for service in services {
            assert!(is_metadata(service.parse().unwrap()), "{service}");
        }
        for v4 in ["169.254.169.254", "169.254.170.2", "100.100.100.200", "192.0.0.192", "168.63.129.16"] {
            let [a, b, c, d] = v4.parse::<Ipv4Addr>().unwrap().octets();
            let hex = |high: u8, low: u8| format!("{high:02x}{low:02x}");
            for notation in [
                format!("::ffff:{v4}"),
                format!("::{v4}"),
                format!("::ffff:0:{v4}"),
                format!("64:ff9b::{v4}"),
                format!("64:ff9b:1::{v4}"),
                format!("64:ff9b:1:77:77:77:{v4}"),
                format!("64:ff9b:1:{}:{}:{}::", hex(a, b), hex(0, c), hex(d, 0)),
                format!("64:ff9b:1:{}:{}:{}::", hex(7, a), hex(0, b), hex(c, d)),
                format!("64:ff9b:1:7777:{}:{}:{}:0", hex(0, a), hex(b, c), hex(d, 0)),
                format!("2002:{}:{}::1", hex(a, b), hex(c, d)),
                format!("2001:0:808:808:0:0:{}:{}", hex(!a, !b), hex(!c, !d)),
                format!("2001:db8::200:5efe:{v4}"),
            ] {
                assert!(is_metadata(notation.parse().unwrap()), "{notation}");
            }
        }
        for other in ["169.253.1.1", "100.100.100.201", "10.0.0.1", "127.0.0.1", "::1", "fd00::1", "64:ff9b::a00:1"] {
            assert!(!is_metadata(other.parse().unwrap()), "{other}");
        }
    }

    #[test]
    fn metadata_services_are_refused_whatever_the_settings() {
        let mut config = UpstreamConfig::new("r.example", vec![url("http://10.0.0.1:5000")]);
        for private_redirects in [false, true] {
            config.private_redirects = private_redirects;
            let trust = AllowedHosts::new(&config);
            for to in
                ["169.254.169.254", "[::ffff:169.254.169.254]", "[64:ff9b:1::a9fe:a9fe]", "168.63.129.16", "0xA9FEA9FE"]
            {
                let to = url(&format!("http://{to}/latest"));
                assert!(
                    trust.check_redirect(&config.urls[0], &to).is_err() && trust.check_address(&to).is_err(),
                    "{to}"
                );
            }
            assert!(trust.admit("metadata.example", vec!["fd00:ec2::254".parse().unwrap()]).is_err());
            assert!(trust.check_redirect(&config.urls[0], &url("http://10.0.0.2/x")).is_ok());
        }
    }

    #[test]
    fn redirects_need_http_keep_tls_and_avoid_private_addresses() {
        let public = "https://r.example/v2/";
        let table = [
            (public, "https://cdn.example/x", true),
            (public, "http://cdn.example/x", false),
            (public, "ftp://cdn.example/x", false),
            (public, "https://169.254.169.254/latest", false),
            (public, "https://2130706433/", false),
            (public, "https://[::ffff:127.0.0.1]/", false),
            (public, "https://8.8.8.8/x", true),
            ("http://r.example/", "https://cdn.example/x", true),
            ("http://127.0.0.1:5000/", "http://127.0.0.1:9000/x", true),
            ("http://10.0.0.1/", "http://192.168.0.1/x", true),
        ];
        for (from, to, expected) in table {
            assert_eq!(trust(from).check_redirect(&url(from), &url(to)).is_ok(), expected, "{from} -> {to}");
        }
    }

    #[test]
    fn redirect_to_a_name_with_private_address_is_rejected() {
        let addresses = |list: &[&str]| list.iter().map(|a| a.parse().unwrap()).collect::<Vec<IpAddr>>();
        let both = addresses(&["10.0.0.1", "8.8.8.8"]);
        let private = addresses(&["10.0.0.1"]);

        let trust = trust("https://r.example");
        assert_eq!(trust.admit("cdn.example", both.clone()).unwrap(), addresses(&["8.8.8.8"]));
        assert!(trust.admit("cdn.example", private.clone()).is_err());
        // After the upstream itself has resolved to a private address, its storage may have one too.
        assert_eq!(trust.admit("R.example", private.clone()).unwrap(), private);
        assert_eq!(trust.admit("cdn.example", private.clone()).unwrap(), private);
    }

    #[test]
    fn private_redirects_can_be_allowed() {
        let mut config = UpstreamConfig::new("r.example", vec![url("https://r.example")]);
        config.private_redirects = true;
        let trust = AllowedHosts::new(&config);
        assert!(trust.check_redirect(&config.urls[0], &url("https://10.0.0.1/x")).is_ok());
        assert!(trust.admit("cdn.example", vec![IpAddr::from([10, 0, 0, 1])]).is_ok());
    }
}

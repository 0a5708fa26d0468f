//! `[upstream."host"]`: the registries that images are pulled from.

use std::path::PathBuf;
use std::time::Duration;

use url::Url;

use super::CredentialConfig;

/// The canonical name of Docker Hub.
pub const DOCKER_IO: &str = "docker.io";

/// Other names of [`DOCKER_IO`]: clients send the first one as `ns`, and the second one is the host of its URL.
const DOCKER_IO_ALIASES: [&str; 2] = ["index.docker.io", "registry-1.docker.io"];

/// Name and URL of the upstreams that exist without configuration, sorted by name.
pub const BUILTIN_UPSTREAMS: [(&str, &str); 9] = [
    (DOCKER_IO, "https://registry-1.docker.io"),
    ("gcr.io", "https://gcr.io"),
    ("ghcr.io", "https://ghcr.io"),
    ("mcr.microsoft.com", "https://mcr.microsoft.com"),
    ("nvcr.io", "https://nvcr.io"),
    ("public.ecr.aws", "https://public.ecr.aws"),
    ("quay.io", "https://quay.io"),
    ("registry.gitlab.com", "https://registry.gitlab.com"),
    ("registry.k8s.io", "https://registry.k8s.io"),
];

/// `[upstream."host"]`: one upstream.
#[derive(Clone, Debug, PartialEq)]
pub struct UpstreamConfig {
    /// In lower case, with a `.` or `:`. Never an alias of `docker.io`.
    pub name: String,
    /// Base URLs, at least one, tried in order.
    pub urls: Vec<Url>,
    /// Credential rules. The first rule for a repository is used.
    pub credentials: Vec<CredentialConfig>,
    /// A file of PEM certificates to trust in addition to those of the system.
    pub ca_file: Option<PathBuf>,
    /// The certificate for an upstream that requires one of its clients.
    pub client_certificate: Option<ClientCertificate>,
    /// Whether the upstream's certificate is not verified.
    pub insecure_skip_verify: bool,
    /// How a denied request for cached content is treated. `None`: depends on whether the request used credentials, see
    /// [`OnDenied::default_for`].
    pub on_denied: Option<OnDenied>,
    /// Time limit for a connection.
    pub connect_timeout: Duration,
    /// Time limit for the headers of one response.
    pub header_timeout: Duration,
    /// Time limit for the next bytes of a body.
    pub idle_timeout: Duration,
    /// Lowest transfer rate in bytes per second, averaged over `idle_timeout`. A slower transfer counts as broken.
    /// Zero: no limit.
    pub min_rate: u64,
    /// Largest number of concurrent fills from this upstream. Further fills wait.
    pub max_fills: usize,
    /// The number of connections that fetch one blob of at least 32 MiB. The first one uses the slot of the fill. Each
    /// other one uses a slot of `max_fills` that no other transfer waits for.
    pub connections: usize,
    /// Hosts of token servers that may receive the credentials, in addition to the upstream's own domain.
    pub token_realms: Vec<String>,
    /// Whether redirects to private addresses are followed.
    pub private_redirects: bool,
}

/// The client certificate for an upstream: PEM files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientCertificate {
    /// The certificate, followed by its intermediate certificates.
    pub certificate: PathBuf,
    /// The private key of the certificate.
    pub key: PathBuf,
}

/// How a 401 or 403 of the upstream for cached content is treated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnDenied {
    /// As a failure of the upstream: the cached content is served.
    Stale,
    /// As an answer: the cached content is no longer served.
    Deny,
}

// === impl UpstreamConfig ===

impl UpstreamConfig {
    /// An upstream with defaults for all other keys.
    pub fn new(name: impl Into<String>, urls: Vec<Url>) -> Self {
        Self {
            name: name.into(),
            urls,
            credentials: Vec::new(),
            ca_file: None,
            client_certificate: None,
            insecure_skip_verify: false,
            on_denied: None,
            connect_timeout: Duration::from_secs(3),
            header_timeout: Duration::from_secs(8),
            idle_timeout: Duration::from_secs(30),
            min_rate: 0,
            max_fills: 16,
            connections: 1,
            token_realms: Vec::new(),
            private_redirects: false,
        }
    }

    /// Whether requests for some repository always use credentials.
    pub fn has_credentials(&self) -> bool {
        self.credentials.iter().any(|rule| rule.source.is_certain())
    }

    /// Whether requests to this URL may carry the passwords of the credential rules and the output of their programs.
    /// If some URLs are on the upstream's own domain, the others are mirrors of other operators, and requests to them
    /// carry none. Docker's file lists credentials by host, so requests to each URL carry those of its host.
    pub fn credentials_are_for(&self, url: &Url) -> bool {
        self.is_own(url) || !self.urls.iter().any(|url| self.is_own(url))
    }

    /// Whether a URL is on the host, or on the registrable domain, of the upstream's name.
    fn is_own(&self, url: &Url) -> bool {
        let (Some(host), port) = (url.host_str(), url.port_or_known_default()) else { return false };
        let (name, name_port) =
            self.name.split_once(':').map_or((self.name.as_str(), None), |(host, port)| (host, Some(port)));
        let same_host = host == name
            && name_port.is_none_or(|name_port| port.map(|port| port.to_string()).as_deref() == Some(name_port));
        same_host || in_one_domain(host, name)
    }

    /// Whether requests for this repository use credentials. `None`: depends on the current content of Docker's file.
    pub fn has_credentials_for(&self, repository: &str) -> Option<bool> {
        match self.credentials.iter().find(|rule| rule.is_for(repository)) {
            Some(rule) => rule.source.is_certain().then_some(true),
            None => Some(false),
        }
    }
}

// === impl OnDenied ===

impl OnDenied {
    /// A denied request with credentials points to a problem with the credentials. A denied anonymous request is an
    /// answer.
    pub fn default_for(credentials: bool) -> Self {
        if credentials { Self::Stale } else { Self::Deny }
    }

    /// The value in the configuration.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stale => "stale",
            Self::Deny => "deny",
        }
    }
}

/// Whether two host names have one registrable domain (public suffix list). An IP address has none.
pub(super) fn in_one_domain(one: &str, other: &str) -> bool {
    let is_name = |host: &str| host.parse::<std::net::IpAddr>().is_err() && !host.starts_with('[');
    is_name(one) && is_name(other) && psl::domain_str(one).is_some_and(|domain| psl::domain_str(other) == Some(domain))
}

/// [`BUILTIN_UPSTREAMS`] with defaults.
pub fn builtin_upstreams() -> Vec<UpstreamConfig> {
    let parsed = |(name, url): (&str, &str)| Some(UpstreamConfig::new(name, vec![Url::parse(url).ok()?]));
    BUILTIN_UPSTREAMS.into_iter().filter_map(parsed).collect()
}

/// The canonical name of a registry: `docker.io` for every name of Docker Hub, otherwise `host` itself.
pub fn canonical_name(host: &str) -> &str {
    if DOCKER_IO_ALIASES.contains(&host) { DOCKER_IO } else { host }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_builtin_upstream_has_a_url_and_they_are_sorted() {
        let names: Vec<_> = builtin_upstreams().into_iter().map(|upstream| upstream.name).collect();
        assert_eq!(names, BUILTIN_UPSTREAMS.map(|(name, _)| name));
        assert!(names.is_sorted());
    }

    #[test]
    fn credentials_are_for_the_urls_on_the_domain_of_the_upstream() {
        let mirror = "https://mirror.example.com/";
        let cases: [(&str, &[&str], &[bool]); 7] = [
            ("docker.io", &[mirror, "https://registry-1.docker.io/"], &[false, true]),
            ("docker.io", &[mirror], &[true]),
            ("docker.io", &[mirror, "https://other.example.org/"], &[true, true]),
            (
                "registry.corp.example",
                &["https://corp.example/", "https://eu.corp.example/", mirror],
                &[true, true, false],
            ),
            ("127.0.0.1:5001", &["http://127.0.0.1:5001/", "http://127.0.0.1:5002/"], &[true, false]),
            ("r.example:5000", &["http://r.example:5000/", "http://10.0.0.1:5000/"], &[true, false]),
            ("10.0.0.1:443", &["https://10.0.0.1/", "https://10.0.0.2/"], &[true, false]),
        ];
        for (name, urls, expected) in cases {
            let upstream = UpstreamConfig::new(name, urls.iter().map(|url| url.parse().unwrap()).collect());
            let found: Vec<bool> = upstream.urls.iter().map(|url| upstream.credentials_are_for(url)).collect();
            assert_eq!(found, expected, "{name} {urls:?}");
        }
    }
}

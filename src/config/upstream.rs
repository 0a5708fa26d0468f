//! `[upstream."host"]`: the registries that images come from.

use std::path::PathBuf;
use std::time::Duration;

use url::Url;

use super::CredentialConfig;

/// The name under which Docker Hub is known here, whatever its servers are called.
pub const DOCKER_IO: &str = "docker.io";

/// Other names of [`DOCKER_IO`]: what clients send as `ns`, and the host that answers.
const DOCKER_IO_ALIASES: [&str; 2] = ["index.docker.io", "registry-1.docker.io"];

/// Name and URL of the upstreams that are there without configuration.
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

#[derive(Clone, Debug, PartialEq)]
pub struct UpstreamConfig {
    /// Lower case, with a `.` or a `:`, and canonical: never an alias of `docker.io`.
    pub name: String,
    /// At least one, tried in order.
    pub urls: Vec<Url>,
    /// The first that is for a repository counts.
    pub credentials: Vec<CredentialConfig>,
    /// PEM certificates to trust beside the system's.
    pub ca_file: Option<PathBuf>,
    pub client_certificate: Option<ClientCertificate>,
    /// Whether any certificate will do.
    pub insecure_skip_verify: bool,
    /// `None`: as there are credentials for what is refused, see [`OnDenied::default_for`].
    pub on_denied: Option<OnDenied>,
    pub connect_timeout: Duration,
    /// For the head of one answer.
    pub header_timeout: Duration,
    /// Of silence in a body.
    pub idle_timeout: Duration,
    /// Bytes a second, over `idle_timeout`, below which a body counts as cut; zero: none.
    pub min_rate: u64,
    /// Blobs that are fetched from it at once; more wait for their turn.
    pub max_fills: usize,
    /// Hosts that may be handed the credentials for a token, beside the upstream's own domain.
    pub token_realms: Vec<String>,
    /// Whether redirects to private addresses are followed.
    pub private_redirects: bool,
}

/// What we show an upstream that asks who we are in TLS: PEM files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientCertificate {
    pub certificate: PathBuf,
    pub key: PathBuf,
}

/// What a 401 or 403 for something in the cache means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnDenied {
    /// Trouble with our credentials: the cached answer is served.
    Stale,
    /// The image is not for us any more: it is served no longer.
    Deny,
}

// === impl UpstreamConfig ===

impl UpstreamConfig {
    /// An upstream with every other key at its default.
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
            token_realms: Vec::new(),
            private_redirects: false,
        }
    }

    /// Whether pulls of some repository certainly use credentials.
    pub fn has_credentials(&self) -> bool {
        self.credentials.iter().any(|rule| rule.source.is_certain())
    }

    /// Whether pulls of this repository do; `None` if a file that others write decides.
    pub fn has_credentials_for(&self, repository: &str) -> Option<bool> {
        match self.credentials.iter().find(|rule| rule.is_for(repository)) {
            Some(rule) => rule.source.is_certain().then_some(true),
            None => Some(false),
        }
    }
}

// === impl OnDenied ===

impl OnDenied {
    /// A refusal of configured credentials is our trouble; a refusal of an anonymous request is an answer.
    pub fn default_for(credentials: bool) -> Self {
        if credentials { Self::Stale } else { Self::Deny }
    }

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stale => "stale",
            Self::Deny => "deny",
        }
    }
}

/// [`BUILTIN_UPSTREAMS`] as configured by nobody.
pub fn builtin_upstreams() -> Vec<UpstreamConfig> {
    let parsed = |(name, url): (&str, &str)| Some(UpstreamConfig::new(name, vec![Url::parse(url).ok()?]));
    BUILTIN_UPSTREAMS.into_iter().filter_map(parsed).collect()
}

/// The one name of a registry that has several: every name of Docker Hub becomes `docker.io`.
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
}

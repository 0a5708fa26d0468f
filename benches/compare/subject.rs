//! The measured servers.

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Subject {
    /// Static files under the paths of a registry.
    Nginx,
    Registry,
    /// Pushed content of Roadstead.
    Pushed,
    /// Mirrored content of Roadstead.
    Mirrored,
    /// The upstream itself.
    Upstream,
    /// docker-registry as a pull-through cache.
    Proxy,
    /// nginx as a cache (`proxy_cache`) of the static files of the other nginx.
    NginxCache,
    /// As `Nginx` and `Mirrored`, over HTTPS.
    NginxTls,
    MirroredTls,
    /// As `Mirrored`, with `upstream.connections = 4`.
    Segmented,
}

impl Subject {
    pub fn name(self) -> &'static str {
        match self {
            Self::Nginx => "nginx",
            Self::Registry => "docker-registry",
            Self::Pushed => "Roadstead, pushed",
            Self::Mirrored => "Roadstead, mirrored",
            Self::Upstream => "the upstream alone",
            Self::Proxy => "docker-registry, proxy",
            Self::NginxCache => "nginx, proxy_cache",
            Self::NginxTls => "nginx, HTTPS",
            Self::MirroredTls => "Roadstead, mirrored, HTTPS",
            Self::Segmented => "Roadstead, mirrored, 4 connections",
        }
    }

    /// The repository of its content.
    pub fn repository(self) -> &'static str {
        match self {
            Self::Nginx | Self::Registry | Self::Pushed | Self::NginxCache | Self::NginxTls => "team/bench",
            Self::Mirrored | Self::Upstream | Self::Proxy | Self::MirroredTls | Self::Segmented => "library/bench",
        }
    }
}

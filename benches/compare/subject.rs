//! Who is measured.

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Subject {
    /// Static files under the paths that a registry has.
    Nginx,
    Registry,
    /// What was pushed to Roadstead.
    Pushed,
    /// What Roadstead has, or gets, from its upstream.
    Mirrored,
    /// The upstream, asked directly.
    Upstream,
    /// docker-registry as a pull-through cache.
    Proxy,
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
        }
    }

    /// Where its content is.
    pub fn repository(self) -> &'static str {
        match self {
            Self::Nginx | Self::Registry | Self::Pushed => "team/bench",
            Self::Mirrored | Self::Upstream | Self::Proxy => "library/bench",
        }
    }
}

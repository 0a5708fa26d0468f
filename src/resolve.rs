//! Decides which repository a request means. [`Routes::resolve`] is a pure function, tested by a table of cases.
//!
//! The rules are, in this order: the `ns` query, an upstream's name before `/v2`, a host of `[server] host_routes`, an
//! upstream's name after `/v2`, a local repository, the default upstream. A host that is not configured is never
//! contacted, whatever a client sends.
//!
//! `ns` is an upstream or a name of this server, without the dot of the DNS root. A name of this server means local
//! repositories, unless the path names an upstream. Names under `[local] namespaces` are local for docker.io and for
//! every registry that is not configured. Clients send docker.io for every image name without a registry. A server
//! without upstreams ignores `ns`.

#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::collections::HashSet;
use std::sync::Arc;

use crate::config::{self, Config, ListenAddr, LocalConfig};
use crate::oci::{NameError, RepoId, RepoName, Scope, UpstreamName};
use crate::printable::Printable;

/// The port that a host has implicitly with HTTPS.
const HTTPS_PORT_SUFFIX: &str = ":443";

/// The parts of a request that name a repository.
#[derive(Clone, Copy, Debug, Default)]
pub struct RequestedRepo<'a> {
    /// The `ns` query, as containerd and buildkit send it: the registry in the image's name.
    pub ns: Option<&'a str>,
    /// The request's `Host`: one of the server's own names, or a host of `host_routes`.
    pub host: Option<&'a str>,
    /// The path component before `/v2`.
    pub prefix: Option<&'a str>,
    /// The repository name in the path, as sent.
    pub name: &'a str,
}

/// The repository that a request means, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// The repository.
    pub repo: RepoId,
    /// The rule that decided.
    pub rule: Rule,
}

/// The rule that decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// `ns` names a configured upstream.
    Namespace,
    /// `ns` names this server.
    OwnNamespace,
    /// The request's host names a configured upstream (`[server] host_routes`).
    Host,
    /// The path names a configured upstream, before or after `/v2`.
    Path,
    /// A local repository of this name exists, or `[local] namespaces` matches the name.
    Local,
    /// No other rule applies: the default upstream.
    Default,
    /// No other rule applies and there is no default upstream: a local repository, which need not exist.
    NoDefault,
}

/// Stands for the host of an empty `ns` in an error.
const NO_HOST: &str = "an empty host; write a registry's host into ns";

/// Why a request names no repository.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ResolveError {
    #[error("no upstream is configured for {}", Printable(if .0.is_empty() { NO_HOST } else { .0 }))]
    UnknownRegistry(String),
    /// `ns` names a registry that is not configured, and there is a local repository of that name.
    #[error(
        "no upstream is configured for {ns}, but there is a local repository of this name; if {ns} is a name of this \
         registry, add it to server.names",
        ns = Printable(.ns)
    )]
    NotOurName { ns: String },
    #[error(transparent)]
    Name(#[from] NameError),
}

/// Why a push is refused because of its name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PushRefused {
    #[error(transparent)]
    Resolve(#[from] ResolveError),
    #[error("the name belongs to the mirrored registry {0}; push to a name without that host")]
    Mirrored(UpstreamName),
    #[error("pushes are accepted only to names that match [local] namespaces")]
    OutsideNamespaces,
    #[error("names under library/ belong to the default upstream; push to another name")]
    Library,
}

/// The names in the configuration that decide.
#[derive(Debug)]
pub struct Routes {
    upstreams: HashSet<UpstreamName>,
    default: Option<UpstreamName>,
    own: Vec<String>,
    /// Domains below which every upstream has a host, in lower case.
    host_routes: Vec<String>,
    listen: ListenAddr,
    local: LocalConfig,
}

impl Routes {
    /// Takes the names from the configuration.
    pub fn new(config: &Config) -> Self {
        Self {
            upstreams: config.upstreams.iter().map(|upstream| Arc::from(upstream.name.as_str())).collect(),
            default: config.default_upstream.as_deref().map(Arc::from),
            own: config.server.names.iter().map(|name| name.to_ascii_lowercase()).collect(),
            host_routes: config.server.host_routes.iter().map(|domain| domain.to_ascii_lowercase()).collect(),
            listen: config.server.listen.clone(),
            local: config.local.clone(),
        }
    }

    /// The configured upstream of a host, aliases and port 443 included.
    pub fn upstream(&self, host: &str) -> Option<&UpstreamName> {
        let lower = lowercase(host);
        let bare = without_https_port(&lower);
        let canonical = config::canonical_name(bare);
        // Nearly all names are written in one way only, so that one look-up is enough.
        let known = |other: &str, than: &str| if other == than { None } else { self.upstreams.get(other) };
        self.upstreams.get(&*lower).or_else(|| known(bare, &lower)).or_else(|| known(canonical, bare))
    }

    /// The upstream of a host below one of the `host_routes`, such as `docker-io.cache.example:5000`. `None` for other
    /// hosts.
    ///
    /// # Errors
    /// If the host is below such a domain but names no upstream, or more than one.
    fn host_route(&self, host: &str) -> Result<Option<&UpstreamName>, ResolveError> {
        if self.host_routes.is_empty() {
            return Ok(None);
        }
        let lower = host.to_ascii_lowercase();
        let bare = without_root_dot(without_port(&lower));
        let bare = &*bare;
        if self.own.iter().any(|name| *name == lower || name == bare) {
            return Ok(None);
        }
        let below = |domain: &String| bare.strip_suffix(domain.as_str())?.strip_suffix('.');
        let Some(label) = self.host_routes.iter().find_map(below) else { return Ok(None) };
        let dashed = |name: &str| name.replace(['.', ':'], "-");
        let mut meant = self.upstreams.iter().filter(|name| dashed(name) == label);
        match (self.upstream(label).or_else(|| meant.next()), meant.next()) {
            (Some(upstream), None) => Ok(Some(upstream)),
            _ => Err(ResolveError::UnknownRegistry(host.to_owned())),
        }
    }

    /// The repository that a read request means. `is_local` says whether a local repository of a name exists.
    ///
    /// # Errors
    /// If the request names a registry that is not configured, or the name is not valid.
    pub fn resolve(
        &self,
        asked: RequestedRepo<'_>,
        is_local: impl Fn(&RepoName) -> bool,
    ) -> Result<Target, ResolveError> {
        if let Some(ns) = self.counted(asked.ns) {
            return self.resolve_namespace(&ns, asked, is_local);
        }
        if let Some(named) = self.named_by_host_or_path(asked)? {
            return Ok(named);
        }
        let target = |repo, rule| Ok(Target { repo, rule });
        let (first, rest) = asked.name.split_once('/').unwrap_or((asked.name, ""));
        let name: RepoName = match asked.name.parse() {
            Err(NameError::Grammar) if looks_like_host(first) && !rest.is_empty() => {
                return Err(ResolveError::UnknownRegistry(first.to_owned()));
            }
            name => name?,
        };
        if is_local(&name) || self.local.matches(name.as_str()) {
            return target(RepoId::local(name), Rule::Local);
        }
        if looks_like_host(first) && !rest.is_empty() {
            return Err(ResolveError::UnknownRegistry(first.to_owned()));
        }
        match &self.default {
            Some(upstream) => target(mirrored(upstream, name.as_str())?, Rule::Default),
            None => target(RepoId::local(name), Rule::NoDefault),
        }
    }

    /// The upstream that a request without a repository's name means, if it names one: before or after `/v2`, or by its
    /// host.
    pub fn named_upstream(&self, asked: RequestedRepo<'_>) -> Option<&UpstreamName> {
        if let Some(prefix) = asked.prefix {
            return self.upstream(prefix);
        }
        let of_host = asked.host.and_then(|host| self.host_route(host).ok().flatten());
        of_host.or_else(|| self.upstream(asked.name))
    }

    /// The repository of the upstream that the path or the request's host names, if one does.
    fn named_by_host_or_path(&self, asked: RequestedRepo<'_>) -> Result<Option<Target>, ResolveError> {
        let target = |repo, rule| Ok(Some(Target { repo, rule }));
        if let Some(prefix) = asked.prefix {
            let upstream = self.upstream(prefix).ok_or_else(|| ResolveError::UnknownRegistry(prefix.to_owned()))?;
            return target(mirrored(upstream, asked.name)?, Rule::Path);
        }
        if let Some(host) = asked.host
            && let Some(upstream) = self.host_route(host)?
        {
            return target(mirrored(upstream, asked.name)?, Rule::Host);
        }
        let (first, rest) = asked.name.split_once('/').unwrap_or((asked.name, ""));
        match self.upstream(first).filter(|_| !rest.is_empty()) {
            Some(upstream) => target(mirrored(upstream, rest.strip_prefix("v2/").unwrap_or(rest))?, Rule::Path),
            None => Ok(None),
        }
    }

    /// `ns` without the dot of the DNS root, unless there is no upstream at all: then it is ignored, as `registry:2`
    /// does.
    fn counted<'a>(&self, ns: Option<&'a str>) -> Option<Cow<'a, str>> {
        ns.filter(|_| !self.upstreams.is_empty()).map(without_root_dot)
    }

    /// The repository that a read request with `ns` means.
    fn resolve_namespace(
        &self,
        ns: &str,
        asked: RequestedRepo<'_>,
        is_local: impl Fn(&RepoName) -> bool,
    ) -> Result<Target, ResolveError> {
        let target = |repo, rule| Ok(Target { repo, rule });
        if let Some(upstream) = self.upstream(ns) {
            let name = self.without_upstream(asked.name, upstream);
            // Docker's clients send docker.io for every image name without a registry, also for images that were pushed
            // here.
            return match name.parse() {
                Ok(local) if &**upstream == config::DOCKER_IO && self.local.matches(name) => {
                    target(RepoId::local(local), Rule::Local)
                }
                _ => target(mirrored(upstream, name)?, Rule::Namespace),
            };
        }
        if let Some(upstream) = self.host_route(ns)? {
            return target(mirrored(upstream, asked.name)?, Rule::Namespace);
        }
        // A name of this server does not say that a path which names an upstream is local.
        if self.is_own(ns, asked.host) {
            return match self.named_by_host_or_path(asked)? {
                Some(named) => Ok(named),
                None => target(RepoId::local(asked.name.parse()?), Rule::OwnNamespace),
            };
        }
        let Ok(name) = asked.name.parse::<RepoName>() else {
            return Err(ResolveError::UnknownRegistry(ns.to_owned()));
        };
        let is_docker_io = config::canonical_name(without_https_port(&lowercase(ns))) == config::DOCKER_IO;
        match is_local(&name) {
            _ if self.local.matches(name.as_str()) => target(RepoId::local(name), Rule::Local),
            true if is_docker_io => target(RepoId::local(name), Rule::Local),
            true => Err(ResolveError::NotOurName { ns: ns.to_owned() }),
            false => Err(ResolveError::UnknownRegistry(ns.to_owned())),
        }
    }

    /// The local repository that a write request means. The caller checks whether the default upstream has a cached
    /// repository of that name: see [`Routes::default_repository`].
    ///
    /// # Errors
    /// If the name belongs to an upstream, is outside of the configured namespaces, or is not valid.
    pub fn resolve_push(&self, asked: RequestedRepo<'_>) -> Result<RepoId, PushRefused> {
        let ns = self.counted(asked.ns);
        let ns = ns.as_deref();
        for host in [ns, asked.host].into_iter().flatten() {
            if let Some(upstream) = self.host_route(host)? {
                return Err(PushRefused::Mirrored(upstream.clone()));
            }
        }
        if let Some(ns) = ns.filter(|ns| !self.is_own(ns, asked.host)) {
            let upstream = self.upstream(ns).ok_or_else(|| ResolveError::UnknownRegistry(ns.to_owned()))?;
            return Err(PushRefused::Mirrored(upstream.clone()));
        }
        let first = asked.prefix.or_else(|| Some(asked.name.split_once('/')?.0));
        match first.and_then(|first| self.upstream(first)) {
            Some(upstream) => return Err(PushRefused::Mirrored(upstream.clone())),
            None => {
                if let Some(prefix) = asked.prefix {
                    return Err(ResolveError::UnknownRegistry(prefix.to_owned()).into());
                }
            }
        }
        let name: RepoName = asked.name.parse().map_err(ResolveError::from)?;
        if !self.local.namespaces.is_empty() && !self.local.matches(name.as_str()) {
            return Err(PushRefused::OutsideNamespaces);
        }
        if self.local.namespaces.is_empty() && self.default.is_some() && name.as_str().starts_with("library/") {
            return Err(PushRefused::Library);
        }
        Ok(RepoId::local(name))
    }

    /// The repository of the default upstream that has the same name. `None` for a name of one component, because
    /// clients of a mirror add `library/` to it, and if `[local] namespaces` separates the names.
    pub fn default_repository(&self, name: &RepoName) -> Option<RepoId> {
        if name.is_single() || !self.local.namespaces.is_empty() {
            return None;
        }
        self.default.as_ref().map(|upstream| RepoId::new(Scope::Upstream(upstream.clone()), name.clone()))
    }

    /// Whether `ns` is one of the server's own names: configured, the request's `Host`, the address it listens on, or a
    /// loopback name. Ports do not count: k3d pulls `k3d-reg:59813` from `http://k3d-reg:5000`.
    pub fn is_own(&self, ns: &str, host: Option<&str>) -> bool {
        let ns = ns.to_ascii_lowercase();
        let bare = without_root_dot(without_port(&ns));
        let bare = &*bare;
        host.is_some_and(|host| without_root_dot(without_port(host)).eq_ignore_ascii_case(bare))
            || self.own.iter().any(|name| without_port(name) == bare)
            || self.listen.to_string() == ns
            || bare == "localhost"
            || bare.trim_matches(['[', ']']).parse().is_ok_and(|ip: std::net::IpAddr| ip.is_loopback())
    }

    /// The repository of an upstream. On docker.io, a name of one component is an official image.
    ///
    /// # Errors
    /// If the name is not valid.
    pub fn repository_of(upstream: &UpstreamName, name: &str) -> Result<RepoId, NameError> {
        mirrored(upstream, name)
    }

    /// Removes the upstream's host from the name. buildkit sends it in the path of a mirror in addition to `ns`.
    fn without_upstream<'a>(&self, name: &'a str, upstream: &UpstreamName) -> &'a str {
        match name.split_once('/') {
            Some((first, rest)) if self.upstream(first) == Some(upstream) => rest.strip_prefix("v2/").unwrap_or(rest),
            _ => name,
        }
    }
}

/// A repository of an upstream. On docker.io, a name of one component is an official image.
fn mirrored(upstream: &UpstreamName, name: &str) -> Result<RepoId, NameError> {
    let mut name: RepoName = name.parse()?;
    if &**upstream == config::DOCKER_IO && name.is_single() {
        name = format!("library/{name}").parse()?;
    }
    Ok(RepoId::new(Scope::Upstream(upstream.clone()), name))
}

fn lowercase(host: &str) -> Cow<'_, str> {
    if host.bytes().any(|byte| byte.is_ascii_uppercase()) { host.to_ascii_lowercase().into() } else { host.into() }
}

fn without_https_port(host: &str) -> &str {
    host.strip_suffix(HTTPS_PORT_SUFFIX).unwrap_or(host)
}

fn looks_like_host(component: &str) -> bool {
    component.contains(['.', ':']) || component == "localhost"
}

/// The host without the dot of the DNS root, as in `docker.io.` or `cache.example.:5000`.
fn without_root_dot(host: &str) -> Cow<'_, str> {
    let bare = without_port(host);
    match bare.strip_suffix('.') {
        Some(name) if bare.len() == host.len() => name.into(),
        Some(name) => format!("{name}{}", &host[bare.len()..]).into(),
        None => host.into(),
    }
}

fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((bare, port))
            if port.bytes().all(|byte| byte.is_ascii_digit()) && (!bare.contains(':') || bare.ends_with(']')) =>
        {
            bare
        }
        _ => host,
    }
}

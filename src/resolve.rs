//! Decides which repository a request means. [`Routes::resolve`] is a pure function, tested by a table of cases.
//!
//! The rules are, in this order: the `ns` query, a host of `[server] host_routes`, an upstream's name in the path, a
//! local repository, the default upstream. A host that is not configured is never contacted, whatever a client sends.

use std::borrow::Cow;
use std::collections::HashSet;
use std::sync::Arc;

use crate::config::{self, Config, ListenAddr, LocalConfig};
use crate::oci::{NameError, RepoId, RepoName, Scope, UpstreamName};

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

impl RequestedRepo<'_> {
    /// Whether the name has no slash: `alpine`, not `library/alpine`.
    pub fn name_is_single(&self) -> bool {
        !self.name.contains('/')
    }
}

/// The repository that a request means, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    pub repo: RepoId,
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

/// Why a request names no repository.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ResolveError {
    #[error("no upstream is configured for {0}")]
    UnknownRegistry(String),
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
        let host = &*lower;
        let known = |host: &str| self.upstreams.get(host).or_else(|| self.upstreams.get(config::canonical_name(host)));
        known(host).or_else(|| known(host.strip_suffix(HTTPS_PORT_SUFFIX)?))
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
        let bare = without_port(&lower);
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
        let target = |repo, rule| Ok(Target { repo, rule });
        if let Some(ns) = asked.ns {
            if let Some(upstream) = self.upstream(ns) {
                let name = self.without_upstream(asked.name, upstream);
                return target(mirrored(upstream, name)?, Rule::Namespace);
            }
            if let Some(upstream) = self.host_route(ns)? {
                return target(mirrored(upstream, asked.name)?, Rule::Namespace);
            }
            if self.is_own(ns, asked.host) {
                return target(RepoId::local(asked.name.parse()?), Rule::OwnNamespace);
            }
            return Err(ResolveError::UnknownRegistry(ns.to_owned()));
        }
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
        if let Some(upstream) = self.upstream(first).filter(|_| !rest.is_empty()) {
            return target(mirrored(upstream, rest.strip_prefix("v2/").unwrap_or(rest))?, Rule::Path);
        }
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

    /// The local repository that a write request means. The caller checks whether the default upstream has a cached
    /// repository of that name: see [`Routes::default_repository`].
    ///
    /// # Errors
    /// If the name belongs to an upstream, is outside of the configured namespaces, or is not valid.
    pub fn resolve_push(&self, asked: RequestedRepo<'_>) -> Result<RepoId, PushRefused> {
        for host in [asked.ns, asked.host].into_iter().flatten() {
            if let Some(upstream) = self.host_route(host)? {
                return Err(PushRefused::Mirrored(upstream.clone()));
            }
        }
        if let Some(ns) = asked.ns.filter(|ns| !self.is_own(ns, asked.host)) {
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
    /// loopback name.
    pub fn is_own(&self, ns: &str, host: Option<&str>) -> bool {
        let ns = ns.to_ascii_lowercase();
        let bare = without_port(&ns);
        host.is_some_and(|host| host.eq_ignore_ascii_case(&ns))
            || self.own.iter().any(|name| *name == ns || *name == bare)
            || self.listen.to_string() == ns
            || bare == "localhost"
            || bare.trim_matches(['[', ']']).parse().is_ok_and(|ip: std::net::IpAddr| ip.is_loopback())
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

fn looks_like_host(component: &str) -> bool {
    component.contains(['.', ':']) || component == "localhost"
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

#[cfg(test)]
mod tests {
    use super::*;

    fn routes(toml: &str) -> Routes {
        Routes::new(&Config::from_toml(toml, "test.toml").unwrap())
    }

    const UPSTREAMS: &str = r#"
        [server]
        names = ["cache.example"]
        [upstream."127.0.0.1:7000"]
        url = "http://127.0.0.1:7000"
    "#;

    /// Resolves `ns`, `prefix` and `name`, and formats the result as `rule scope:name` or an error.
    fn resolved(routes: &Routes, ns: &str, prefix: &str, name: &str) -> String {
        let option = |text: &'static str| Some(text).filter(|text| !text.is_empty());
        let leak = |text: &str| option(Box::leak(text.to_owned().into_boxed_str()));
        let asked = RequestedRepo { ns: leak(ns), prefix: leak(prefix), host: Some("10.0.0.9:5000"), name };
        match routes.resolve(asked, |name| ["team/app", "my.host/app", "alpine"].contains(&name.as_str())) {
            Ok(target) => format!("{:?} {}:{}", target.rule, target.repo.scope.as_str(), target.repo.name),
            Err(ResolveError::UnknownRegistry(_)) => "UnknownRegistry".to_owned(),
            Err(error) => format!("{error:?}"),
        }
    }

    #[test]
    fn rules_apply_in_order() {
        let routes = routes(UPSTREAMS);
        for (ns, prefix, name, expected) in [
            // 1: ns
            ("docker.io", "", "library/alpine", "Namespace docker.io:library/alpine"),
            ("docker.io", "", "alpine", "Namespace docker.io:library/alpine"),
            ("index.docker.io", "", "alpine", "Namespace docker.io:library/alpine"),
            ("registry-1.docker.io", "", "a/b", "Namespace docker.io:a/b"),
            ("ghcr.io", "", "team/app", "Namespace ghcr.io:team/app"),
            ("127.0.0.1:7000", "", "a", "Namespace 127.0.0.1:7000:a"),
            ("ghcr.io", "", "ghcr.io/org/app", "Namespace ghcr.io:org/app"),
            ("docker.io", "docker.io", "library/alpine", "Namespace docker.io:library/alpine"),
            ("localhost:5001", "", "team/app", "OwnNamespace local:team/app"),
            ("localhost:5001", "", "nothing", "OwnNamespace local:nothing"),
            ("127.0.0.1", "", "x", "OwnNamespace local:x"),
            ("[::1]:5000", "", "x", "OwnNamespace local:x"),
            ("cache.example", "", "x", "OwnNamespace local:x"),
            ("cache.example:5000", "", "x", "OwnNamespace local:x"),
            ("10.0.0.9:5000", "", "x", "OwnNamespace local:x"),
            ("GHCR.io", "", "team/app", "Namespace ghcr.io:team/app"),
            ("ghcr.io:443", "", "team/app", "Namespace ghcr.io:team/app"),
            ("ghcr.io:5000", "", "team/app", "UnknownRegistry"),
            ("evil.example", "", "team/app", "UnknownRegistry"),
            ("10.0.0.9:5001", "", "team/app", "UnknownRegistry"),
            ("", "", "library/alpine", "Default docker.io:library/alpine"),
            // 2: the path
            ("", "", "ghcr.io/org/app", "Path ghcr.io:org/app"),
            ("", "", "docker.io/alpine", "Path docker.io:library/alpine"),
            ("", "", "index.docker.io/alpine", "Path docker.io:library/alpine"),
            ("", "", "docker.io/v2/library/alpine", "Path docker.io:library/alpine"),
            ("", "docker.io", "library/alpine", "Path docker.io:library/alpine"),
            ("", "127.0.0.1:7000", "a/b", "Path 127.0.0.1:7000:a/b"),
            ("", "", "127.0.0.1:7000/a/b", "Path 127.0.0.1:7000:a/b"),
            ("", "evil.example", "a", "UnknownRegistry"),
            ("", "", "evil.example/a", "UnknownRegistry"),
            ("", "", "evil.example:80/a", "UnknownRegistry"),
            ("", "", "localhost/a", "UnknownRegistry"),
            ("", "", "my.host/app", "Local local:my.host/app"),
            // 3 and 4
            ("", "", "team/app", "Local local:team/app"),
            ("", "", "alpine", "Local local:alpine"),
            ("", "", "busybox", "Default docker.io:library/busybox"),
            ("", "", "org/app", "Default docker.io:org/app"),
            ("", "", "ghcr.io", "Default docker.io:library/ghcr.io"),
            ("", "", "UPPER/x", "Name(Grammar)"),
            ("docker.io", "", "", "Name(Length)"),
        ] {
            assert_eq!(resolved(&routes, ns, prefix, name), expected, "{ns} {prefix} {name}");
        }
    }

    #[test]
    fn host_below_a_routed_domain_names_its_upstream() {
        let routes = routes(
            r#"
            [server]
            names = ["registry.cache.example"]
            host_routes = ["cache.example", "Mirror.example"]
            [upstream."127.0.0.1:7000"]
            url = "http://127.0.0.1:7000"
            [upstream."a.b-c.example"]
            url = "http://127.0.0.1:7001"
            [upstream."a-b.c.example"]
            url = "http://127.0.0.1:7001"
            "#,
        );
        let resolved = |host: &str, ns: Option<&str>, name: &str| match routes
            .resolve(RequestedRepo { ns, prefix: None, host: Some(host), name }, |name| name.as_str() == "org/app")
        {
            Ok(target) => format!("{:?} {}:{}", target.rule, target.repo.scope.as_str(), target.repo.name),
            Err(error) => error.to_string(),
        };
        for (host, ns, name, expected) in [
            ("docker-io.cache.example:5000", None, "library/alpine", "Host docker.io:library/alpine"),
            ("docker-io.cache.example", None, "alpine", "Host docker.io:library/alpine"),
            ("Docker-IO.Cache.Example", None, "alpine", "Host docker.io:library/alpine"),
            ("docker.io.cache.example:5000", None, "alpine", "Host docker.io:library/alpine"),
            ("ghcr-io.mirror.example", None, "org/app", "Host ghcr.io:org/app"),
            ("registry-k8s-io.cache.example", None, "pause", "Host registry.k8s.io:pause"),
            ("127-0-0-1-7000.cache.example", None, "a", "Host 127.0.0.1:7000:a"),
            // All names below such a host belong to that upstream.
            ("ghcr-io.cache.example", None, "docker.io/app", "Host ghcr.io:docker.io/app"),
            ("ghcr-io.cache.example", Some("docker.io"), "alpine", "Namespace docker.io:library/alpine"),
            ("10.0.0.9:5000", Some("ghcr-io.cache.example:5000"), "org/app", "Namespace ghcr.io:org/app"),
            (
                "10.0.0.9:5000",
                Some("none.cache.example:5000"),
                "a",
                "no upstream is configured for none.cache.example:5000",
            ),
            ("quay-oi.cache.example", None, "org/app", "no upstream is configured for quay-oi.cache.example"),
            // Ambiguous between two upstreams.
            ("a-b-c-example.cache.example", None, "x", "no upstream is configured for a-b-c-example.cache.example"),
            // The server itself.
            ("cache.example:5000", None, "org/app", "Local local:org/app"),
            ("registry.cache.example:5000", None, "org/app", "Local local:org/app"),
            ("notcache.example", None, "org/app", "Local local:org/app"),
        ] {
            assert_eq!(resolved(host, ns, name), expected, "{host} {ns:?} {name}");
        }
        let push = |host, name| routes.resolve_push(RequestedRepo { ns: None, prefix: None, host: Some(host), name });
        assert_eq!(push("ghcr-io.cache.example", "a"), Err(PushRefused::Mirrored("ghcr.io".into())));
        assert!(matches!(push("quay-oi.cache.example", "a"), Err(PushRefused::Resolve(_))));
        assert!(push("cache.example", "a").is_ok());
    }

    #[test]
    fn upstream_part_does_not_count_towards_name_length() {
        let (routes, longest) = (routes(UPSTREAMS), "a".repeat(255));
        for (ns, name) in [
            ("ghcr.io", longest.clone()),
            ("", longest[..243].to_owned()),
            ("", format!("ghcr.io/{longest}")),
            ("", format!("ghcr.io/v2/{longest}")),
        ] {
            assert!(resolved(&routes, ns, "", &name).ends_with(&name[name.len() - 200..]), "{ns} {name}");
            let longer = format!("{name}{}", "a".repeat(256));
            assert_eq!(resolved(&routes, ns, "", &longer), "Name(Length)", "{ns} {longer}");
        }
    }

    #[test]
    fn namespaces_are_local_and_so_is_everything_without_default() {
        let with = routes("[local]\nnamespaces = [\"team/**\"]");
        assert_eq!(resolved(&with, "", "", "team/new"), "Local local:team/new");
        assert_eq!(resolved(&with, "", "", "other/new"), "Default docker.io:other/new");
        let without = routes("default_upstream = \"none\"");
        assert_eq!(resolved(&without, "", "", "other/new"), "NoDefault local:other/new");
        assert_eq!(resolved(&without, "docker.io", "", "alpine"), "Namespace docker.io:library/alpine");
    }

    #[test]
    fn pushes_go_to_local_names_only() {
        let push = |routes: &Routes, ns, prefix, name| {
            routes.resolve_push(RequestedRepo { ns, prefix, name, host: None }).map(|repo| repo.to_string())
        };
        let open = routes(UPSTREAMS);
        for name in ["team/app", "alpine", "my.host/app"] {
            assert_eq!(push(&open, None, None, name), Ok(name.to_owned()));
        }
        assert_eq!(push(&open, Some("localhost:5000"), None, "a"), Ok("a".to_owned()));
        assert_eq!(push(&open, None, None, "ghcr.io/a"), Err(PushRefused::Mirrored("ghcr.io".into())));
        assert_eq!(push(&open, Some("docker.io"), None, "a"), Err(PushRefused::Mirrored("docker.io".into())));
        assert_eq!(push(&open, None, Some("ghcr.io"), "a"), Err(PushRefused::Mirrored("ghcr.io".into())));
        assert_eq!(push(&open, None, None, "library/a"), Err(PushRefused::Library));
        assert!(matches!(push(&open, Some("evil.example"), None, "a"), Err(PushRefused::Resolve(_))));
        assert!(matches!(push(&open, None, None, "A"), Err(PushRefused::Resolve(ResolveError::Name(_)))));
        let closed = routes("[local]\nnamespaces = [\"team/**\"]");
        assert_eq!(push(&closed, None, None, "team/x"), Ok("team/x".to_owned()));
        assert_eq!(push(&closed, None, None, "alpine"), Err(PushRefused::OutsideNamespaces));
        let alone = routes("default_upstream = \"none\"");
        assert_eq!(push(&alone, None, None, "library/a"), Ok("library/a".to_owned()));
    }
}

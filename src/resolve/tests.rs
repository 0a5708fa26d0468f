//! The rules as a table: each way to name a repository, and the repository that is meant.

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
        Err(ResolveError::NotOurName { ns }) => format!("NotOurName {ns}"),
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
        // A local repository of this name exists.
        ("ghcr.io:5000", "", "team/app", "NotOurName ghcr.io:5000"),
        ("evil.example", "", "team/app", "NotOurName evil.example"),
        ("evil.example", "", "team/other", "UnknownRegistry"),
        // Names of this server, with any port.
        ("10.0.0.9:5001", "", "team/app", "OwnNamespace local:team/app"),
        ("10.0.0.9", "", "team/app", "OwnNamespace local:team/app"),
        ("CACHE.example:12345", "", "team/app", "OwnNamespace local:team/app"),
        ("10.0.0.90:5000", "", "team/other", "UnknownRegistry"),
        ("x.cache.example:5000", "", "team/other", "UnknownRegistry"),
        // A name of this server says nothing about a path that names an upstream.
        ("cache.example:59813", "", "docker.io/library/alpine", "Path docker.io:library/alpine"),
        ("10.0.0.9:1", "", "ghcr.io/team/app", "Path ghcr.io:team/app"),
        ("localhost", "", "docker.io/v2/library/alpine", "Path docker.io:library/alpine"),
        ("cache.example", "docker.io", "library/alpine", "Path docker.io:library/alpine"),
        ("cache.example", "evil.example", "a", "UnknownRegistry"),
        ("cache.example", "", "alpine", "OwnNamespace local:alpine"),
        ("cache.example", "", "UPPER", "Name(Grammar)"),
        // The dot of the DNS root.
        ("docker.io.", "", "alpine", "Namespace docker.io:library/alpine"),
        ("Index.docker.io.:443", "", "alpine", "Namespace docker.io:library/alpine"),
        ("cache.example.:5000", "", "x", "OwnNamespace local:x"),
        ("10.0.0.9.", "", "x", "OwnNamespace local:x"),
        ("docker.io..", "", "x", "UnknownRegistry"),
        (".", "", "x", "UnknownRegistry"),
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
        ("ghcr-io.cache.example.", None, "org/app", "Host ghcr.io:org/app"),
        ("ghcr-io.cache.example.:5000", None, "org/app", "Host ghcr.io:org/app"),
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
fn namespaces_are_local_for_docker_io_and_for_unknown_registries() {
    let routes = routes("[local]\nnamespaces = [\"team/**\", \"rancher/*\"]");
    for (ns, name, expected) in [
        ("docker.io", "team/app", "Local local:team/app"),
        ("docker.io", "team/new", "Local local:team/new"),
        ("registry-1.docker.io", "team/app", "Local local:team/app"),
        ("docker.io", "docker.io/team/app", "Local local:team/app"),
        // A pushed image outside of the namespaces must not hide a public image from a whole cluster.
        ("docker.io", "alpine", "Namespace docker.io:library/alpine"),
        ("docker.io", "my.host/app", "Namespace docker.io:my.host/app"),
        ("docker.io", "rancher/a/b", "Namespace docker.io:rancher/a/b"),
        // Another upstream has names of its own.
        ("ghcr.io", "team/app", "Namespace ghcr.io:team/app"),
        ("registry.example", "team/app", "Local local:team/app"),
        ("registry.example:5000", "rancher/pause", "Local local:rancher/pause"),
        ("registry.example", "other/app", "UnknownRegistry"),
        ("registry.example", "alpine", "NotOurName registry.example"),
        ("registry.example", "UPPER", "UnknownRegistry"),
    ] {
        assert_eq!(resolved(&routes, ns, "", name), expected, "{ns} {name}");
    }
}

#[test]
fn docker_io_without_an_upstream_means_local_repositories() {
    let other =
        "builtin_upstreams = false\ndefault_upstream = \"none\"\n[upstream.\"a.example\"]\nurl = \"http://a.example\"";
    let other = routes(other);
    for (ns, name, expected) in [
        ("docker.io", "team/app", "Local local:team/app"),
        ("index.docker.io", "team/app", "Local local:team/app"),
        ("docker.io:443", "alpine", "Local local:alpine"),
        ("docker.io", "team/other", "UnknownRegistry"),
        ("quay.io", "team/app", "NotOurName quay.io"),
        ("a.example", "team/app", "Namespace a.example:team/app"),
    ] {
        assert_eq!(resolved(&other, ns, "", name), expected, "{ns} {name}");
    }
}

#[test]
fn a_server_without_upstreams_ignores_ns() {
    let alone = routes("builtin_upstreams = false\ndefault_upstream = \"none\"");
    for ns in ["docker.io", "registry.k8s.io", "registry.example:5000", "", "no host"] {
        assert_eq!(resolved(&alone, ns, "", "team/app"), "Local local:team/app", "{ns}");
        assert_eq!(resolved(&alone, ns, "", "team/other"), "NoDefault local:team/other", "{ns}");
        let push = RequestedRepo { ns: Some(ns), name: "team/app", ..RequestedRepo::default() };
        assert!(alone.resolve_push(push).is_ok(), "{ns}");
    }
}

#[test]
fn text_of_a_client_is_short_and_printable_in_errors() {
    let ns = format!("\u{1b}[2J\n{}", "a".repeat(60_000));
    for error in [ResolveError::UnknownRegistry(ns.clone()), ResolveError::NotOurName { ns: ns.clone() }] {
        let shown = error.to_string();
        assert!(shown.len() < 1500 && !shown.contains(char::is_control), "{shown}");
    }
    assert!(ResolveError::NotOurName { ns }.to_string().ends_with("add it to server.names"));
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

//! Builds a [`Config`] from the merged layers: applies defaults and checks the rules between keys.

use std::path::PathBuf;

use super::build_auth::{AuthLayer, Surroundings, auth};
use super::build_upstream::merge;
use super::build_value::{hosts, positive, readable, value};
use super::layer::{
    CacheKeys, DeleteKeys, GcKeys, Layer, LocalKeys, Located, LogKeys, MetricsKeys, PushKeys, ScrubKeys, ServerKeys,
    ServerTlsKeys,
};
use super::value::OneOrMore;
use super::{
    AuditConfig, AuthConfig, CacheConfig, ClientAuth, Config, ConfigError, CredentialConfig, CredentialSource,
    DOCKER_IO, DeleteConfig, GcConfig, IgnoredSettings, LocalConfig, LogConfig, MetricsConfig, PushConfig, Right,
    ScrubConfig, ServerConfig, StorageConfig, TlsConfig, UpstreamConfig, builtin_upstreams, canonical_name,
};

/// `storage` is the default of `[storage]`, which depends on the user and on mounted volumes.
///
/// # Errors
/// For the first key that breaks a rule.
pub(super) fn config(
    mut layer: Layer,
    storage: StorageConfig,
    ignored: IgnoredSettings,
) -> Result<Config, ConfigError> {
    let builtin = layer.root.builtin_upstreams.as_ref().is_none_or(|builtin| builtin.value);
    let mut upstreams = if builtin { builtin_upstreams() } else { Vec::new() };
    for (name, keys) in layer.upstreams {
        let rules = layer.repository_credentials.remove(&name).unwrap_or_default();
        let path = format!("upstream.\"{name}\"");
        match upstreams.iter_mut().find(|upstream| upstream.name == name) {
            Some(upstream) => merge(upstream, keys.value, rules, &path)?,
            None => {
                let mut upstream = UpstreamConfig::new(name, Vec::new());
                merge(&mut upstream, keys.value, rules, &path)?;
                if upstream.urls.is_empty() {
                    let right = format!("has no url; write for example url = \"https://{}\"", upstream.name);
                    return Err(ConfigError::new(&keys.location, path, right));
                }
                upstreams.push(upstream);
            }
        }
    }
    let docker_config = layer.root.docker_config.map(|file| readable(file, "docker_config")).transpose()?;
    if let Some(path) = &docker_config {
        let bare = |upstream: &&mut UpstreamConfig| upstream.credentials.iter().all(|rule| rule.repository.is_some());
        for upstream in upstreams.iter_mut().filter(bare) {
            upstream.credentials.push(CredentialConfig::new(CredentialSource::Docker { path: path.clone() }));
        }
    }
    upstreams.sort_by(|one, other| one.name.cmp(&other.name));
    let default_upstream = default_upstream(layer.root.default_upstream, layer.root.builtin_upstreams, &upstreams)?;
    let (local, delete) = (local(layer.local), delete(layer.delete));
    let surroundings = Surroundings {
        upstreams: upstreams.iter().map(|upstream| upstream.name.as_str()).collect(),
        default_upstream: default_upstream.as_deref(),
        local: &local,
        deletes: delete.enabled,
        client_certificates: layer.server_tls.client_ca.is_some(),
    };
    let auth_layer = AuthLayer {
        keys: layer.auth,
        table: layer.auth_table,
        groups: layer.auth_groups,
        issuers: layer.auth_issuers,
        rules: layer.auth_rules,
        of_registry_2: layer.registry_auth,
    };
    let auth = auth(auth_layer, &surroundings)?;
    let metrics = metrics(layer.metrics, auth.as_ref())?;
    Ok(Config {
        server: ServerConfig { response_headers: layer.response_headers, ..server(layer.server, layer.server_tls)? },
        storage: StorageConfig {
            path: value(layer.storage.path, storage.path),
            read_only: value(layer.storage.read_only, storage.read_only),
        },
        cache: cache(layer.cache),
        gc: gc(layer.gc),
        local,
        push: push(layer.push),
        delete,
        auth,
        audit: AuditConfig {
            file: layer.audit.file.map(|file| file.value),
            pulls: value(layer.audit.pulls, AuditConfig::default().pulls),
        },
        metrics,
        scrub: scrub(layer.scrub),
        log: log(layer.log),
        docker_config,
        default_upstream,
        upstreams,
        builtin_upstreams: builtin,
        ignored_settings: ignored,
    })
}

fn server(keys: ServerKeys, tls_keys: ServerTlsKeys) -> Result<ServerConfig, ConfigError> {
    let default = ServerConfig::default();
    let names = match keys.names {
        Some(names) => hosts(names.value.0, &names.location, "server.names")?,
        None => default.names,
    };
    Ok(ServerConfig {
        listen: value(keys.listen, default.listen),
        names,
        host_routes: keys.host_routes.map(domains).transpose()?.unwrap_or(default.host_routes),
        external_url: keys.external_url.map(|url| url.value.0.as_str().trim_end_matches('/').to_owned()),
        trusted_proxies: keys.trusted_proxies.map_or(default.trusted_proxies, |networks| networks.value.0),
        max_connections: positive(keys.max_connections, default.max_connections),
        head_timeout: positive(keys.head_timeout, default.head_timeout),
        keep_alive: positive(keys.keep_alive, default.keep_alive),
        progress_timeout: positive(keys.progress_timeout, default.progress_timeout),
        drain_timeout: value(keys.drain_timeout, default.drain_timeout),
        tls: tls(tls_keys)?,
        response_headers: default.response_headers,
    })
}

/// Checks `server.host_routes`: domains without a port, as a request's host is compared without its port.
fn domains(names: Located<OneOrMore<String>>) -> Result<Vec<String>, ConfigError> {
    let path = "server.host_routes";
    match names.value.0.iter().find(|name| name.contains(':') || name.starts_with('.')) {
        Some(name) => {
            let message = format!("\"{name}\" is not a domain without a port; write for example \"cache.example.com\"");
            Err(ConfigError::new(&names.location, path, message))
        }
        None => hosts(names.value.0, &names.location, path),
    }
}

/// Checks `[server.tls]`: `cert` and `key` are set together, `client_ca` only with them, and
/// `client_auth` only with that.
fn tls(keys: ServerTlsKeys) -> Result<Option<TlsConfig>, ConfigError> {
    let lacks = |given: Located<PathBuf>, key: &str, lacking: &str| {
        let message = format!("is set without {lacking}; set {lacking} too");
        Err(ConfigError::new(&given.location, format!("server.tls.{key}"), message))
    };
    if let (Some(given), None) = (&keys.client_auth, &keys.client_ca) {
        let message = "is set without client_ca; set client_ca too";
        return Err(ConfigError::new(&given.location, "server.tls.client_auth", message));
    }
    let client_auth = value(keys.client_auth, ClientAuth::default());
    match (keys.cert, keys.key, keys.client_ca) {
        (Some(cert), Some(key), client_ca) => {
            let client_ca = client_ca.map(|file| file.value);
            Ok(Some(TlsConfig { cert: cert.value, key: key.value, client_ca, client_auth }))
        }
        (Some(cert), None, _) => lacks(cert, "cert", "key"),
        (None, Some(key), _) => lacks(key, "key", "cert"),
        (None, None, Some(client_ca)) => lacks(client_ca, "client_ca", "cert"),
        (None, None, None) => Ok(None),
    }
}

fn cache(keys: CacheKeys) -> CacheConfig {
    let default = CacheConfig::default();
    CacheConfig {
        max_size: keys.max_size.map(|size| size.value.0.0),
        min_free: keys.min_free.map(|size| size.value.0),
        pin: keys.pin.map_or(default.pin, |pins| pins.value.0),
        tag_ttl: value(keys.tag_ttl, default.tag_ttl),
        stale_while_revalidate: value(keys.stale_while_revalidate, default.stale_while_revalidate),
        stale_if_error: value(keys.stale_if_error, default.stale_if_error),
        negative_ttl: value(keys.negative_ttl, default.negative_ttl),
        answer_within: positive(keys.answer_within, default.answer_within),
        max_fills: positive(keys.max_fills, default.max_fills),
        max_bypasses: positive(keys.max_bypasses, default.max_bypasses),
    }
}

fn gc(keys: GcKeys) -> GcConfig {
    let default = GcConfig::default();
    GcConfig {
        interval: value(keys.interval, default.interval),
        after_start: value(keys.after_start, default.after_start),
        grace: value(keys.grace, default.grace),
        unreferenced_after: value(keys.unreferenced_after, default.unreferenced_after),
        untagged_after: value(keys.untagged_after, default.untagged_after),
    }
}

fn local(keys: LocalKeys) -> LocalConfig {
    keys.namespaces.map_or_else(LocalConfig::default, |patterns| LocalConfig { namespaces: patterns.value.0 })
}

fn push(keys: PushKeys) -> PushConfig {
    let default = PushConfig::default();
    PushConfig {
        enabled: value(keys.enabled, default.enabled),
        max_unfinished: positive(keys.max_unfinished, default.max_unfinished),
        max_unfinished_size: keys.max_unfinished_size.map(|size| size.value.0),
    }
}

fn delete(keys: DeleteKeys) -> DeleteConfig {
    DeleteConfig { enabled: value(keys.enabled, DeleteConfig::default().enabled) }
}

/// Checks that somebody may read metrics.
fn metrics(keys: MetricsKeys, auth: Option<&AuthConfig>) -> Result<MetricsConfig, ConfigError> {
    let Some(key) = keys.auth.filter(|key| key.value) else { return Ok(MetricsConfig { auth: false }) };
    let wrong = |message: &str| Err(ConfigError::new(&key.location, "metrics.auth", message));
    match auth {
        None => wrong("is true without [auth], so nobody could read /metrics; configure users, or leave it out"),
        Some(auth) if !auth.rules.iter().any(|rule| rule.may.contains(Right::Metrics)) => wrong(
            "is true, and no rule gives the right to read /metrics; write for example [[auth.rule]] with who = \
             \"prometheus\", may = \"metrics\"",
        ),
        Some(_) => Ok(MetricsConfig { auth: true }),
    }
}

fn scrub(keys: ScrubKeys) -> ScrubConfig {
    let default = ScrubConfig::default();
    ScrubConfig {
        interval: value(keys.interval, default.interval),
        rate: keys.rate.map_or(default.rate, |rate| rate.value.0.0),
    }
}

fn log(keys: LogKeys) -> LogConfig {
    LogConfig { format: value(keys.format, LogConfig::default().format) }
}

fn default_upstream(
    name: Option<Located<String>>,
    builtin: Option<Located<bool>>,
    upstreams: &[UpstreamConfig],
) -> Result<Option<String>, ConfigError> {
    let is_upstream = |name: &str| upstreams.iter().any(|upstream| upstream.name == name);
    let Some(Located { value: name, location }) = name else {
        return match builtin {
            Some(builtin) if !is_upstream(DOCKER_IO) => {
                let message = format!(
                    "\"{DOCKER_IO}\" is not configured without them; set default_upstream to \"none\" or to a configured upstream"
                );
                Err(ConfigError::new(&builtin.location, "builtin_upstreams", message))
            }
            _ => Ok(Some(DOCKER_IO.to_owned())),
        };
    };
    if name == "none" {
        return Ok(None);
    }
    if is_upstream(&name) {
        return Ok(Some(name));
    }
    let canonical = canonical_name(&name);
    let message = if canonical == name {
        let known: String = upstreams.iter().map(|upstream| format!("\"{}\" or ", upstream.name)).collect();
        format!("no upstream is called \"{name}\"; use {known}\"none\"")
    } else {
        format!("\"{name}\" is another name of \"{canonical}\"; write \"{canonical}\"")
    };
    Err(ConfigError::new(&location, "default_upstream", message))
}

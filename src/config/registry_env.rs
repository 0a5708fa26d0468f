//! The settings of `registry:2` that mean the same here, as a layer, for those who replace one by the other.
//!
//! It gives each key of its file a variable, `http.addr` is `REGISTRY_HTTP_ADDR`, and so do we: see [`super::registry_file`].

use std::collections::BTreeMap;

use url::{Position, Url};

use super::env::is_service_link;
use super::error::Site;
use super::layer::{Layer, Sited};
use super::upstream::{BUILTIN_UPSTREAMS, DOCKER_IO, canonical_name};
use super::upstream_url::{UpstreamUrl, check_name};
use super::value::Raw;
use super::{ConfigError, IgnoredSettings};

pub(super) const PREFIX: &str = "REGISTRY_";
const LISTEN: &str = "REGISTRY_HTTP_ADDR";
const CERTIFICATE: &str = "REGISTRY_HTTP_TLS_CERTIFICATE";
const KEY: &str = "REGISTRY_HTTP_TLS_KEY";
const CLIENT_CA: &str = "REGISTRY_HTTP_TLS_CLIENTCAS_0";
const FORMATTER: &str = "REGISTRY_LOG_FORMATTER";
const DATA: &str = "REGISTRY_STORAGE_FILESYSTEM_ROOTDIRECTORY";
const DELETE: &str = "REGISTRY_STORAGE_DELETE_ENABLED";
const READ_ONLY: &str = "REGISTRY_STORAGE_MAINTENANCE_READONLY_ENABLED";
/// How its clients log in.
const AUTH: &str = "REGISTRY_AUTH_";
const REMOTE_URL: &str = "REGISTRY_PROXY_REMOTEURL";
const REMOTE_USERNAME: &str = "REGISTRY_PROXY_USERNAME";
const REMOTE_PASSWORD: &str = "REGISTRY_PROXY_PASSWORD";

/// A setting of `registry:2`, under the name of its variable.
pub(super) struct Given {
    pub(super) text: String,
    pub(super) site: Site,
}

/// The layer, and what means nothing here. As there, credentials without a remote URL mean nothing.
pub(super) fn read(settings: &BTreeMap<String, Given>) -> Result<(Layer, IgnoredSettings), ConfigError> {
    let mut layer = Layer::default();
    let mut ignored = IgnoredSettings::default();
    let remote = settings.get(REMOTE_URL).map(remote).transpose()?;
    if let (Some((name, url)), Some(Given { site, .. })) = (&remote, settings.get(REMOTE_URL)) {
        layer.root.default_upstream = Some(Sited { value: name.clone(), site: site.clone() });
        layer.upstream(name, site).url = Some(Sited::from_text(url, site)?);
    }
    for (variable, Given { text, site }) in settings {
        match (variable.as_str(), &remote) {
            (LISTEN, _) => layer.server.listen = Some(Sited::from_text(text, site)?),
            (CERTIFICATE, _) => layer.server_tls.cert = Some(Sited::from_text(text, site)?),
            (KEY, _) => layer.server_tls.key = Some(Sited::from_text(text, site)?),
            (CLIENT_CA, _) => layer.server_tls.client_ca = Some(Sited::from_text(text, site)?),
            (DATA, _) => layer.storage.path = Some(Sited::from_text(text, site)?),
            (DELETE, _) => layer.delete.enabled = Some(Sited::from_text(yes_or_no(text), site)?),
            // After the one above: there, too, it has the last word.
            (READ_ONLY, _) => {
                if Sited::from_text(yes_or_no(text), site)?.value {
                    let off = Sited { value: false, site: site.clone() };
                    (layer.push.enabled, layer.delete.enabled) = (Some(off.clone()), Some(off));
                }
            }
            // Its third format is JSON too.
            (FORMATTER, _) if text == "logstash" => layer.log.format = Some(Sited::from_text("json", site)?),
            (FORMATTER, _) => layer.log.format = Some(Sited::from_text(text, site)?),
            (REMOTE_URL, _) => {}
            (REMOTE_USERNAME, Some((name, _))) => {
                layer.upstream(name, site).username = Some(Sited::from_text(text, site)?)
            }
            (REMOTE_PASSWORD, Some((name, _))) => {
                layer.upstream(name, site).password = Some(Sited::from_text(text, site)?)
            }
            (other, _) if other.starts_with(AUTH) => ignored.auth.push(site.to_string()),
            _ => ignored.others.push(site.to_string()),
        }
    }
    Ok((layer, ignored))
}

/// YAML's other words for true and false, as that program takes them.
fn yes_or_no(text: &str) -> &str {
    match text.to_ascii_lowercase().as_str() {
        "y" | "yes" | "on" => "true",
        "n" | "no" | "off" => "false",
        _ => text,
    }
}

/// The variables that are `registry:2`'s; one that is set to nothing counts as not set.
pub(super) fn variables(all: &BTreeMap<String, String>) -> BTreeMap<String, Given> {
    let theirs = |(name, text): &(&String, &String)| {
        name.starts_with(PREFIX) && !text.is_empty() && !is_service_link(name, text)
    };
    let given = |(name, text): (&String, &String)| {
        (name.clone(), Given { text: text.clone(), site: Site::Variable(name.clone()) })
    };
    all.iter().filter(theirs).map(given).collect()
}

/// The upstream that a remote URL means, and its URL here: Docker Hub by any of its names, else the host and port.
fn remote(given: &Given) -> Result<(String, String), ConfigError> {
    let wrong = |message: String| ConfigError::new(&given.site, "", message);
    let UpstreamUrl(url) = Raw::Text(&given.text).read().map_err(wrong)?;
    let name = name_of(&url);
    check_name(&name).map_err(|message| wrong(format!("\"{name}\" {message}")))?;
    match BUILTIN_UPSTREAMS.iter().find(|(builtin, _)| *builtin == DOCKER_IO && *builtin == name) {
        Some((_, url)) => Ok((name, (*url).to_owned())),
        None => Ok((name, given.text.clone())),
    }
}

/// Host, and the port where it is not the scheme's own or a host alone would not look like one.
fn name_of(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    match url.port_or_known_default() {
        Some(port) if !host.contains('.') => format!("{host}:{port}"),
        _ => canonical_name(&url[Position::BeforeHost..Position::AfterPort]).to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_all(variables: &[(&str, &str)]) -> Result<(Layer, Vec<String>), String> {
        let all = variables.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect();
        let (layer, ignored) = read(&super::variables(&all)).map_err(|error| error.to_string())?;
        Ok((layer, [ignored.auth, ignored.others].concat()))
    }

    #[test]
    fn a_remote_url_becomes_the_default_upstream_with_its_credentials() {
        let cases = [
            ("https://registry-1.docker.io", "docker.io", "https://registry-1.docker.io/"),
            ("https://docker.io", "docker.io", "https://registry-1.docker.io/"),
            ("https://ghcr.io", "ghcr.io", "https://ghcr.io/"),
            ("http://127.0.0.1:5001", "127.0.0.1:5001", "http://127.0.0.1:5001/"),
            ("http://registry", "registry:80", "http://registry/"),
        ];
        for (remote, name, url) in cases {
            let (mut layer, ignored) = read_all(&[
                ("REGISTRY_PROXY_REMOTEURL", remote),
                ("REGISTRY_PROXY_USERNAME", "ann"),
                ("REGISTRY_PROXY_PASSWORD", "hunter2"),
            ])
            .unwrap();
            assert_eq!(layer.root.default_upstream.unwrap().value, name);
            let keys = layer.upstreams.remove(name).unwrap().value;
            assert_eq!(keys.url.unwrap().value.0[0].0.as_str(), url);
            assert_eq!(keys.username.unwrap().value, "ann");
            assert_eq!(keys.password.unwrap().value.expose(), "hunter2");
            assert!(ignored.is_empty());
        }
    }

    #[test]
    fn what_means_nothing_here_is_named_and_no_mistake() {
        let (layer, ignored) = read_all(&[
            ("REGISTRY_HTTP_ADDR", ":5000"),
            ("REGISTRY_HTTP_SECRET", "x"),
            ("REGISTRY_PORT", "tcp://10.0.0.1:5000"),
            ("REGISTRY_PROXY_USERNAME", "ann"),
            ("REGISTRY_STORAGE_DELETE_ENABLED", "true"),
            ("REGISTRY_STORAGE_FILESYSTEM_ROOTDIRECTORY", "/data"),
        ])
        .unwrap();
        assert_eq!(ignored, ["REGISTRY_HTTP_SECRET", "REGISTRY_PROXY_USERNAME"]);
        assert_eq!(layer.server.listen.unwrap().value.to_string(), ":5000");
        assert!(layer.delete.enabled.unwrap().value);
        assert_eq!(layer.storage.path.unwrap().value.to_str(), Some("/data"));
    }

    #[test]
    fn a_wrong_value_is_an_error_that_names_the_variable() {
        let cases = [
            (
                "REGISTRY_PROXY_REMOTEURL",
                "registry-1.docker.io",
                r#"REGISTRY_PROXY_REMOTEURL: "registry-1.docker.io" has no scheme; write "https://registry-1.docker.io""#,
            ),
            (
                "REGISTRY_STORAGE_DELETE_ENABLED",
                "perhaps",
                r#"REGISTRY_STORAGE_DELETE_ENABLED: "perhaps" is not true or false"#,
            ),
        ];
        for (variable, text, message) in cases {
            assert_eq!(read_all(&[(variable, text)]).err().as_deref(), Some(message));
        }
    }
}

//! Reads the settings of `registry:2` (distribution) that have an equivalent here into a layer, so that it can be
//! replaced without a new configuration.
//!
//! In `registry:2` each key of the file has a variable: `http.addr` is `REGISTRY_HTTP_ADDR`. [`super::registry_file`]
//! converts a file to these names.

use std::collections::BTreeMap;

use http::header::{CONNECTION, CONTENT_ENCODING, CONTENT_LENGTH, DATE, TRAILER, TRANSFER_ENCODING, UPGRADE};
use http::{HeaderName, HeaderValue};
use url::{Position, Url};

use super::env::is_service_link;
use super::error::SourceLocation;
use super::layer::{Layer, Located};
use super::upstream::{BUILTIN_UPSTREAMS, DOCKER_IO, canonical_name};
use super::upstream_url::{UpstreamUrl, check_name};
use super::value::RawValue;
use super::{ConfigError, IgnoredSettings, registry_file};

/// Prefix of all variables of `registry:2`.
pub(super) const PREFIX: &str = "REGISTRY_";
/// The path of the configuration file.
pub(super) const CONFIG_VARIABLE: &str = "REGISTRY_CONFIGURATION_PATH";
const LISTEN: &str = "REGISTRY_HTTP_ADDR";
const CERTIFICATE: &str = "REGISTRY_HTTP_TLS_CERTIFICATE";
const KEY: &str = "REGISTRY_HTTP_TLS_KEY";
const CLIENT_CA: &str = "REGISTRY_HTTP_TLS_CLIENTCAS_0";
const FORMATTER: &str = "REGISTRY_LOG_FORMATTER";
const DATA: &str = "REGISTRY_STORAGE_FILESYSTEM_ROOTDIRECTORY";
const DELETE: &str = "REGISTRY_STORAGE_DELETE_ENABLED";
const READ_ONLY: &str = "REGISTRY_STORAGE_MAINTENANCE_READONLY_ENABLED";
/// Prefix of the variables that set headers of every response.
const HEADERS: &str = "REGISTRY_HTTP_HEADERS_";
/// Headers that the server sets itself. A configured value would make the response unreadable.
const OWN_HEADERS: [HeaderName; 7] =
    [CONNECTION, CONTENT_LENGTH, CONTENT_ENCODING, DATE, TRAILER, TRANSFER_ENCODING, UPGRADE];
/// Prefix of the settings about authentication of clients.
const AUTH: &str = "REGISTRY_AUTH_";
/// The scheme alone, as some set it beside its settings.
const AUTH_SCHEME: &str = "REGISTRY_AUTH";
const HTPASSWD: &str = "REGISTRY_AUTH_HTPASSWD_PATH";
/// Shown by browsers at a login. There is nothing to show it here.
const REALM: &str = "REGISTRY_AUTH_HTPASSWD_REALM";
const REMOTE_URL: &str = "REGISTRY_PROXY_REMOTEURL";
const REMOTE_USERNAME: &str = "REGISTRY_PROXY_USERNAME";
const REMOTE_PASSWORD: &str = "REGISTRY_PROXY_PASSWORD";

/// The value of one setting of `registry:2`, and its place in a variable or file.
pub(super) struct RegistrySetting {
    pub(super) text: String,
    pub(super) location: SourceLocation,
}

/// Makes a layer of the settings, and collects those without effect. Credentials without a remote URL have no effect,
/// as in `registry:2`.
///
/// # Errors
/// If a value is not accepted.
pub(super) fn read(settings: &BTreeMap<String, RegistrySetting>) -> Result<(Layer, IgnoredSettings), ConfigError> {
    let mut layer = Layer::default();
    let mut ignored = IgnoredSettings::default();
    let remote = settings.get(REMOTE_URL).map(remote).transpose()?;
    if let (Some((name, url)), Some(RegistrySetting { location, .. })) = (&remote, settings.get(REMOTE_URL)) {
        layer.root.default_upstream = Some(Located { value: name.clone(), location: location.clone() });
        layer.upstream(name, location).url = Some(Located::from_text(url, location)?);
    }
    for (variable, setting) in settings {
        let RegistrySetting { text, location } = setting;
        if let Some(name) = variable.strip_prefix(HEADERS) {
            layer.response_headers.push(header(name, setting)?);
            continue;
        }
        match (variable.as_str(), &remote) {
            (LISTEN, _) => layer.server.listen = Some(Located::from_text(text, location)?),
            (CERTIFICATE, _) => layer.server_tls.cert = Some(Located::from_text(text, location)?),
            (KEY, _) => layer.server_tls.key = Some(Located::from_text(text, location)?),
            (CLIENT_CA, _) => layer.server_tls.client_ca = Some(Located::from_text(text, location)?),
            (DATA, _) => layer.storage.path = Some(Located::from_text(text, location)?),
            (DELETE, _) => layer.delete.enabled = Some(Located::from_text(yes_or_no(text), location)?),
            // Overrides `delete.enabled`, as in `registry:2`. The map is sorted by name, so this comes after DELETE.
            (READ_ONLY, _) => {
                if Located::from_text(yes_or_no(text), location)?.value {
                    let off = Located { value: false, location: location.clone() };
                    (layer.push.enabled, layer.delete.enabled) = (Some(off.clone()), Some(off));
                }
            }
            // The format `logstash` of `registry:2` is JSON too.
            (FORMATTER, _) if text == "logstash" => layer.log.format = Some(Located::from_text("json", location)?),
            (FORMATTER, _) => layer.log.format = Some(Located::from_text(text, location)?),
            (REMOTE_URL, _) => {}
            (REMOTE_USERNAME, Some((name, _))) => {
                layer.upstream(name, location).credentials.username = Some(Located::from_text(text, location)?)
            }
            (REMOTE_PASSWORD, Some((name, _))) => {
                layer.upstream(name, location).credentials.password = Some(Located::from_text(text, location)?)
            }
            (HTPASSWD, _) => {
                layer.auth.htpasswd = Some(Located::from_text(text, location)?);
                layer.registry_auth = Some(location.clone());
            }
            (REALM | AUTH_SCHEME, _) if settings.contains_key(HTPASSWD) => {}
            // The operator means logins, so the server must not start without them.
            (AUTH_SCHEME | REALM, _) if variable == REALM || text == "htpasswd" => {
                let message = format!("is set without the file of users; set auth.htpasswd.path ({HTPASSWD}) too");
                return Err(ConfigError::new(location, "", message));
            }
            (other, _) if other.starts_with(AUTH) || other == AUTH_SCHEME => ignored.auth.push(location.to_string()),
            _ => ignored.others.push(location.to_string()),
        }
    }
    Ok((layer, ignored))
}

/// YAML 1.1 has more words for true and false, which `registry:2` accepts.
fn yes_or_no(text: &str) -> &str {
    match text.to_ascii_lowercase().as_str() {
        "y" | "yes" | "on" => "true",
        "n" | "no" | "off" => "false",
        _ => text,
    }
}

/// Reads the variables of `registry:2`, whose values are YAML. A variable replaces the setting of that name, with
/// everything below it. An empty variable counts as not set.
///
/// # Errors
/// If a quoted value is not valid YAML.
pub(super) fn override_by_variables(
    settings: &mut BTreeMap<String, RegistrySetting>,
    all: &BTreeMap<String, String>,
) -> Result<(), ConfigError> {
    for (variable, text) in all {
        let is_setting = variable != CONFIG_VARIABLE && !text.is_empty() && !is_service_link(variable, text);
        let Some(name) = variable.strip_prefix(PREFIX).filter(|_| is_setting) else { continue };
        let replaced = variable.to_ascii_uppercase();
        settings.retain(|name, _| {
            name.strip_prefix(&replaced).is_none_or(|rest| !rest.is_empty() && !rest.starts_with('_'))
        });
        settings.extend(registry_file::of_variable(name, text)?);
    }
    Ok(())
}

/// Reads one value of a header of `http.headers`. `name` may end in the number of the value.
fn header(name: &str, setting: &RegistrySetting) -> Result<(HeaderName, HeaderValue), ConfigError> {
    let wrong = |message: String| ConfigError::new(&setting.location, "", message);
    let is_number = |end: &str| !end.is_empty() && end.bytes().all(|byte| byte.is_ascii_digit());
    let name = name.rsplit_once('_').filter(|(_, end)| is_number(end)).map_or(name, |(name, _)| name);
    let parsed =
        HeaderName::from_bytes(name.as_bytes()).map_err(|_| wrong(format!("{name:?} is not the name of a header")))?;
    if OWN_HEADERS.contains(&parsed) {
        return Err(wrong(format!("the server sets the header {parsed} itself; remove it")));
    }
    let value = HeaderValue::try_from(&setting.text);
    let value = value.map_err(|_| wrong("the value has a character that a header cannot have".to_owned()))?;
    Ok((parsed, value))
}

/// The upstream's name and URL for a remote URL: `docker.io` for all names of Docker Hub, otherwise the host and port.
fn remote(given: &RegistrySetting) -> Result<(String, String), ConfigError> {
    let wrong = |message: String| ConfigError::new(&given.location, "", message);
    let UpstreamUrl(url) = RawValue::Text(&given.text).read().map_err(wrong)?;
    let name = name_of(&url);
    check_name(&name).map_err(|message| wrong(format!("\"{name}\" {message}")))?;
    match BUILTIN_UPSTREAMS.iter().find(|(builtin, _)| *builtin == DOCKER_IO && *builtin == name) {
        Some((_, url)) => Ok((name, (*url).to_owned())),
        None => Ok((name, given.text.clone())),
    }
}

/// The host, with its port unless that is the scheme's default and the host contains a dot.
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
        let mut settings = BTreeMap::new();
        override_by_variables(&mut settings, &all).map_err(|error| error.to_string())?;
        let (layer, ignored) = read(&settings).map_err(|error| error.to_string())?;
        Ok((layer, [ignored.auth, ignored.others].concat()))
    }

    #[test]
    fn remote_url_becomes_the_default_upstream() {
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
            assert_eq!(keys.credentials.username.unwrap().value, "ann");
            assert_eq!(keys.credentials.password.unwrap().value.expose(), "hunter2");
            assert!(ignored.is_empty());
        }
    }

    #[test]
    fn settings_without_effect_are_collected() {
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
    fn yaml_has_many_forms_of_true() {
        for written in
            ["true", "True", "yes", "\"on\"", " true ", "true # on", "!!bool true", "!!bool 'true'", "!!str true"]
        {
            let (layer, _) = read_all(&[("REGISTRY_STORAGE_DELETE_ENABLED", written)]).unwrap();
            assert!(layer.delete.enabled.unwrap().value, "{written}");
        }
        let (layer, _) = read_all(&[("REGISTRY_STORAGE", "{delete: {enabled: !!bool true}}")]).unwrap();
        assert!(layer.delete.enabled.unwrap().value);
        let (layer, _) = read_all(&[("REGISTRY_HTTP_HEADERS", "{X-A: [!!int 5], X-B: [!!bool true]}")]).unwrap();
        let mut values: Vec<_> = layer.response_headers.iter().map(|(_, value)| value.to_str().unwrap()).collect();
        values.sort_unstable();
        assert_eq!(values, ["5", "true"]);
    }

    #[test]
    fn values_of_variables_are_yaml() {
        for (written, meant) in [
            ("\"hunter2\"", "hunter2"),
            ("'hunter2'", "hunter2"),
            ("  \"hun ter\" ", "hun ter"),
            ("\"a\\tb\"", "a\tb"),
            ("'it''s'", "it's"),
            ("0123", "0123"),
            ("yes", "yes"),
            ("!!str 0123", "0123"),
            ("True", "True"),
            ("a#b", "a#b"),
            ("a: b", "a: b"),
            ("*secret", "*secret"),
            ("!secret", "!secret"),
            ("@secret", "@secret"),
            ("{secret", "{secret"),
            ("%a\"b", "%a\"b"),
        ] {
            let (mut layer, _) = read_all(&[
                ("REGISTRY_PROXY_REMOTEURL", "\"https://ghcr.io\""),
                ("REGISTRY_PROXY_USERNAME", "'ann'"),
                ("REGISTRY_PROXY_PASSWORD", written),
            ])
            .unwrap();
            let keys = layer.upstreams.remove("ghcr.io").unwrap().value;
            assert_eq!(keys.credentials.username.unwrap().value, "ann");
            assert_eq!(keys.credentials.password.unwrap().value.expose(), meant, "{written}");
        }
        let (layer, ignored) = read_all(&[
            ("REGISTRY_HTTP_ADDR", "\"127.0.0.1:5001\""),
            ("REGISTRY_HTTP_TLS_CLIENTCAS", "[/a.pem]"),
            ("REGISTRY_STORAGE_DELETE", "{enabled: true}"),
            ("REGISTRY_LOG_FORMATTER", "'json'"),
        ])
        .unwrap();
        assert_eq!(layer.server.listen.unwrap().value.to_string(), "127.0.0.1:5001");
        assert_eq!(layer.server_tls.client_ca.unwrap().value.to_str(), Some("/a.pem"));
        assert!(layer.delete.enabled.unwrap().value && layer.log.format.is_some() && ignored.is_empty());
    }

    #[test]
    fn http_headers_are_read_from_variables() {
        let (layer, ignored) = read_all(&[
            ("REGISTRY_HTTP_HEADERS_Access-Control-Allow-Origin", "[http://ui.example, 'http://b.example']"),
            ("REGISTRY_HTTP_HEADERS_ACCESS-CONTROL-ALLOW-METHODS", "['HEAD, GET, OPTIONS']"),
            ("REGISTRY_HTTP_HEADERS_Access-Control-Allow-Credentials", "[true]"),
            ("REGISTRY_HTTP_HEADERS_X-Frame-Options", "DENY"),
        ])
        .unwrap();
        let headers = layer.response_headers.iter().map(|(name, value)| format!("{name}: {}", value.to_str().unwrap()));
        let mut headers: Vec<_> = headers.collect();
        headers.sort();
        let expected = [
            "access-control-allow-credentials: true",
            "access-control-allow-methods: HEAD, GET, OPTIONS",
            "access-control-allow-origin: http://b.example",
            "access-control-allow-origin: http://ui.example",
            "x-frame-options: DENY",
        ];
        assert_eq!((headers.as_slice(), ignored.len()), (&expected.map(str::to_owned)[..], 0));
    }

    #[test]
    fn errors_name_the_variable() {
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
            ("REGISTRY_HTTP_HEADERS_A B", "x", r#"REGISTRY_HTTP_HEADERS_A B: "A B" is not the name of a header"#),
            (
                "REGISTRY_HTTP_HEADERS_X-A",
                r#"["a\nb"]"#,
                "REGISTRY_HTTP_HEADERS_X-A: the value has a character that a header cannot have",
            ),
            (
                "REGISTRY_HTTP_HEADERS_Content-Length",
                "[5]",
                "REGISTRY_HTTP_HEADERS_Content-Length: the server sets the header content-length itself; remove it",
            ),
            ("REGISTRY_PROXY_PASSWORD", "\"hunter2", "REGISTRY_PROXY_PASSWORD: is not valid YAML, at line 1 column 1"),
        ];
        for (variable, text, message) in cases {
            assert_eq!(read_all(&[(variable, text)]).err().as_deref(), Some(message));
        }
    }
}

//! Reads `ROADSTEAD_…` environment variables into a layer: `ROADSTEAD_CACHE__TAG_TTL` is `cache.tag_ttl`.
//!
//! Two underscores separate table and key. The name of an upstream is in upper case, with an underscore for every
//! character that is not a letter or digit: `ROADSTEAD_UPSTREAM__DOCKER_IO__USERNAME`. An empty variable counts as not
//! set, as compose files produce them.

use std::collections::{BTreeMap, BTreeSet};

use super::ConfigError;
use super::error::SourceLocation;
use super::image::IMAGE_VARIABLE;
use super::layer::{self, Layer, Section, UpstreamKeys};
use super::suggest::nearest;
use super::value::RawValue;

/// Prefix of all variables.
pub(super) const PREFIX: &str = "ROADSTEAD_";
/// The path of the configuration file. Not a setting, because it is needed before settings are read.
pub(super) const CONFIG_VARIABLE: &str = "ROADSTEAD_CONFIG";
/// Prefix of the variables of upstreams.
pub(super) const UPSTREAM_PREFIX: &str = "ROADSTEAD_UPSTREAM__";

/// Reads the variables. `names` are the upstreams of the other sources; a variable cannot add an upstream.
///
/// # Errors
/// For an unknown variable, or a value that its key does not accept.
pub(super) fn read(variables: &BTreeMap<String, String>, names: &BTreeSet<String>) -> Result<Layer, ConfigError> {
    let fixed: BTreeMap<String, _> = layer::fixed_keys().into_iter().map(|key| (variable(key.0, key.1), key)).collect();
    let mut layer = Layer::default();
    for (variable, text) in variables {
        let ours = variable.starts_with(PREFIX)
            && variable != CONFIG_VARIABLE
            && variable != IMAGE_VARIABLE
            && !text.is_empty();
        if !ours || is_service_link(variable, text) {
            continue;
        }
        let location = SourceLocation::Variable(variable.clone());
        let unknown = || unknown(variable, &fixed, names);
        let raw = RawValue::Text(text);
        if let Some((table, key)) = fixed.get(variable) {
            if let Some(section) = layer.section(table) {
                layer::set(section, key, &raw, &location, "", unknown)?;
            }
        } else if let Some((host, key)) = variable.strip_prefix(UPSTREAM_PREFIX).and_then(|rest| rest.rsplit_once("__"))
        {
            let name = upstream(host, names).map_err(|message| ConfigError::new(&location, "", message))?;
            layer::set(layer.upstream(name, &location), &key.to_ascii_lowercase(), &raw, &location, "", unknown)?;
        } else {
            return Err(ConfigError::new(&location, "", unknown()));
        }
    }
    Ok(layer)
}

/// The variable of a key of a table with a fixed name.
pub(super) fn variable(table: &str, key: &str) -> String {
    let separator = if table.is_empty() { "" } else { "__" };
    let table = table.replace('.', "__").to_ascii_uppercase();
    format!("{PREFIX}{table}{separator}{}", key.to_ascii_uppercase())
}

fn variable_case(name: &str) -> String {
    name.chars().map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_uppercase() } else { '_' }).collect()
}

/// The upstream that a variable's host part names.
fn upstream<'a>(host: &str, names: &'a BTreeSet<String>) -> Result<&'a str, String> {
    let mut meant = names.iter().filter(|name| variable_case(name) == host);
    match (meant.next(), meant.next()) {
        (Some(name), None) => Ok(name),
        (Some(one), Some(other)) => {
            Err(format!("is ambiguous between \"{one}\" and \"{other}\"; use the configuration file instead"))
        }
        (None, _) => {
            let known: Vec<_> = names.iter().map(|name| variable_case(name)).collect();
            Err(format!("no upstream is called {host}; the upstreams are {}", known.join(", ")))
        }
    }
}

fn unknown(variable: &str, fixed: &BTreeMap<String, (&str, &str)>, names: &BTreeSet<String>) -> String {
    let keys = UpstreamKeys::default().keys();
    let of_upstream = |name: &String| {
        let name = variable_case(name);
        keys.iter().map(move |key| format!("{UPSTREAM_PREFIX}{name}__{}", key.to_ascii_uppercase()))
    };
    let of_upstreams: Vec<String> = names.iter().flat_map(of_upstream).collect();
    match nearest(variable, fixed.keys().chain(&of_upstreams).map(String::as_str)) {
        Some(name) => format!("unknown variable; did you mean {name}?"),
        None => "unknown variable; key tag_ttl of table cache is ROADSTEAD_CACHE__TAG_TTL".to_owned(),
    }
}

/// Whether Kubernetes made this variable. It gives every container variables for each service, so a service called
/// `roadstead` produces `ROADSTEAD_SERVICE_HOST`, `ROADSTEAD_PORT` and others of these forms.
pub(super) fn is_service_link(variable: &str, text: &str) -> bool {
    let url = ["tcp://", "udp://", "sctp://"].iter().any(|scheme| text.starts_with(scheme));
    let in_port = ["_TCP", "_UDP", "_SCTP"].iter().any(|protocol| variable.contains(protocol));
    variable.ends_with("_SERVICE_HOST")
        || variable.contains("_SERVICE_PORT")
        || (variable.ends_with("_PORT") && url)
        || (variable.contains("_PORT_") && in_port)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_one(variable: &str, text: &str) -> Result<Layer, String> {
        let names = ["docker.io", "localhost:5001", "my-reg.example.com", "my.reg.example.com"];
        let variables = BTreeMap::from([(variable.to_owned(), text.to_owned())]);
        read(&variables, &names.map(str::to_owned).into()).map_err(|error| error.to_string())
    }

    #[test]
    fn variables_name_keys_of_tables_and_upstreams() {
        let layer = read_one("ROADSTEAD_CACHE__TAG_TTL", "5m").unwrap();
        assert_eq!(layer.cache.tag_ttl.unwrap().value.as_secs(), 300);
        let layer = read_one("ROADSTEAD_DEFAULT_UPSTREAM", "none").unwrap();
        assert_eq!(layer.root.default_upstream.unwrap().value, "none");
        let layer = read_one("ROADSTEAD_SERVER__NAMES", "a.b, c.d:5000").unwrap();
        assert_eq!(layer.server.names.unwrap().value.0, ["a.b", "c.d:5000"]);
        for (variable, name) in [("DOCKER_IO", "docker.io"), ("LOCALHOST_5001", "localhost:5001")] {
            let layer = read_one(&format!("ROADSTEAD_UPSTREAM__{variable}__USERNAME"), "ann").unwrap();
            assert_eq!(layer.upstreams[name].value.credentials.username.as_ref().unwrap().value, "ann");
        }
    }

    #[test]
    fn errors_name_the_variable() {
        let cases = [
            (
                "ROADSTEAD_CACHE__TAG_TTL",
                "60 parsecs",
                r#"ROADSTEAD_CACHE__TAG_TTL: "60 parsecs" is not a duration; write for example "60s" or "10m""#,
            ),
            (
                "ROADSTEAD_CACHE_TAG_TTL",
                "60s",
                "ROADSTEAD_CACHE_TAG_TTL: unknown variable; did you mean ROADSTEAD_CACHE__TAG_TTL?",
            ),
            (
                "ROADSTEAD_UPSTREAM__DOCKER_IO__USERNAM",
                "ann",
                "ROADSTEAD_UPSTREAM__DOCKER_IO__USERNAM: unknown variable; did you mean ROADSTEAD_UPSTREAM__DOCKER_IO__USERNAME?",
            ),
            (
                "ROADSTEAD_FROBNICATION",
                "1",
                "ROADSTEAD_FROBNICATION: unknown variable; key tag_ttl of table cache is ROADSTEAD_CACHE__TAG_TTL",
            ),
            (
                "ROADSTEAD_UPSTREAM__EXAMPLE_COM__URL",
                "https://example.com",
                "ROADSTEAD_UPSTREAM__EXAMPLE_COM__URL: no upstream is called EXAMPLE_COM; the upstreams are DOCKER_IO, \
                 LOCALHOST_5001, MY_REG_EXAMPLE_COM, MY_REG_EXAMPLE_COM",
            ),
            (
                "ROADSTEAD_UPSTREAM__MY_REG_EXAMPLE_COM__USERNAME",
                "ann",
                "ROADSTEAD_UPSTREAM__MY_REG_EXAMPLE_COM__USERNAME: is ambiguous between \"my-reg.example.com\" and \
                 \"my.reg.example.com\"; use the configuration file instead",
            ),
        ];
        for (variable, text, expected) in cases {
            assert_eq!(read_one(variable, text).err().as_deref(), Some(expected));
        }
    }

    #[test]
    fn variables_of_kubernetes_and_compose_are_ignored() {
        let variables = [
            ("ROADSTEAD_CONFIG", "/etc/roadstead.toml"),
            ("ROADSTEAD_CACHE__TAG_TTL", ""),
            ("ROADSTEAD_SERVICE_HOST", "10.0.0.1"),
            ("ROADSTEAD_SERVICE_PORT", "5000"),
            ("ROADSTEAD_SERVICE_PORT_HTTP", "5000"),
            ("ROADSTEAD_PORT", "tcp://10.0.0.1:5000"),
            ("ROADSTEAD_PORT_5000_TCP", "tcp://10.0.0.1:5000"),
            ("ROADSTEAD_PORT_5000_TCP_ADDR", "10.0.0.1"),
            ("ROADSTEAD_METRICS_PORT_5000_TCP_PROTO", "tcp"),
            ("ROADSTEADS", "1"),
        ];
        for (variable, text) in variables {
            assert!(read_one(variable, text).is_ok(), "{variable}");
        }
        assert!(read_one("ROADSTEAD_PORT", "5000").is_err());
    }
}

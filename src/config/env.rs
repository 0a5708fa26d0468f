//! `ROADSTEAD_…` variables as a layer: `ROADSTEAD_CACHE__TAG_TTL` is `cache.tag_ttl`.
//!
//! Two underscores separate table and key. The name of an upstream is written in upper case, with an underscore for
//! whatever is no letter or digit: `ROADSTEAD_UPSTREAM__DOCKER_IO__USERNAME`. A variable that is set to nothing
//! counts as not set, as compose files make them.

use std::collections::{BTreeMap, BTreeSet};

use super::ConfigError;
use super::error::Site;
use super::layer::{self, Layer, Section, UpstreamKeys};
use super::suggest::nearest;
use super::value::Raw;

pub(super) const PREFIX: &str = "ROADSTEAD_";
/// Where the file is. Not a setting: it is read before there are any.
pub(super) const CONFIG: &str = "ROADSTEAD_CONFIG";
const UPSTREAM_PREFIX: &str = "ROADSTEAD_UPSTREAM__";

/// `names` are the upstreams that other sources speak of; a variable cannot bring a new one.
pub(super) fn read(variables: &BTreeMap<String, String>, names: &BTreeSet<String>) -> Result<Layer, ConfigError> {
    let fixed: BTreeMap<String, _> = layer::fixed_keys().into_iter().map(|key| (variable(key.0, key.1), key)).collect();
    let mut layer = Layer::default();
    for (variable, text) in variables {
        let ours = variable.starts_with(PREFIX) && variable != CONFIG && !text.is_empty();
        if !ours || is_service_link(variable, text) {
            continue;
        }
        let site = Site::Variable(variable.clone());
        let unknown = || unknown(variable, &fixed, names);
        let raw = Raw::Text(text);
        if let Some((table, key)) = fixed.get(variable) {
            if let Some(section) = layer.section(table) {
                layer::set(section, key, &raw, &site, "", unknown)?;
            }
        } else if let Some((host, key)) = variable.strip_prefix(UPSTREAM_PREFIX).and_then(|rest| rest.rsplit_once("__"))
        {
            let name = upstream(host, names).map_err(|message| ConfigError::new(&site, "", message))?;
            layer::set(layer.upstream(name, &site), &key.to_ascii_lowercase(), &raw, &site, "", unknown)?;
        } else {
            return Err(ConfigError::new(&site, "", unknown()));
        }
    }
    Ok(layer)
}

fn variable(table: &str, key: &str) -> String {
    let separator = if table.is_empty() { "" } else { "__" };
    let table = table.replace('.', "__").to_ascii_uppercase();
    format!("{PREFIX}{table}{separator}{}", key.to_ascii_uppercase())
}

fn normalised(name: &str) -> String {
    name.chars().map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_uppercase() } else { '_' }).collect()
}

/// The upstream that a variable means.
fn upstream<'a>(host: &str, names: &'a BTreeSet<String>) -> Result<&'a str, String> {
    let mut meant = names.iter().filter(|name| normalised(name) == host);
    match (meant.next(), meant.next()) {
        (Some(name), None) => Ok(name),
        (Some(one), Some(other)) => Err(format!("may mean \"{one}\" or \"{other}\"; set it in the file")),
        (None, _) => {
            let known: Vec<_> = names.iter().map(|name| normalised(name)).collect();
            Err(format!("no upstream is called {host}; there are {}", known.join(", ")))
        }
    }
}

fn unknown(variable: &str, fixed: &BTreeMap<String, (&str, &str)>, names: &BTreeSet<String>) -> String {
    let keys = UpstreamKeys::default().keys();
    let of_upstream = |name: &String| {
        let name = normalised(name);
        keys.iter().map(move |key| format!("{UPSTREAM_PREFIX}{name}__{}", key.to_ascii_uppercase()))
    };
    let of_upstreams: Vec<String> = names.iter().flat_map(of_upstream).collect();
    match nearest(variable, fixed.keys().chain(&of_upstreams).map(String::as_str)) {
        Some(name) => format!("unknown variable; did you mean {name}?"),
        None => "unknown variable; a key of a table is written as in ROADSTEAD_CACHE__TAG_TTL".to_owned(),
    }
}

/// Kubernetes gives every container variables for each service, so a service called `roadstead` gives ours
/// `ROADSTEAD_SERVICE_HOST`, `ROADSTEAD_PORT` and more of these two shapes.
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
    fn a_variable_names_a_key_of_a_table_or_of_an_upstream() {
        let layer = read_one("ROADSTEAD_CACHE__TAG_TTL", "5m").unwrap();
        assert_eq!(layer.cache.tag_ttl.unwrap().value.as_secs(), 300);
        let layer = read_one("ROADSTEAD_DEFAULT_UPSTREAM", "none").unwrap();
        assert_eq!(layer.root.default_upstream.unwrap().value, "none");
        let layer = read_one("ROADSTEAD_SERVER__NAMES", "a.b, c.d:5000").unwrap();
        assert_eq!(layer.server.names.unwrap().value.0, ["a.b", "c.d:5000"]);
        for (variable, name) in [("DOCKER_IO", "docker.io"), ("LOCALHOST_5001", "localhost:5001")] {
            let layer = read_one(&format!("ROADSTEAD_UPSTREAM__{variable}__USERNAME"), "ann").unwrap();
            assert_eq!(layer.upstreams[name].value.username.as_ref().unwrap().value, "ann");
        }
    }

    #[test]
    fn what_is_wrong_is_said_in_one_line_that_names_the_variable() {
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
                "ROADSTEAD_FROBNICATION: unknown variable; a key of a table is written as in ROADSTEAD_CACHE__TAG_TTL",
            ),
            (
                "ROADSTEAD_UPSTREAM__EXAMPLE_COM__URL",
                "https://example.com",
                "ROADSTEAD_UPSTREAM__EXAMPLE_COM__URL: no upstream is called EXAMPLE_COM; there are DOCKER_IO, \
                 LOCALHOST_5001, MY_REG_EXAMPLE_COM, MY_REG_EXAMPLE_COM",
            ),
            (
                "ROADSTEAD_UPSTREAM__MY_REG_EXAMPLE_COM__USERNAME",
                "ann",
                "ROADSTEAD_UPSTREAM__MY_REG_EXAMPLE_COM__USERNAME: may mean \"my-reg.example.com\" or \
                 \"my.reg.example.com\"; set it in the file",
            ),
        ];
        for (variable, text, expected) in cases {
            assert_eq!(read_one(variable, text).err().as_deref(), Some(expected));
        }
    }

    #[test]
    fn what_kubernetes_and_compose_set_by_themselves_is_no_mistake() {
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

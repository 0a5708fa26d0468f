//! The YAML file of `registry:2`, which its image is started with: `serve /etc/docker/registry/config.yml`.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::sync::Arc;

use serde::de::{Deserialize, DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::Value;

use super::ConfigError;
use super::error::Site;
use super::registry_env::{Given, PREFIX};

/// The first line of every such file: it configures nothing.
const VERSION: &str = "REGISTRY_VERSION";

/// What stands where in a value, with each scalar as it was written: a password `0123` is no number.
struct AsWritten<'a>(&'a Value);

/// Its settings under the names of their variables.
pub(super) fn read(path: &Path) -> Result<BTreeMap<String, Given>, ConfigError> {
    let origin: Arc<str> = path.display().to_string().into();
    let wrong = |message: String| ConfigError::new(&Site::WholeFile(origin.clone()), "", message);
    let text = std::fs::read_to_string(path).map_err(|error| wrong(format!("cannot be read: {error}")))?;
    let document = parse(&text).map_err(wrong)?;
    if !matches!(document, Value::Object(_)) {
        return Err(wrong("is not a configuration of registry:2".to_owned()));
    }
    let mut settings = BTreeMap::new();
    flatten(&document, &mut Vec::new(), &origin, &mut settings);
    settings.remove(VERSION);
    Ok(settings)
}

/// What is wrong is said by its place alone: the lines around it may hold a password.
fn parse(text: &str) -> Result<Value, String> {
    let options = || serde_saphyr::options! { with_snippet: false };
    let shape: Value = serde_saphyr::from_str_with_options(text, options()).map_err(in_short)?;
    let written = |document: serde_saphyr::Deserializer<'_, '_>| AsWritten(&shape).deserialize(document);
    serde_saphyr::with_deserializer_from_str_with_options(text, options(), written).map_err(in_short)
}

fn in_short(error: serde_saphyr::Error) -> String {
    let what = match &error {
        serde_saphyr::Error::DuplicateMappingKey { .. } => "has a key twice",
        _ => "is no YAML",
    };
    match error.location() {
        Some(place) => format!("{what}, in line {} column {}", place.line(), place.column()),
        None => what.to_owned(),
    }
}

fn flatten(value: &Value, path: &mut Vec<String>, origin: &Arc<str>, settings: &mut BTreeMap<String, Given>) {
    let text = match value {
        Value::Null => return,
        Value::Object(entries) => {
            return entries.iter().for_each(|(key, value)| within(key, value, path, origin, settings));
        }
        Value::Array(items) => {
            let numbered = items.iter().enumerate();
            return numbered.for_each(|(at, value)| within(&at.to_string(), value, path, origin, settings));
        }
        Value::String(text) if text.is_empty() => return,
        Value::String(text) => text.clone(),
        // Neither is left when scalars are as they were written.
        Value::Bool(_) | Value::Number(_) => value.to_string(),
    };
    let site = Site::Key { origin: origin.clone(), key: path.join(".") };
    let variable = format!("{PREFIX}{}", path.join("_").to_ascii_uppercase());
    settings.insert(variable, Given { text, site });
}

fn within(key: &str, value: &Value, path: &mut Vec<String>, origin: &Arc<str>, settings: &mut BTreeMap<String, Given>) {
    path.push(key.to_owned());
    flatten(value, path, origin, settings);
    path.pop();
}

// === impl AsWritten ===

impl<'de> DeserializeSeed<'de> for AsWritten<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, value: D) -> Result<Value, D::Error> {
        match self.0 {
            Value::Object(_) => value.deserialize_map(self),
            Value::Array(_) => value.deserialize_seq(self),
            Value::Null => IgnoredAny::deserialize(value).map(|_| Value::Null),
            Value::Bool(_) | Value::Number(_) | Value::String(_) => String::deserialize(value).map(Value::String),
        }
    }
}

impl<'de> Visitor<'de> for AsWritten<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("what was read before")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut map = serde_json::Map::new();
        while let Some(key) = entries.next_key::<String>()? {
            let value = entries.next_value_seed(AsWritten(self.0.get(&key).unwrap_or(&Value::Null)))?;
            map.insert(key, value);
        }
        Ok(Value::Object(map))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element_seed(AsWritten(self.0.get(list.len()).unwrap_or(&Value::Null)))? {
            list.push(item);
        }
        Ok(Value::Array(list))
    }
}

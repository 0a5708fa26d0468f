//! Reads the YAML of `registry:2`: the configuration file that its image is started with (`serve
//! /etc/docker/registry/config.yml`), and the values of its variables.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::sync::Arc;

use serde::de::{Deserialize, DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::Value;

use super::ConfigError;
use super::error::SourceLocation;
use super::registry_env::{PREFIX, RegistrySetting};

/// The `version` key of every such file has no effect.
const VERSION: &str = "REGISTRY_VERSION";

/// Reads a document of the same shape again, with each scalar as text: YAML would read the password `0123` as a number.
#[derive(Clone, Copy)]
struct ScalarsAsText<'a> {
    shape: &'a Value,
    /// Scalars with a tag such as `!!bool` are no text, so they are read with their type.
    typed: TypedScalars,
}

/// Which scalars are read with their type.
#[derive(Clone, Copy, PartialEq, Eq)]
enum TypedScalars {
    None,
    Bools,
    BoolsAndNumbers,
}

/// Reads the file and returns its settings by the names of their variables.
///
/// # Errors
/// If the file cannot be read or is not a YAML mapping. An error contains no text of the file, which may be a password.
pub(super) fn read(path: &Path) -> Result<BTreeMap<String, RegistrySetting>, ConfigError> {
    let origin: Arc<str> = path.display().to_string().into();
    let wrong = |message: String| ConfigError::new(&SourceLocation::WholeFile(origin.clone()), "", message);
    let text = super::load::file_text(path).map_err(|error| wrong(format!("cannot be read: {error}")))?;
    let document = parse(&text).map_err(wrong)?;
    if !matches!(document, Value::Object(_)) {
        return Err(wrong("is not a configuration file of registry:2".to_owned()));
    }
    let mut settings = BTreeMap::new();
    let place = |path: &[String]| SourceLocation::Key { origin: origin.clone(), key: path.join(".") };
    flatten(&document, &mut Vec::new(), &place, &mut settings);
    settings.remove(VERSION);
    Ok(settings)
}

/// Returns the settings in one variable, by the names of the variables that would set each of them. `name` is without
/// the prefix. A list has one setting for each entry.
///
/// # Errors
/// If a quoted value is not valid YAML. The text of the value, which may be a password, is not in the error.
pub(super) fn of_variable(name: &str, text: &str) -> Result<BTreeMap<String, RegistrySetting>, ConfigError> {
    let variable = SourceLocation::Variable(format!("{PREFIX}{name}"));
    let place = |_: &[String]| variable.clone();
    let written = text.trim();
    let value = match parse(text) {
        Err(cause) if written.starts_with(['"', '\'']) => return Err(ConfigError::new(&variable, "", cause)),
        // A password such as `*secret` or `a: b` is meant as it is written. `registry:2` would not start.
        Err(_) => Value::String(text.to_owned()),
        Ok(Value::Object(_)) if !written.starts_with('{') && !written.contains('\n') => Value::String(text.to_owned()),
        Ok(Value::Null) if !["", "~", "null"].contains(&written.to_ascii_lowercase().as_str()) => {
            Value::String(text.to_owned())
        }
        Ok(value) => value,
    };
    let mut settings = BTreeMap::new();
    flatten(&value, &mut vec![name.to_owned()], &place, &mut settings);
    Ok(settings)
}

/// Errors contain a position but no snippet, as the lines around it may contain a password.
fn parse(text: &str) -> Result<Value, String> {
    let options = || serde_saphyr::options! { with_snippet: false };
    let shape: Value = serde_saphyr::from_str_with_options(text, options()).map_err(without_snippet)?;
    let read = |typed: TypedScalars| {
        let seed = ScalarsAsText { shape: &shape, typed };
        serde_saphyr::with_deserializer_from_str_with_options(text, options(), |document| seed.deserialize(document))
    };
    let read = read(TypedScalars::None)
        .or_else(|_| read(TypedScalars::Bools))
        .or_else(|_| read(TypedScalars::BoolsAndNumbers));
    read.map_err(without_snippet)
}

fn without_snippet(error: serde_saphyr::Error) -> String {
    let what = match &error {
        serde_saphyr::Error::DuplicateMappingKey { .. } => "contains a key twice",
        _ => "is not valid YAML",
    };
    match error.location() {
        Some(place) => format!("{what}, at line {} column {}", place.line(), place.column()),
        None => what.to_owned(),
    }
}

fn flatten(
    value: &Value,
    path: &mut Vec<String>,
    place: &dyn Fn(&[String]) -> SourceLocation,
    settings: &mut BTreeMap<String, RegistrySetting>,
) {
    let text = match value {
        Value::Null => return,
        Value::Object(entries) => {
            return entries.iter().for_each(|(key, value)| within(key, value, path, place, settings));
        }
        Value::Array(items) => {
            let numbered = items.iter().enumerate();
            return numbered.for_each(|(at, value)| within(&at.to_string(), value, path, place, settings));
        }
        Value::String(text) if text.is_empty() => return,
        Value::String(text) => text.clone(),
        // Scalars with a tag.
        Value::Bool(_) | Value::Number(_) => value.to_string(),
    };
    let location = place(path);
    let variable = format!("{PREFIX}{}", path.join("_").to_ascii_uppercase());
    settings.insert(variable, RegistrySetting { text, location });
}

fn within(
    key: &str,
    value: &Value,
    path: &mut Vec<String>,
    place: &dyn Fn(&[String]) -> SourceLocation,
    settings: &mut BTreeMap<String, RegistrySetting>,
) {
    path.push(key.to_owned());
    flatten(value, path, place, settings);
    path.pop();
}

// === impl ScalarsAsText ===

impl<'a> ScalarsAsText<'a> {
    fn within(self, shape: Option<&'a Value>) -> Self {
        Self { shape: shape.unwrap_or(&Value::Null), ..self }
    }
}

impl<'de> DeserializeSeed<'de> for ScalarsAsText<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, value: D) -> Result<Value, D::Error> {
        match self.shape {
            Value::Bool(_) if self.typed != TypedScalars::None => Value::deserialize(value),
            Value::Number(_) if self.typed == TypedScalars::BoolsAndNumbers => Value::deserialize(value),
            Value::Object(_) => value.deserialize_map(self),
            Value::Array(_) => value.deserialize_seq(self),
            Value::Null => IgnoredAny::deserialize(value).map(|_| Value::Null),
            Value::Bool(_) | Value::Number(_) | Value::String(_) => String::deserialize(value).map(Value::String),
        }
    }
}

impl<'de> Visitor<'de> for ScalarsAsText<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value of the same shape as in the first pass")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut map = serde_json::Map::new();
        while let Some(key) = entries.next_key::<String>()? {
            let value = entries.next_value_seed(self.within(self.shape.get(&key)))?;
            map.insert(key, value);
        }
        Ok(Value::Object(map))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element_seed(self.within(self.shape.get(list.len())))? {
            list.push(item);
        }
        Ok(Value::Array(list))
    }
}

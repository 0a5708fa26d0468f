//! The YAML file of `registry:2`, which its image is started with: `serve /etc/docker/registry/config.yml`.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use serde_json::Value;

use super::ConfigError;
use super::error::Site;
use super::registry_env::{Given, PREFIX};

/// The first line of every such file: it configures nothing.
const VERSION: &str = "REGISTRY_VERSION";

/// Its settings under the names of their variables.
pub(super) fn read(path: &Path) -> Result<BTreeMap<String, Given>, ConfigError> {
    let origin: Arc<str> = path.display().to_string().into();
    let wrong = |message: String| ConfigError::new(&Site::WholeFile(origin.clone()), "", message);
    let text = std::fs::read_to_string(path).map_err(|error| wrong(format!("cannot be read: {error}")))?;
    let document = serde_saphyr::from_str(&text).map_err(|error| wrong(error.to_string()))?;
    if !matches!(document, Value::Object(_)) {
        return Err(wrong("is not a configuration of registry:2".to_owned()));
    }
    let mut settings = BTreeMap::new();
    flatten(&document, &mut Vec::new(), &origin, &mut settings);
    settings.remove(VERSION);
    Ok(settings)
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
        Value::Bool(yes) => yes.to_string(),
        Value::Number(number) => number.to_string(),
        Value::String(text) if text.is_empty() => return,
        Value::String(text) => text.clone(),
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

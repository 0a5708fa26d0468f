//! Reads the TOML file into a layer.
//!
//! The document is traversed with its spans instead of being deserialised. An error can then name the line and the
//! dotted key, and each value keeps its line for the rules that are checked after merging the layers.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::ConfigError;
use super::error::SourceLocation;
use super::layer::{
    self, AUTH, AccessRuleKeys, CREDENTIALS, GROUPS, ISSUER, IssuerTable, Layer, Located, REQUIRE, RULE,
    RepositoryCredentialKeys, SECTIONS, Section, UPSTREAM,
};
use super::suggest::nearest;
use super::upstream_url::check_name;
use super::value::{OneOrMore, RawValue, Setting};

struct TomlFile<'a> {
    text: &'a str,
    origin: Arc<str>,
}

type Entry<'a> = (&'a Spanned<Cow<'a, str>>, &'a Spanned<DeValue<'a>>);

/// Reads a configuration file. `origin` is its name in errors.
///
/// # Errors
/// For invalid TOML, an unknown key, or a value that its key does not accept.
pub(super) fn read(text: &str, origin: &str) -> Result<Layer, ConfigError> {
    let file = TomlFile { text, origin: origin.into() };
    let document = DeTable::parse(text).map_err(|error| {
        let location = file.location(error.span().map_or(text.len(), |span| span.start));
        ConfigError::new(&location, "", error.message())
    })?;
    let mut layer = Layer::default();
    for (key, value) in in_order(document.get_ref()) {
        let location = file.location(key.span().start);
        match key.get_ref().as_ref() {
            UPSTREAM => file.upstreams(table(value, UPSTREAM, &location)?, &mut layer)?,
            AUTH => {
                layer.auth_table = Some(location.clone());
                file.auth(table(value, AUTH, &location)?, &mut layer)?;
            }
            name if is_section(name) && !name.contains('.') => {
                file.fixed_section(table(value, name, &location)?, &mut layer, name)?
            }
            name => {
                let raw = RawValue::Toml(value.get_ref());
                let known = [&layer.root.keys()[..], &SECTIONS, &[UPSTREAM]].concat();
                layer::set(&mut layer.root, name, &raw, &location, name, || unknown("", name, &known))?;
            }
        }
    }
    Ok(layer)
}

// === impl TomlFile ===

impl TomlFile<'_> {
    /// The line of a byte offset.
    fn location(&self, byte: usize) -> SourceLocation {
        let before = self.text.as_bytes().iter().take(byte);
        SourceLocation::File { origin: self.origin.clone(), line: 1 + before.filter(|b| **b == b'\n').count() }
    }

    /// Reads a table with a fixed name, and the tables inside it.
    fn fixed_section(&self, entries: &DeTable<'_>, layer: &mut Layer, path: &str) -> Result<(), ConfigError> {
        for (key, value) in in_order(entries) {
            let dotted = format!("{path}.{}", key.get_ref());
            if is_section(&dotted) {
                let within = table(value, &dotted, &self.location(key.span().start))?;
                self.fixed_section(within, layer, &dotted)?;
            } else if let Some(section) = layer.section(path) {
                self.entry((key, value), section, path, &[])?;
            }
        }
        Ok(())
    }

    fn section(&self, entries: &DeTable<'_>, section: &mut dyn Section, path: &str) -> Result<(), ConfigError> {
        self.section_with(entries, section, path, &[])
    }

    /// Reads the keys of a table, except for the inner `tables`, which the caller reads.
    fn section_with(
        &self,
        entries: &DeTable<'_>,
        section: &mut dyn Section,
        path: &str,
        tables: &[&str],
    ) -> Result<(), ConfigError> {
        let entries = in_order(entries).into_iter().filter(|(key, _)| !tables.contains(&key.get_ref().as_ref()));
        entries.into_iter().try_for_each(|entry| self.entry(entry, section, path, tables))
    }

    /// Reads one key. `tables` are the inner tables of its table, for the error of an unknown key.
    fn entry(
        &self,
        (key, value): Entry<'_>,
        section: &mut dyn Section,
        path: &str,
        tables: &[&str],
    ) -> Result<(), ConfigError> {
        let (name, known) = (key.get_ref(), [&section.keys()[..], tables].concat());
        let location = self.location(key.span().start);
        let dotted = format!("{path}.{name}");
        layer::set(section, name, &RawValue::Toml(value.get_ref()), &location, &dotted, || unknown(path, name, &known))
    }

    fn upstreams(&self, entries: &DeTable<'_>, layer: &mut Layer) -> Result<(), ConfigError> {
        for (key, value) in in_order(entries) {
            let (name, location) = (key.get_ref(), self.location(key.span().start));
            if let Some(host) = unquoted_host(name, value.get_ref()) {
                let message = format!("the name of an upstream must be quoted; write [upstream.\"{host}\"]");
                return Err(ConfigError::new(&location, format!("{UPSTREAM}.{host}"), message));
            }
            let path = format!("{UPSTREAM}.\"{name}\"");
            check_name(name).map_err(|wrong| ConfigError::new(&location, &path, format!("\"{name}\" {wrong}")))?;
            let entries = table(value, &path, &location)?;
            self.section_with(entries, layer.upstream(name, &location), &path, &[CREDENTIALS])?;
            if let Some((key, value)) = entries.get_key_value(CREDENTIALS) {
                let path = format!("{path}.{CREDENTIALS}");
                let rules = self.credentials(value, &path, &self.location(key.span().start))?;
                layer.repository_credentials.insert(name.to_string(), rules);
            }
        }
        Ok(())
    }

    fn credentials(
        &self,
        value: &Spanned<DeValue<'_>>,
        path: &str,
        location: &SourceLocation,
    ) -> Result<Vec<Located<RepositoryCredentialKeys>>, ConfigError> {
        self.rules(value, path, location)
    }

    /// Reads a list of tables with the keys of one rule each.
    fn rules<K: Section + Default>(
        &self,
        value: &Spanned<DeValue<'_>>,
        path: &str,
        location: &SourceLocation,
    ) -> Result<Vec<Located<K>>, ConfigError> {
        let wrong = |location: &SourceLocation| {
            let message = format!("must be a list of tables; write [[{path}]] and the keys of one rule below it");
            ConfigError::new(location, path, message)
        };
        let rules = value.get_ref().as_array().ok_or_else(|| wrong(location))?;
        let read = |rule: &Spanned<DeValue<'_>>| {
            let location = self.location(rule.span().start);
            let entries = rule.get_ref().as_table().ok_or_else(|| wrong(&location))?;
            let mut keys = K::default();
            self.section(entries, &mut keys, path)?;
            Ok(Located { value: keys, location })
        };
        rules.iter().map(read).collect()
    }

    /// Reads `[auth]`, with its groups, issuers and rules.
    fn auth(&self, entries: &DeTable<'_>, layer: &mut Layer) -> Result<(), ConfigError> {
        self.section_with(entries, &mut layer.auth, AUTH, &[GROUPS, ISSUER, RULE])?;
        if let Some((key, value)) = entries.get_key_value(GROUPS) {
            layer.auth_groups = self.lists(value, &format!("{AUTH}.{GROUPS}"), &self.location(key.span().start))?;
        }
        if let Some((key, value)) = entries.get_key_value(ISSUER) {
            let path = format!("{AUTH}.{ISSUER}");
            for (name, value) in in_order(table(value, &path, &self.location(key.span().start))?) {
                let location = self.location(name.span().start);
                let path = format!("{path}.{}", name.get_ref());
                let value = self.issuer(table(value, &path, &location)?, &path)?;
                layer.auth_issuers.insert(name.get_ref().to_string(), Located { value, location });
            }
        }
        if let Some((key, value)) = entries.get_key_value(RULE) {
            let path = format!("{AUTH}.{RULE}");
            layer.auth_rules = self.rules::<AccessRuleKeys>(value, &path, &self.location(key.span().start))?;
        }
        Ok(())
    }

    fn issuer(&self, entries: &DeTable<'_>, path: &str) -> Result<IssuerTable, ConfigError> {
        let mut issuer = IssuerTable::default();
        self.section_with(entries, &mut issuer.keys, path, &[REQUIRE])?;
        if let Some((key, value)) = entries.get_key_value(REQUIRE) {
            issuer.require = self.lists(value, &format!("{path}.{REQUIRE}"), &self.location(key.span().start))?;
        }
        Ok(issuer)
    }

    /// Reads a table whose keys are the operator's, each with one value or a list.
    fn lists<T: Setting>(
        &self,
        value: &Spanned<DeValue<'_>>,
        path: &str,
        location: &SourceLocation,
    ) -> Result<BTreeMap<String, Located<OneOrMore<T>>>, ConfigError> {
        let read = |(name, value): Entry<'_>| {
            let location = self.location(name.span().start);
            let values = RawValue::Toml(value.get_ref()).read();
            let values =
                values.map_err(|wrong| ConfigError::new(&location, format!("{path}.{}", name.get_ref()), wrong));
            Ok((name.get_ref().to_string(), Located { value: values?, location }))
        };
        in_order(table(value, path, location)?).into_iter().map(read).collect()
    }
}

fn is_section(path: &str) -> bool {
    SECTIONS.contains(&path)
}

/// Entries in the order of the file, so that the first mistake is the one reported.
fn in_order<'a>(table: &'a DeTable<'a>) -> Vec<Entry<'a>> {
    let mut entries: Vec<_> = table.iter().collect();
    entries.sort_by_key(|(key, _)| key.span().start);
    entries
}

fn table<'a>(
    value: &'a Spanned<DeValue<'a>>,
    path: &str,
    location: &SourceLocation,
) -> Result<&'a DeTable<'a>, ConfigError> {
    let message = || format!("must be a table; write [{path}] and its keys below it");
    value.get_ref().as_table().ok_or_else(|| ConfigError::new(location, path, message()))
}

/// The intended host if a name is unquoted: `[upstream.docker.io]` is a table `io` inside of `docker`.
fn unquoted_host(name: &str, value: &DeValue<'_>) -> Option<String> {
    if name.contains(['.', ':']) {
        return None;
    }
    let (inner, value) = value.as_table()?.iter().find(|(_, value)| value.get_ref().is_table())?;
    let rest = unquoted_host(inner.get_ref(), value.get_ref()).unwrap_or_else(|| inner.get_ref().to_string());
    Some(format!("{name}.{rest}"))
}

/// The message for a key that its table does not have.
fn unknown(table: &str, key: &str, known: &[&str]) -> String {
    if let Some(name) = nearest(key, known.iter().copied()) {
        return format!("unknown key; did you mean \"{name}\"?");
    }
    let elsewhere = layer::fixed_keys().into_iter().find(|(section, name)| *name == key && *section != table);
    match elsewhere {
        Some(("", name)) => format!("unknown key; move \"{name}\" above the first table"),
        Some((section, name)) => format!("unknown key; did you mean \"{section}.{name}\"?"),
        None => format!("unknown key; the keys here are {}", known.join(", ")),
    }
}

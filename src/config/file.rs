//! The TOML file as a layer.
//!
//! The document is walked with its spans rather than deserialised: an error then names the line and the dotted key,
//! and a value keeps its line for the rules that are checked after all layers are laid over each other.

use std::borrow::Cow;
use std::sync::Arc;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::ConfigError;
use super::error::Site;
use super::layer::{self, CREDENTIALS, CredentialKeys, Layer, SECTIONS, Section, Sited, UPSTREAM};
use super::suggest::nearest;
use super::upstream_url::check_name;
use super::value::Raw;

struct File<'a> {
    text: &'a str,
    origin: Arc<str>,
}

type Entry<'a> = (&'a Spanned<Cow<'a, str>>, &'a Spanned<DeValue<'a>>);

/// `origin` is what errors call the file.
pub(super) fn read(text: &str, origin: &str) -> Result<Layer, ConfigError> {
    let file = File { text, origin: origin.into() };
    let document = DeTable::parse(text).map_err(|error| {
        let site = file.site(error.span().map_or(text.len(), |span| span.start));
        ConfigError::new(&site, "", error.message())
    })?;
    let mut layer = Layer::default();
    for (key, value) in in_order(document.get_ref()) {
        let site = file.site(key.span().start);
        match key.get_ref().as_ref() {
            UPSTREAM => file.upstreams(table(value, UPSTREAM, &site)?, &mut layer)?,
            name if is_section(name) && !name.contains('.') => {
                file.fixed_section(table(value, name, &site)?, &mut layer, name)?
            }
            name => {
                let raw = Raw::Toml(value.get_ref());
                let known = [layer.root.keys(), &SECTIONS, &[UPSTREAM]].concat();
                layer::set(&mut layer.root, name, &raw, &site, name, || unknown("", name, &known))?;
            }
        }
    }
    Ok(layer)
}

// === impl File ===

impl File<'_> {
    /// The line of a byte.
    fn site(&self, byte: usize) -> Site {
        let before = self.text.as_bytes().iter().take(byte);
        Site::File { origin: self.origin.clone(), line: 1 + before.filter(|b| **b == b'\n').count() }
    }

    /// A table with a fixed name, and those within it.
    fn fixed_section(&self, entries: &DeTable<'_>, layer: &mut Layer, path: &str) -> Result<(), ConfigError> {
        for (key, value) in in_order(entries) {
            let dotted = format!("{path}.{}", key.get_ref());
            if is_section(&dotted) {
                let within = table(value, &dotted, &self.site(key.span().start))?;
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

    /// `tables` are read elsewhere.
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

    /// `tables` may stand beside it.
    fn entry(
        &self,
        (key, value): Entry<'_>,
        section: &mut dyn Section,
        path: &str,
        tables: &[&str],
    ) -> Result<(), ConfigError> {
        let (name, known) = (key.get_ref(), [section.keys(), tables].concat());
        let site = self.site(key.span().start);
        let dotted = format!("{path}.{name}");
        layer::set(section, name, &Raw::Toml(value.get_ref()), &site, &dotted, || unknown(path, name, &known))
    }

    fn upstreams(&self, entries: &DeTable<'_>, layer: &mut Layer) -> Result<(), ConfigError> {
        for (key, value) in in_order(entries) {
            let (name, site) = (key.get_ref(), self.site(key.span().start));
            if let Some(host) = unquoted_host(name, value.get_ref()) {
                let message = format!("the name of an upstream is quoted; write [upstream.\"{host}\"]");
                return Err(ConfigError::new(&site, format!("{UPSTREAM}.{host}"), message));
            }
            let path = format!("{UPSTREAM}.\"{name}\"");
            check_name(name).map_err(|wrong| ConfigError::new(&site, &path, format!("\"{name}\" {wrong}")))?;
            let entries = table(value, &path, &site)?;
            self.section_with(entries, layer.upstream(name, &site), &path, &[CREDENTIALS])?;
            if let Some((key, value)) = entries.get_key_value(CREDENTIALS) {
                let path = format!("{path}.{CREDENTIALS}");
                let rules = self.credentials(value, &path, &self.site(key.span().start))?;
                layer.credentials.insert(name.to_string(), rules);
            }
        }
        Ok(())
    }

    fn credentials(
        &self,
        value: &Spanned<DeValue<'_>>,
        path: &str,
        site: &Site,
    ) -> Result<Vec<Sited<CredentialKeys>>, ConfigError> {
        let wrong = |site: &Site| {
            let message = format!("is a list of tables; write [[{path}]], and the keys of one below");
            ConfigError::new(site, path, message)
        };
        let rules = value.get_ref().as_array().ok_or_else(|| wrong(site))?;
        let read = |rule: &Spanned<DeValue<'_>>| {
            let site = self.site(rule.span().start);
            let entries = rule.get_ref().as_table().ok_or_else(|| wrong(&site))?;
            let mut keys = CredentialKeys::default();
            self.section(entries, &mut keys, path)?;
            Ok(Sited { value: keys, site })
        };
        rules.iter().map(read).collect()
    }
}

fn is_section(path: &str) -> bool {
    SECTIONS.contains(&path)
}

/// Entries as the file has them, so that the first mistake is the one reported.
fn in_order<'a>(table: &'a DeTable<'a>) -> Vec<Entry<'a>> {
    let mut entries: Vec<_> = table.iter().collect();
    entries.sort_by_key(|(key, _)| key.span().start);
    entries
}

fn table<'a>(value: &'a Spanned<DeValue<'a>>, path: &str, site: &Site) -> Result<&'a DeTable<'a>, ConfigError> {
    let message = || format!("is a table; write [{path}], and its keys below");
    value.get_ref().as_table().ok_or_else(|| ConfigError::new(site, path, message()))
}

/// `[upstream.docker.io]` means a table `io` within `docker`: the host that was meant.
fn unquoted_host(name: &str, value: &DeValue<'_>) -> Option<String> {
    if name.contains(['.', ':']) {
        return None;
    }
    let (inner, value) = value.as_table()?.iter().find(|(_, value)| value.get_ref().is_table())?;
    let rest = unquoted_host(inner.get_ref(), value.get_ref()).unwrap_or_else(|| inner.get_ref().to_string());
    Some(format!("{name}.{rest}"))
}

/// What is said of a key that its table does not have.
fn unknown(table: &str, key: &str, known: &[&str]) -> String {
    if let Some(name) = nearest(key, known.iter().copied()) {
        return format!("unknown key; did you mean \"{name}\"?");
    }
    let elsewhere = layer::fixed_keys().into_iter().find(|(section, name)| *name == key && *section != table);
    match elsewhere {
        Some(("", name)) => format!("unknown key; \"{name}\" stands above the first table"),
        Some((section, name)) => format!("unknown key; did you mean \"{section}.{name}\"?"),
        None => format!("unknown key; there are {}", known.join(", ")),
    }
}

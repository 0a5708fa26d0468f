//! The configuration of a Roadstead under test: no built-in upstreams, its own data folder, and the additions of the test.

use std::path::Path;

use toml::{Table, Value};

use super::upstream::Upstream;

/// The settings of a test, with which `server` and `process` start Roadstead.
#[derive(Clone, Default)]
pub struct Settings(Table);

impl Settings {
    pub fn new() -> Self {
        Self::default()
            .config("builtin_upstreams = false\ndefault_upstream = \"none\"")
            .config("[server]\nlisten = \"127.0.0.1:0\"")
            .config("[delete]\nenabled = true")
    }

    /// The scripted upstream under the name that clients use, such as `docker.io`.
    pub fn upstream(self, name: &str, upstream: &Upstream) -> Self {
        self.upstream_url(name, &upstream.url(""))
    }

    pub fn upstream_url(self, name: &str, url: &str) -> Self {
        self.config(&format!("[upstream.{name:?}]\nurl = {url:?}"))
    }

    pub fn default_upstream(self, name: &str) -> Self {
        self.config(&format!("default_upstream = {name:?}"))
    }

    pub fn listen(self, address: &str) -> Self {
        self.config(&format!("[server]\nlisten = {address:?}"))
    }

    pub fn data_dir(self, path: &Path) -> Self {
        self.config(&format!("[storage]\npath = {path:?}"))
    }

    /// Adds TOML: tables are merged, single keys replaced.
    pub fn config(mut self, toml: &str) -> Self {
        let more = toml.parse().unwrap_or_else(|error| panic!("{error}: {toml}"));
        merge(&mut self.0, more);
        self
    }

    pub fn to_toml(&self) -> String {
        self.0.to_string()
    }
}

fn merge(table: &mut Table, more: Table) {
    for (key, value) in more {
        match (table.get_mut(&key), value) {
            (Some(Value::Table(table)), Value::Table(more)) => merge(table, more),
            (_, value) => {
                table.insert(key, value);
            }
        }
    }
}

//! One upstream from its keys: its defaults, its credentials, and the rules between them.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use super::build::{hosts, positive, value};
use super::layer::{Sited, UpstreamKeys};
use super::{ConfigError, OnDenied, Secret, UpstreamConfig};

/// Lays what is configured over an upstream that has its defaults.
pub(super) fn merge(upstream: &mut UpstreamConfig, keys: UpstreamKeys, path: &str) -> Result<(), ConfigError> {
    if let Some(urls) = keys.url {
        if urls.value.0.is_empty() {
            return Err(ConfigError::new(
                &urls.site,
                format!("{path}.url"),
                "is an empty list; write at least one URL",
            ));
        }
        upstream.urls = urls.value.0.into_iter().map(|url| url.0).collect();
    }
    (upstream.username, upstream.password) = credentials(keys.username, keys.password, keys.password_file, path)?;
    upstream.ca_file = keys.ca_file.map(|file| readable(file, &format!("{path}.ca_file"))).transpose()?;
    upstream.on_denied = value(keys.on_denied, OnDenied::default_for(upstream.username.is_some()));
    upstream.connect_timeout = positive(keys.connect_timeout, upstream.connect_timeout);
    upstream.header_timeout = positive(keys.header_timeout, upstream.header_timeout);
    upstream.idle_timeout = positive(keys.idle_timeout, upstream.idle_timeout);
    upstream.min_rate = keys.min_rate.map_or(upstream.min_rate, |rate| rate.value.0);
    upstream.max_fills = positive(keys.max_fills, upstream.max_fills);
    if let Some(realms) = keys.token_realms {
        upstream.token_realms = hosts(realms.value.0, &realms.site, &format!("{path}.token_realms"))?;
    }
    upstream.private_redirects = value(keys.private_redirects, upstream.private_redirects);
    Ok(())
}

/// Both or none.
fn credentials(
    username: Option<Sited<String>>,
    password: Option<Sited<Secret>>,
    file: Option<Sited<PathBuf>>,
    path: &str,
) -> Result<(Option<String>, Option<Secret>), ConfigError> {
    let key = |name: &str| format!("{path}.{name}");
    let password = match (password, file) {
        (Some(_), Some(file)) => {
            let message = "there is a password as well; write one of the two";
            return Err(ConfigError::new(&file.site, key("password_file"), message));
        }
        (None, Some(file)) => {
            let secret = read_secret(&file.value).map_err(|why| {
                ConfigError::new(&file.site, key("password_file"), format!("\"{}\" {why}", file.value.display()))
            })?;
            Some(Sited { value: secret, site: file.site })
        }
        (password, None) => password,
    };
    match (username, password) {
        (Some(username), Some(password)) => Ok((Some(username.value), Some(password.value))),
        (None, None) => Ok((None, None)),
        (Some(username), None) => {
            let message = "there is no password for it; write password or password_file too";
            Err(ConfigError::new(&username.site, key("username"), message))
        }
        (None, Some(password)) => {
            Err(ConfigError::new(&password.site, key("password"), "there is no username for it; write username too"))
        }
    }
}

/// The first line, as secrets are mounted with and without a line break at their end.
fn read_secret(path: &Path) -> Result<Secret, String> {
    const MOST: u64 = 64 << 10;
    let mut text = String::new();
    let read = File::open(path).and_then(|file| file.take(MOST).read_to_string(&mut text));
    read.map_err(|error| format!("cannot be read: {error}"))?;
    match text.lines().next() {
        Some(line) if !line.is_empty() => Ok(Secret::from(line.to_owned())),
        _ => Err("is empty".to_owned()),
    }
}

fn readable(file: Sited<PathBuf>, key: &str) -> Result<PathBuf, ConfigError> {
    match File::open(&file.value) {
        Ok(_) => Ok(file.value),
        Err(error) => {
            let message = format!("\"{}\" cannot be read: {error}", file.value.display());
            Err(ConfigError::new(&file.site, key, message))
        }
    }
}

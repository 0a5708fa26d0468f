//! One upstream from its keys: its defaults, its credentials, and the rules between them.

use std::path::PathBuf;

use super::build::{hosts, positive, value};
use super::build_credentials::{of_all, of_repositories};
use super::layer::{CREDENTIALS, CredentialKeys, Sited, UpstreamKeys};
use super::{ClientCertificate, ConfigError, UpstreamConfig};

/// Lays what is configured over an upstream that has its defaults.
pub(super) fn merge(
    upstream: &mut UpstreamConfig,
    mut keys: UpstreamKeys,
    credentials: Vec<Sited<CredentialKeys>>,
    path: &str,
) -> Result<(), ConfigError> {
    for rule in credentials {
        upstream.credentials.push(of_repositories(rule, &format!("{path}.{CREDENTIALS}"))?);
    }
    upstream.credentials.extend(of_all(&mut keys, path)?);
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
    upstream.ca_file = keys.ca_file.map(|file| readable(file, &format!("{path}.ca_file"))).transpose()?;
    upstream.client_certificate = client_certificate(keys.client_cert, keys.client_key, path)?;
    upstream.insecure_skip_verify = value(keys.insecure_skip_verify, upstream.insecure_skip_verify);
    upstream.on_denied = keys.on_denied.map(|on_denied| on_denied.value);
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
fn client_certificate(
    certificate: Option<Sited<PathBuf>>,
    key: Option<Sited<PathBuf>>,
    path: &str,
) -> Result<Option<ClientCertificate>, ConfigError> {
    let dotted = |name: &str| format!("{path}.{name}");
    match (certificate, key) {
        (Some(certificate), Some(key)) => Ok(Some(ClientCertificate {
            certificate: readable(certificate, &dotted("client_cert"))?,
            key: readable(key, &dotted("client_key"))?,
        })),
        (None, None) => Ok(None),
        (Some(certificate), None) => {
            let message = "there is no key for it; write client_key too";
            Err(ConfigError::new(&certificate.site, dotted("client_cert"), message))
        }
        (None, Some(key)) => {
            let message = "there is no certificate for it; write client_cert too";
            Err(ConfigError::new(&key.site, dotted("client_key"), message))
        }
    }
}

pub(super) fn readable(file: Sited<PathBuf>, key: &str) -> Result<PathBuf, ConfigError> {
    match crate::file::open(&file.value) {
        Ok(_) => Ok(file.value),
        Err(error) => {
            let message = format!("\"{}\" cannot be read: {error}", file.value.display());
            Err(ConfigError::new(&file.site, key, message))
        }
    }
}

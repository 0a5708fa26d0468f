//! Builds one upstream from its keys: defaults, credentials and the rules between keys.

use std::path::PathBuf;

use super::build_credentials::{repository_rule, upstream_rule};
use super::build_value::{hosts, positive, readable, value};
use super::layer::{CREDENTIALS, Located, RepositoryCredentialKeys, UpstreamKeys};
use super::{ClientCertificate, ConfigError, UpstreamConfig};

/// Applies the configured keys to an upstream that has defaults. `path` is the table's dotted name, for errors.
pub(super) fn merge(
    upstream: &mut UpstreamConfig,
    keys: UpstreamKeys,
    repository_credentials: Vec<Located<RepositoryCredentialKeys>>,
    path: &str,
) -> Result<(), ConfigError> {
    for rule in repository_credentials {
        upstream.credentials.push(repository_rule(rule, &format!("{path}.{CREDENTIALS}"))?);
    }
    upstream.credentials.extend(upstream_rule(keys.credentials, path)?);
    if let Some(urls) = keys.url {
        if urls.value.0.is_empty() {
            return Err(ConfigError::new(
                &urls.location,
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
    upstream.connections = positive(keys.connections, upstream.connections);
    if let Some(realms) = keys.token_realms {
        upstream.token_realms = hosts(realms.value.0, &realms.location, &format!("{path}.token_realms"))?;
    }
    upstream.private_redirects = value(keys.private_redirects, upstream.private_redirects);
    Ok(())
}

/// `client_cert` and `client_key` are set together.
fn client_certificate(
    certificate: Option<Located<PathBuf>>,
    key: Option<Located<PathBuf>>,
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
            let message = "is set without client_key; set client_key too";
            Err(ConfigError::new(&certificate.location, dotted("client_cert"), message))
        }
        (None, Some(key)) => {
            let message = "is set without client_cert; set client_cert too";
            Err(ConfigError::new(&key.location, dotted("client_key"), message))
        }
    }
}

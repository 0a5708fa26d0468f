//! `roadstead health`: asks a server whether it is ready, for health checks in images without a shell.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use clap::Args;
use reqwest::{Client, Response};
use rustls::ClientConfig;
use url::Url;

use super::options::ConfigOptions;
use super::output::print;
use super::{CliError, runtime};
use crate::config::{ClientAuth, Config, TlsConfig};
use crate::trust::{verify_with, without_verification};
use crate::upstream::causes;

/// What is asked if the URL names no path.
const READY_PATH: &str = "/readyz";
/// Bound for the complete check. Below the usual 5 s of health checks, so that the reason is printed.
const CHECK_TIMEOUT: Duration = Duration::from_secs(4);
/// Bytes of an answer that is shown.
const MAX_SHOWN_BYTES: usize = 4 << 10;

#[derive(Args, Debug)]
pub struct Health {
    /// The server. Without a path, /readyz is requested. Without a URL, the server of this configuration is asked at its own
    /// address, and its certificate is not verified.
    #[arg(value_name = "URL")]
    url: Option<Url>,

    #[command(flatten)]
    options: ConfigOptions,
}

/// What to request, and what counts as an answer.
struct Check {
    url: Url,
    /// The server itself is asked, at an address of this machine, which its certificate need not name.
    skips_verify: bool,
    /// The server requires client certificates, so its refusal of the connection is a sign of life.
    counts_refusal: bool,
}

// === impl Health ===

impl Health {
    pub(super) fn run(self) -> Result<(), CliError> {
        let check = match self.url {
            Some(url) => Check::of_url(url),
            None => Check::of_config(&self.options.load()?)?,
        };
        runtime::block_on(check.run())??;
        print("ready\n")
    }
}

// === impl Check ===

impl Check {
    fn of_url(mut url: Url) -> Self {
        if url.path() == "/" {
            url.set_path(READY_PATH);
        }
        Self { url, skips_verify: false, counts_refusal: false }
    }

    /// The address of this machine at which the server of `config` listens.
    fn of_config(config: &Config) -> Result<Self, CliError> {
        let (listen, tls) = (&config.server.listen, &config.server.tls);
        let host = match listen.host().parse() {
            Ok(IpAddr::V6(ip)) if !ip.is_unspecified() => format!("[{ip}]"),
            Ok(ip) if !ip.is_unspecified() => ip.to_string(),
            Err(_) if !listen.host().is_empty() => listen.host().to_owned(),
            Ok(IpAddr::V6(_)) => "[::1]".to_owned(),
            _ => Ipv4Addr::LOCALHOST.to_string(),
        };
        let scheme = if tls.is_some() { "https" } else { "http" };
        let text = format!("{scheme}://{host}:{}{READY_PATH}", listen.port());
        let url = Url::parse(&text).map_err(|error| CliError::Unhealthy { url: text, cause: error.to_string() })?;
        let requires = |tls: &TlsConfig| tls.client_ca.is_some() && tls.client_auth == ClientAuth::Required;
        let requires_certificate = tls.as_ref().is_some_and(requires);
        Ok(Self { url, skips_verify: true, counts_refusal: requires_certificate })
    }

    async fn run(self) -> Result<(), CliError> {
        let url = self.url.to_string();
        let unhealthy = |cause| CliError::Unhealthy { url, cause };
        match tokio::time::timeout(CHECK_TIMEOUT, self.ask()).await {
            Ok(answer) => answer.map_err(unhealthy),
            Err(_) => Err(unhealthy(format!("no answer within {} s", CHECK_TIMEOUT.as_secs()))),
        }
    }

    fn tls(&self) -> Result<ClientConfig, String> {
        let builder = if self.skips_verify { without_verification()? } else { verify_with(&[])? };
        Ok(builder.with_no_client_auth())
    }

    async fn ask(&self) -> Result<(), String> {
        match client(self.tls()?)?.get(self.url.clone()).send().await {
            Ok(response) if response.status().is_success() => Ok(()),
            Ok(response) => Err(format!("status {}: {}", response.status(), beginning(response).await)),
            Err(error) if self.counts_refusal && is_refusal(&error) => Ok(()),
            Err(error) => Err(with_causes(&error)),
        }
    }
}

/// A client that goes to the server directly, whatever proxies the environment names.
fn client(tls: ClientConfig) -> Result<Client, String> {
    let builder =
        Client::builder().tls_backend_preconfigured(tls).no_proxy().redirect(reqwest::redirect::Policy::none());
    builder.build().map_err(|error| with_causes(&error))
}

/// The first bytes of a body, on one line.
async fn beginning(mut response: Response) -> String {
    let mut body = Vec::new();
    while let (true, Ok(Some(chunk))) = (body.len() < MAX_SHOWN_BYTES, response.chunk().await) {
        body.extend_from_slice(&chunk);
    }
    body.truncate(MAX_SHOWN_BYTES);
    String::from_utf8_lossy(&body).split_whitespace().collect::<Vec<_>>().join(" ")
}

/// An error and its causes. That of reqwest alone does not say why.
fn with_causes(error: &reqwest::Error) -> String {
    causes(error).map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

/// Whether the peer ended the TLS handshake with an alert, as it does for a client without a certificate.
fn is_refusal(error: &reqwest::Error) -> bool {
    causes(error).any(|cause| matches!(cause.downcast_ref(), Some(rustls::Error::AlertReceived(_))))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url_of(config: &str) -> String {
        Check::of_config(&Config::from_toml(config, "test").unwrap()).unwrap().url.to_string()
    }

    #[test]
    fn own_server_is_asked_at_an_address_of_this_machine() {
        for (listen, url) in [
            (":5000", "http://127.0.0.1:5000/readyz"),
            ("0.0.0.0:5001", "http://127.0.0.1:5001/readyz"),
            ("[::]:5000", "http://[::1]:5000/readyz"),
            ("[::1]:5000", "http://[::1]:5000/readyz"),
            ("10.1.2.3:80", "http://10.1.2.3/readyz"),
            ("cache.example.com:5000", "http://cache.example.com:5000/readyz"),
        ] {
            assert_eq!(url_of(&format!("[server]\nlisten = \"{listen}\"")), url, "{listen}");
        }
        let tls = "[server]\nlisten = \":5000\"\n[server.tls]\ncert = \"/c\"\nkey = \"/k\"";
        assert_eq!(url_of(tls), "https://127.0.0.1:5000/readyz");
    }

    #[test]
    fn path_of_a_url_is_kept() {
        for (url, expected) in [
            ("http://cache:5000", "http://cache:5000/readyz"),
            ("http://cache:5000/", "http://cache:5000/readyz"),
            ("https://cache/healthz", "https://cache/healthz"),
        ] {
            assert_eq!(Check::of_url(url.parse().unwrap()).url.as_str(), expected);
        }
    }
}

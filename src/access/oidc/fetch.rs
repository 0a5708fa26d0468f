//! Fetches the keys of an issuer: its discovery document (OpenID Connect Discovery 1.0, section 4), and the keys that the
//! document names.
//!
//! Both are bounded in size and time, and redirects are refused. The document must be of exactly this issuer, or anybody
//! whom a request could be led to would choose the keys.

use std::path::PathBuf;
use std::time::Duration;

use http::header::{ACCEPT, AUTHORIZATION};
use http::{HeaderValue, StatusCode};
use reqwest::Client;
use rustls_pki_types::CertificateDer;
use tokio::time::timeout;
use url::Url;

use super::json;
use super::keys::{KeySet, MAX_KEYS_BYTES};
use crate::config::{IssuerConfig, is_loopback, is_trustworthy};
use crate::file;
use crate::printable::Printable;
use crate::trust::{read_roots, verify_with};

const USER_AGENT: &str = concat!("roadstead/", env!("CARGO_PKG_VERSION"));
const DISCOVERY_PATH: &str = "/.well-known/openid-configuration";
/// Largest discovery document in bytes.
const MAX_DOCUMENT_BYTES: usize = 64 << 10;
/// Time for each of the two requests, with its body.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// What is needed to fetch the keys of one issuer.
pub(super) struct Fetcher {
    /// `iss`, byte for byte.
    issuer: String,
    url: Url,
    authorities: Vec<CertificateDer<'static>>,
    bearer_token_file: Option<PathBuf>,
    client: Option<Client>,
}

// === impl Fetcher ===

impl Fetcher {
    /// Reads `ca_file`, which blocks.
    ///
    /// # Errors
    /// The message for a file that cannot be used.
    pub(super) fn new(config: &IssuerConfig, url: Url) -> Result<Self, String> {
        let authorities = match &config.ca_file {
            Some(path) => read_roots(path)?,
            None => Vec::new(),
        };
        Ok(Self {
            issuer: config.issuer.clone(),
            url,
            authorities,
            bearer_token_file: config.bearer_token_file.clone(),
            client: None,
        })
    }

    /// Fetches the keys. Takes at most two [`REQUEST_TIMEOUT`].
    pub(super) async fn fetch(&mut self) -> Result<KeySet, String> {
        let client = self.client().await?;
        let token = self.bearer_token().await?;
        let discovery = at_path(&self.url, &format!("{}{DISCOVERY_PATH}", self.url.path().trim_end_matches('/')));
        let document = get(&client, &discovery, token.as_ref()).await?;
        let keys = self.keys_url(&document).map_err(|error| format!("{discovery}: {error}"))?;
        let keys_document = get(&client, &keys, token.as_ref().filter(|_| keys.origin() == self.url.origin())).await?;
        KeySet::parse(&keys_document).map_err(|error| format!("{keys}: {error}"))
    }

    /// Where the keys are, by the discovery document.
    fn keys_url(&self, document: &[u8]) -> Result<Url, String> {
        let document = json::object(document).ok_or("it is no JSON object, or has a key twice")?;
        let text = |key: &str| document.get(key).and_then(serde_json::Value::as_str).unwrap_or_default();
        let issuer = text("issuer");
        if issuer != self.issuer {
            return Err(format!("it is of the issuer \"{}\", not of \"{}\"", Printable(issuer), self.issuer));
        }
        let shown = Printable(text("jwks_uri"));
        let keys = Url::parse(shown.0).map_err(|_| format!("its jwks_uri \"{shown}\" is not a URL"))?;
        // A kube-apiserver names itself by an address of its own. Its keys are at the same path wherever it is asked, and
        // the token is for the configured address alone.
        let keys = match self.bearer_token_file {
            Some(_) if keys.origin() != self.url.origin() => at_path(&self.url, keys.path()),
            _ => keys,
        };
        if !is_trustworthy(&keys) || (is_loopback(&keys) && !is_loopback(&self.url)) {
            return Err(format!("its jwks_uri \"{shown}\" is not https"));
        }
        Ok(keys)
    }

    /// The client. The first call in the process reads the system's certificates.
    async fn client(&mut self) -> Result<Client, String> {
        if let Some(client) = &self.client {
            return Ok(client.clone());
        }
        let (authorities, is_loopback) = (self.authorities.clone(), is_loopback(&self.url));
        let built = tokio::task::spawn_blocking(move || build(&authorities, is_loopback)).await;
        let client = built.map_err(|error| error.to_string())??;
        self.client = Some(client.clone());
        Ok(client)
    }

    async fn bearer_token(&self) -> Result<Option<HeaderValue>, String> {
        let Some(path) = self.bearer_token_file.clone() else { return Ok(None) };
        let shown = path.display().to_string();
        let wrong = |cause: String| format!("cannot use the token of bearer_token_file {shown}: {cause}");
        let read = tokio::task::spawn_blocking(move || file::read(&path)).await;
        let token = read.map_err(|error| wrong(error.to_string()))?.map_err(|error| wrong(error.to_string()))?;
        let header = [b"Bearer ", token.trim_ascii()].concat();
        // The error does not repeat the token.
        let mut header = HeaderValue::from_bytes(&header).map_err(|_| wrong("it is no token".to_owned()))?;
        header.set_sensitive(true);
        Ok(Some(header))
    }
}

fn build(authorities: &[CertificateDer<'static>], is_loopback: bool) -> Result<Client, String> {
    let tls = verify_with(authorities)?.with_no_client_auth();
    let mut builder = Client::builder()
        .tls_backend_preconfigured(tls)
        .redirect(reqwest::redirect::Policy::none())
        .referer(false)
        .user_agent(USER_AGENT)
        .connect_timeout(REQUEST_TIMEOUT)
        // Fetches are an hour apart.
        .pool_max_idle_per_host(0);
    if is_loopback {
        builder = builder.no_proxy();
    }
    builder.build().map_err(|error| format!("cannot build an HTTP client: {error}"))
}

/// Another path at the same origin.
fn at_path(url: &Url, path: &str) -> Url {
    let mut url = url.clone();
    url.set_path(path);
    url.set_query(None);
    url.set_fragment(None);
    url
}

/// The body of a response with status 200.
async fn get(client: &Client, url: &Url, token: Option<&HeaderValue>) -> Result<Vec<u8>, String> {
    let mut request = client.get(url.clone()).header(ACCEPT, "application/json");
    if let Some(token) = token {
        request = request.header(AUTHORIZATION, token.clone());
    }
    let response = async {
        let mut response = request.send().await.map_err(|error| cause(&error))?;
        if response.status() != StatusCode::OK {
            let what = if response.status().is_redirection() { ", and redirects are not followed" } else { "" };
            return Err(format!("it answered {}{what}", response.status()));
        }
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(|error| cause(&error))? {
            if body.len() + chunk.len() > MAX_DOCUMENT_BYTES.max(MAX_KEYS_BYTES) {
                return Err(format!("its answer has more than {} KiB", MAX_DOCUMENT_BYTES >> 10));
            }
            body.extend_from_slice(&chunk);
        }
        Ok(body)
    };
    let response = timeout(REQUEST_TIMEOUT, response).await;
    let late = || Err(format!("it did not answer within {} s", REQUEST_TIMEOUT.as_secs()));
    response.unwrap_or_else(|_| late()).map_err(|error| format!("{url}: {error}"))
}

/// The innermost cause of a failed request. The outer ones only repeat the URL.
fn cause(error: &reqwest::Error) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    cause.to_string()
}

//! The two HTTP clients of an upstream. All requests are sent here.
//!
//! `control` uses HTTP/2 if the upstream supports it, for manifests, tokens and lists, which are small and many.
//! `blobs` uses HTTP/1.1 only: over HTTP/2, all fills would share one connection and its flow-control window.
//!
//! Neither client has a total timeout, which would include the body of a large blob. Neither follows redirects or
//! decompresses bodies.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::header::{HeaderMap, HeaderValue, VIA};
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use rustls::ClientConfig;
use tokio::time::{Instant, timeout_at};
use url::Url;

use super::allowed_hosts::AllowedHosts;
use super::error::UpstreamError;
use super::tls::TlsSetup;
use crate::telemetry::Metrics;

const USER_AGENT: &str = concat!("roadstead/", env!("CARGO_PKG_VERSION"));

/// Idle connections kept per host; the same number as containerd keeps.
const IDLE_CONNECTIONS: usize = 10;
/// Time after which an idle connection is closed. Many load balancers close one after 60 s.
const IDLE_CONNECTION_TIMEOUT: Duration = Duration::from_secs(50);
/// Interval of HTTP/2 pings. Without them, requests on a dead connection would wait for TCP to give up.
const PING_INTERVAL: Duration = Duration::from_secs(5);
/// Time after which an unanswered ping closes the connection.
const PING_TIMEOUT: Duration = Duration::from_secs(3);

/// The settings that the clients of one upstream are built from. Nothing is built before the first request.
pub(super) struct ClientSetup {
    pub(super) via: HeaderValue,
    pub(super) connect_timeout: Duration,
    pub(super) tls: TlsSetup,
    /// Whether the proxies in the environment are used. False for a loopback upstream.
    pub(super) use_proxy: bool,
}

/// The HTTP clients of one upstream. Counts all requests.
pub(super) struct HttpClients {
    upstream: Arc<str>,
    metrics: Arc<Metrics>,
    control: reqwest::Client,
    blobs: reqwest::Client,
}

/// Which of the two clients sends a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ClientKind {
    Control,
    Blobs,
}

/// Counts one request when its result is known, or when its future is dropped before.
struct RequestCount<'a> {
    clients: &'a HttpClients,
    kind: &'static str,
    counts_on_drop: bool,
}

/// A DNS resolver that removes private addresses from the results, except for the upstream's own names.
///
/// With a proxy, it resolves only the proxy's name; the proxy resolves the upstream's name.
struct GuardedResolver {
    allowed_hosts: Arc<AllowedHosts>,
    /// Hosts of the proxies in the environment. The operator chose them, so they may have private addresses.
    proxies: Vec<String>,
}

// === impl HttpClients ===

impl HttpClients {
    /// Builds both clients. The first call in the process reads the system's certificates, which blocks.
    pub(super) fn build(
        upstream: &Arc<str>,
        setup: &ClientSetup,
        allowed_hosts: &Arc<AllowedHosts>,
        metrics: &Arc<Metrics>,
    ) -> Result<Self, UpstreamError> {
        let refused = |cause: String| UpstreamError::Connect { upstream: upstream.clone(), cause: cause.into() };
        let tls = setup.tls.client_config().map_err(refused)?;
        let client = |client_kind| client(client_kind, setup, allowed_hosts, tls.clone()).map_err(refused);
        Ok(Self {
            upstream: upstream.clone(),
            metrics: metrics.clone(),
            control: client(ClientKind::Control)?,
            blobs: client(ClientKind::Blobs)?,
        })
    }

    /// Sends one request and waits for the response headers until `deadline`, whatever the status.
    ///
    /// Increases the request counter by one, unless no connection could be made: then no request was sent.
    pub(super) async fn send(
        &self,
        client_kind: ClientKind,
        kind: &'static str,
        request: reqwest::Request,
        deadline: Instant,
    ) -> Result<reqwest::Response, UpstreamError> {
        let client = match client_kind {
            ClientKind::Control => &self.control,
            ClientKind::Blobs => &self.blobs,
        };
        if Instant::now() >= deadline {
            return Err(UpstreamError::timeout(&self.upstream, "no time left for a request"));
        }
        let counted = RequestCount { clients: self, kind, counts_on_drop: true };
        match timeout_at(deadline, client.execute(request)).await {
            Ok(Ok(response)) => {
                counted.done(response.status().as_str());
                Ok(response)
            }
            Ok(Err(error)) => {
                if error.is_connect() {
                    counted.unsent()
                } else {
                    counted.done("error")
                }
                Err(UpstreamError::from_send(&self.upstream, error))
            }
            Err(_) => {
                counted.done("error");
                Err(UpstreamError::timeout(&self.upstream, "waiting for response headers"))
            }
        }
    }
}

// === impl RequestCount ===

impl RequestCount<'_> {
    fn done(mut self, code: &str) {
        self.counts_on_drop = false;
        self.clients.metrics.upstream_request(&self.clients.upstream, self.kind, code);
    }

    fn unsent(mut self) {
        self.counts_on_drop = false;
    }
}

impl Drop for RequestCount<'_> {
    fn drop(&mut self) {
        if self.counts_on_drop {
            self.clients.metrics.upstream_request(&self.clients.upstream, self.kind, "error");
        }
    }
}

// === impl GuardedResolver ===

impl Resolve for GuardedResolver {
    fn resolve(&self, name: Name) -> Resolving {
        let allowed_hosts = self.allowed_hosts.clone();
        let is_proxy = self.proxies.iter().any(|proxy| proxy == name.as_str());
        Box::pin(async move {
            // Port 0 is replaced by the URL's port.
            let found = tokio::net::lookup_host((name.as_str(), 0)).await?;
            let found = found.map(|address| address.ip()).collect();
            let admitted = if is_proxy { found } else { allowed_hosts.admit(name.as_str(), found)? };
            Ok(Box::new(admitted.into_iter().map(|ip| SocketAddr::new(ip, 0))) as Addrs)
        })
    }
}

fn client(
    client_kind: ClientKind,
    setup: &ClientSetup,
    allowed_hosts: &Arc<AllowedHosts>,
    mut tls: ClientConfig,
) -> Result<reqwest::Client, String> {
    tls.alpn_protocols = match client_kind {
        ClientKind::Control => vec![b"h2".to_vec(), b"http/1.1".to_vec()],
        ClientKind::Blobs => vec![b"http/1.1".to_vec()],
    };
    let mut builder = reqwest::Client::builder()
        .tls_backend_preconfigured(tls)
        .dns_resolver(GuardedResolver {
            allowed_hosts: allowed_hosts.clone(),
            proxies: proxies(|name| std::env::var(name).ok()),
        })
        .redirect(reqwest::redirect::Policy::none())
        .referer(false)
        .user_agent(USER_AGENT)
        .default_headers(HeaderMap::from_iter([(VIA, setup.via.clone())]))
        .connect_timeout(setup.connect_timeout)
        .tcp_nodelay(true)
        .pool_max_idle_per_host(IDLE_CONNECTIONS)
        .pool_idle_timeout(IDLE_CONNECTION_TIMEOUT);
    builder = match client_kind {
        ClientKind::Control => builder.http2_keep_alive_interval(PING_INTERVAL).http2_keep_alive_timeout(PING_TIMEOUT),
        ClientKind::Blobs => builder.http1_only(),
    };
    if !setup.use_proxy {
        builder = builder.no_proxy();
    }
    builder.build().map_err(|error| format!("cannot build an HTTP client: {error}"))
}

/// The hosts of the proxies that reqwest takes from the environment.
fn proxies(variable: impl Fn(&str) -> Option<String>) -> Vec<String> {
    let variables = ["ALL_PROXY", "HTTPS_PROXY", "HTTP_PROXY"];
    let values = variables.iter().flat_map(|name| [variable(name), variable(&name.to_lowercase())]).flatten();
    let host = |value: String| {
        let url = if value.contains("://") { value } else { format!("http://{value}") };
        Some(Url::parse(&url).ok()?.host_str()?.to_ascii_lowercase())
    };
    values.filter_map(host).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proxies_are_found_in_the_environment() {
        let found = proxies(|name| match name {
            "HTTPS_PROXY" => Some("http://user:secret@Proxy.corp:3128".to_owned()),
            "http_proxy" => Some("other.corp:8080".to_owned()),
            "ALL_PROXY" => Some("::".to_owned()),
            _ => None,
        });
        assert_eq!(found, ["proxy.corp", "other.corp"]);
    }
}

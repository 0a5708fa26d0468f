//! The two HTTP clients of an upstream, and the one place that sends requests with them.
//!
//! `control` speaks HTTP/2 where the upstream does: manifests, tokens and lists are small and many. `blobs` speaks
//! HTTP/1.1 only: over HTTP/2 all fills would share one connection and its flow-control window.
//!
//! Neither has a total timeout (it would cover the body of a 10 GiB blob), follows redirects or decompresses.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::header::{HeaderMap, HeaderValue, VIA};
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use rustls::ClientConfig;
use tokio::time::{Instant, timeout_at};
use url::Url;

use super::error::UpstreamError;
use super::tls::TlsSetup;
use super::trust::Trust;
use crate::telemetry::Metrics;

const USER_AGENT: &str = concat!("roadstead/", env!("CARGO_PKG_VERSION"));

/// Idle connections kept per host: as many as containerd keeps.
const IDLE_CONNECTIONS: usize = 10;
/// Below the 60 s after which many load balancers close an idle connection.
const IDLE_CONNECTION_TIMEOUT: Duration = Duration::from_secs(50);
/// A HTTP/2 connection that died silently would otherwise swallow every request until TCP gives up on it.
const PING_INTERVAL: Duration = Duration::from_secs(5);
const PING_TIMEOUT: Duration = Duration::from_secs(3);

/// What the clients of one upstream are built from. Cheap to hold; nothing is built before it is needed.
pub(super) struct ClientSetup {
    pub(super) via: HeaderValue,
    pub(super) connect_timeout: Duration,
    pub(super) tls: TlsSetup,
    /// Whether the proxies of the environment are asked: never for a loopback upstream.
    pub(super) use_proxy: bool,
}

/// Sends the requests of one upstream and counts them.
pub(super) struct Wire {
    upstream: Arc<str>,
    metrics: Arc<Metrics>,
    control: reqwest::Client,
    blobs: reqwest::Client,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lane {
    Control,
    Blobs,
}

/// Counts one request when its fate is known, also when the asker goes away before.
struct Counted<'a> {
    wire: &'a Wire,
    kind: &'static str,
    pending: bool,
}

/// Looks names up and keeps private addresses from those that are not the upstream's own.
///
/// Behind a proxy it sees the proxy's name alone: what an upstream's name means there, the proxy decides.
struct GuardedResolver {
    trust: Arc<Trust>,
    /// The operator's own choice, so allowed to be anywhere.
    proxies: Vec<String>,
}

// === impl Wire ===

impl Wire {
    /// Reads the system's certificates at the first call in the process: not for the reactor.
    pub(super) fn build(
        upstream: &Arc<str>,
        setup: &ClientSetup,
        trust: &Arc<Trust>,
        metrics: &Arc<Metrics>,
    ) -> Result<Self, UpstreamError> {
        let refused = |cause: String| UpstreamError::Connect { upstream: upstream.clone(), cause: cause.into() };
        let tls = setup.tls.client_config().map_err(refused)?;
        let client = |lane| client(lane, setup, trust, tls.clone()).map_err(refused);
        Ok(Self {
            upstream: upstream.clone(),
            metrics: metrics.clone(),
            control: client(Lane::Control)?,
            blobs: client(Lane::Blobs)?,
        })
    }

    /// Sends one request and waits for the head of its answer until `deadline`, whatever its status.
    ///
    /// Adds exactly one to the count of requests, except when no connection came about: then nothing was sent.
    pub(super) async fn send(
        &self,
        lane: Lane,
        kind: &'static str,
        request: reqwest::Request,
        deadline: Instant,
    ) -> Result<reqwest::Response, UpstreamError> {
        let client = match lane {
            Lane::Control => &self.control,
            Lane::Blobs => &self.blobs,
        };
        if Instant::now() >= deadline {
            return Err(UpstreamError::timeout(&self.upstream, "no time left to ask"));
        }
        let counted = Counted { wire: self, kind, pending: true };
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
                Err(UpstreamError::timeout(&self.upstream, "waiting for the head of an answer"))
            }
        }
    }
}

// === impl Counted ===

impl Counted<'_> {
    fn done(mut self, code: &str) {
        self.pending = false;
        self.wire.metrics.upstream_request(&self.wire.upstream, self.kind, code);
    }

    fn unsent(mut self) {
        self.pending = false;
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        if self.pending {
            self.wire.metrics.upstream_request(&self.wire.upstream, self.kind, "error");
        }
    }
}

// === impl GuardedResolver ===

impl Resolve for GuardedResolver {
    fn resolve(&self, name: Name) -> Resolving {
        let trust = self.trust.clone();
        let is_proxy = self.proxies.iter().any(|proxy| proxy == name.as_str());
        Box::pin(async move {
            // Port 0 stands for the port of the URL.
            let found = tokio::net::lookup_host((name.as_str(), 0)).await?;
            let found = found.map(|address| address.ip()).collect();
            let admitted = if is_proxy { found } else { trust.admit(name.as_str(), found)? };
            Ok(Box::new(admitted.into_iter().map(|ip| SocketAddr::new(ip, 0))) as Addrs)
        })
    }
}

fn client(
    lane: Lane,
    setup: &ClientSetup,
    trust: &Arc<Trust>,
    mut tls: ClientConfig,
) -> Result<reqwest::Client, String> {
    tls.alpn_protocols = match lane {
        Lane::Control => vec![b"h2".to_vec(), b"http/1.1".to_vec()],
        Lane::Blobs => vec![b"http/1.1".to_vec()],
    };
    let mut builder = reqwest::Client::builder()
        .tls_backend_preconfigured(tls)
        .dns_resolver(GuardedResolver { trust: trust.clone(), proxies: proxies(|name| std::env::var(name).ok()) })
        .redirect(reqwest::redirect::Policy::none())
        .referer(false)
        .user_agent(USER_AGENT)
        .default_headers(HeaderMap::from_iter([(VIA, setup.via.clone())]))
        .connect_timeout(setup.connect_timeout)
        .tcp_nodelay(true)
        .pool_max_idle_per_host(IDLE_CONNECTIONS)
        .pool_idle_timeout(IDLE_CONNECTION_TIMEOUT);
    builder = match lane {
        Lane::Control => builder.http2_keep_alive_interval(PING_INTERVAL).http2_keep_alive_timeout(PING_TIMEOUT),
        Lane::Blobs => builder.http1_only(),
    };
    if !setup.use_proxy {
        builder = builder.no_proxy();
    }
    builder.build().map_err(|error| format!("no HTTP client: {error}"))
}

/// The names of the proxies that reqwest takes from the environment.
fn proxies(variable: impl Fn(&str) -> Option<String>) -> Vec<String> {
    let variables = ["ALL_PROXY", "HTTPS_PROXY", "HTTP_PROXY"];
    let values = variables.iter().flat_map(|name| [variable(name), variable(&name.to_lowercase())]).flatten();
    let host = |value: String| {
        let url = if value.contains("://") { value } else { format!("http://{value}") };
        Some(Url::parse(&url).ok()?.host_str()?.to_ascii_lowercase())
    };
    values.filter_map(host).collect()
}

/// Whether this is our own machine, where no proxy is ever asked (as in Go's and curl's own rules).
pub(super) fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(url::Host::Domain(name)) => name == "localhost" || name.ends_with(".localhost"),
        Some(url::Host::Ipv4(address)) => address.is_loopback(),
        Some(url::Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proxies_are_known_by_name() {
        let found = proxies(|name| match name {
            "HTTPS_PROXY" => Some("http://user:secret@Proxy.corp:3128".to_owned()),
            "http_proxy" => Some("other.corp:8080".to_owned()),
            "ALL_PROXY" => Some("::".to_owned()),
            _ => None,
        });
        assert_eq!(found, ["proxy.corp", "other.corp"]);
    }
}

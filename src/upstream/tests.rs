//! Tests of an upstream over HTTP, against small servers in this process.

mod answers;
mod auth;
mod breaker;
mod credentials;
mod limits;
mod redirects;
mod rounds;
mod server;
mod tls;
mod urls;

use std::sync::Arc;
use std::time::Duration;

use http::Method;
use tokio::time::Instant;
use url::Url;

use super::{Effort, Kind, Upstream, UpstreamError, UpstreamRequest, UpstreamResponse};
use crate::config::{CredentialConfig, CredentialSource, UpstreamConfig};
use crate::tasks::Tasks;
use crate::telemetry::Metrics;
use server::Server;

pub(super) const NAME: &str = "r.example";

/// An upstream with its metrics and tasks, and short functions for requests.
struct Fixture {
    upstream: Upstream,
    metrics: Arc<Metrics>,
    tasks: Tasks,
}

// === impl Fixture ===

impl Fixture {
    fn new(servers: &[&Server]) -> Self {
        Self::configured(servers, |_| {})
    }

    fn with_password(server: &Server) -> Self {
        Self::configured(&[server], |config| {
            config.credentials = with_password("user", "hunter2");
        })
    }

    fn configured(servers: &[&Server], change: impl FnOnce(&mut UpstreamConfig)) -> Self {
        Self::at(servers.iter().map(|server| server.url()).collect(), change)
    }

    fn at(urls: Vec<Url>, change: impl FnOnce(&mut UpstreamConfig)) -> Self {
        let mut config = UpstreamConfig::new(NAME, urls);
        config.header_timeout = Duration::from_millis(400);
        config.idle_timeout = Duration::from_millis(200);
        change(&mut config);
        let metrics = Arc::new(Metrics::new(&[NAME]));
        let tasks = Tasks::new();
        let upstream = Upstream::new(&config, "roadstead-test", metrics.clone(), tasks.clone()).unwrap();
        Self { upstream, metrics, tasks }
    }

    async fn send(&self, request: UpstreamRequest) -> Result<UpstreamResponse, UpstreamError> {
        self.upstream.send(request, Instant::now() + Duration::from_secs(20)).await
    }

    /// The body of a GET.
    async fn get(&self, request: UpstreamRequest) -> Result<String, UpstreamError> {
        let body = self.send(request).await?.body.collect(1 << 20, soon()).await?;
        Ok(String::from_utf8_lossy(&body).into_owned())
    }

    /// The sum of the request counter over the series whose labels contain `labels`.
    fn requests(&self, labels: &str) -> usize {
        self.sum("roadstead_upstream_requests_total", labels)
    }

    fn sum(&self, name: &str, labels: &str) -> usize {
        let text = self.metrics.render();
        let lines = text.lines().filter(|line| line.starts_with(&format!("{name}{{")) && line.contains(labels));
        let values = lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok());
        values.sum::<f64>() as usize
    }

    /// The request counter equals the number of requests that the servers received.
    fn assert_requests_counted_at(&self, servers: &[&Server]) {
        let theirs: usize = servers.iter().map(|server| server.seen().len()).sum();
        assert_eq!(self.requests(""), theirs, "{}", self.metrics.render());
    }
}

fn with_password(username: &str, password: &str) -> Vec<CredentialConfig> {
    vec![CredentialConfig::new(CredentialSource::password(username, password))]
}

fn blob() -> UpstreamRequest {
    request(Kind::Blob, "team/app", "blobs/sha256:abc")
}

fn manifest() -> UpstreamRequest {
    request(Kind::Manifest, "team/app", "manifests/latest")
}

fn request(kind: Kind, repository: &str, path: &str) -> UpstreamRequest {
    UpstreamRequest {
        kind,
        method: Method::GET,
        repository: repository.parse().unwrap(),
        path: path.to_owned(),
        range: None,
        if_none_match: None,
        if_range: None,
        skip_urls: 0,
        effort: Effort::Rounds,
    }
}

fn head(request: UpstreamRequest) -> UpstreamRequest {
    UpstreamRequest { method: Method::HEAD, ..request }
}

/// A deadline that no test reaches.
fn soon() -> Instant {
    Instant::now() + Duration::from_secs(30)
}

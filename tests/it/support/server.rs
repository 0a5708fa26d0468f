//! Roadstead in this process, on a free loopback port, with its own data folder.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use roadstead::config::Config;
use roadstead::server::Running;
use tempfile::TempDir;

use super::client::{Answer, Client};
use super::metrics::Metrics;
use super::settings::Settings;
use super::upstream::Upstream;

pub struct TestServer {
    running: Option<Running>,
    addr: SocketAddr,
    settings: Settings,
    data: TempDir,
    client: Client,
}

/// `TestServer::builder().upstream("docker.io", &up).default_upstream("docker.io").start().await`
#[derive(Clone)]
pub struct Builder(Settings);

impl Builder {
    pub fn upstream(self, name: &str, upstream: &Upstream) -> Self {
        Self(self.0.upstream(name, upstream))
    }

    pub fn upstream_url(self, name: &str, url: &str) -> Self {
        Self(self.0.upstream_url(name, url))
    }

    pub fn default_upstream(self, name: &str) -> Self {
        Self(self.0.default_upstream(name))
    }

    /// Adds TOML: tables are merged, single keys replaced.
    pub fn config(self, toml: &str) -> Self {
        Self(self.0.config(toml))
    }

    pub async fn start(self) -> TestServer {
        let data = tempfile::tempdir().expect("a temporary folder");
        TestServer::start_in(data, self.0).await
    }
}

impl TestServer {
    pub fn builder() -> Builder {
        Builder(Settings::new())
    }

    /// The usual case: docker.io is this upstream and the default one.
    pub async fn mirror_of(upstream: &Upstream) -> Self {
        let builder = Self::builder().upstream("docker.io", upstream);
        builder.default_upstream("docker.io").start().await
    }

    async fn start_in(data: TempDir, settings: Settings) -> Self {
        let settings = settings.data_dir(data.path());
        let running = run(&settings).await;
        Self { addr: running.addr(), running: Some(running), settings, data, client: Client::new() }
    }

    /// Stops cleanly and starts again on the same folder, possibly on another port.
    pub async fn restart(&mut self) {
        self.stop_running().await;
        let running = run(&self.settings).await;
        self.addr = running.addr();
        self.running = Some(running);
    }

    /// The same with other settings.
    pub async fn restart_with(&mut self, toml: &str) {
        self.settings = self.settings.clone().config(toml);
        self.restart().await;
    }

    pub async fn stop(mut self) {
        self.stop_running().await;
    }

    /// Stops and returns the folder.
    pub async fn stop_and_keep(mut self) -> TempDir {
        self.stop_running().await;
        self.data
    }

    /// Stops cleanly; `restart` starts it again.
    pub async fn stop_running(&mut self) {
        if let Some(running) = self.running.take() {
            running.stop().await;
        }
    }

    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// `http://127.0.0.1:<port>` and the path.
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.addr)
    }

    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    pub fn data_dir(&self) -> &Path {
        self.data.path()
    }

    pub fn client(&self) -> &Client {
        &self.client
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.client.get(&self.url(path)).await
    }

    pub async fn get_with(&self, path: &str, headers: &[(&str, &str)]) -> Answer {
        self.client.get_with(&self.url(path), headers).await
    }

    pub async fn head(&self, path: &str) -> Answer {
        self.client.head(&self.url(path)).await
    }

    pub async fn delete(&self, path: &str) -> Answer {
        self.send("DELETE", path, &[], Bytes::new()).await
    }

    /// Any request whose response must be complete.
    pub async fn send(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<reqwest::Body>,
    ) -> Answer {
        self.client.send(method, &self.url(path), headers, body).await
    }

    /// All metrics at this moment.
    pub async fn metrics(&self) -> Metrics {
        Metrics::parse(self.get("/metrics").await.text())
    }

    /// Waits until the circuit of this upstream is closed.
    pub async fn until_available(&self, upstream: &str) {
        while self.metric("roadstead_upstream_available", &[("upstream", upstream)]).await != 1.0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// The sum of the series of this name that have these labels; 0 if there are none.
    pub async fn metric(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        self.metrics().await.sum(name, labels)
    }
}

async fn run(settings: &Settings) -> Running {
    let toml = settings.to_toml();
    let config = Config::from_toml(&toml, "test").unwrap_or_else(|error| panic!("{error}\n{toml}"));
    let running = roadstead::server::start(config).await;
    running.unwrap_or_else(|error| panic!("the server does not start: {error}\n{toml}"))
}

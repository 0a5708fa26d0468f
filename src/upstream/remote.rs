//! The state that all requests to one upstream share: how it is reached, and the results so far.

use std::sync::Arc;
use std::time::Duration;

use http::header::HeaderValue;
use parking_lot::Mutex;
use tokio::sync::OnceCell;
use tokio::time::Instant;
use url::Url;

use super::allowed_hosts::AllowedHosts;
use super::auth::Authorizer;
use super::breaker::Breaker;
use super::client::{ClientSetup, HttpClients};
use super::credentials::Keyring;
use super::in_flight::InFlight;
use super::limits::AccountLimits;
use super::tls::TlsSetup;
use super::token::Tokens;
use super::{UpstreamError, UpstreamSetupError};
use crate::config::{OnDenied, UpstreamConfig, is_loopback};
use crate::tasks::Tasks;
use crate::telemetry::Metrics;

/// One configured registry.
///
/// It needs few resources until the first request: the HTTP clients are built then, and the certificates of the system
/// are read once per process.
pub(super) struct Remote {
    pub(super) name: Arc<str>,
    /// At least one, tried in order.
    pub(super) urls: Vec<Url>,
    pub(super) keyring: Arc<Keyring>,
    pub(super) on_denied: Option<OnDenied>,
    pub(super) header_timeout: Duration,
    pub(super) idle_timeout: Duration,
    pub(super) min_rate: u64,
    pub(super) max_fills: usize,
    pub(super) connections: usize,
    pub(super) allowed_hosts: Arc<AllowedHosts>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) setup: Arc<ClientSetup>,
    /// Updated by requests and by the probe. Requests without credentials share it.
    pub(super) breaker: Arc<Mutex<Breaker>>,
    pub(super) limits: AccountLimits,
    pub(super) in_flight: InFlight,
    /// When the upstream last ignored a range of a blob.
    pub(super) ignored_range: Mutex<Option<Instant>>,
    /// Owns the probing task.
    pub(super) tasks: Tasks,
    connection: OnceCell<Connection>,
}

/// What is created with the first request to an upstream.
pub(super) struct Connection {
    pub(super) clients: HttpClients,
    pub(super) auth: Authorizer,
}

impl Remote {
    /// Reads the files for TLS. Sends no requests.
    ///
    /// # Errors
    /// If a file cannot be read, or a value cannot be sent in a header.
    pub(super) fn new(
        config: &UpstreamConfig,
        via: &str,
        metrics: Arc<Metrics>,
        tasks: Tasks,
    ) -> Result<Self, UpstreamSetupError> {
        let upstream = || config.name.clone();
        if config.urls.is_empty() {
            return Err(UpstreamSetupError::NoUrl { upstream: upstream() });
        }
        let via = HeaderValue::try_from(format!("1.1 {via}"));
        let via =
            via.map_err(|_| UpstreamSetupError::Header { upstream: upstream(), what: "the name of this instance" })?;
        Ok(Self {
            name: config.name.as_str().into(),
            urls: config.urls.clone(),
            keyring: Arc::new(Keyring::new(config, &tasks)?),
            on_denied: config.on_denied,
            header_timeout: config.header_timeout,
            idle_timeout: config.idle_timeout,
            min_rate: config.min_rate,
            max_fills: config.max_fills,
            connections: config.connections,
            allowed_hosts: Arc::new(AllowedHosts::new(config)),
            metrics,
            setup: Arc::new(ClientSetup {
                via,
                connect_timeout: config.connect_timeout,
                tls: TlsSetup::new(config)?,
                use_proxy: !config.urls.iter().all(is_loopback),
            }),
            breaker: Arc::default(),
            limits: AccountLimits::default(),
            in_flight: InFlight::default(),
            ignored_range: Mutex::default(),
            tasks,
            connection: OnceCell::new(),
        })
    }

    /// The same registry for requests without credentials. Tokens, connections and limits are not shared.
    ///
    /// # Errors
    /// As for [`Remote::new`].
    pub(super) fn without_credentials(&self, config: &UpstreamConfig, via: &str) -> Result<Self, UpstreamSetupError> {
        let config = UpstreamConfig { credentials: Vec::new(), ..config.clone() };
        let anonymous = Self::new(&config, via, self.metrics.clone(), self.tasks.clone())?;
        Ok(Self { breaker: self.breaker.clone(), ..anonymous })
    }

    /// The clients and the authorizer, created by the first call. Also reloads a changed client certificate.
    pub(super) async fn connection(&self) -> Result<&Connection, UpstreamError> {
        if let Some(identity) = &self.setup.tls.identity {
            identity.refresh().await;
        }
        self.connection.get_or_try_init(|| self.build()).await
    }

    async fn build(&self) -> Result<Connection, UpstreamError> {
        let (name, setup) = (self.name.clone(), self.setup.clone());
        let (allowed_hosts, metrics) = (self.allowed_hosts.clone(), self.metrics.clone());
        let built =
            tokio::task::spawn_blocking(move || HttpClients::build(&name, &setup, &allowed_hosts, &metrics)).await;
        let clients = built.unwrap_or_else(|error| {
            Err(UpstreamError::Connect { upstream: self.name.clone(), cause: error.to_string().into() })
        })?;
        let tokens = Tokens::new(&self.name, &self.allowed_hosts, self.header_timeout);
        let auth = Authorizer::new(&self.name, &self.allowed_hosts, self.keyring.clone(), tokens);
        Ok(Connection { clients, auth })
    }
}

//! The server: builds its parts, wires them, starts and stops them.

use std::collections::HashMap;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::access::{AttemptResult, AuthFileError, Gate, How, Login, MachineTokens};
use crate::audit::{Audit, AuditFileError};
use crate::config::{Config, Right, ServerConfig, TlsConfig};
use crate::control::machine_tokens::StoredTokens;
use crate::control::{ConfigSource, Control, ControlSocket, Reloader};
use crate::events::Events;
use crate::housekeeping::{self, IndexRecovery};
use crate::http::serve::{Listeners, Server};
use crate::http::tls::{Certificates, TlsError};
use crate::http::{App, ForeignNames, Site, TokenServer, large_manifests};
use crate::oci::UpstreamName;
use crate::pull::Puller;
use crate::service_manager;
use crate::store::{Bounds, Class, DiskState, OpenError, Store, StoreError, StoreSettings, disk_bytes};
use crate::tasks::Tasks;
use crate::telemetry::{DiskReading, FlushGuard, Metrics, StorageReading};
use crate::trust;
use crate::upstream::{Upstream, UpstreamSetupError};

/// Permissions of a data folder for users who are neither its owner nor in its group.
const OTHERS_MODE: u32 = 0o007;

/// Where `registry:2` keeps its repositories in its data folder.
const REGISTRY_2_REPOSITORIES: &str = "docker/registry/v2/repositories";

/// The kind of credentials of an operator in the audit log: the permission to send SIGHUP.
const SIGNAL: &str = "signal";

/// File descriptors that one transfer takes at most: the client's socket, a file, the upstream's socket.
const MAX_DESCRIPTORS_OF_TRANSFER: u64 = 3;

/// Why a server does not start. Each is one line.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("cannot use the data folder {}: {error}", path.display())]
    Store { path: PathBuf, error: OpenError },
    #[error("cannot listen on {listen}: {error}")]
    Listen { listen: String, error: io::Error },
    #[error(
        "cannot use the sockets of the service manager: {0}; its socket unit must have ListenStream= with a TCP port"
    )]
    Sockets(io::Error),
    #[error(transparent)]
    Upstream(#[from] UpstreamSetupError),
    #[error("cannot use the certificate of [server.tls]: {0}")]
    Tls(#[from] TlsError),
    #[error(transparent)]
    Auth(#[from] AuthFileError),
    #[error(transparent)]
    Audit(#[from] AuditFileError),
    #[error("cannot keep the secret that signs tokens: {0}; or set auth.token_key_file")]
    TokenSecret(StoreError),
    #[error("cannot wait for signals: {0}")]
    Signals(io::Error),
    #[error("a task of the start panicked")]
    Task,
}

/// A running server. If it is dropped without [`Running::stop`], its tasks end with the runtime, and the stop is not clean.
pub struct Running {
    address: SocketAddr,
    stop: CancellationToken,
    accepting: tokio::task::JoinHandle<()>,
    puller: Puller,
    control: Option<ControlSocket>,
    store: Store,
    tasks: Tasks,
    recovery: IndexRecovery,
    reloader: Arc<Reloader>,
    audit: Audit,
    /// Waits for the records of the audit log that are queued.
    audit_flush: Option<FlushGuard>,
}

/// Starts a server and returns when it listens.
pub async fn start(config: Config) -> Result<Running, StartError> {
    start_from(config, None, Vec::new()).await
}

/// The same with a source of the configuration, which is read again at a reload, and with `sockets` that listen already. If
/// there are none, `server.listen` is bound.
async fn start_from(
    config: Config,
    source: Option<ConfigSource>,
    sockets: Vec<TcpListener>,
) -> Result<Running, StartError> {
    let descriptors = raise_descriptor_limit();
    // The port first: a second server that is started by mistake must fail before it touches anything.
    let listen_error = |error| StartError::Listen { listen: config.server.listen.to_string(), error };
    let listeners = match sockets.is_empty() {
        true => Listeners::bind(&config.server.listen).map_err(listen_error)?,
        false => Listeners::inherit(sockets).map_err(StartError::Sockets)?,
    };
    let address = listeners.local_addr().map_err(listen_error)?;
    let certificates = certificates(config.server.tls.clone()).await?;

    let names: Vec<&str> = config.upstreams.iter().map(|upstream| upstream.name.as_str()).collect();
    let metrics = Arc::new(Metrics::new(&names));
    let store = open_store(&config, &metrics).await?;
    let login = login(&config, &store).await?;
    let machine_tokens = login.as_ref().map(Login::machine_tokens);
    let (audit, audit_flush) = open_audit(&config, &metrics).await?;
    let via = format!("roadstead-{}", store.instance().simple());
    let tasks = Tasks::new();
    let mut upstreams: HashMap<UpstreamName, Arc<Upstream>> = HashMap::new();
    for settings in &config.upstreams {
        let upstream = Upstream::new(settings, &via, metrics.clone(), tasks.clone())?;
        upstreams.insert(upstream.name().clone(), Arc::new(upstream));
    }

    let puller = Puller::new(store.clone(), upstreams, &config, metrics.clone(), tasks.clone());
    let recovery = IndexRecovery::start(&store, &metrics);
    housekeeping::start(&store, &config, &metrics, &tasks);
    if let Some(login) = &login {
        tasks.spawn(login.follow());
    }
    let gate = Gate::new(&config, login);
    let reloader = Arc::new(Reloader::new(source, &config, gate.rules(), &audit));
    let operator = Control {
        store: store.clone(),
        config: Arc::new(config.clone()),
        metrics: metrics.clone(),
        puller: puller.clone(),
        audit: audit.clone(),
        reloader: reloader.clone(),
        machine_tokens,
        since: Instant::now(),
        tasks: tasks.clone(),
    };
    // A read-only folder has no socket: it would be a change, and the next reader of the folder would replace it.
    let control = match store.is_read_only() {
        true => None,
        false => ControlSocket::listen(&config.storage.path, Arc::new(operator)),
    };
    let certificate_metrics = metrics.clone();
    let app = App {
        store: store.clone(),
        puller: puller.clone(),
        gate,
        audit: audit.clone(),
        token_server: TokenServer::new(&config.server),
        metrics,
        via,
        progress_timeout: config.server.progress_timeout,
        foreign_names: ForeignNames::default(),
        large_manifests: large_manifests(),
        response_headers: config.server.response_headers.clone(),
    };
    let stop = CancellationToken::new();
    if audit.is_on() {
        tasks.spawn(audit.clone().report_left_out());
    }
    if let Some(certificates) = &certificates {
        let report = move |expires: Option<i64>| certificate_metrics.certificate_expiry(expires.unwrap_or_default());
        tasks.spawn(certificates.clone().follow(report));
    }
    let settings = limit_connections(descriptors, config.server.clone());
    let server = Server::new(settings, Site::new(Arc::new(app)), certificates, tasks.clone());
    let accepting = tokio::spawn(server.run(listeners, stop.clone().cancelled_owned()));
    Ok(Running { address, stop, accepting, puller, control, store, tasks, recovery, reloader, audit, audit_flush })
}

/// Runs a server until SIGTERM or SIGINT, and stops it. At SIGHUP, the configuration is read again from its source.
pub async fn run(config: Config, source: ConfigSource) -> Result<(), StartError> {
    let hangup = signal(SignalKind::hangup()).map_err(StartError::Signals)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(StartError::Signals)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(StartError::Signals)?;
    // By default, SIGXFSZ ends the process. With a handler, the write that exceeds the limit fails instead.
    let file_size_limit = SignalKind::from_raw(rustix::process::Signal::XFSZ.as_raw());
    let _file_size_limit = signal(file_size_limit).map_err(StartError::Signals)?;
    let sockets = service_manager::sockets().map_err(StartError::Sockets)?;
    let inherited = sockets.first().map(TcpListener::local_addr).transpose().map_err(StartError::Sockets)?;
    let path = config.storage.path.clone();
    let disk_bytes = tokio::task::spawn_blocking(move || disk_bytes(&path)).await.map_err(|_| StartError::Task)?;
    let mut in_use = config.clone();
    if let Some(address) = inherited {
        in_use.server.listen = address.into();
    }
    for warning in in_use.warnings(disk_bytes) {
        tracing::warn!("{warning}");
    }
    let (data, upstreams) = (config.storage.path.display().to_string(), config.upstreams.len());
    let default = config.default_upstream.clone().unwrap_or_else(|| "none".to_owned());
    let scheme = if config.server.tls.is_some() { "https" } else { "http" };
    let verifies = config.upstreams.iter().any(|upstream| upstream.urls.iter().any(|url| url.scheme() == "https"));
    let running = start_from(config, Some(source), sockets).await?;
    let address = running.addr();
    tracing::info!(%address, scheme, data, upstreams, default, "listening");
    if inherited.is_some() {
        tracing::info!("the sockets are those of the service manager; server.listen has no effect");
    }
    if verifies {
        // Not awaited: it is short, and the first request to an upstream would wait for it too.
        tokio::task::spawn_blocking(trust::load_system_roots);
    }
    running.tasks.spawn(reload_at(hangup, running.reloader.clone()));
    running.tasks.spawn(service_manager::ping_watchdog());
    service_manager::report_ready(address).await;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    service_manager::report_stopping().await;
    tracing::info!("stopping: no new connections are accepted, and transfers in progress may end");
    tokio::select! {
        () = running.stop() => {}
        _ = interrupt.recv() => tracing::warn!("interrupted again; transfers in progress are cut off"),
    }
    Ok(())
}

impl Running {
    /// The address it listens on.
    pub fn addr(&self) -> SocketAddr {
        self.address
    }

    /// Stops cleanly: accepts no new connections, waits for transfers or cuts them off, and closes the store.
    pub async fn stop(self) {
        self.puller.abandon_orphans();
        self.stop.cancel();
        let _ = self.accepting.await;
        self.tasks.stop().await;
        drop(self.control);
        let (audit, flush) = (self.audit, self.audit_flush);
        let flushed = tokio::task::spawn_blocking(move || {
            audit.report();
            drop(flush);
        });
        // It only waits for the thread that writes the file.
        let _ = flushed.await;
        self.recovery.stop().await;
        self.store.close().await;
        tracing::info!("stopped");
    }
}

/// Reads the configuration again at each signal, one after the other. What becomes of that is logged. A task of its own, so that
/// a file that cannot be read to its end does not keep the server from stopping.
async fn reload_at(mut hangup: Signal, reloader: Arc<Reloader>) {
    while hangup.recv().await.is_some() {
        let reloader = reloader.clone();
        if tokio::task::spawn_blocking(move || reloader.reload(SIGNAL)).await.is_err() {
            tracing::error!("a reload panicked");
        }
    }
}

/// Opens the data folder, with metrics as an observer of its events.
async fn open_store(config: &Config, metrics: &Arc<Metrics>) -> Result<Store, StartError> {
    let observer = metrics.clone();
    let events = Events::new(vec![Box::new(move |event| observer.observe(event))]);
    let config = config.clone();
    let path = config.storage.path.clone();
    let folder = path.clone();
    let open = move || match config.storage.read_only {
        true => Store::open_read_only(&path, events),
        false => {
            let store = Store::open_with(&path, store_settings(&config, events))?;
            report_bounds(&store);
            warn_if_readable(&path);
            warn_of_registry_2(&path);
            Ok(store)
        }
    };
    let opened = tokio::task::spawn_blocking(open).await.map_err(|_| StartError::Task)?;
    let store = opened.map_err(|error| StartError::Store { path: folder, error })?;
    let gauges = store.downgrade();
    metrics.set_storage_source(move || {
        let store = gauges.upgrade()?;
        Some(StorageReading {
            cached_bytes: store.bytes(Class::Cached),
            pushed_bytes: store.bytes(Class::Pushed),
            index_ready: store.can_evict(),
            max_size: store.bounds().max_size,
            min_free: store.bounds().min_free,
            disk: store.disk().map(|disk| DiskReading { free_bytes: disk.free_bytes, free_inodes: disk.free_inodes }),
        })
    });
    Ok(store)
}

/// How the data folder of a configuration is opened. Blocks.
pub fn store_settings(config: &Config, events: Events) -> StoreSettings {
    let bounds = housekeeping::bounds(&config.cache, &config.storage.path);
    let uploads = housekeeping::upload_bounds(&config.push, bounds);
    StoreSettings { bounds, uploads, pins: housekeeping::pin_rule(&config.cache), events }
}

/// Logs the bounds in force, and warns if the disk has less free space than they require. Blocks.
fn report_bounds(store: &Store) {
    let Bounds { max_size, min_free } = store.bounds();
    let Some(disk) = store.disk() else {
        tracing::info!(max_size, min_free, "bounds of the cache; the file system does not report its size");
        return;
    };
    let DiskState { bytes, free_bytes, inodes, free_inodes } = disk;
    tracing::info!(max_size, min_free, bytes, free_bytes, inodes, free_inodes, "bounds of the cache, and its disk");
    if free_bytes < min_free {
        tracing::warn!(
            free_bytes,
            min_free,
            "the disk has less free space than cache.min_free: cached content is evicted, and until there is more, pulled \
             content is not stored and pushes are refused; free disk space or lower cache.min_free"
        );
    }
    if inodes > 0 && free_inodes < disk.kept_free_inodes() {
        let kept_free = disk.kept_free_inodes();
        tracing::warn!(
            free_inodes,
            kept_free,
            "the disk has too few free inodes: cached content is evicted, and until there are more, pulled content is not \
             stored and pushes are refused; remove files or use a file system with more inodes"
        );
    }
}

/// Warns if the folder has images of `registry:2`, which an operator expects to be served after a container got our image.
fn warn_of_registry_2(folder: &Path) {
    if folder.join(REGISTRY_2_REPOSITORIES).is_dir() {
        let path = folder.display();
        tracing::warn!(
            %path,
            "the data folder has images of registry:2 too, which are served only after an import: run `roadstead import PATH`, \
             then remove the folder docker in it"
        );
    }
}

/// Warns if other users of the machine can read the data folder. The mode is not changed, because a volume may need it.
fn warn_if_readable(folder: &Path) {
    let mode = std::fs::metadata(folder).map(|metadata| metadata.permissions().mode()).unwrap_or_default();
    if mode & OTHERS_MODE != 0 {
        let (path, mode) = (folder.display(), format!("{:o}", mode & 0o7777));
        tracing::warn!(
            %path, mode,
            "every user of this machine can look into the data folder, and into private images in it; run `chmod o= PATH`"
        );
    }
}

async fn certificates(files: Option<TlsConfig>) -> Result<Option<Certificates>, StartError> {
    let Some(files) = files else { return Ok(None) };
    let loaded = tokio::task::spawn_blocking(move || Certificates::load(&files)).await;
    Ok(Some(loaded.map_err(|_| StartError::Task)??))
}

/// Opens the audit log, and creates the metrics of logins.
async fn open_audit(config: &Config, metrics: &Arc<Metrics>) -> Result<(Audit, Option<FlushGuard>), StartError> {
    if config.auth.is_some() {
        let (kinds, results) = (How::ALL.map(How::as_str), AttemptResult::ALL.map(AttemptResult::as_str));
        metrics.expect_logins(&kinds, &results, &Right::ALL.map(Right::as_str));
    }
    let (config, metrics) = (config.clone(), metrics.clone());
    let opened = tokio::task::spawn_blocking(move || Audit::open(&config, &metrics)).await;
    Ok(opened.map_err(|_| StartError::Task)??)
}

/// Reads the files of `[auth]`. `None`: there are no users.
async fn login(config: &Config, store: &Store) -> Result<Option<Login>, StartError> {
    let Some(auth) = config.auth.clone() else { return Ok(None) };
    let store = store.clone();
    let load = move || {
        let secret = match auth.token_key_files.is_empty() {
            false => Vec::new(),
            true => store.token_secret().map_err(StartError::TokenSecret)?,
        };
        let machine_tokens = MachineTokens::load(Box::new(StoredTokens(store))).map_err(AuthFileError::from)?;
        Ok(Login::load(&auth, &secret, Arc::new(machine_tokens))?)
    };
    tokio::task::spawn_blocking(load).await.map_err(|_| StartError::Task)?.map(Some)
}

/// Raises the soft limit of open files to the hard limit, and returns it. The usual soft limit of 1024 is meant for programs
/// that use select(2).
fn raise_descriptor_limit() -> u64 {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::debug!(%error, "cannot raise the limit of open files");
    }
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}

/// Limits `server.max_connections` to what the file descriptors suffice for.
fn limit_connections(descriptors: u64, mut settings: ServerConfig) -> ServerConfig {
    let max = usize::try_from(descriptors / MAX_DESCRIPTORS_OF_TRANSFER).unwrap_or(usize::MAX).max(1);
    if settings.max_connections > max {
        tracing::warn!(
            max_connections = settings.max_connections,
            limited_to = max,
            open_files = descriptors,
            "server.max_connections exceeds what the limit of open files allows; raise the limit (ulimit -n)"
        );
        settings.max_connections = max;
    }
    settings
}

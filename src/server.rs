//! The program as one value: everything is built, wired, started and stopped here.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::access::Gate;
use crate::config::{Config, ServerConfig, TlsConfig};
use crate::control::{Control, ControlSocket};
use crate::events::Events;
use crate::evict;
use crate::http::serve::{Listeners, Server};
use crate::http::tls::{Certificates, TlsError};
use crate::http::{App, Site};
use crate::oci::UpstreamName;
use crate::pull::Puller;
use crate::store::{Class, OpenError, Store, StoreError, StoreSettings};
use crate::tasks::{Tasks, every};
use crate::telemetry::{Metrics, StorageReading};
use crate::upstream::{Upstream, UpstreamSetupError};

/// A push session that nobody has written to for this long is abandoned (distribution: the same by default is a week;
/// docker gives up within the hour).
const UPLOAD_AGE: Duration = Duration::from_secs(24 * 60 * 60);
const SYNC_INTERVAL: Duration = Duration::from_secs(30);
const INDEX_FLUSH: Duration = Duration::from_secs(5);
/// Between looks whether the disk has room for an index now: this, and as many times as long as a look took.
const INDEX_PAUSE: Duration = Duration::from_secs(1);
const INDEX_REST: u32 = 20;
/// Descriptors of one transfer at most: the client's socket, a file, the upstream's socket.
const OF_A_TRANSFER: u64 = 3;
/// How long a stop may go unnoticed.
const LOOK_AGAIN: Duration = Duration::from_millis(50);
const ROOM: Duration = Duration::from_secs(10);
const HOUSEKEEPING: Duration = Duration::from_secs(60 * 60);

/// Why a server does not start. One clear line each.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("cannot use the data folder {}: {error}", path.display())]
    Store { path: PathBuf, error: OpenError },
    #[error("cannot listen on {listen}: {error}")]
    Listen { listen: String, error: io::Error },
    #[error(transparent)]
    Upstream(#[from] UpstreamSetupError),
    #[error("cannot use the certificate of [server.tls]: {0}")]
    Tls(#[from] TlsError),
    #[error("cannot wait for signals: {0}")]
    Signals(io::Error),
    #[error("a task of the start panicked")]
    Task,
}

/// A running server. Dropped without [`Running::stop`], its tasks end with the runtime, and the stop was not clean.
pub struct Running {
    address: SocketAddr,
    stop: CancellationToken,
    accepting: tokio::task::JoinHandle<()>,
    puller: Puller,
    control: Option<ControlSocket>,
    store: Store,
    tasks: Tasks,
    stock: StockTaking,
}

/// Bringing the index into step with the files where that is needed, and the order of last use back, beside requests.
struct StockTaking {
    stop: Arc<AtomicBool>,
    walk: tokio::task::JoinHandle<()>,
}

/// Starts a server and returns when it listens.
pub async fn start(config: Config) -> Result<Running, StartError> {
    let descriptors = raise_descriptor_limit();
    // The port first: who starts a second server by mistake is told so before anything is touched.
    let listen_error = |error| StartError::Listen { listen: config.server.listen.to_string(), error };
    let listeners = Listeners::bind(&config.server.listen).map_err(listen_error)?;
    let address = listeners.local_addr().map_err(listen_error)?;
    let certificates = certificates(config.server.tls.clone()).await?;

    let names: Vec<&str> = config.upstreams.iter().map(|upstream| upstream.name.as_str()).collect();
    let metrics = Arc::new(Metrics::new(&names));
    metrics.storage_capacity(config.cache.max_size);
    let store = open_store(&config, &metrics).await?;
    let read_only = store.is_read_only();
    let via = format!("roadstead-{}", store.instance().simple());
    let tasks = Tasks::new();
    let mut upstreams: HashMap<UpstreamName, Arc<Upstream>> = HashMap::new();
    for settings in &config.upstreams {
        let upstream = Upstream::new(settings, &via, metrics.clone(), tasks.clone())?;
        upstreams.insert(upstream.name().clone(), Arc::new(upstream));
    }

    let puller = Puller::new(store.clone(), upstreams, config.cache.clone(), metrics.clone(), tasks.clone());
    let stock = take_stock(&store, &metrics);
    if !read_only {
        keep_house(&store, &metrics, &tasks);
        evict::start(&store, &config, &metrics, &tasks);
    }
    let operator = Control {
        store: store.clone(),
        config: Arc::new(config.clone()),
        metrics: metrics.clone(),
        puller: puller.clone(),
        since: Instant::now(),
        tasks: tasks.clone(),
    };
    // A socket would be written, and the next one who reads the folder would take it away.
    let control = match read_only {
        true => None,
        false => ControlSocket::listen(&config.storage.path, Arc::new(operator)),
    };
    let app = App {
        store: store.clone(),
        puller: puller.clone(),
        gate: Gate::new(&config),
        metrics,
        via,
        progress_timeout: config.server.progress_timeout,
    };
    let stop = CancellationToken::new();
    if let Some(certificates) = &certificates {
        tasks.spawn(certificates.clone().follow());
    }
    let settings = within(descriptors, config.server.clone());
    let server = Server::new(settings, Site::new(Arc::new(app)), certificates, tasks.clone());
    let accepting = tokio::spawn(server.run(listeners, stop.clone().cancelled_owned()));
    Ok(Running { address, stop, accepting, puller, control, store, tasks, stock })
}

/// Runs a server until SIGTERM or SIGINT, and stops it.
pub async fn run(config: Config) -> Result<(), StartError> {
    let mut terminate = signal(SignalKind::terminate()).map_err(StartError::Signals)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(StartError::Signals)?;
    for warning in config.warnings() {
        tracing::warn!("{warning}");
    }
    let (data, upstreams) = (config.storage.path.display().to_string(), config.upstreams.len());
    let default = config.default_upstream.clone().unwrap_or_else(|| "none".to_owned());
    let scheme = if config.server.tls.is_some() { "https" } else { "http" };
    let running = start(config).await?;
    let address = running.addr();
    tracing::info!(%address, scheme, data, upstreams, default, "listening on {address}");
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    tracing::info!("stopping: no new connections, running transfers may end");
    tokio::select! {
        () = running.stop() => {}
        _ = interrupt.recv() => tracing::warn!("interrupted again: not waiting"),
    }
    Ok(())
}

impl Running {
    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.address
    }

    /// Stops cleanly: no new connections, running transfers end or are cut, the index is closed.
    pub async fn stop(self) {
        self.puller.abandon_orphans();
        self.stop.cancel();
        let _ = self.accepting.await;
        self.tasks.stop().await;
        drop(self.control);
        self.stock.stop.store(true, Ordering::Relaxed);
        let _ = self.stock.walk.await;
        self.store.close().await;
        tracing::info!("stopped");
    }
}

/// Opens the data folder, with metrics as an observer of its events.
async fn open_store(config: &Config, metrics: &Arc<Metrics>) -> Result<Store, StartError> {
    let observer = metrics.clone();
    let events = Events::new(vec![Box::new(move |event| observer.observe(event))]);
    let (path, read_only) = (config.storage.path.clone(), config.storage.read_only);
    let settings = StoreSettings { bounds: evict::bounds(&config.cache), pins: evict::pin_rule(&config.cache), events };
    let open = move || match read_only {
        true => Store::open_read_only(&path, settings.events),
        false => Store::open_with(&path, settings),
    };
    let opened = tokio::task::spawn_blocking(open).await.map_err(|_| StartError::Task)?;
    let store = opened.map_err(|error| StartError::Store { path: config.storage.path.clone(), error })?;
    let gauges = store.downgrade();
    metrics.set_storage_source(move || {
        let store = gauges.upgrade()?;
        Some(StorageReading {
            cached_bytes: store.bytes(Class::Cached),
            pushed_bytes: store.bytes(Class::Pushed),
            index_ready: store.can_evict(),
        })
    });
    Ok(store)
}

async fn certificates(files: Option<TlsConfig>) -> Result<Option<Certificates>, StartError> {
    let Some(files) = files else { return Ok(None) };
    let loaded = tokio::task::spawn_blocking(move || Certificates::load(&files)).await;
    Ok(Some(loaded.map_err(|_| StartError::Task)??))
}

fn take_stock(store: &Store, metrics: &Metrics) -> StockTaking {
    if let Some(reason) = store.index_corruption() {
        metrics.index_rebuilt();
        tracing::warn!(reason, "the index was corrupt and is set aside; it is rebuilt from the files");
    }
    let stop = Arc::new(AtomicBool::new(false));
    let walk = tokio::task::spawn_blocking({
        let (store, stop) = (store.clone(), stop.clone());
        move || {
            if store.is_read_only() {
                return;
            }
            while store.needs_reconcile() {
                let begun = Instant::now();
                store.reconcile(&stop);
                if !store.lacks_index() || !rest((begun.elapsed() * INDEX_REST).max(INDEX_PAUSE), &stop) {
                    break;
                }
            }
            // What is not in step with the files is not to be evicted from.
            if !store.needs_reconcile() {
                store.restore_recency();
            }
        }
    });
    StockTaking { stop, walk }
}

/// Waits in a blocking thread; false if it is to end.
fn rest(time: Duration, stop: &AtomicBool) -> bool {
    let end = Instant::now() + time;
    while Instant::now() < end && !stop.load(Ordering::Relaxed) {
        std::thread::sleep(LOOK_AGAIN);
    }
    !stop.load(Ordering::Relaxed)
}

fn keep_house(store: &Store, metrics: &Arc<Metrics>, tasks: &Tasks) {
    let [uploads, index, settling] = [store.clone(), store.clone(), store.clone()];
    tasks.spawn(async move { every(HOUSEKEEPING, "remove abandoned uploads", || expire_uploads(&uploads)).await });
    tasks.spawn(async move { every(INDEX_FLUSH, "flush the index", || index.flush_index()).await });
    let metrics = metrics.clone();
    tasks.spawn(async move {
        every(ROOM, "see whether there is room again", || async {
            if metrics.has_room_again() {
                tracing::info!("room again: for five minutes everything that was pulled has been kept");
            }
            Ok::<_, StoreError>(())
        })
        .await;
    });
    tasks.spawn(async move { every(SYNC_INTERVAL, "sync cached content", || settling.sync_committed()).await });
}

async fn expire_uploads(store: &Store) -> Result<(), StoreError> {
    let expired = store.expire_uploads(UPLOAD_AGE).await?;
    if expired > 0 {
        tracing::info!(expired, "removed {expired} abandoned uploads");
    }
    Ok(())
}

/// Files and sockets that may be open at once, as many as the system allows: the soft limit of 1024 is for programs that
/// use select.
fn raise_descriptor_limit() -> u64 {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::debug!(%error, "cannot raise the limit of open files");
    }
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}

/// The settings of the server with no more connections than descriptors allow: what would be missing for the files that
/// they ask for waits to be accepted.
fn within(descriptors: u64, mut settings: ServerConfig) -> ServerConfig {
    let most = usize::try_from(descriptors / OF_A_TRANSFER).unwrap_or(usize::MAX).max(1);
    if settings.max_connections > most {
        tracing::warn!(
            "server.max_connections is {}, but {descriptors} open files are enough for {most} only: more wait",
            settings.max_connections
        );
        settings.max_connections = most;
    }
    settings
}

//! The protocol of the service manager, such as systemd: sockets that it opened, readiness, and the watchdog. Without one,
//! nothing here does anything.
//!
//! See sd_listen_fds(3) and sd_notify(3).

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use listenfd::ListenFd;
use sd_notify::NotifyState;
use tokio::time::{MissedTickBehavior, interval, timeout};

/// Pings within one watchdog timeout, so that a late one does not end the server.
const PINGS_PER_TIMEOUT: u32 = 3;
/// Least time between pings, whatever the watchdog timeout.
const MIN_PING_INTERVAL: Duration = Duration::from_millis(50);
/// How long one notification may take.
const SEND_TIMEOUT: Duration = Duration::from_secs(1);
/// Whether the service manager did not read a notification in time.
static IS_STUCK: AtomicBool = AtomicBool::new(false);

/// The listening sockets that the service manager opened for this process. Empty if it opened none. Call it once, because
/// the sockets are taken.
///
/// # Errors
/// If one of them is not a listening TCP socket.
pub fn sockets() -> io::Result<Vec<TcpListener>> {
    let mut inherited = ListenFd::from_env();
    let mut sockets = Vec::with_capacity(inherited.len());
    for index in 0..inherited.len() {
        sockets.extend(inherited.take_tcp_listener(index)?);
    }
    Ok(sockets)
}

/// Says that the server accepts connections at `address`.
pub async fn report_ready(address: SocketAddr) {
    let status = format!("listening on {address}");
    notify(vec![Message::Ready, Message::Status(status)]).await;
}

/// Says that the server stops.
pub async fn report_stopping() {
    notify(vec![Message::Stopping]).await;
}

/// Pings the watchdog for as long as the runtime runs tasks. Returns at once if the service manager set no timeout.
pub async fn ping_watchdog() {
    let Some(watchdog) = sd_notify::watchdog_enabled().filter(|watchdog| !watchdog.is_zero()) else { return };
    let mut pings = interval((watchdog / PINGS_PER_TIMEOUT).max(MIN_PING_INTERVAL));
    pings.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        pings.tick().await;
        notify(vec![Message::Watchdog]).await;
    }
}

/// What is sent, with owned text.
enum Message {
    Ready,
    Stopping,
    Watchdog,
    Status(String),
}

/// Sends on a thread for blocking work, because the service manager may be slow to read. If it does not read, nothing more is
/// sent: the server must not wait for it.
async fn notify(messages: Vec<Message>) {
    if IS_STUCK.load(Ordering::Relaxed) {
        return;
    }
    let send = move || {
        let states: Vec<_> = messages.iter().map(Message::state).collect();
        sd_notify::notify(&states)
    };
    match timeout(SEND_TIMEOUT, tokio::task::spawn_blocking(send)).await {
        Ok(Ok(Err(error))) => tracing::warn!(%error, "cannot notify the service manager; check NOTIFY_SOCKET"),
        Ok(_) => {}
        Err(_) => {
            IS_STUCK.store(true, Ordering::Relaxed);
            tracing::warn!("the service manager does not read its socket; it is not notified any more");
        }
    }
}

// === impl Message ===

impl Message {
    fn state(&self) -> NotifyState<'_> {
        match self {
            Self::Ready => NotifyState::Ready,
            Self::Stopping => NotifyState::Stopping,
            Self::Watchdog => NotifyState::Watchdog,
            Self::Status(text) => NotifyState::Status(text),
        }
    }
}

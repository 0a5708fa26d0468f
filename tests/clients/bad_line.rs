//! Real clients pull through Roadstead from a real registry, over a connection that cuts, stalls and delays.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{JoinHandle, sleep, spawn};
use std::time::Duration;

use super::busybox;
use super::containerd::Containerd;
use super::docker::Docker;
use super::program::MachineLock;
use super::registry::Registry;
use crate::support::Image;
use crate::support::process::ServerProcess;
use crate::support::settings::Settings;

const MIB: usize = 1 << 20;
const LAYERS: [usize; 3] = [7 * MIB, 5 * MIB, 3 * MIB];
/// Bytes of responses that a connection passes before it fails.
const BYTES_BEFORE_FAILURE: usize = MIB + MIB / 2;
const DELAY: Duration = Duration::from_millis(300);
/// How long a stalled connection stays open: longer than the `idle_timeout` of Roadstead.
const STALL: Duration = Duration::from_secs(5);

/// A proxy with its own threads, as the tests block theirs while a client runs.
struct FaultyProxy {
    port: u16,
    state: Arc<ProxyState>,
    accepting: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct ProxyState {
    closed: AtomicBool,
    connections: AtomicUsize,
    cuts: AtomicUsize,
    stops: AtomicUsize,
    delays: AtomicUsize,
}

impl FaultyProxy {
    fn to(target: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a loopback port is free");
        let port = listener.local_addr().expect("a bound listener has an address").port();
        let state = Arc::new(ProxyState::default());
        let accepting = spawn({
            let state = state.clone();
            move || {
                for client in listener.incoming() {
                    if state.closed.load(Ordering::Relaxed) {
                        return;
                    }
                    let (state, registry) = (state.clone(), TcpStream::connect(("127.0.0.1", target)));
                    if let (Ok(client), Ok(registry)) = (client, registry) {
                        spawn(move || state.connect(client, registry));
                    }
                }
            }
        });
        Self { port, state, accepting: Some(accepting) }
    }

    fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    fn failures(&self) -> [usize; 3] {
        let ProxyState { cuts, stops, delays, .. } = &*self.state;
        [cuts, stops, delays].map(|count| count.load(Ordering::Relaxed))
    }
}

impl Drop for FaultyProxy {
    fn drop(&mut self) {
        self.state.closed.store(true, Ordering::Relaxed);
        // The next connection ends the loop.
        drop(TcpStream::connect(("127.0.0.1", self.port)));
        if let Some(accepting) = self.accepting.take() {
            drop(accepting.join());
        }
    }
}

impl ProxyState {
    fn connect(&self, mut client: TcpStream, mut registry: TcpStream) {
        let number = self.connections.fetch_add(1, Ordering::Relaxed);
        let copies = (client.try_clone(), registry.try_clone());
        let asking = spawn(move || {
            if let (Ok(mut client), Ok(mut registry)) = copies {
                drop(std::io::copy(&mut client, &mut registry));
                drop(registry.shutdown(Shutdown::Both));
            }
        });
        self.answer(number, &mut registry, &mut client);
        for stream in [&client, &registry] {
            drop(stream.shutdown(Shutdown::Both));
        }
        drop(asking.join());
    }

    /// Forwards responses until the connection fails: one third are cut, one third stall, one third are slow and then cut.
    fn answer(&self, number: usize, registry: &mut TcpStream, client: &mut TcpStream) {
        let (mut buffer, mut passed) = (vec![0; 64 << 10], 0);
        loop {
            let Ok(n @ 1..) = registry.read(&mut buffer) else { return };
            passed += n;
            if passed > BYTES_BEFORE_FAILURE {
                match number % 3 {
                    0 => self.cuts.fetch_add(1, Ordering::Relaxed),
                    1 => {
                        self.stops.fetch_add(1, Ordering::Relaxed);
                        sleep(STALL);
                        0
                    }
                    _ if passed - n <= BYTES_BEFORE_FAILURE => {
                        self.delays.fetch_add(1, Ordering::Relaxed);
                        sleep(DELAY);
                        0
                    }
                    _ => 0,
                };
                if number % 3 < 2 || passed > 2 * BYTES_BEFORE_FAILURE {
                    return;
                }
            }
            if client.write_all(&buffer[..n]).is_err() {
                return;
            }
        }
    }
}

/// Roadstead, and a registry with an image at the other end of the proxy.
async fn scene() -> (Registry, FaultyProxy, ServerProcess, Image) {
    let hub = Registry::start();
    let image = busybox::image_with_ballast("pulled over a faulty connection", &LAYERS);
    hub.push("library/heavy", "latest", &image).await;
    let proxy = FaultyProxy::to(hub.port());
    let settings = Settings::new().upstream_url("docker.io", &proxy.url()).default_upstream("docker.io");
    let roadstead = ServerProcess::start(settings.config("[upstream.\"docker.io\"]\nidle_timeout = \"1s\""));
    (hub, proxy, roadstead, image)
}

async fn assert_failures_were_hidden(proxy: &FaultyProxy, roadstead: &ServerProcess, image: &Image) {
    let [cuts, stops, delays] = proxy.failures();
    assert!(cuts > 0 && stops > 0 && delays > 0, "{cuts} cuts, {stops} stalls, {delays} delays");
    let resumes = roadstead.metric("roadstead_fill_resumes_total", &[]).await;
    assert!(resumes >= (cuts + stops) as f64, "{resumes} resumes for {cuts} cuts and {stops} stalls");
    assert_eq!(roadstead.metric("roadstead_digest_mismatches_total", &[]).await, 0.0);
    // The client made one request for each blob, and each was one miss.
    let blobs = image.blobs().count() as f64;
    for counter in ["registry_proxy_requests_total", "registry_proxy_misses_total"] {
        assert_eq!(roadstead.metric(counter, &[("type", "blob")]).await, blobs, "{counter}");
    }
    assert_eq!(roadstead.metric("roadstead_fills_in_flight", &[]).await, 0.0);
}

#[tokio::test]
async fn docker_pulls_over_a_faulty_connection() {
    let (_hub, proxy, roadstead, image) = scene().await;
    let docker = Docker::start(&roadstead);
    docker.run(&["pull", "--quiet", "heavy"]);
    assert_eq!(docker.run(&["inspect", "--format", "{{.Id}}", "heavy"]), image.config.digest);
    assert_eq!(docker.greeting_in("heavy"), "pulled over a faulty connection");
    assert_failures_were_hidden(&proxy, &roadstead, &image).await;
}

#[tokio::test]
async fn containerd_pulls_over_a_faulty_connection() {
    let (_hub, proxy, roadstead, image) = scene().await;
    let _lock = MachineLock::take("daemon");
    let containerd = Containerd::start();
    let hosts = containerd.mirror_everything(&roadstead);
    containerd.pull(&hosts, "docker.io/library/heavy:latest");
    assert_eq!(containerd.digest_of("docker.io/library/heavy:latest"), image.digest());
    assert_eq!(containerd.greeting_in("docker.io/library/heavy:latest"), "pulled over a faulty connection");
    assert_failures_were_hidden(&proxy, &roadstead, &image).await;
}

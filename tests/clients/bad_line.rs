//! A real registry behind a line that cuts, stops and delays, and real clients that pull through Roadstead meanwhile.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{JoinHandle, sleep, spawn};
use std::time::Duration;

use super::busybox;
use super::containerd::Containerd;
use super::docker::Docker;
use super::program::Turn;
use super::registry::Registry;
use crate::support::Image;
use crate::support::process::ServerProcess;
use crate::support::settings::Settings;

const MIB: usize = 1 << 20;
const LAYERS: [usize; 3] = [7 * MIB, 5 * MIB, 3 * MIB];
/// A connection is good for so many bytes of answers.
const GOOD_FOR: usize = MIB + MIB / 2;
const DELAY: Duration = Duration::from_millis(300);
/// How long a stopped connection stays open; longer than Roadstead waits.
const STOP: Duration = Duration::from_secs(5);

/// A proxy in threads of its own, for the tests block theirs while a client runs.
struct BadLine {
    port: u16,
    line: Arc<Line>,
    accepting: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Line {
    closed: AtomicBool,
    connections: AtomicUsize,
    cuts: AtomicUsize,
    stops: AtomicUsize,
    delays: AtomicUsize,
}

impl BadLine {
    fn to(target: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a loopback port is free");
        let port = listener.local_addr().expect("a bound listener has an address").port();
        let line = Arc::new(Line::default());
        let accepting = spawn({
            let line = line.clone();
            move || {
                for client in listener.incoming() {
                    if line.closed.load(Ordering::Relaxed) {
                        return;
                    }
                    let (line, registry) = (line.clone(), TcpStream::connect(("127.0.0.1", target)));
                    if let (Ok(client), Ok(registry)) = (client, registry) {
                        spawn(move || line.connect(client, registry));
                    }
                }
            }
        });
        Self { port, line, accepting: Some(accepting) }
    }

    fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    fn trouble(&self) -> [usize; 3] {
        let Line { cuts, stops, delays, .. } = &*self.line;
        [cuts, stops, delays].map(|count| count.load(Ordering::Relaxed))
    }
}

impl Drop for BadLine {
    fn drop(&mut self) {
        self.line.closed.store(true, Ordering::Relaxed);
        // The next connection ends the loop.
        drop(TcpStream::connect(("127.0.0.1", self.port)));
        if let Some(accepting) = self.accepting.take() {
            drop(accepting.join());
        }
    }
}

impl Line {
    fn connect(&self, mut client: TcpStream, mut registry: TcpStream) {
        let number = self.connections.fetch_add(1, Ordering::Relaxed);
        let there = (client.try_clone(), registry.try_clone());
        let asking = spawn(move || {
            if let (Ok(mut client), Ok(mut registry)) = there {
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

    /// Passes answers on until the connection's trouble comes: each third one is cut, stops, or is slow and then cut.
    fn answer(&self, number: usize, registry: &mut TcpStream, client: &mut TcpStream) {
        let (mut buffer, mut passed) = (vec![0; 64 << 10], 0);
        loop {
            let Ok(n @ 1..) = registry.read(&mut buffer) else { return };
            passed += n;
            if passed > GOOD_FOR {
                match number % 3 {
                    0 => self.cuts.fetch_add(1, Ordering::Relaxed),
                    1 => {
                        self.stops.fetch_add(1, Ordering::Relaxed);
                        sleep(STOP);
                        0
                    }
                    _ if passed - n <= GOOD_FOR => {
                        self.delays.fetch_add(1, Ordering::Relaxed);
                        sleep(DELAY);
                        0
                    }
                    _ => 0,
                };
                if number % 3 < 2 || passed > 2 * GOOD_FOR {
                    return;
                }
            }
            if client.write_all(&buffer[..n]).is_err() {
                return;
            }
        }
    }
}

/// Roadstead behind the line, and the image at its other end.
async fn scene() -> (Registry, BadLine, ServerProcess, Image) {
    let hub = Registry::start();
    let image = busybox::image_with_ballast("came over a bad line", &LAYERS);
    hub.push("library/heavy", "latest", &image).await;
    let line = BadLine::to(hub.port());
    let settings = Settings::new().upstream_url("docker.io", &line.url()).default_upstream("docker.io");
    let roadstead = ServerProcess::start(settings.config("[upstream.\"docker.io\"]\nidle_timeout = \"1s\""));
    (hub, line, roadstead, image)
}

async fn assert_it_was_bad(line: &BadLine, roadstead: &ServerProcess, image: &Image) {
    let [cuts, stops, delays] = line.trouble();
    assert!(cuts > 0 && stops > 0 && delays > 0, "{cuts} cuts, {stops} stops, {delays} delays");
    let resumes = roadstead.metric("roadstead_fill_resumes_total", &[]).await;
    assert!(resumes >= (cuts + stops) as f64, "{resumes} resumes for {cuts} cuts and {stops} stops");
    assert_eq!(roadstead.metric("roadstead_digest_mismatches_total", &[]).await, 0.0);
    // No client noticed: each blob was asked for once, and missed once.
    let blobs = image.blobs().count() as f64;
    for counter in ["registry_proxy_requests_total", "registry_proxy_misses_total"] {
        assert_eq!(roadstead.metric(counter, &[("type", "blob")]).await, blobs, "{counter}");
    }
    assert_eq!(roadstead.metric("roadstead_fills_in_flight", &[]).await, 0.0);
}

#[tokio::test]
async fn docker_pulls_over_a_bad_line_and_does_not_notice() {
    let (_hub, line, roadstead, image) = scene().await;
    let docker = Docker::start(&roadstead);
    docker.run(&["pull", "--quiet", "heavy"]);
    assert_eq!(docker.run(&["inspect", "--format", "{{.Id}}", "heavy"]), image.config.digest);
    assert_eq!(docker.greeting_in("heavy"), "came over a bad line");
    assert_it_was_bad(&line, &roadstead, &image).await;
}

#[tokio::test]
async fn containerd_pulls_over_a_bad_line_and_does_not_notice() {
    let (_hub, line, roadstead, image) = scene().await;
    let _turn = Turn::take("daemon");
    let containerd = Containerd::start();
    let hosts = containerd.mirror_everything(&roadstead);
    containerd.pull(&hosts, "docker.io/library/heavy:latest");
    assert_eq!(containerd.digest_of("docker.io/library/heavy:latest"), image.digest());
    assert_eq!(containerd.greeting_in("docker.io/library/heavy:latest"), "came over a bad line");
    assert_it_was_bad(&line, &roadstead, &image).await;
}

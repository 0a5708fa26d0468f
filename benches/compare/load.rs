//! Clients that send the next request after each response: wrk, and clients for what wrk cannot do.

use std::net::SocketAddr;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::runtime::Builder;
use tokio::task::JoinSet;

use super::programs;

const LOAD: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/compare/load.lua");
const RANGES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/compare/ranges.lua");

/// The measurements of the clients.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    pub requests: f64,
    pub bytes: f64,
    pub seconds: f64,
    /// Percentiles of the response time in milliseconds; `None` if no response was complete.
    pub p50: Option<f64>,
    pub p99: Option<f64>,
}

impl Load {
    /// The load of responses with these times.
    pub fn of(times: Vec<Duration>, bytes: f64, elapsed: Duration) -> Self {
        let (p50, p99) = (percentile(&times, 0.5), percentile(&times, 0.99));
        Self { requests: times.len() as f64, bytes, seconds: elapsed.as_secs_f64(), p50, p99 }
    }
}

pub fn percentile(times: &[Duration], part: f64) -> Option<f64> {
    let mut sorted = times.to_vec();
    sorted.sort_unstable();
    let at = (sorted.len() as f64 * part) as usize;
    sorted.get(at.min(sorted.len().saturating_sub(1))).map(|time| time.as_secs_f64() * 1e3)
}

pub struct Wrk {
    pub connections: usize,
    pub seconds: u64,
    pub headers: Vec<String>,
    /// Ranges of this many bytes, at random offsets of a blob of this size.
    pub ranges: Option<(usize, usize)>,
    /// `http` or `https`. wrk verifies no certificates.
    pub scheme: &'static str,
}

impl Wrk {
    /// Repeats plain requests.
    pub fn new(connections: usize, seconds: u64) -> Self {
        Self { connections, seconds, headers: Vec::new(), ranges: None, scheme: "http" }
    }

    pub fn run(&self, address: SocketAddr, path: &str) -> Load {
        let threads = self.connections.min(2).to_string();
        let (connections, seconds) = (self.connections.to_string(), format!("{}s", self.seconds));
        let script = if self.ranges.is_some() { RANGES } else { LOAD };
        let mut wrk = Command::new(programs::path("wrk"));
        wrk.args(["-t", &threads, "-c", &connections, "-d", &seconds, "--timeout", "20s", "-s", script]);
        wrk.args(self.headers.iter().flat_map(|header| ["-H", header]));
        wrk.arg(format!("{}://{address}{path}", self.scheme));
        if let Some((range, total)) = self.ranges {
            wrk.args(["--", &range.to_string(), &total.to_string()]);
        }
        let output = wrk.output().expect("wrk can be started");
        let text = String::from_utf8_lossy(&output.stdout);
        let line = text.lines().find_map(|line| line.strip_prefix("measured "));
        let line = line.unwrap_or_else(|| panic!("wrk: {text}{}", String::from_utf8_lossy(&output.stderr)));
        let numbers: Vec<f64> = line.split(' ').map(|number| number.parse().expect("a number")).collect();
        let [requests, bytes, duration, bad, p50, p99] = numbers[..] else { panic!("wrk: {line}") };
        assert!(bad == 0.0, "{address}{path}: {bad} of {requests} responses were wrong");
        let of_answers = |time: f64| (requests > 0.0).then_some(time / 1e3);
        Load { requests, bytes, seconds: duration / 1e6, p50: of_answers(p50), p99: of_answers(p99) }
    }
}

/// HEAD requests. wrk cannot send them, as it waits for a body.
pub fn heads(address: SocketAddr, request: &str, connections: usize, seconds: u64) -> Load {
    let begun = Instant::now();
    let threads = connections.min(2);
    let times = thread::scope(|scope| {
        let thread = |n| {
            // The first thread takes the remainder.
            let share = connections / threads + if n == 0 { connections % threads } else { 0 };
            let until = begun + Duration::from_secs(seconds);
            move || run_connections(address, request.to_owned(), share, until)
        };
        let threads: Vec<_> = (0..threads).map(|n| scope.spawn(thread(n))).collect();
        threads.into_iter().flat_map(|thread| thread.join().expect("a client ends")).collect()
    });
    Load::of(times, 0.0, begun.elapsed())
}

/// The time of each response, over this many connections in one thread.
fn run_connections(address: SocketAddr, request: String, connections: usize, until: Instant) -> Vec<Duration> {
    let runtime = Builder::new_current_thread().enable_io().build().expect("a runtime");
    runtime.block_on(async {
        let mut clients = JoinSet::new();
        for _ in 0..connections {
            clients.spawn(run_connection(address, request.clone(), until));
        }
        clients.join_all().await.into_iter().flatten().collect()
    })
}

async fn run_connection(address: SocketAddr, request: String, until: Instant) -> Vec<Duration> {
    let mut stream = TcpStream::connect(address).await.expect("the server listens");
    stream.set_nodelay(true).expect("an option of every socket");
    let (mut times, mut buffer) = (Vec::new(), [0; 4096]);
    let mut sent = Instant::now();
    while sent < until {
        stream.write_all(request.as_bytes()).await.expect("the server reads");
        let mut filled = 0;
        while !buffer[..filled].ends_with(b"\r\n\r\n") {
            let read = stream.read(&mut buffer[filled..]).await.expect("response headers arrive");
            assert!(read > 0, "incomplete headers: {:?}", String::from_utf8_lossy(&buffer[..filled]));
            filled += read;
        }
        assert!(buffer.starts_with(b"HTTP/1.1 200"), "{:?}", String::from_utf8_lossy(&buffer[..filled]));
        let now = Instant::now();
        times.push(now - sent);
        sent = now;
    }
    times
}

//! The setup of every figure: an upstream, a Roadstead that mirrors it, and the statistics of its process.

use std::net::SocketAddr;
use std::path::Path;
use std::thread;
use std::time::Duration;

use tokio::runtime::{Builder, Runtime};

use super::client::Conn;
use super::process;
use super::tests::process::ServerProcess;
use super::tests::settings::Settings;
use super::tests::{Image, Upstream};

pub const REPOSITORY: &str = "library/figures";
pub const MIB: usize = 1 << 20;

/// The upstream counts a frame shortly after a client may have read it.
const COUNTING_DELAY: Duration = Duration::from_millis(50);

pub struct Stage {
    pub server: ServerProcess,
    pub upstream: Upstream,
    runtime: Runtime,
}

/// An image of one layer. Its manifest is cached, so the layer is readable, and cold.
pub struct Prepared {
    pub image: Image,
    pub tag: String,
    pub layer: String,
}

impl Stage {
    /// Starts both, with `config` added to the default configuration.
    pub fn new(config: &str) -> Self {
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
        let upstream = runtime.block_on(Upstream::start());
        let settings = Settings::new().upstream("docker.io", &upstream).default_upstream("docker.io").config(config);
        // In the build folder, as /tmp may be in memory.
        let server = ServerProcess::start_in(Path::new(env!("CARGO_TARGET_TMPDIR")), settings);
        Self { server, upstream, runtime }
    }

    pub fn prepare(&self, seed: u64, bytes: usize) -> Prepared {
        let image = Image::new(seed, &[bytes]);
        self.upstream.add_image(REPOSITORY, &format!("{bytes}-{seed}"), &image);
        let tag = format!("/v2/{REPOSITORY}/manifests/{bytes}-{seed}");
        assert!(self.connect().get(&tag, &image.manifest.bytes).correct, "the manifest is served");
        let layer = format!("/v2/{REPOSITORY}/blobs/{}", image.layers[0].digest);
        Prepared { image, tag, layer }
    }

    /// Resets the counts of the upstream.
    pub fn forget(&self) {
        thread::sleep(COUNTING_DELAY);
        self.upstream.forget();
    }

    /// The number of upstream requests for this path, and the MiB sent, since the last reset.
    pub fn fetched(&self, path: &str) -> (f64, f64) {
        thread::sleep(COUNTING_DELAY);
        (self.upstream.count("GET", path) as f64, self.upstream.bytes_sent() as f64 / MIB as f64)
    }

    pub fn connect(&self) -> Conn {
        Conn::open(self.address())
    }

    pub fn address(&self) -> SocketAddr {
        ([127, 0, 0, 1], self.server.port()).into()
    }

    pub fn metric(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        self.runtime.block_on(self.server.metric(name, labels))
    }

    /// In MiB; see [`process::memory`].
    pub fn memory(&self, field: &str) -> f64 {
        process::memory(&self.pids(), field)
    }

    /// User and system time of the server so far, in seconds.
    pub fn cpu(&self) -> f64 {
        process::cpu(&self.pids())
    }

    pub fn pids(&self) -> [u32; 1] {
        [self.server.pid().expect("the server is running")]
    }
}

impl Prepared {
    pub fn bytes(&self) -> &[u8] {
        &self.image.layers[0].bytes
    }
}

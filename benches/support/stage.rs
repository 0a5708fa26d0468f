//! What every figure is measured on: an upstream, a Roadstead that mirrors it, and what the kernel says of its process.

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

/// The upstream counts a frame just after a client may have read it.
const COUNTED: Duration = Duration::from_millis(50);

pub struct Stage {
    pub server: ServerProcess,
    pub upstream: Upstream,
    runtime: Runtime,
}

/// An image of one layer. The server has its manifest, so the layer can be asked for, and is cold.
pub struct Prepared {
    pub image: Image,
    pub tag: String,
    pub layer: String,
}

impl Stage {
    /// With this beside the default configuration.
    pub fn new(config: &str) -> Self {
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
        let upstream = runtime.block_on(Upstream::start());
        let settings = Settings::new().upstream("docker.io", &upstream).default_upstream("docker.io").config(config);
        // Beside the build, not in /tmp: that may be memory.
        let server = ServerProcess::start_in(Path::new(env!("CARGO_TARGET_TMPDIR")), settings);
        Self { server, upstream, runtime }
    }

    pub fn prepare(&self, seed: u64, bytes: usize) -> Prepared {
        let image = Image::new(seed, &[bytes]);
        self.upstream.add_image(REPOSITORY, &format!("{bytes}-{seed}"), &image);
        let tag = format!("/v2/{REPOSITORY}/manifests/{bytes}-{seed}");
        assert!(self.connect().get(&tag, &image.manifest.bytes).right, "the manifest is served");
        let layer = format!("/v2/{REPOSITORY}/blobs/{}", image.layers[0].digest);
        Prepared { image, tag, layer }
    }

    /// From here on the upstream counts from zero.
    pub fn forget(&self) {
        thread::sleep(COUNTED);
        self.upstream.forget();
    }

    /// How often the upstream was asked for it, and how many MiB it sent, since it was made to forget.
    pub fn fetched(&self, path: &str) -> (f64, f64) {
        thread::sleep(COUNTED);
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
        [self.server.pid().expect("the server runs")]
    }
}

impl Prepared {
    pub fn bytes(&self) -> &[u8] {
        &self.image.layers[0].bytes
    }
}

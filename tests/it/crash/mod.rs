//! Kills the program at random moments while clients push, delete and pull. Every acknowledged change must survive.
//!
//! `CRASH_ROUNDS` sets the number of kills. `CRASH_SEED` repeats a run, as far as the timing of the machine allows.

mod clients;
mod full;
mod ledger;
mod stock;

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use fastrand::Rng;
use tokio::task::JoinSet;

use crate::disk::files_below;
use crate::scene::until;
use crate::support::process::ServerProcess;
use crate::support::settings::Settings;
use crate::support::{Client, Upstream, digest_of};
use clients::RandomClient;
use stock::Stock;

const MAX_SIZE_BYTES: u64 = 1 << 20;
const NAME_BYTES: u64 = 4 << 10;
const PUSHERS: u8 = 3;
const PULLERS: u8 = 2;
/// Deleted content is collected at once; an upload without a manifest stays.
const CONFIG: &str = "[local]\nnamespaces = [\"team/**\"]\n[cache]\nmax_size = \"1MiB\"\nmin_free = \"0B\"\n\
    [push]\nmax_unfinished_size = \"1GiB\"\n[gc]\ninterval = \"20ms\"\nafter_start = \"0s\"\ngrace = \"0s\"";

fn number(variable: &str, or: u64) -> u64 {
    std::env::var(variable).map_or(or, |value| value.parse().unwrap_or_else(|_| panic!("{variable} is no number")))
}

struct Scene {
    process: ServerProcess,
    client: RandomClient,
    rng: Rng,
    /// Evicted files that the server reported before its kills.
    evicted: f64,
    _upstream: Upstream,
}

impl Scene {
    async fn start(mut rng: Rng) -> Self {
        let upstream = Upstream::start().await;
        let stock = Arc::new(Stock::new(&upstream, &mut rng));
        let settings = Settings::new().upstream("docker.io", &upstream).default_upstream("docker.io").config(CONFIG);
        let process = ServerProcess::start(settings);
        let client = RandomClient {
            base: process.url(""),
            client: Client::new(),
            stock,
            ledger: Arc::default(),
            ending: Arc::default(),
        };
        Self { process, client, rng, evicted: 0.0, _upstream: upstream }
    }

    fn data(&self) -> std::path::PathBuf {
        self.process.data_dir()
    }

    /// Starts clients, each with its own connections, for one run of the server.
    fn send_clients(&mut self, pushers: u8, pullers: u8) -> JoinSet<()> {
        self.client.ending = Arc::new(AtomicBool::new(false));
        let mut clients = JoinSet::new();
        for number in 0..pushers {
            clients.spawn(self.client.clone().push(number, self.rng.fork()));
        }
        for _ in 0..pullers {
            clients.spawn(self.client.clone().pull(self.rng.fork()));
        }
        clients
    }

    async fn end(&mut self, mut clients: JoinSet<()>) {
        self.client.ending.store(true, Ordering::SeqCst);
        // Sometimes the stop is clean, which tests that marks and sums are read back.
        if self.rng.u8(..6) == 0 {
            self.process.stop();
        } else {
            self.process.kill();
        }
        while let Some(ended) = clients.join_next().await {
            ended.expect("every check of a client passed");
        }
    }

    async fn sleep(&mut self, max_ms: u64) {
        tokio::time::sleep(Duration::from_millis(self.rng.u64(..max_ms))).await;
    }

    async fn round(&mut self) {
        let clients = self.send_clients(PUSHERS, PULLERS);
        self.sleep(400).await;
        self.end(clients).await;
        self.process.begin();
        if self.rng.u8(..4) == 0 {
            // Sometimes another kill, while recovery from the last one is still running.
            let clients = self.send_clients(0, PULLERS);
            self.sleep(60).await;
            self.end(clients).await;
            self.process.begin();
        }
        until("the spool is empty", async || files_below(&self.data().join("spool")).is_empty()).await;
        // Concurrent pulls force evictions from the start.
        let mut pullers = JoinSet::new();
        for _ in 0..PULLERS {
            let (client, mut rng) = (self.client.clone(), self.rng.fork());
            pullers.spawn(async move {
                for _ in 0..20 {
                    assert!(client.pull_one(&mut rng).await.is_ok(), "the server is running");
                }
            });
        }
        self.client.ending = Arc::new(AtomicBool::new(false));
        self.client.check_names().await;
        self.client.check_sessions(&mut self.rng).await;
        while let Some(pulled) = pullers.join_next().await {
            pulled.expect("all mirrored content is served");
        }
        self.check_files().await;
        self.evicted += self.process.metric("roadstead_evictions_total", &[]).await;
    }

    /// Checks the files on disk once nothing is in flight.
    async fn check_files(&self) {
        for (what, name, value) in
            [("the index is ready", "roadstead_index_ready", 1.0), ("no fill", "roadstead_fills_in_flight", 0.0)]
        {
            until(what, async || self.process.metric(name, &[]).await == value).await;
        }
        let data = self.data();
        until("the cache is within its bounds", async || {
            let names = names_below(&data.join("repositories/docker.io"));
            stored(&data).cached + names * NAME_BYTES <= MAX_SIZE_BYTES
        })
        .await;
        let limit = Instant::now() + Duration::from_secs(90);
        loop {
            let sum = async |class| self.process.metric("roadstead_storage_bytes", &[("class", class)]).await as u64;
            let sums = (sum("cached").await, sum("pushed").await);
            let files = (stored(&data).cached, stored(&data).pushed);
            if sums == files {
                break;
            }
            assert!(Instant::now() < limit, "the sums {sums:?} do not match the files {files:?} (cached, pushed)");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert!(files_below(&data.join("quarantine")).is_empty(), "no file was ever incomplete");
        assert!(!self.process.log().contains("panicked"), "{}", self.process.log());
    }
}

#[derive(Default)]
struct Stored {
    cached: u64,
    pushed: u64,
}

/// Reads `blobs/` and checks each file against its digest.
fn stored(data: &Path) -> Stored {
    let mut stored = Stored::default();
    for path in files_below(&data.join("blobs")) {
        // Evicted or collected since the listing.
        let (Ok(bytes), Ok(metadata)) = (std::fs::read(&path), path.metadata()) else { continue };
        assert!(digest_of(&bytes).ends_with(path.file_name().unwrap().to_str().unwrap()), "{}", path.display());
        let writable = metadata.permissions().mode() & 0o200 != 0;
        *(if writable { &mut stored.cached } else { &mut stored.pushed }) += bytes.len() as u64;
    }
    stored
}

/// Counts the files below a folder. Some may be removed during the walk.
fn names_below(folder: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(folder) else { return 0 };
    let paths = entries.flatten().map(|entry| entry.path());
    paths.map(|path| if path.is_dir() { names_below(&path) } else { 1 }).sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn acknowledged_changes_survive_a_kill() {
    let (rounds, seed) = (number("CRASH_ROUNDS", 10), number("CRASH_SEED", fastrand::u64(..)));
    println!("CRASH_ROUNDS={rounds} CRASH_SEED={seed}");
    let mut scene = Scene::start(Rng::with_seed(seed)).await;
    for round in 0..rounds {
        println!("round {round}");
        scene.round().await;
    }
    println!("{} files were evicted", scene.evicted);
    assert!(rounds < 10 || scene.evicted > 20.0, "evictions took place throughout the run");
}

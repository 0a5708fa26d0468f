//! The program, killed at random moments while clients push, delete and pull: whatever it had answered holds afterwards.
//!
//! `CRASH_ROUNDS` says how often, `CRASH_SEED` repeats a run as far as the machine's own timing lets it be repeated.

mod clients;
mod full;
mod ledger;
mod stock;

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use fastrand::Rng;
use tokio::task::JoinSet;

use crate::disk::files_below;
use crate::scene::until;
use crate::support::process::ServerProcess;
use crate::support::settings::Settings;
use crate::support::{Client, Upstream, digest_of};
use clients::Customer;
use stock::Stock;

const MAX_SIZE: u64 = 1 << 20;
const NAME_BYTES: u64 = 4 << 10;
const PUSHERS: u8 = 3;
const PULLERS: u8 = 2;
/// What is deleted is collected at once; an upload that no manifest refers to stays.
const CONFIG: &str = "[local]\nnamespaces = [\"team/**\"]\n[cache]\nmax_size = \"1MiB\"\nmin_free = \"0B\"\n\
    [gc]\ninterval = \"20ms\"\nafter_start = \"0s\"\ngrace = \"0s\"";

fn number(variable: &str, or: u64) -> u64 {
    std::env::var(variable).map_or(or, |value| value.parse().unwrap_or_else(|_| panic!("{variable} is no number")))
}

struct Scene {
    process: ServerProcess,
    customer: Customer,
    rng: Rng,
    /// Files that went, as far as the server lived to say so.
    evicted: f64,
    _upstream: Upstream,
}

impl Scene {
    async fn start(mut rng: Rng) -> Self {
        let upstream = Upstream::start().await;
        let stock = Arc::new(Stock::new(&upstream, &mut rng));
        let settings = Settings::new().upstream("docker.io", &upstream).default_upstream("docker.io").config(CONFIG);
        let process = ServerProcess::start(settings);
        let customer = Customer {
            base: process.url(""),
            client: Client::new(),
            stock,
            ledger: Arc::default(),
            ending: Arc::default(),
        };
        Self { process, customer, rng, evicted: 0.0, _upstream: upstream }
    }

    fn data(&self) -> std::path::PathBuf {
        self.process.data_dir()
    }

    /// Clients for the time of one run of the server, with connections of their own.
    fn send_clients(&mut self, pushers: u8, pullers: u8) -> JoinSet<()> {
        self.customer.ending = Arc::new(AtomicBool::new(false));
        let mut clients = JoinSet::new();
        for number in 0..pushers {
            clients.spawn(self.customer.clone().push(number, self.rng.fork()));
        }
        for _ in 0..pullers {
            clients.spawn(self.customer.clone().pull(self.rng.fork()));
        }
        clients
    }

    async fn end(&mut self, mut clients: JoinSet<()>) {
        self.customer.ending.store(true, Ordering::SeqCst);
        // Now and then in good order: what is marked and counted then is read back.
        if self.rng.u8(..6) == 0 {
            self.process.stop();
        } else {
            self.process.kill();
        }
        while let Some(ended) = clients.join_next().await {
            ended.expect("a client was right in all it expected");
        }
    }

    async fn sleep(&mut self, most: u64) {
        tokio::time::sleep(Duration::from_millis(self.rng.u64(..most))).await;
    }

    async fn round(&mut self) {
        let clients = self.send_clients(PUSHERS, PULLERS);
        self.sleep(400).await;
        self.end(clients).await;
        self.process.begin();
        if self.rng.u8(..4) == 0 {
            // Once more, while it is still looking at what the last time has left.
            let clients = self.send_clients(0, PULLERS);
            self.sleep(60).await;
            self.end(clients).await;
            self.process.begin();
        }
        until("the spool is empty", async || files_below(&self.data().join("spool")).is_empty()).await;
        // Others pull meanwhile, so that something has to go from the first moment on.
        let mut pullers = JoinSet::new();
        for _ in 0..PULLERS {
            let (customer, mut rng) = (self.customer.clone(), self.rng.fork());
            pullers.spawn(async move {
                for _ in 0..20 {
                    assert!(customer.pull_one(&mut rng).await.is_ok(), "the server lives");
                }
            });
        }
        self.customer.ending = Arc::new(AtomicBool::new(false));
        self.customer.check_names().await;
        self.customer.check_sessions(&mut self.rng).await;
        while let Some(pulled) = pullers.join_next().await {
            pulled.expect("everything mirrored is served");
        }
        self.check_files().await;
        self.evicted += self.process.metric("roadstead_evictions_total", &[]).await;
    }

    /// What is on the disk once nothing is under way.
    async fn check_files(&self) {
        for (what, name, value) in
            [("the index is ready", "roadstead_index_ready", 1.0), ("no fill", "roadstead_fills_in_flight", 0.0)]
        {
            until(what, async || self.process.metric(name, &[]).await == value).await;
        }
        let data = self.data();
        until("the cache is within its bounds", async || {
            let names = names_below(&data.join("repositories/docker.io"));
            stored(&data).cached + names * NAME_BYTES <= MAX_SIZE
        })
        .await;
        until("the sums are those of the files", async || {
            let sum = async |class| self.process.metric("roadstead_storage_bytes", &[("class", class)]).await as u64;
            (sum("cached").await, sum("pushed").await) == (stored(&data).cached, stored(&data).pushed)
        })
        .await;
        assert!(files_below(&data.join("quarantine")).is_empty(), "nothing was ever half a file");
        assert!(!self.process.log().contains("panicked"), "{}", self.process.log());
    }
}

#[derive(Default)]
struct Stored {
    cached: u64,
    pushed: u64,
}

/// What is below `blobs/`, each file of which is what its name says.
fn stored(data: &Path) -> Stored {
    let mut stored = Stored::default();
    for path in files_below(&data.join("blobs")) {
        // Evicted or collected since.
        let (Ok(bytes), Ok(metadata)) = (std::fs::read(&path), path.metadata()) else { continue };
        assert!(digest_of(&bytes).ends_with(path.file_name().unwrap().to_str().unwrap()), "{}", path.display());
        let writable = metadata.permissions().mode() & 0o200 != 0;
        *(if writable { &mut stored.cached } else { &mut stored.pushed }) += bytes.len() as u64;
    }
    stored
}

/// Files below a folder, of which some may go meanwhile.
fn names_below(folder: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(folder) else { return 0 };
    let paths = entries.flatten().map(|entry| entry.path());
    paths.map(|path| if path.is_dir() { names_below(&path) } else { 1 }).sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_was_answered_holds_after_a_kill() {
    let (rounds, seed) = (number("CRASH_ROUNDS", 10), number("CRASH_SEED", fastrand::u64(..)));
    println!("CRASH_ROUNDS={rounds} CRASH_SEED={seed}");
    let mut scene = Scene::start(Rng::with_seed(seed)).await;
    for round in 0..rounds {
        println!("round {round}");
        scene.round().await;
    }
    println!("{} files were evicted", scene.evicted);
    assert!(rounds < 10 || scene.evicted > 20.0, "something had to go all the time");
}

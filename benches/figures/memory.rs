//! Memory: 100 clients on one blob of 1 GiB, ten of which read nothing.

use std::thread;
use std::time::{Duration, Instant};

use super::support::client::{Conn, together};
use super::support::process::peak_memory;
use super::support::stage::{MIB, Stage};
use super::support::table::Table;
use super::support::tests::Reply;

const READING: usize = 90;
const STALLED: usize = 10;

pub fn hundred_clients(table: &mut Table) {
    // The stalled clients must stay connected to the end.
    let stage = Stage::new("[server]\nprogress_timeout = \"1h\"");
    thread::sleep(Duration::from_secs(1));
    table.at_most("memory (RssAnon), idle", 100.0, " MiB", &[stage.memory("RssAnon")]);
    let blob = stage.prepare(0, 1024 * MIB);
    // The fill takes about as long as the clients read.
    stage.upstream.always("GET", &blob.layer, Reply::normal().pace(32 << 20));
    for what in ["cold", "warm"] {
        let (start, cpu) = (Instant::now(), stage.cpu());
        let ((), peak) = peak_memory(&stage.pids(), || {
            let open = |_| Conn::with_receive_buffer(stage.address(), 4096);
            let mut stalled: Vec<Conn> = (0..STALLED).map(open).collect();
            stalled.iter_mut().for_each(|conn| conn.ask(&blob.layer));
            let clients = together(READING, stage.address(), &blob.layer, blob.bytes());
            assert!(clients.iter().all(|got| got.correct), "all clients get the correct bytes");
            let left = stage.metric("registry_http_in_flight_requests", &[("handler", "blob")]);
            assert_eq!(left, STALLED as f64, "the responses to the stalled clients are still in flight");
        });
        let (seconds, cpu) = (start.elapsed().as_secs_f64(), stage.cpu() - cpu);
        table.at_most(&format!("… peak, 100 clients on 1 GiB, 10 of them stalled, {what}"), 100.0, " MiB", &[peak]);
        let rate = (READING << 10) as f64 / seconds;
        table.note("… all clients together", &format!("{seconds:.0} s, {rate:.0} MiB/s, {cpu:.0} CPU s"));
    }
    table.note("… the most resident memory of all kinds (VmHWM)", &format!("{:.3} MiB", stage.memory("VmHWM")));
    assert_eq!(stage.upstream.count("GET", &blob.layer), 1, "fetched once");
}

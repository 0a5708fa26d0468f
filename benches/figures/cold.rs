//! Misses: many clients on one fill, and the overhead for a single client.

use super::ROUNDS;
use super::support::client::{Conn, Got, together};
use super::support::stage::{MIB, Prepared, Stage};
use super::support::table::Table;
use super::support::tests::Reply;

/// 24 clients request 64 MiB at once, which the upstream sends at 32 MiB/s.
pub fn many_clients(stage: &Stage, table: &mut Table) {
    let (mut gets, mut fetched, mut correct) = (Vec::new(), Vec::new(), Vec::new());
    let (mut ratio, mut first_byte) = (Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        let blob = stage.prepare(round, 64 * MIB);
        let alone = upstream_alone(stage, &blob, 32);
        stage.forget();
        let clients = together(24, stage.address(), &blob.layer, blob.bytes());
        let sent = stage.fetched(&blob.layer);
        gets.push(sent.0);
        fetched.push(sent.1);
        correct.push(clients.iter().filter(|got| got.correct).count() as f64);
        let last_byte = clients.iter().map(|got| got.last_byte).max().unwrap_or_default();
        ratio.push(last_byte.as_secs_f64() / alone.last_byte.as_secs_f64());
        first_byte.push(clients.iter().map(|got| got.first_byte).max().unwrap_or_default().as_secs_f64());
    }
    table.exactly("24 clients, one cold 64 MiB blob at 32 MiB/s: upstream GETs", 1.0, "", &gets);
    table.exactly("… fetched", 64.0, " MiB", &fetched);
    table.exactly("… clients with the correct bytes", 24.0, "", &correct);
    table.at_most("… last byte of the last client / upstream alone", 1.10, "", &ratio);
    table.at_most("… first byte of the last client", 0.2, " s", &first_byte);
}

/// One client requests 50 MiB, which the upstream sends at 25 MiB/s.
pub fn one_client(stage: &Stage, table: &mut Table) {
    let (mut later, mut ratio) = (Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        let blob = stage.prepare(round, 50 * MIB);
        let alone = upstream_alone(stage, &blob, 25);
        let through = stage.connect().get(&blob.layer, blob.bytes());
        assert!(through.correct, "the correct bytes arrive");
        later.push((through.first_byte.as_secs_f64() - alone.first_byte.as_secs_f64()) * 1000.0);
        ratio.push(through.last_byte.as_secs_f64() / alone.last_byte.as_secs_f64());
    }
    let what = "one client, one cold 50 MiB blob at 25 MiB/s: first byte later than the upstream's by";
    table.at_most(what, 20.0, " ms", &later);
    table.at_most("… last byte / upstream alone", 1.05, "", &ratio);
}

/// Limits the upstream to this rate in MiB/s, and measures one client of the upstream itself.
fn upstream_alone(stage: &Stage, blob: &Prepared, rate: u64) -> Got {
    stage.upstream.always("GET", &blob.layer, Reply::normal().pace(rate << 20));
    let got = Conn::open(stage.upstream.addr()).get(&blob.layer, blob.bytes());
    assert!(got.correct, "the upstream sends the correct bytes");
    got
}

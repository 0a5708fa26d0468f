//! The circuit breaker of an upstream over HTTP.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::future::join_all;

use super::server::{Reply, Seen, Server};
use super::{Effort, Fixture, Kind, UpstreamError, UpstreamRequest, blob, manifest, request};
use crate::upstream::BreakerState;

const AVAILABLE: &str = "roadstead_upstream_available";

/// A registry that sends 503 for everything until the switch is set.
async fn switched() -> (Server, Arc<AtomicBool>) {
    let healthy = Arc::new(AtomicBool::new(false));
    let switch = healthy.clone();
    let answer = move |_: &Seen| if switch.load(Ordering::Relaxed) { Reply::ok("content") } else { Reply::new(503) };
    (Server::start(answer).await, healthy)
}

/// Sends requests until the circuit is open.
async fn open(fixture: &Fixture) {
    for _ in 0..20 {
        if let Err(UpstreamError::CircuitOpen { retry_after, .. }) = fixture.get(manifest()).await {
            assert!((Duration::from_secs(1)..=Duration::from_secs(5)).contains(&retry_after), "{retry_after:?}");
            return;
        }
    }
    panic!("the circuit never opens");
}

async fn until_closed(fixture: &Fixture) {
    while fixture.sum(AVAILABLE, "") == 0 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn open_circuit_sends_only_probes_until_one_succeeds() {
    let (server, healthy) = switched().await;
    let fixture = Fixture::new(&[&server]);
    assert_eq!(fixture.sum(AVAILABLE, ""), 1);
    open(&fixture).await;
    assert_eq!(fixture.sum(AVAILABLE, ""), 0);
    assert!(matches!(fixture.upstream.breaker_state(), BreakerState::Open { .. }));
    let asked = server.count("/v2/team/");
    for _ in 0..50 {
        let error = fixture.get(blob()).await.unwrap_err();
        assert!(matches!(error, UpstreamError::CircuitOpen { .. }) && error.is_upstream_failure(), "{error}");
        assert!(error.to_string().contains(super::NAME), "{error}");
    }
    assert_eq!(server.count("/v2/team/"), asked);
    healthy.store(true, Ordering::Relaxed);
    until_closed(&fixture).await;
    assert_eq!(fixture.get(blob()).await.unwrap(), "content");
    assert_eq!(fixture.upstream.breaker_state(), BreakerState::Closed { failures: 0 });
    let probes = server.seen().iter().filter(|seen| seen.target == "/v2/").count();
    assert!(probes > 0);
    assert_eq!(fixture.requests(r#"kind="probe""#), probes);
    fixture.assert_requests_counted_at(&[&server]);
}

#[tokio::test]
async fn any_probe_response_but_5xx_closes_the_circuit() {
    let cases = [200, 401, 404, 429].map(|status| async move {
        let healthy = Arc::new(AtomicBool::new(false));
        let switch = healthy.clone();
        let server =
            Server::start(move |_| Reply::new(if switch.load(Ordering::Relaxed) { status } else { 500 })).await;
        let fixture = Fixture::new(&[&server]);
        open(&fixture).await;
        healthy.store(true, Ordering::Relaxed);
        until_closed(&fixture).await;
        fixture.assert_requests_counted_at(&[&server]);
    });
    join_all(cases).await;
}

#[tokio::test]
async fn other_failures_do_not_open_the_circuit() {
    let cases = [401, 403, 404, 418, 501, 508].map(|status| async move {
        let server = Server::start(move |_| Reply::new(status)).await;
        let fixture = Fixture::new(&[&server]);
        for _ in 0..12 {
            assert!(!matches!(fixture.get(manifest()).await, Err(UpstreamError::CircuitOpen { .. })), "{status}");
        }
        tokio::time::sleep(Duration::from_millis(1100)).await;
        assert!(!matches!(fixture.get(manifest()).await, Err(UpstreamError::CircuitOpen { .. })), "{status}");
        assert_eq!(fixture.sum(AVAILABLE, ""), 1);
        fixture.assert_requests_counted_at(&[&server]);
    });
    join_all(cases).await;
}

#[tokio::test]
async fn challenge_does_not_count_as_success() {
    let server = Server::start(|seen| match seen.authorization() {
        _ if seen.target.starts_with("/token") => Reply::token("t"),
        Some(_) => Reply::new(503),
        // Valid for one repository only, so that every other repository gets a challenge.
        None => Reply::bearer(&seen.here("/token"), r#"scope="repository:elsewhere:pull""#),
    })
    .await;
    let fixture = Fixture::new(&[&server]);
    for n in 0..3 {
        let asked = fixture.get(request(Kind::Manifest, &format!("org/app{n}"), "manifests/1")).await;
        assert!(asked.is_err());
    }
    // The probe gets a challenge too, which closes the circuit.
    let opened = server.seen().iter().any(|seen| seen.target == "/v2/");
    assert!(opened, "{:?}", server.log());
}

#[tokio::test]
async fn many_broken_repositories_do_not_open_the_circuit() {
    let server = Server::start(|seen| match seen.target.as_str() {
        // While a probe is in flight, an open circuit would refuse requests.
        "/v2/" => Reply::ok("").after(Duration::from_millis(300)),
        target if target.contains("/bad/") => Reply::new(500),
        _ => Reply::ok("content"),
    })
    .await;
    let fixture = Fixture::new(&[&server]);
    let names: Vec<String> = (0..8).map(|n| format!("bad/app{n}")).collect();
    let failing = async {
        loop {
            join_all(names.iter().map(|name| fixture.get(request(Kind::Manifest, name, "manifests/1")))).await;
        }
    };
    let good = async {
        while server.seen().iter().all(|seen| seen.target != "/v2/") {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        fixture.get(manifest()).await
    };
    tokio::select! {
        answer = good => assert_eq!(answer.unwrap(), "content"),
        () = failing => {}
    }
    assert_eq!(fixture.sum(AVAILABLE, ""), 1);
}

#[tokio::test]
async fn failing_storage_does_not_open_the_circuit() {
    let server = Server::start(|seen| match seen.target.contains("/blobs/") {
        true => Reply::redirect("http://127.0.0.1:1/blob"),
        false => Reply::ok("content"),
    })
    .await;
    let fixture = Fixture::new(&[&server]);
    for _ in 0..4 {
        assert!(matches!(fixture.get(blob()).await, Err(UpstreamError::Connect { .. })));
    }
    assert_eq!(fixture.get(manifest()).await.unwrap(), "content");
    assert_eq!(fixture.sum(AVAILABLE, ""), 1);
}

#[tokio::test]
async fn resume_ignores_the_open_circuit_and_closes_it() {
    let (server, healthy) = switched().await;
    let fixture = Fixture::new(&[&server]);
    open(&fixture).await;
    let rest = || UpstreamRequest { effort: Effort::Resume, ..blob() };
    assert!(matches!(fixture.get(rest()).await, Err(UpstreamError::Status { .. })));
    healthy.store(true, Ordering::Relaxed);
    assert_eq!(fixture.get(rest()).await.unwrap(), "content");
    assert_eq!(fixture.sum(AVAILABLE, ""), 1);
    assert_eq!(fixture.get(blob()).await.unwrap(), "content");
}

#[tokio::test]
async fn probing_stops_with_its_owner() {
    let (server, _) = switched().await;
    let fixture = Fixture::new(&[&server]);
    open(&fixture).await;
    fixture.tasks.stop().await;
    let probes = server.count("/v2/");
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert_eq!(server.count("/v2/"), probes);
}

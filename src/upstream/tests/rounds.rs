//! Failures before the first byte: which are retried, and which are returned at once.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::future::join_all;
use http::StatusCode;
use tokio::time::Instant;

use super::server::{Reply, Server};
use super::{Effort, Fixture, UpstreamError, UpstreamRequest, blob, head, manifest};

/// Sends `bad` for the first `times` requests, then 200.
async fn failing(times: usize, bad: impl Fn() -> Reply + Send + Sync + 'static) -> Server {
    let asked = AtomicUsize::new(0);
    Server::start(move |_| if asked.fetch_add(1, Ordering::Relaxed) < times { bad() } else { Reply::ok("content") })
        .await
}

#[tokio::test]
async fn temporary_failures_are_retried() {
    let cases = [(500, 1), (502, 2), (503, 1), (503, 3), (504, 2), (520, 1)].map(|(status, times)| async move {
        let server = failing(times, move || Reply::new(status)).await;
        let fixture = Fixture::new(&[&server]);
        assert_eq!(fixture.get(manifest()).await.unwrap(), "content", "{times} times {status}");
        assert_eq!(server.seen().len(), times + 1);
        fixture.assert_requests_counted_at(&[&server]);
    });
    join_all(cases).await;
}

#[tokio::test]
async fn lasting_failure_is_returned_after_four_rounds() {
    let server = Server::start(|_| Reply::new(502)).await;
    let other = Server::start(|_| Reply::new(503)).await;
    let fixture = Fixture::new(&[&server, &other]);
    let error = fixture.get(blob()).await.unwrap_err();
    assert!(matches!(error, UpstreamError::Status { status: StatusCode::SERVICE_UNAVAILABLE, .. }), "{error}");
    assert_eq!((server.seen().len(), other.seen().len()), (4, 4), "all URLs are one round");
    fixture.assert_requests_counted_at(&[&server, &other]);
}

#[tokio::test]
async fn answers_about_the_content_are_not_retried() {
    for status in [400, 401, 403, 404, 405, 416, 418, 429, 501, 505, 508] {
        for request in [manifest(), head(manifest()), blob()] {
            let server = Server::start(move |_| Reply::new(status)).await;
            assert!(Fixture::new(&[&server]).get(request).await.is_err());
            assert_eq!(server.seen().len(), 1, "{status}");
        }
    }
}

#[tokio::test]
async fn one_round_is_one_request() {
    for effort in [Effort::Once, Effort::Resume] {
        let server = Server::start(|_| Reply::new(503)).await;
        let once = UpstreamRequest { effort, ..blob() };
        assert!(Fixture::new(&[&server]).get(once).await.is_err());
        assert_eq!(server.seen().len(), 1);
    }
}

#[tokio::test]
async fn short_retry_after_is_waited_for_and_long_one_returned() {
    let server = failing(1, || Reply::new(503).header("retry-after", "1")).await;
    let started = Instant::now();
    assert_eq!(Fixture::new(&[&server]).get(manifest()).await.unwrap(), "content");
    assert!(started.elapsed() >= Duration::from_secs(1));

    let server = Server::start(|_| Reply::new(503).header("retry-after", "30")).await;
    let error = Fixture::new(&[&server]).get(manifest()).await.unwrap_err();
    assert_eq!((error.retry_after(), server.seen().len()), (Some(Duration::from_secs(30)), 1));
}

#[tokio::test]
async fn send_returns_by_the_deadline() {
    for (what, wait, least) in [("silence", 60, 1), ("quick failures", 0, 2)] {
        let server = Server::start(move |_| Reply::new(503).after(Duration::from_secs(wait))).await;
        let fixture = Fixture::configured(&[&server], |config| config.header_timeout = Duration::from_secs(60));
        let deadline = Instant::now() + Duration::from_secs(3);
        let asked =
            tokio::time::timeout_at(deadline + Duration::from_secs(30), fixture.upstream.send(blob(), deadline));
        assert!(asked.await.expect(what).is_err());
        assert!(server.seen().len() >= least, "{what}");
    }
}

#[tokio::test]
async fn silent_url_leaves_time_for_the_next_one() {
    let silent = Server::start(|_| Reply::ok("").after(Duration::from_secs(60))).await;
    let well = Server::start(|_| Reply::ok("content")).await;
    let fixture = Fixture::configured(&[&silent, &well], |config| config.header_timeout = Duration::from_secs(60));
    let response = fixture.upstream.send(blob(), Instant::now() + Duration::from_secs(12)).await;
    assert!(response.is_ok(), "{:?}", response.err());
    assert_eq!((silent.seen().len(), well.seen().len()), (1, 1));
}

#[tokio::test]
async fn client_hops_precede_ours_in_via() {
    let server = Server::start(|_| Reply::ok("content")).await;
    let fixture = Fixture::new(&[&server]);
    let headers = [(http::header::VIA, "1.1 roadstead-other, 1.1 proxy".parse().unwrap())].into_iter().collect();
    let forwarded = fixture.upstream.with_hops(super::super::Hops::of(&headers));
    forwarded.send(blob(), super::soon()).await.unwrap();
    fixture.send(blob()).await.unwrap();
    let vias: Vec<_> = server.seen().iter().map(|seen| seen.header("via").unwrap().to_owned()).collect();
    assert_eq!(vias, ["1.1 roadstead-other, 1.1 proxy, 1.1 roadstead-test", "1.1 roadstead-test"]);
}

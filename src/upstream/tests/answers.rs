//! Statuses, headers and bodies of responses.

use std::time::Duration;

use http::{Method, StatusCode};
use tokio::time::Instant;

use super::server::{Reply, Server};
use super::soon;
use super::{Fixture, Kind, UpstreamError, UpstreamRequest, blob, head, manifest, request};
use crate::oci::media_type::{DOCKER_LIST, DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST};

#[tokio::test]
async fn requests_have_via_and_one_accept_header_with_all_types() {
    let server = Server::start(|_| Reply::ok("content").header("docker-content-digest", "sha256:abc")).await;
    let fixture = Fixture::new(&[&server]);
    let response = fixture.send(head(manifest())).await.unwrap();
    assert_eq!(response.docker_content_digest(), Some("sha256:abc"));
    fixture.get(manifest()).await.unwrap();
    fixture.get(blob()).await.unwrap();
    for seen in server.seen() {
        assert_eq!(seen.header("via"), Some("1.1 roadstead-test"));
        assert_eq!(seen.header("user-agent"), Some(concat!("roadstead/", env!("CARGO_PKG_VERSION"))));
        assert_eq!(seen.header("accept-encoding"), None);
        assert_eq!(seen.headers.get_all("accept").iter().count(), 1);
    }
    let accepts: Vec<_> = server.seen().iter().map(|seen| seen.header("accept").unwrap().to_owned()).collect();
    assert_eq!(accepts[0], accepts[1]);
    let mut types: Vec<_> = accepts[0].split(", ").collect();
    types.sort_unstable();
    assert_eq!(types, [DOCKER_LIST, DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST]);
}

#[tokio::test]
async fn statuses_map_to_errors() {
    type Check = fn(&UpstreamError) -> bool;
    let table: [(u16, Check); 10] = [
        (404, UpstreamError::is_not_found),
        (401, |error| matches!(error, UpstreamError::Challenge { .. })),
        // A registry's own refusal has a body: see `only_a_registry_denies_an_anonymous_request`.
        (403, |error| matches!(error, UpstreamError::Status { status, .. } if *status == 403)),
        (429, |error| matches!(error, UpstreamError::RateLimited { retry_after: Some(_), .. })),
        (418, |error| matches!(error, UpstreamError::Status { status, .. } if *status == 418)),
        (500, |error| matches!(error, UpstreamError::Status { .. })),
        (503, |error| error.retry_after() == Some(Duration::from_secs(7))),
        (204, |error| matches!(error, UpstreamError::BadResponse { .. })),
        (206, |error| matches!(error, UpstreamError::BadResponse { .. })),
        (304, |error| matches!(error, UpstreamError::BadResponse { .. })),
    ];
    for (status, check) in table {
        let server = Server::start(move |_| Reply::new(status).header("retry-after", "7")).await;
        let fixture = Fixture::new(&[&server]);
        let error = fixture.get(manifest()).await.unwrap_err();
        assert!(check(&error), "{status}: {error}");
        assert!(error.to_string().contains(super::NAME), "{error}");
        assert_eq!(error.is_upstream_failure(), status != 404, "{status}");
        fixture.assert_requests_counted_at(&[&server]);
    }
}

#[tokio::test]
async fn retry_after_in_the_body_is_used_without_header() {
    let server = Server::start(|_| Reply::new(429).body("retry-after: 1.16ms, allowed: 44000/minute")).await;
    let error = Fixture::new(&[&server]).get(manifest()).await.unwrap_err();
    assert_eq!(error.retry_after(), Some(Duration::from_micros(1160)));
}

#[tokio::test]
async fn remaining_pulls_become_a_metric() {
    let server = Server::start(|_| {
        Reply::ok("").header("ratelimit-limit", "100;w=21600").header("ratelimit-remaining", "93;w=21600")
    })
    .await;
    let fixture = Fixture::new(&[&server]);
    fixture.get(manifest()).await.unwrap();
    assert_eq!(fixture.sum("roadstead_upstream_ratelimit_limit", ""), 100);
    assert_eq!(fixture.sum("roadstead_upstream_ratelimit_remaining", ""), 93);
}

#[tokio::test]
async fn response_304_is_returned_with_if_none_match() {
    let server = Server::start(|seen| match seen.header("if-none-match") {
        Some(r#""abc""#) => Reply::new(304).header("etag", r#""abc""#),
        _ => Reply::ok("content"),
    })
    .await;
    let fixture = Fixture::new(&[&server]);
    let known = UpstreamRequest { if_none_match: Some(r#""abc""#.to_owned()), ..manifest() };
    let response = fixture.send(known).await.unwrap();
    assert_eq!((response.status, response.etag()), (StatusCode::NOT_MODIFIED, Some(r#""abc""#)));
    assert_eq!(response.body.collect(0, soon()).await.unwrap(), "");
}

#[tokio::test]
async fn ignored_range_is_returned_as_200() {
    let server = Server::start(|_| Reply::ok("whole")).await;
    let response = Fixture::new(&[&server]).send(UpstreamRequest { range: Some((0, 0)), ..blob() }).await.unwrap();
    assert_eq!(response.status, StatusCode::OK);
}

#[tokio::test]
async fn only_a_registry_denies_an_anonymous_request() {
    type Refusal = fn() -> Reply;
    let table: [(Refusal, bool); 4] = [
        (|| Reply::denied(403), true),
        (|| Reply::new(403), false),
        (|| Reply::new(403).body("<html>blocked"), false),
        (|| Reply::new(403).body(r#"{"message":"Forbidden"}"#), false),
    ];
    for (reply, denies) in table {
        let server = Server::start(move |_| reply()).await;
        let error = Fixture::new(&[&server]).get(manifest()).await.unwrap_err();
        assert_eq!(matches!(error, UpstreamError::Denied { .. }), denies, "{error}");
        let error = Fixture::with_password(&server).get(manifest()).await.unwrap_err();
        assert!(matches!(error, UpstreamError::Denied { .. }), "with credentials, their owner must know: {error}");
    }
}

#[tokio::test]
async fn labels_of_an_encoding_do_not_change_the_body() {
    for label in ["identity", "gzip", "aws-chunked", "x-gzip, br", "nonsense"] {
        let server = Server::start(move |_| Reply::ok("x").header("content-encoding", label)).await;
        assert_eq!(Fixture::new(&[&server]).get(blob()).await.unwrap(), "x", "{label}");
    }
}

#[tokio::test]
async fn head_has_a_length_and_no_body() {
    let server = Server::start(|_| Reply::new(200).header("content-length", "1234")).await;
    let fixture = Fixture::new(&[&server]);
    let response = fixture.send(head(blob())).await.unwrap();
    assert_eq!(server.seen()[0].method, Method::HEAD);
    assert_eq!(response.content_length(), Some(1234));
    assert_eq!(response.body.collect(0, soon()).await.unwrap(), "");
}

#[tokio::test]
async fn pulled_bytes_are_counted_per_chunk() {
    let server = Server::start(|_| Reply::ok("12345").silence()).await;
    let fixture = Fixture::new(&[&server]);
    let mut body = fixture.send(blob()).await.unwrap().body;
    assert_eq!(body.chunk().await.unwrap().unwrap(), "12345");
    assert_eq!(fixture.sum("registry_proxy_pulled_bytes_total", r#"type="blob""#), 5);
}

#[tokio::test]
async fn silent_body_times_out() {
    let server = Server::start(|_| Reply::ok("12345").silence()).await;
    let mut body = Fixture::new(&[&server]).send(blob()).await.unwrap().body;
    body.chunk().await.unwrap();
    let error = body.chunk().await.unwrap_err();
    assert!(matches!(error, UpstreamError::Timeout { .. }), "{error}");
}

#[tokio::test]
async fn truncated_body_is_an_error() {
    let announced = Server::start(|_| Reply::ok("12345").header("content-length", "10").cut()).await;
    let chunked = Server::start(|_| Reply::ok("12345").cut()).await;
    for server in [announced, chunked] {
        let mut body = Fixture::new(&[&server]).send(blob()).await.unwrap().body;
        assert_eq!(body.chunk().await.unwrap().unwrap(), "12345");
        let error = body.chunk().await.unwrap_err();
        assert!(matches!(error, UpstreamError::Interrupted { .. }), "{error}");
    }
}

#[tokio::test]
async fn body_over_the_limit_is_rejected() {
    let announced = Server::start(|_| Reply::ok("123456").header("content-length", "6")).await;
    let chunked = Server::start(|_| Reply::ok("123").body("456")).await;
    for server in [announced, chunked] {
        let fixture = Fixture::new(&[&server]);
        assert_eq!(fixture.send(manifest()).await.unwrap().body.collect(6, soon()).await.unwrap(), "123456");
        let error = fixture.send(manifest()).await.unwrap().body.collect(5, soon()).await.unwrap_err();
        assert!(matches!(error, UpstreamError::BadResponse { .. }), "{error}");
    }
}

#[tokio::test]
async fn header_timeout_and_deadline_limit_the_wait() {
    let server = Server::start(|_| Reply::ok("").after(Duration::from_secs(60))).await;
    for (header_timeout, deadline, tries) in [(150, 50_000, 4), (50_000, 150, 1)] {
        let fixture = Fixture::configured(&[&server], |config| {
            config.header_timeout = Duration::from_millis(header_timeout);
        });
        let started = Instant::now();
        let error = fixture.upstream.send(blob(), started + Duration::from_millis(deadline)).await.unwrap_err();
        assert!(matches!(error, UpstreamError::Timeout { .. }), "{error}");
        let waited = started.elapsed();
        assert!((Duration::from_millis(150)..Duration::from_secs(20)).contains(&waited), "{waited:?}");
        assert_eq!(fixture.requests(""), tries);
    }
    let fixture = Fixture::new(&[&server]);
    let past = fixture.upstream.send(blob(), Instant::now()).await.unwrap_err();
    assert!(matches!(past, UpstreamError::Timeout { .. }), "{past}");
    assert_eq!(fixture.requests(""), 0);
}

/// A fill sends its request and reads the body in its own task, so both must be `Send`.
#[tokio::test]
async fn request_and_body_can_be_used_in_a_task() {
    let server = Server::start(|_| Reply::ok("content")).await;
    let fixture = Fixture::new(&[&server]);
    let read = tokio::spawn(async move { fixture.get(blob()).await });
    assert_eq!(read.await.unwrap().unwrap(), "content");
}

#[tokio::test]
async fn cancelled_request_is_counted() {
    let server = Server::start(|_| Reply::ok("").after(Duration::from_secs(60))).await;
    let fixture = Fixture::new(&[&server]);
    let asking = fixture.send(request(Kind::Referrers, "team/app", "referrers/sha256:abc"));
    assert!(tokio::time::timeout(Duration::from_millis(100), asking).await.is_err());
    assert_eq!(fixture.requests(r#"code="error",kind="referrers""#), 1);
    fixture.assert_requests_counted_at(&[&server]);
}

#[tokio::test]
async fn head_of_a_blob_is_no_success_if_a_range_is_refused() {
    for (range, length) in [(None, None), (Some("bytes */7"), None), (Some("bytes */0"), Some(0))] {
        let server = Server::start(move |_| match range {
            Some(range) => Reply::new(416).header("content-range", range),
            None => Reply::new(416),
        })
        .await;
        let answer = Fixture::new(&[&server]).send(head(blob())).await;
        assert_eq!(answer.ok().and_then(|response| response.content_length()), length, "{range:?}");
    }
}

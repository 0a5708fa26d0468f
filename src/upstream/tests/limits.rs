//! 429 responses: which requests are withheld, and for how long.

use std::sync::Arc;
use std::time::Duration;

use super::server::{Reply, Server};
use super::{Fixture, Kind, UpstreamError, blob, head, manifest, request, soon, with_password};
use crate::config::{Namespace, UpstreamConfig};
use crate::tasks::Tasks;
use crate::telemetry::Metrics;
use crate::upstream::Upstream;

const HUB_PULLS: &str =
    r#"{"errors":[{"code":"TOOMANYREQUESTS","message":"You have reached your pull rate limit. You may increase it"}]}"#;

/// How long the request is withheld; `None` if it is sent.
async fn limited(fixture: &Fixture, request: super::UpstreamRequest) -> Option<Duration> {
    match fixture.get(request).await {
        Err(UpstreamError::RateLimited { retry_after, .. }) => Some(retry_after.expect("the time is always known")),
        _ => None,
    }
}

#[tokio::test]
async fn limit_on_pulls_does_not_affect_other_requests() {
    let server = Server::start(|seen| match seen.target.contains("/manifests/") && seen.method == "GET" {
        true => Reply::new(429).body(HUB_PULLS).header("retry-after", "60"),
        false => Reply::ok("content"),
    })
    .await;
    let fixture = Fixture::new(&[&server]);
    assert_eq!(limited(&fixture, manifest()).await, Some(Duration::from_secs(60)));
    for _ in 0..5 {
        let left = limited(&fixture, manifest()).await.unwrap();
        assert!(left > Duration::from_secs(30) && left < Duration::from_secs(60), "{left:?}");
        assert_eq!(fixture.get(blob()).await.unwrap(), "content");
        assert!(fixture.send(head(manifest())).await.is_ok());
    }
    assert_eq!(fixture.requests(r#"code="429""#), 1);
    fixture.assert_requests_counted_at(&[&server]);
}

#[tokio::test]
async fn limit_on_all_requests_withholds_them_all() {
    let others = || [manifest(), head(manifest()), blob(), request(Kind::Tags, "a", "tags/list")];
    for first in others() {
        let server = Server::start(|_| Reply::new(429).body("Too Many Requests").header("retry-after", "60")).await;
        let fixture = Fixture::new(&[&server]);
        assert_eq!(limited(&fixture, first).await, Some(Duration::from_secs(60)));
        for other in others() {
            assert!(limited(&fixture, other).await.is_some());
        }
        assert_eq!(server.seen().len(), 1);
        fixture.assert_requests_counted_at(&[&server]);
    }
}

#[tokio::test]
async fn missing_retry_after_has_a_default_and_a_year_is_cut() {
    for (told, least, most) in [("", 5, 15), ("31536000", 600, 900)] {
        let server = Server::start(move |_| match told {
            "" => Reply::new(429),
            told => Reply::new(429).header("retry-after", told),
        })
        .await;
        let fixture = Fixture::new(&[&server]);
        limited(&fixture, blob()).await.unwrap();
        let left = limited(&fixture, blob()).await.unwrap().as_secs();
        assert!((least..=most).contains(&left), "{told:?}: {left} s");
        assert_eq!(server.seen().len(), 1);
    }
}

#[tokio::test]
async fn limit_of_milliseconds_is_waited_for_once() {
    let server = Server::start(|_| Reply::new(429).body("retry-after: 1.16ms, allowed: 44000/minute")).await;
    let fixture = Fixture::new(&[&server]);
    assert!(limited(&fixture, manifest()).await.is_some());
    assert_eq!(server.seen().len(), 2);
}

#[tokio::test]
async fn limits_of_storage_and_token_server_have_their_scope() {
    let storage = Server::start(|_| Reply::new(429).header("retry-after", "60")).await;
    let target = storage.at("/blob");
    let server = Server::start(move |seen| match seen.target.contains("/blobs/") {
        true => Reply::redirect(target.clone()),
        false => Reply::ok("content"),
    })
    .await;
    let fixture = Fixture::new(&[&server]);
    assert!(limited(&fixture, blob()).await.is_some() && limited(&fixture, blob()).await.is_some());
    assert_eq!(storage.seen().len(), 1);
    assert_eq!(fixture.get(manifest()).await.unwrap(), "content");

    let server = Server::start(|seen| match seen.target.starts_with("/token") {
        true => Reply::new(429).header("retry-after", "60"),
        false => Reply::bearer(&seen.here("/token"), r#"service="s""#),
    })
    .await;
    let fixture = Fixture::new(&[&server]);
    assert!(limited(&fixture, manifest()).await.is_some() && limited(&fixture, blob()).await.is_some());
    assert_eq!(server.seen().len(), 2, "the challenge and the token, once");
}

#[tokio::test]
async fn scarce_pulls_follow_the_latest_response() {
    let server = Server::start(|seen| {
        let left = if seen.target.contains("latest") { "9;w=21600" } else { "90;w=21600" };
        Reply::ok("content").header("ratelimit-limit", "100;w=21600").header("ratelimit-remaining", left)
    })
    .await;
    let fixture = Fixture::new(&[&server]);
    assert!(!fixture.upstream.is_scarce(&"a".parse().unwrap()));
    fixture.get(manifest()).await.unwrap();
    assert!(fixture.upstream.is_scarce(&"a".parse().unwrap()));
    fixture.get(request(Kind::Manifest, "a", "manifests/other")).await.unwrap();
    assert!(!fixture.upstream.is_scarce(&"a".parse().unwrap()));
}

#[tokio::test]
async fn limit_of_one_account_does_not_affect_the_others() {
    let server = Server::start(|seen| match (seen.target.contains("/paid/"), seen.header("authorization")) {
        (true, None) => Reply::new(401).header("www-authenticate", "Basic"),
        (true, Some(_)) => Reply::new(429).body("Too Many Requests").header("retry-after", "60"),
        (false, _) => Reply::ok("content").header("ratelimit-limit", "100").header("ratelimit-remaining", "1"),
    })
    .await;
    let fixture = Fixture::configured(&[&server], |config| {
        config.credentials = with_password("user", "x");
        config.credentials[0].repository = Namespace::parse("paid/*");
    });
    let (paid, other) = (request(Kind::Manifest, "paid/app", "manifests/latest"), manifest());
    assert_eq!(limited(&fixture, paid.clone()).await, Some(Duration::from_secs(60)));
    assert!(limited(&fixture, paid.clone()).await.is_some());
    for _ in 0..3 {
        assert_eq!(fixture.get(other.clone()).await.unwrap(), "content");
    }
    assert!(fixture.upstream.is_scarce(&other.repository) && !fixture.upstream.is_scarce(&paid.repository));
}

#[tokio::test]
async fn limit_of_one_url_does_not_affect_the_others() {
    let limited_server = Server::start(|_| Reply::new(429).header("retry-after", "60")).await;
    let own = Server::start(|seen| match seen.target.contains("/limited/") {
        true => Reply::new(429).header("retry-after", "30"),
        false => Reply::ok("content"),
    })
    .await;
    // With credentials, the first URL is an anonymous mirror, because it is not on the domain of the second one.
    for credentials in [Vec::new(), with_password("user", "x")] {
        let before = (limited_server.seen().len(), own.seen().len());
        let mut config =
            UpstreamConfig::new(format!("127.0.0.1:{}", own.port()), vec![limited_server.url(), own.url()]);
        config.credentials = credentials;
        let metrics = Arc::new(Metrics::new(&[]));
        let upstream = Upstream::new(&config, "roadstead-test", metrics, Tasks::new()).unwrap();
        for _ in 0..3 {
            let body = upstream.send(manifest(), soon()).await.unwrap().body.collect(100, soon()).await.unwrap();
            assert_eq!(body, "content");
        }
        assert_eq!(limited_server.seen().len(), before.0 + 1, "its own limit applies");
        assert_eq!(own.seen().len(), before.1 + 3);
        for _ in 0..2 {
            let request = request(Kind::Manifest, "limited/app", "manifests/latest");
            let error = upstream.send(request, soon()).await.unwrap_err();
            let left = error.retry_after().expect("the time is always known");
            assert!(left <= Duration::from_secs(30), "the limit that ends first: {error:?}");
        }
        assert_eq!(own.seen().len(), before.1 + 4, "no request is sent while all URLs are limited");
    }
}

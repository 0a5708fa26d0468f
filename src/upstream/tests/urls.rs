//! Several URLs of one upstream, and errors of its setup.

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use super::server::{Reply, Server};
use super::{Fixture, NAME, UpstreamError, blob};
use crate::config::UpstreamConfig;
use crate::tasks::Tasks;
use crate::telemetry::Metrics;
use crate::upstream::allowed_hosts::AllowedHosts;
use crate::upstream::client::{ClientKind, ClientSetup, HttpClients};
use crate::upstream::tls::TlsSetup;
use crate::upstream::{Upstream, UpstreamSetupError};

#[tokio::test]
async fn second_url_is_used_when_the_first_fails() {
    let good = Server::start(|_| Reply::ok("content")).await;
    let dead = Fixture::at(vec!["http://127.0.0.1:1/".parse().unwrap(), good.url()], |_| {});
    assert_eq!(dead.get(blob()).await.unwrap(), "content");
    // Without a connection no request was sent.
    dead.assert_requests_counted_at(&[&good]);

    for (status, wait) in [(503, 0), (500, 0), (200, 60)] {
        let bad = Server::start(move |_| Reply::new(status).after(Duration::from_secs(wait))).await;
        let good = Server::start(|_| Reply::ok("content")).await;
        let fixture = Fixture::new(&[&bad, &good]);
        assert_eq!(fixture.get(blob()).await.unwrap(), "content", "{status}");
        fixture.assert_requests_counted_at(&[&bad, &good]);
    }
}

#[tokio::test]
async fn content_of_any_url_is_served() {
    for status in [404, 403, 401, 405, 400, 429] {
        let first = Server::start(move |_| Reply::new(status)).await;
        let second = Server::start(|_| Reply::ok("content")).await;
        let fixture = Fixture::new(&[&first, &second]);
        assert_eq!(fixture.get(blob()).await.unwrap(), "content", "{status}");
        fixture.assert_requests_counted_at(&[&first, &second]);
    }
}

#[tokio::test]
async fn an_absence_at_one_url_is_confirmed_by_the_others() {
    type Check = fn(&UpstreamError) -> bool;
    let contradicted: Check = |error| matches!(error, UpstreamError::Contradicted { .. });
    let table: [(u16, u16, Check); 8] = [
        (404, 404, UpstreamError::is_not_found),
        (404, 500, contradicted),
        (404, 403, contradicted),
        // The first URL cannot be asked.
        (500, 404, contradicted),
        (403, 403, |error| matches!(error, UpstreamError::Denied { .. })),
        (404, 429, |error| matches!(error, UpstreamError::RateLimited { .. })),
        (429, 404, |error| matches!(error, UpstreamError::RateLimited { .. })),
        (429, 403, |error| matches!(error, UpstreamError::RateLimited { .. })),
    ];
    for (first, second, check) in table {
        let one = Server::start(move |_| Reply::denied(first)).await;
        let other = Server::start(move |_| Reply::denied(second)).await;
        let fixture = Fixture::new(&[&one, &other]);
        let error = fixture.get(blob()).await.unwrap_err();
        assert!(check(&error), "{first}, {second}: {error}");
        fixture.assert_requests_counted_at(&[&one, &other]);
    }
}

#[tokio::test]
async fn a_limit_of_one_url_does_not_end_the_retries_of_another() {
    let limited = Server::start(|_| Reply::new(429).header("retry-after", "60")).await;
    let failures = Arc::new(AtomicUsize::new(2));
    let other = Server::start(move |_| {
        let left = failures.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1));
        if left.is_ok() { Reply::new(500) } else { Reply::ok("content") }
    })
    .await;
    let fixture = Fixture::new(&[&limited, &other]);
    assert_eq!(fixture.get(blob()).await.unwrap(), "content");
    assert_eq!((limited.seen().len(), other.seen().len()), (1, 3));
}

/// Many registries deny what does not exist. But the URL that failed may have it.
#[tokio::test]
async fn an_anonymous_denial_counts_only_if_no_url_fails() {
    type Reaction = fn() -> Reply;
    let failures: [(&str, Reaction); 4] = [
        ("500", || Reply::new(500)),
        ("the page of a firewall", || Reply::new(403).body("<html>")),
        ("a broken challenge", || Reply::bearer("nonsense", "service=\"s\"")),
        ("503 with Retry-After", || Reply::new(503).header("retry-after", "600")),
    ];
    for (what, failure) in failures {
        let (failing, denying) = (Server::start(move |_| failure()).await, Server::start(|_| Reply::denied(403)).await);
        for servers in [[&failing, &denying], [&denying, &failing]] {
            let error = Fixture::new(&servers).get(blob()).await.unwrap_err();
            assert!(error.is_upstream_failure(), "{what}: {error}");
            let error = Fixture::new(&[&denying, &denying]).get(blob()).await.unwrap_err();
            assert!(matches!(error, UpstreamError::Denied { .. }), "{what}: {error}");
        }
    }
}

#[tokio::test]
async fn url_may_have_a_path() {
    let server = Server::start(|_| Reply::ok("content")).await;
    let fixture = Fixture::at(vec![server.at("/artifactory/docker/").parse().unwrap()], |_| {});
    fixture.get(blob()).await.unwrap();
    assert_eq!(server.count("/artifactory/docker/v2/team/app/blobs/sha256:abc"), 1);
}

#[tokio::test]
async fn unreachable_upstream_is_a_failure() {
    for url in ["http://127.0.0.1:1/", "http://nowhere.invalid/"] {
        let error = Fixture::at(vec![url.parse().unwrap()], |_| {}).get(blob()).await.unwrap_err();
        assert!(matches!(error, UpstreamError::Connect { .. } | UpstreamError::Timeout { .. }), "{error}");
        assert!(error.is_upstream_failure());
    }
}

/// The check of a redirect to a name is in the HTTP client's resolver, below all checks of URLs.
#[tokio::test]
async fn name_with_private_address_is_not_contacted() {
    let inside = Server::start(|_| Reply::ok("metadata")).await;
    let config = UpstreamConfig::new(NAME, vec!["https://r.example".parse().unwrap()]);
    let setup = ClientSetup {
        via: http::HeaderValue::from_static("1.1 x"),
        connect_timeout: Duration::from_secs(1),
        tls: TlsSetup::new(&UpstreamConfig::new("r.example", Vec::new())).unwrap(),
        use_proxy: false,
    };
    let (trust, metrics) = (Arc::new(AllowedHosts::new(&config)), Arc::new(Metrics::new(&[])));
    let clients = HttpClients::build(&NAME.into(), &setup, &trust, &metrics).unwrap();
    let url = format!("http://localhost:{}/", inside.port()).parse().unwrap();
    let deadline = tokio::time::Instant::now() + Duration::from_secs(5);
    let error = clients.send(ClientKind::Blobs, "blob", reqwest::Request::new(http::Method::GET, url), deadline).await;
    let error = error.unwrap_err();
    assert!(matches!(error, UpstreamError::BadResponse { .. }), "{error}");
    assert!(error.to_string().contains("localhost") && error.to_string().contains("private_redirects"), "{error}");
    assert!(inside.seen().is_empty());
}

#[test]
fn invalid_settings_are_setup_errors() {
    let metrics = Arc::new(Metrics::new(&[]));
    let url = || vec!["https://r.example".parse().unwrap()];
    let setup =
        |config: &UpstreamConfig, via: &str| Upstream::new(config, via, metrics.clone(), Tasks::new()).map(|_| ());

    let none = setup(&UpstreamConfig::new(NAME, Vec::new()), "x").unwrap_err();
    assert!(matches!(none, UpstreamSetupError::NoUrl { .. }), "{none}");

    let via = setup(&UpstreamConfig::new(NAME, url()), "a\nb").unwrap_err();
    assert!(matches!(via, UpstreamSetupError::Header { .. }), "{via}");

    let mut file = tempfile::NamedTempFile::new().unwrap();
    writeln!(file, "no certificate").unwrap();
    for path in [file.path().to_owned(), "/nonexistent/ca.pem".into()] {
        let mut config = UpstreamConfig::new(NAME, url());
        config.ca_file = Some(path.clone());
        let error = setup(&config, "x").unwrap_err().to_string();
        assert!(error.contains(NAME) && error.contains(path.to_str().unwrap()), "{error}");
    }
}

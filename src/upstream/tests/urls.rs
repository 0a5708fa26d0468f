//! Several URLs of one upstream, and errors of its setup.

use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use super::server::{Reply, Server};
use super::{Fixture, NAME, UpstreamError, blob};
use crate::config::UpstreamConfig;
use crate::tasks::Tasks;
use crate::telemetry::Metrics;
use crate::upstream::client::{ClientKind, ClientSetup, HttpClients};
use crate::upstream::tls::TlsSetup;
use crate::upstream::trust::Trust;
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
async fn answer_about_the_content_is_final() {
    for status in [404, 403, 429] {
        let first = Server::start(move |_| Reply::new(status)).await;
        let second = Server::start(|_| Reply::ok("content")).await;
        assert!(Fixture::new(&[&first, &second]).get(blob()).await.is_err(), "{status}");
        assert!(second.seen().is_empty(), "{status}");
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
    let (trust, metrics) = (Arc::new(Trust::new(&config)), Arc::new(Metrics::new(&[])));
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

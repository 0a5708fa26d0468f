//! Redirects: where an upstream may redirect to, and which headers are sent there.

use http::{Method, StatusCode};

use super::server::{Reply, Server};
use super::soon;
use super::{Fixture, UpstreamError, UpstreamRequest, blob, head, manifest};

const CHALLENGE: (&str, &str) = ("www-authenticate", r#"Basic realm="r""#);

#[tokio::test]
async fn redirect_to_another_host_keeps_range_but_no_authorization() {
    let storage = Server::start(|seen| {
        let range = seen.header("range").unwrap_or_default().to_owned();
        Reply::new(206).header("content-range", "bytes 2-4/10").body(range)
    })
    .await;
    let target = storage.at("/signed?sig=secret");
    let server = Server::start(move |seen| match seen.authorization() {
        Some(_) => Reply::redirect(target.clone()),
        None => Reply::new(401).header(CHALLENGE.0, CHALLENGE.1),
    })
    .await;
    let fixture = Fixture::with_password(&server);
    let response = fixture.send(UpstreamRequest { range: Some((2, 4)), ..blob() }).await.unwrap();
    assert_eq!(response.status, StatusCode::PARTIAL_CONTENT);
    assert_eq!(response.content_range(), Some((2, 4, Some(10))));
    assert_eq!(response.body.collect(100, soon()).await.unwrap(), "bytes=2-4");
    assert_eq!(storage.log(), [("/signed?sig=secret".to_owned(), None)]);
    assert_eq!(fixture.requests(r#"code="307",kind="blob""#), 1);
    assert_eq!(fixture.requests(r#"code="206",kind="blob""#), 1);
    fixture.assert_requests_counted_at(&[&server, &storage]);
}

#[tokio::test]
async fn redirect_back_to_the_upstream_carries_no_credentials() {
    let (secret, back) = ("/v2/secret/app/blobs/x", std::sync::Arc::new(std::sync::OnceLock::<String>::new()));
    let target = back.clone();
    let other = Server::start(move |_| Reply::redirect(target.get().unwrap())).await;
    let away = other.at("/");
    let server = Server::start(move |seen| match seen.authorization() {
        Some(_) if seen.target == secret => Reply::ok("secret"),
        Some(_) => Reply::redirect(away.clone()),
        None => Reply::new(401).header(CHALLENGE.0, CHALLENGE.1),
    })
    .await;
    back.set(server.at(secret)).unwrap();
    let error = Fixture::with_password(&server).get(blob()).await.unwrap_err();
    assert!(matches!(error, UpstreamError::Status { status, .. } if status == 401), "{error}");
    assert_eq!(server.log().last().unwrap(), &(secret.to_owned(), None));
}

/// registry.k8s.io redirects manifests to another registry with its own name.
#[tokio::test]
async fn redirect_target_gets_its_own_anonymous_token() {
    let other = Server::start(|seen| match seen.authorization() {
        _ if seen.target.starts_with("/token") => Reply::token("other"),
        Some("Bearer other") => Reply::ok("content").header("x-accept", seen.header("accept").unwrap()),
        _ => Reply::bearer(&seen.here("/token"), r#"scope="repository:prod/app:pull""#),
    })
    .await;
    let target = other.at("/v2/prod/app/manifests/latest");
    let server = Server::start(move |seen| match seen.authorization() {
        Some(_) => Reply::redirect(target.clone()),
        None => Reply::new(401).header(CHALLENGE.0, CHALLENGE.1),
    })
    .await;
    let fixture = Fixture::with_password(&server);
    let response = fixture.send(manifest()).await.unwrap();
    assert!(response.headers["x-accept"].to_str().unwrap().contains("image.index"));
    fixture.send(manifest()).await.unwrap();
    let token_request = ("/token?scope=repository%3Aprod%2Fapp%3Apull".to_owned(), None);
    assert_eq!(other.log()[1], token_request);
    assert_eq!(other.seen().len(), 4, "the second request uses the cached token: {:?}", other.log());
    fixture.assert_requests_counted_at(&[&server, &other]);
}

#[tokio::test]
async fn five_redirects_are_followed_and_no_more() {
    for (redirects, expected) in [(5, true), (6, false)] {
        let server = Server::start(move |seen| {
            let hop: usize = seen.target.strip_prefix("/hop/").map_or(0, |hop| hop.parse().unwrap());
            if hop < redirects { Reply::redirect(format!("/hop/{}", hop + 1)) } else { Reply::ok("content") }
        })
        .await;
        let answer = Fixture::new(&[&server]).get(blob()).await;
        assert_eq!(answer.is_ok(), expected, "{redirects}: {answer:?}");
        assert_eq!(server.seen().len(), 6);
    }
}

#[tokio::test]
async fn invalid_redirects_are_bad_responses() {
    for target in ["ftp://127.0.0.1/x", "http://[", "file:///etc/passwd"] {
        let server = Server::start(move |_| Reply::redirect(target)).await;
        let error = Fixture::new(&[&server]).get(blob()).await.unwrap_err();
        assert!(matches!(error, UpstreamError::BadResponse { .. }), "{target}: {error}");
    }
    let server = Server::start(|_| Reply::new(307)).await;
    let error = Fixture::new(&[&server]).get(blob()).await.unwrap_err();
    assert!(matches!(error, UpstreamError::BadResponse { .. }), "{error}");
}

/// GHCR's storage signs its URLs for GET only.
#[tokio::test]
async fn head_refused_by_storage_becomes_a_one_byte_get() {
    let table = [(206, Some("bytes 0-0/1234"), 1234), (200, None, 5), (416, Some("bytes */0"), 0)];
    for (status, content_range, length) in table {
        let storage = Server::start(move |seen| match seen.method == Method::HEAD {
            true => Reply::new(403),
            false => {
                let reply = Reply::new(status).header("content-length", "5").body("xxxxx");
                content_range.into_iter().fold(reply, |reply, range| reply.header("content-range", range))
            }
        })
        .await;
        let target = storage.at("/signed");
        let server = Server::start(move |_| Reply::redirect(target.clone())).await;
        let fixture = Fixture::new(&[&server]);
        let response = fixture.send(head(blob())).await.unwrap();
        assert_eq!((response.status, response.content_length()), (StatusCode::OK, Some(length)));
        assert_eq!(response.content_range(), None);
        assert_eq!(response.body.collect(0, soon()).await.unwrap(), "");
        assert_eq!(storage.seen()[1].header("range"), Some("bytes=0-0"));
        fixture.assert_requests_counted_at(&[&server, &storage]);
    }
}

#[tokio::test]
async fn storage_refusal_is_a_failure_not_a_denial() {
    for status in [401, 403] {
        let storage = Server::start(move |_| Reply::new(status)).await;
        let target = storage.at("/signed?sig=secret");
        let server = Server::start(move |_| Reply::redirect(target.clone())).await;
        let fixture = Fixture::new(&[&server]);
        let error = fixture.get(blob()).await.unwrap_err();
        assert!(matches!(error, UpstreamError::Status { .. }) && error.is_upstream_failure(), "{error}");
        let error = fixture.get(manifest()).await.unwrap_err();
        assert!(matches!(error, UpstreamError::Status { .. }), "{error}");
    }
    // registry.k8s.io redirects manifests to another registry, whose refusal counts.
    let registry = Server::start(|_| Reply::new(403).body(r#"{"errors":[{"code":"DENIED"}]}"#)).await;
    let target = registry.at("/v2/elsewhere/manifests/latest");
    let server = Server::start(move |_| Reply::redirect(target.clone())).await;
    let error = Fixture::new(&[&server]).get(manifest()).await.unwrap_err();
    assert!(matches!(error, UpstreamError::Denied { .. }), "{error}");
}

#[tokio::test]
async fn errors_never_contain_a_signed_query() {
    let server = Server::start(|_| Reply::redirect("http://127.0.0.1:1/signed?sig=secret")).await;
    let error = Fixture::new(&[&server]).get(blob()).await.unwrap_err();
    assert!(matches!(error, UpstreamError::Connect { .. }), "{error}");
    assert!(!format!("{error} {error:?}").contains("sig"), "{error:?}");
    assert!(error.to_string().to_lowercase().contains("refused"), "{error}");
}

//! Tokens and passwords: where they are sent, when, and how often.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::Instant;

use super::server::{Reply, Seen, Server};
use super::{Fixture, Kind, UpstreamError, blob, manifest, request, with_password};

const BASIC: &str = "Basic dXNlcjpodW50ZXIy";

/// A registry that issues `token` at `/token` and requires it everywhere else.
fn guarded(token: &'static str) -> impl Fn(&Seen) -> Reply + Send + Sync {
    move |seen| {
        if seen.target.starts_with("/token") {
            return Reply::token(token);
        }
        match seen.authorization() {
            Some(got) if got == format!("Bearer {token}") => Reply::ok("content"),
            Some(_) => Reply::new(403),
            None => Reply::bearer(&seen.here("/token"), &scope(seen)),
        }
    }
}

fn scope(seen: &Seen) -> String {
    let repository = seen.target.split('/').skip(2).take(2).collect::<Vec<_>>().join("/");
    format!(r#"service="s",scope="repository:{repository}:pull""#)
}

#[tokio::test]
async fn challenge_is_answered_and_remembered() {
    let server = Server::start(guarded("t")).await;
    let fixture = Fixture::new(&[&server]);
    assert_eq!(fixture.get(manifest()).await.unwrap(), "content");
    assert_eq!(fixture.get(blob()).await.unwrap(), "content");
    // The scope of another repository follows from the first challenge.
    assert_eq!(fixture.get(request(Kind::Tags, "other/app", "tags/list")).await.unwrap(), "content");

    let token = Some("Bearer t".to_owned());
    let expected = [
        ("/v2/team/app/manifests/latest", None),
        ("/token?service=s&scope=repository%3Ateam%2Fapp%3Apull", None),
        ("/v2/team/app/manifests/latest", token.clone()),
        ("/v2/team/app/blobs/sha256:abc", token.clone()),
        ("/token?service=s&scope=repository%3Aother%2Fapp%3Apull", None),
        ("/v2/other/app/tags/list", token),
    ];
    assert_eq!(server.log(), expected.map(|(path, token)| (path.to_owned(), token)));
    assert_eq!(fixture.requests(r#"kind="token""#), 2);
    assert_eq!(fixture.requests(r#"code="401",kind="manifest""#), 1);
    // Requests to token servers do not count towards the upstream's response times.
    assert_eq!(fixture.sum("roadstead_upstream_first_byte_seconds_count", ""), 4);
    fixture.assert_requests_counted_at(&[&server]);
}

#[tokio::test]
async fn literal_scope_is_used_for_every_repository() {
    let server = Server::start(|seen| match seen.authorization() {
        _ if seen.target.starts_with("/token") => Reply::token("t"),
        Some(_) => Reply::ok("content"),
        None => Reply::bearer(&seen.here("/token/"), r#"service="public.ecr.aws",scope="aws""#),
    })
    .await;
    let fixture = Fixture::new(&[&server]);
    fixture.get(manifest()).await.unwrap();
    fixture.get(request(Kind::Manifest, "other/app", "manifests/1")).await.unwrap();
    assert_eq!(server.count("/token/?service=public.ecr.aws&scope=aws"), 1);
    assert_eq!(server.seen().len(), 4);
}

#[tokio::test]
async fn challenge_without_scope_uses_the_repository() {
    let server = Server::start(|seen| match seen.authorization() {
        _ if seen.target.starts_with("/token") => Reply::ok(r#"{"access_token":"t"}"#),
        Some(_) => Reply::ok("content"),
        None => Reply::bearer("/token", ""),
    })
    .await;
    let fixture = Fixture::new(&[&server]);
    assert_eq!(fixture.get(manifest()).await.unwrap(), "content");
    assert_eq!(server.count("/token?scope=repository%3Ateam%2Fapp%3Apull"), 1);
}

#[tokio::test]
async fn credentials_go_only_to_the_token_server() {
    let server = Server::start(guarded("t")).await;
    let fixture = Fixture::with_password(&server);
    assert_eq!(fixture.get(manifest()).await.unwrap(), "content");
    let log = server.log();
    let query = "service=s&scope=repository%3Ateam%2Fapp%3Apull&client_id=roadstead&account=user";
    assert_eq!(log[1], (format!("/token?{query}"), Some(BASIC.to_owned())));
    assert_eq!(log[2].1.as_deref(), Some("Bearer t"));
    let repository = &manifest().repository;
    let anonymous = Fixture::new(&[&server]).upstream;
    assert_ne!(fixture.upstream.credential(repository), anonymous.credential(repository));
    assert!(fixture.upstream.has_credentials(repository) && !anonymous.has_credentials(repository));
}

#[tokio::test]
async fn token_server_without_get_is_asked_by_post() {
    let server = Server::start(|seen| match seen.authorization() {
        _ if seen.method == "POST" => Reply::ok(r#"{"access_token":"t"}"#),
        _ if seen.target.starts_with("/token") => Reply::new(405),
        Some(_) => Reply::ok("content"),
        None => Reply::bearer(&seen.here("/token"), &scope(seen)),
    })
    .await;
    let fixture = Fixture::with_password(&server);
    assert_eq!(fixture.get(manifest()).await.unwrap(), "content");
    let post = &server.seen()[2];
    assert_eq!(
        (post.target.as_str(), post.body.as_str()),
        (
            "/token",
            "grant_type=password&access_type=offline&username=user&password=hunter2&client_id=roadstead\
             &scope=repository%3Ateam%2Fapp%3Apull&service=s"
        )
    );
    assert_eq!(post.authorization(), None);
    fixture.assert_requests_counted_at(&[&server]);
}

#[tokio::test]
async fn refresh_token_is_exchanged_by_post() {
    let server = Server::start(guarded("t")).await;
    let fixture = Fixture::configured(&[&server], |config| {
        config.credentials = with_password("<token>", "refresh");
    });
    assert_eq!(fixture.get(manifest()).await.unwrap(), "content");
    assert!(server.seen()[1].body.starts_with("grant_type=refresh_token&refresh_token=refresh&"));
}

#[tokio::test]
async fn concurrent_requests_share_one_token_request() {
    let server = Server::start(|seen| match guarded("t")(seen) {
        reply if seen.target.starts_with("/token") => reply.after(Duration::from_millis(100)),
        reply => reply,
    })
    .await;
    // A slow machine must not make a second request because the first one timed out.
    let fixture = Fixture::configured(&[&server], |config| config.header_timeout = Duration::from_secs(60));
    let bodies = join_all((0..24).map(|_| fixture.get(blob()))).await;
    assert!(bodies.into_iter().all(|body| body.unwrap() == "content"));
    assert_eq!(server.count("/token"), 1);
    fixture.assert_requests_counted_at(&[&server]);
}

/// Each status is how some registry reports an expired token.
#[tokio::test]
async fn expired_token_is_replaced_once() {
    for status in [400, 401, 403] {
        let (tokens, expired) = (AtomicUsize::new(0), Arc::new(AtomicBool::new(false)));
        let now = expired.clone();
        let server = Server::start(move |seen| {
            if seen.target.starts_with("/token") {
                return Reply::token(&format!("t{}", tokens.fetch_add(1, Ordering::Relaxed)));
            }
            match seen.authorization() {
                Some("Bearer t0") if now.load(Ordering::Relaxed) => {
                    // nvcr.io names an unusable realm here.
                    Reply::new(status).header("www-authenticate", r#"Bearer realm="http://127.0.0.1:1/token""#)
                }
                Some(_) => Reply::ok("content"),
                None => Reply::bearer(&seen.here("/token"), &scope(seen)),
            }
        })
        .await;
        let fixture = Fixture::new(&[&server]);
        fixture.get(blob()).await.unwrap();
        expired.store(true, Ordering::Relaxed);
        assert_eq!(fixture.get(blob()).await.unwrap(), "content", "{status}");
        let log: Vec<_> = server.log().into_iter().skip(3).map(|(_, authorization)| authorization).collect();
        let expected = [Some("Bearer t0"), None, None, Some("Bearer t1")];
        assert_eq!(log, expected.map(|value| value.map(str::to_owned)), "{status}");
        fixture.assert_requests_counted_at(&[&server]);
    }
}

#[tokio::test]
async fn refused_new_token_is_a_denial() {
    let server = Server::start(|seen| match seen.authorization() {
        _ if seen.target.starts_with("/token") => Reply::token("t"),
        Some(_) => Reply::denied(403),
        None => Reply::bearer(&seen.here("/token"), &scope(seen)),
    })
    .await;
    let fixture = Fixture::new(&[&server]);
    let error = fixture.get(blob()).await.unwrap_err();
    assert!(matches!(error, UpstreamError::Denied { status, .. } if status == 403), "{error}");
    assert_eq!(server.seen().len(), 3);
}

#[tokio::test]
async fn denying_token_server_is_a_denial_without_secret() {
    let server = Server::start(|seen| match seen.target.starts_with("/token") {
        true => Reply::new(401),
        false => Reply::bearer(&seen.here("/token"), &scope(seen)),
    })
    .await;
    let error = Fixture::with_password(&server).get(blob()).await.unwrap_err();
    assert!(matches!(error, UpstreamError::Denied { .. }), "{error}");
    assert!(!error.is_upstream_failure());
    assert_eq!(
        error.to_string(),
        "r.example denies access (401 Unauthorized); check the name of the image and the credentials for it"
    );
    // A wrong password is tried once.
    assert_eq!(server.count("/token"), 1);
}

#[tokio::test]
async fn malformed_token_responses_are_failures_not_denials() {
    for (body, status) in
        [("not json", 200), ("{}", 200), (r#"{"token":"\n"}"#, 200), ("", 500), ("", 404), ("", 302), ("", 204)]
    {
        let server = Server::start(move |seen| match seen.target.starts_with("/token") {
            true => Reply::new(status).body(body),
            false => Reply::bearer(&seen.here("/token"), &scope(seen)),
        })
        .await;
        let error = Fixture::new(&[&server]).get(blob()).await.unwrap_err();
        assert!(error.is_upstream_failure() && !error.is_not_found(), "{status} {body}: {error}");
    }
    let long = format!(r#"{{"token":"t","x":"{}"}}"#, "x".repeat(64 * 1024));
    let server = Server::start(move |seen| match seen.target.starts_with("/token") {
        true => Reply::ok(long.clone()),
        false => Reply::bearer(&seen.here("/token"), &scope(seen)),
    })
    .await;
    let error = Fixture::new(&[&server]).get(blob()).await.unwrap_err();
    assert!(matches!(error, UpstreamError::BadResponse { .. }), "{error}");
}

#[tokio::test]
async fn basic_challenge_is_answered_and_remembered() {
    let server = Server::start(|seen| match seen.authorization() {
        Some(BASIC) => Reply::ok("content"),
        _ => Reply::denied(401).header("www-authenticate", r#"Basic realm="Artifactory Realm""#),
    })
    .await;
    let fixture = Fixture::with_password(&server);
    assert_eq!(fixture.get(manifest()).await.unwrap(), "content");
    assert_eq!(fixture.get(blob()).await.unwrap(), "content");
    assert_eq!(server.seen().len(), 3);

    let anonymous = Fixture::new(&[&server]).get(manifest()).await.unwrap_err();
    assert!(matches!(anonymous, UpstreamError::Denied { .. }), "{anonymous}");
    assert_eq!(server.seen().len(), 4);
}

#[tokio::test]
async fn wrong_password_is_sent_once_per_request() {
    let server = Server::start(|_| Reply::new(401).header("www-authenticate", r#"Basic realm="r""#)).await;
    let fixture = Fixture::with_password(&server);
    for requests in [2, 3] {
        assert!(matches!(fixture.get(blob()).await, Err(UpstreamError::Denied { .. })));
        assert_eq!(server.seen().len(), requests);
    }
}

#[tokio::test]
async fn token_server_on_another_domain_gets_no_credentials() {
    let tokens = Server::start(|_| Reply::token("t")).await;
    // A host name and an IP address are different hosts, even if the name resolves to the address.
    let realm = format!("http://localhost:{}/token", tokens.port());
    let challenge = realm.clone();
    let server = Server::start(move |seen| match seen.authorization() {
        Some("Bearer t") => Reply::ok("public content"),
        _ => Reply::bearer(&challenge, r#"service="s""#),
    })
    .await;
    let fixture = Fixture::with_password(&server);
    assert_eq!(fixture.get(blob()).await.unwrap(), "public content");
    assert_eq!(tokens.log(), [("/token?service=s&scope=repository%3Ateam%2Fapp%3Apull".to_owned(), None)]);

    let trusting = Fixture::configured(&[&server], |config| {
        config.credentials = with_password("user", "hunter2");
        config.token_realms = vec!["localhost".to_owned()];
    });
    assert_eq!(trusting.get(blob()).await.unwrap(), "public content");
    assert_eq!(tokens.log()[1].1.as_deref(), Some(BASIC));
}

#[tokio::test]
async fn token_server_may_redirect_within_its_host() {
    for status in [301, 302, 303, 307, 308] {
        let server = Server::start(move |seen| match seen.authorization() {
            Some("Bearer t") => Reply::ok("content"),
            Some(BASIC) if seen.target.starts_with("/moved") => Reply::token("t"),
            _ if seen.target.starts_with("/token") => Reply::new(status).header("location", "/moved?x=1"),
            _ => Reply::bearer(&seen.here("/token"), &scope(seen)),
        })
        .await;
        let fixture = Fixture::with_password(&server);
        assert_eq!(fixture.get(blob()).await.unwrap(), "content", "{status}");
        assert_eq!(server.count("/moved?x=1"), 1, "{status}");
        fixture.assert_requests_counted_at(&[&server]);
    }
}

#[tokio::test]
async fn redirected_token_request_carries_no_credentials_to_another_host() {
    let other = Server::start(|_| Reply::token("anonymous")).await;
    let away = other.at("/token");
    let server = Server::start(move |seen| match seen.authorization() {
        Some("Bearer anonymous") => Reply::ok("public content"),
        _ if seen.target.starts_with("/token") => Reply::redirect(away.clone()),
        _ => Reply::bearer(&seen.here("/token"), &scope(seen)),
    })
    .await;
    assert_eq!(Fixture::with_password(&server).get(blob()).await.unwrap(), "public content");
    assert_eq!(other.log(), [("/token".to_owned(), None)]);
    // Nor does the first host when it is redirected back.
    let (back, target) = (Arc::new(std::sync::OnceLock::<String>::new()), Arc::new(std::sync::OnceLock::new()));
    let home = back.clone();
    let other = Server::start(move |_| Reply::redirect(home.get().unwrap())).await;
    target.set(other.at("/x")).unwrap();
    let server = Server::start(move |seen| match seen.target.as_str() {
        token if token.starts_with("/token") => Reply::redirect(target.get().unwrap()),
        "/secret" => Reply::token("t"),
        _ if seen.authorization() == Some("Bearer t") => Reply::ok("content"),
        _ => Reply::bearer(&seen.here("/token"), &scope(seen)),
    })
    .await;
    back.set(server.at("/secret")).unwrap();
    assert_eq!(Fixture::with_password(&server).get(blob()).await.unwrap(), "content");
    assert!(server.log().contains(&("/secret".to_owned(), None)), "{:?}", server.log());
}

#[tokio::test]
async fn token_server_may_not_redirect_anywhere() {
    for target in ["http://169.254.169.254/latest", "ftp://127.0.0.1/", "http://[", "/token"] {
        let server = Server::start(move |seen| match seen.target.starts_with("/token") {
            true => Reply::redirect(target),
            false => Reply::bearer(&seen.here("/token"), &scope(seen)),
        })
        .await;
        let error = Fixture::with_password(&server).get(blob()).await.unwrap_err();
        assert!(matches!(error, UpstreamError::BadResponse { .. }), "{target}: {error}");
        let requests = server.log().iter().filter(|(path, _)| path.starts_with("/token")).count();
        assert_eq!(requests, if target == "/token" { 6 } else { 1 }, "{target}");
    }
}

#[tokio::test]
async fn slow_token_server_is_given_up() {
    let server = Server::start(|seen| match seen.target.starts_with("/token") {
        true => Reply::token("t").after(Duration::from_secs(60)),
        false => Reply::bearer(&seen.here("/token"), &scope(seen)),
    })
    .await;
    let fixture = Fixture::new(&[&server]);
    let started = Instant::now();
    let error = fixture.upstream.send(blob(), started + Duration::from_secs(2)).await.unwrap_err();
    assert!(matches!(error, UpstreamError::Timeout { .. }), "{error}");
    assert!(started.elapsed() < Duration::from_secs(50), "the token server answers after a minute");
    fixture.assert_requests_counted_at(&[&server]);
}

/// A registry that challenges at `/v2/` only, and answers an anonymous request for a name with `status`.
fn hiding(status: u16, challenge: &'static str) -> impl Fn(&Seen) -> Reply + Send + Sync {
    move |seen| match seen.authorization() {
        Some(BASIC) if seen.target.starts_with("/token") => Reply::token("t"),
        _ if seen.target.starts_with("/token") => Reply::token("anonymous"),
        Some("Bearer t" | BASIC) => Reply::ok("content"),
        None if seen.target == "/v2/" && challenge == "Bearer" => Reply::bearer(&seen.here("/token"), "service=\"s\""),
        None if seen.target == "/v2/" => Reply::new(401).header("www-authenticate", "Basic realm=\"x\""),
        _ => Reply::denied(status),
    }
}

#[tokio::test]
async fn a_hidden_private_name_is_requested_with_credentials() {
    for challenge in ["Basic", "Bearer"] {
        for status in [404, 403] {
            let server = Server::start(hiding(status, challenge)).await;
            let fixture = Fixture::with_password(&server);
            for request in [manifest(), blob(), request(Kind::Tags, "other/app", "tags/list")] {
                assert_eq!(fixture.get(request).await.unwrap(), "content", "{challenge}, {status}");
            }
            let asked = server.seen().iter().filter(|seen| seen.target == "/v2/").count();
            assert_eq!(asked, 1, "{challenge}, {status}: the challenge is remembered");
            fixture.assert_requests_counted_at(&[&server]);

            let server = Server::start(hiding(status, challenge)).await;
            let error = Fixture::new(&[&server]).get(manifest()).await.unwrap_err();
            assert!(matches!(error, UpstreamError::NotFound { .. } | UpstreamError::Denied { .. }), "{error}");
            assert_eq!(server.seen().len(), 1, "without credentials there is nothing to log in with");
        }
    }
}

#[tokio::test]
async fn a_host_without_a_challenge_is_asked_for_it_once() {
    for status in [200, 404] {
        let server = Server::start(move |seen| Reply::denied(if seen.target == "/v2/" { status } else { 404 })).await;
        let fixture = Fixture::with_password(&server);
        for _ in 0..3 {
            assert!(fixture.get(manifest()).await.unwrap_err().is_not_found(), "{status}");
        }
        let asked = server.seen().iter().filter(|seen| seen.target == "/v2/").count();
        assert_eq!((asked, server.seen().len()), (1, 4), "{status}");
    }
}

#[tokio::test]
async fn without_the_challenge_a_hidden_name_is_not_known_to_be_absent() {
    let server = Server::start(|seen| Reply::denied(if seen.target == "/v2/" { 503 } else { 404 })).await;
    let error = Fixture::with_password(&server).get(manifest()).await.unwrap_err();
    assert!(matches!(error, UpstreamError::Status { .. }), "{error}");

    // The challenge is known, and then the token server fails.
    let failing = Arc::new(AtomicBool::new(false));
    let (switch, hides) = (failing.clone(), hiding(404, "Bearer"));
    let server = Server::start(move |seen| match seen.target.starts_with("/token") && switch.load(Ordering::Relaxed) {
        true => Reply::new(503),
        false => hides(seen),
    })
    .await;
    let fixture = Fixture::with_password(&server);
    assert_eq!(fixture.get(manifest()).await.unwrap(), "content");
    failing.store(true, Ordering::Relaxed);
    let error = fixture.get(request(Kind::Tags, "other/app", "tags/list")).await.unwrap_err();
    assert!(matches!(error, UpstreamError::Status { .. }), "{error}");
}

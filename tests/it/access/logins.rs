//! Passwords and tokens: which are accepted, how long, and how many wrong ones.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::hmac;

use super::{Access, RULES, assert_error, basic, login, write_users};
use crate::support::Conn;

const TEAM: &str = "/v2/team/app/tags/list";

#[tokio::test]
async fn a_login_is_right_or_wrong() {
    let access = Access::start(RULES).await;
    assert_eq!(access.get("/v2/", &login("ann")).await.status, 200);
    for wrong in [
        basic("ann", "wrong"),
        basic("ann", ""),
        basic("Ann", "ann-password"),
        basic("nobody", "ann-password"),
        basic("ann", &"x".repeat(5000)),
        "Basic !!!".to_owned(),
        "Bearer ann-password".to_owned(),
        "Digest x".to_owned(),
    ] {
        assert_error(&access.get("/v2/", &wrong).await, 401, "UNAUTHORIZED", &wrong);
        let repository = access.get(TEAM, &wrong).await;
        assert_error(&repository, 401, "UNAUTHORIZED", &wrong);
        assert_ne!(repository.header("www-authenticate"), "");
    }
    // A read of an upstream's image does not depend on it, and a token that is not valid is always told so.
    assert_eq!(access.get("/v2/library/alpine/manifests/1", &basic("ann", "wrong")).await.status, 200);
    assert_eq!(access.get("/v2/library/alpine/manifests/1", "Bearer x").await.status, 401);
}

#[tokio::test]
async fn two_authorization_headers_are_refused() {
    let access = Access::start(RULES).await;
    let addr = access.server.addr();
    let right = login("ann");
    for path in ["/v2/", TEAM, "/v2/library/alpine/manifests/1", "/auth/token"] {
        let request =
            format!("GET {path} HTTP/1.1\r\nHost: {addr}\r\nAuthorization: {right}\r\nAuthorization: {right}\r\n\r\n");
        assert_eq!(Conn::ask(addr, &request).await.unwrap().status, 400, "{path}");
    }
}

#[tokio::test]
async fn a_user_who_is_removed_while_the_server_runs_is_gone_with_every_token() {
    let access = Access::start(RULES).await;
    assert_eq!(access.push("team/app", &login("ann")).await, 201);
    let query = "?scope=repository:team/app:pull,push";
    let tokens = [access.token(query, &login("ann")).await, access.token(query, &login("bob")).await];
    for token in &tokens {
        assert_eq!(access.get(TEAM, token).await.status, 200);
    }
    // Without ann, and with a new hash for bob's password.
    write_users(&access.users(), &["eve"]);
    let hash = bcrypt::hash_with_salt("bob-password", 4, [0; 16]).unwrap();
    let users = std::fs::read_to_string(access.users()).unwrap();
    std::fs::write(access.users(), format!("{users}bob:{hash}\n")).unwrap();
    while access.get(TEAM, &tokens[0]).await.status == 200 {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    for token in &tokens {
        let answer = access.get(TEAM, token).await;
        assert!(answer.header("www-authenticate").ends_with("error=\"invalid_token\""), "{answer:?}");
    }
    assert_eq!(access.get("/v2/", &login("ann")).await.status, 401);
    assert_eq!(access.get("/v2/", &login("bob")).await.status, 200);
    // A file that cannot be used changes nothing.
    std::fs::write(access.users(), "bob:plain text\n").unwrap();
    tokio::time::sleep(Duration::from_millis(2500)).await;
    assert_eq!(access.get("/v2/", &login("bob")).await.status, 200);
}

/// The token that a server with this secret would have issued.
fn signed(secret: &[u8], header: &str, claims: &str) -> String {
    let key = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, secret), b"roadstead token 1");
    let key = hmac::Key::new(hmac::HMAC_SHA256, key.as_ref());
    let signed = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(claims));
    let signature = URL_SAFE_NO_PAD.encode(hmac::sign(&key, signed.as_bytes()));
    format!("Bearer {signed}.{signature}")
}

#[tokio::test]
async fn expired_and_forged_tokens_are_refused() {
    const HEADER: &str = r#"{"alg":"HS256","typ":"roadstead+jwt"}"#;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("key");
    let secret = [b'k'; 32];
    std::fs::write(&file, [&secret[..], b"\n"].concat()).unwrap();
    let access = Access::configured(RULES, &format!("[auth]\ntoken_key_file = {file:?}")).await;
    let now = std::time::UNIX_EPOCH.elapsed().unwrap().as_secs();
    let claims = |expires: u64| format!(r#"{{"exp":{expires},"acts":["*"]}}"#);
    let alpine = "/v2/library/alpine/manifests/1";
    assert_eq!(access.get(alpine, &signed(&secret, HEADER, &claims(now + 60))).await.status, 200);
    let good = signed(&secret, HEADER, &claims(now + 60));
    for (what, token) in [
        ("expired", signed(&secret, HEADER, &claims(now - 1))),
        ("another key", signed(&[b'x'; 32], HEADER, &claims(now + 60))),
        ("another type", signed(&secret, r#"{"alg":"HS256","typ":"JWT"}"#, &claims(now + 60))),
        ("no algorithm", signed(&secret, r#"{"alg":"none"}"#, &claims(now + 60))),
        ("no signature", good[..good.rfind('.').unwrap() + 1].to_owned()),
        (
            "another user",
            signed(&secret, HEADER, &format!(r#"{{"sub":"ann","cred":"x","exp":{},"acts":["*"]}}"#, now + 60)),
        ),
        ("a large one", format!("{good}{}", "x".repeat(9000))),
        ("nothing", "Bearer ".to_owned()),
    ] {
        let answer = access.get(alpine, &token).await;
        assert_eq!(answer.status, 401, "{what}");
        assert!(answer.header("www-authenticate").ends_with("error=\"invalid_token\""), "{what}: {answer:?}");
    }
}

#[tokio::test]
async fn tokens_of_an_older_key_are_accepted_and_new_ones_have_the_first_key() {
    let folder = tempfile::tempdir().unwrap();
    let (old, new) = (folder.path().join("old"), folder.path().join("new"));
    std::fs::write(&old, [b'o'; 32]).unwrap();
    std::fs::write(&new, [b'n'; 32]).unwrap();
    let server = async |keys: String| Access::configured(RULES, &format!("[auth]\ntoken_key_file = {keys}")).await;
    let all = [
        server(format!("{old:?}")).await,
        server(format!("[{new:?}, {old:?}]")).await,
        server(format!("{new:?}")).await,
    ];
    let mut found = Vec::new();
    for issuer in &all {
        let token = issuer.token("", &login("ann")).await;
        for other in &all {
            found.push(other.get("/v2/", &token).await.status);
        }
    }
    // Issued with the old key, with both, and with the new one.
    assert_eq!(found, [200, 200, 401, 401, 200, 200, 401, 200, 200]);
}

#[tokio::test]
async fn tokens_outlive_a_restart() {
    let mut access = Access::start(RULES).await;
    let token = access.token("?scope=repository:team/app:pull", &login("ann")).await;
    access.server.restart().await;
    assert_eq!(access.get("/v2/", &token).await.status, 200);
    let secret = access.server.data_dir().join("state/token-secret");
    std::fs::remove_file(secret).unwrap();
    access.server.restart().await;
    assert_eq!(access.get("/v2/", &token).await.status, 401);
}

#[tokio::test]
async fn wrong_passwords_are_bounded_and_nobody_else_is_locked_out() {
    let access = Access::start(RULES).await;
    // Ann has logged in from here.
    assert_eq!(access.get("/v2/", &login("ann")).await.status, 200);
    let mut answers = Vec::new();
    for attempt in 0..12 {
        // A repeated one counts once.
        for _ in 0..2 {
            answers.push(access.get("/v2/", &basic("bob", &format!("wrong {attempt}"))).await.status);
        }
    }
    assert_eq!(answers[..20], [401; 20]);
    assert_eq!(answers[20..], [429; 4]);
    for who in [basic("bob", "other"), basic("unknown", "other"), login("eve")] {
        let answer = access.get("/v2/", &who).await;
        assert_error(&answer, 429, "TOOMANYREQUESTS", &who);
        let wait: u64 = answer.header("retry-after").parse().unwrap();
        assert!((1..=10).contains(&wait), "{wait}");
        assert_eq!(answer.header("www-authenticate"), "");
        assert_eq!(access.send("GET", "/auth/token", &who).await.status, 429);
        // A pull goes on.
        let token = access.token("?scope=repository:library/alpine:pull", &who).await;
        assert_eq!(access.get("/v2/library/alpine/manifests/1", &token).await.status, 200);
        assert_eq!(access.get("/v2/library/alpine/manifests/1", &who).await.status, 200);
    }
    assert_eq!(access.get("/v2/", &login("ann")).await.status, 200);
    assert_eq!(access.push("team/app", &login("ann")).await, 201);
    assert_eq!(access.server.get("/v2/library/alpine/manifests/1").await.status, 200);
    // Another address is another client.
    let elsewhere = reqwest::Client::builder().local_address("127.0.0.2".parse::<std::net::IpAddr>().ok()).no_proxy();
    let elsewhere = elsewhere.build().unwrap();
    let answer = elsewhere.get(access.server.url("/v2/")).header("Authorization", login("bob")).send().await.unwrap();
    assert_eq!(answer.status(), 200);
}

/// A client that has to wait does not learn which password is right from the logins of its user.
#[tokio::test]
async fn a_right_password_is_no_exception_to_a_pause() {
    let access = Access::configured(RULES, "[server]\ntrusted_proxies = [\"127.0.0.1\"]").await;
    let status = async |client: &str, authorization: &str| {
        let headers = [("Authorization", authorization), ("X-Forwarded-For", client)];
        access.server.get_with("/v2/", &headers).await.status
    };
    assert_eq!(status("192.0.2.1", &login("ann")).await, 200);
    for guess in 0..10 {
        assert_eq!(status("192.0.2.2", &basic("ann", &format!("guess {guess}"))).await, 401);
    }
    assert_eq!(status("192.0.2.2", &basic("ann", "guess 10")).await, 429);
    assert_eq!(status("192.0.2.2", &login("ann")).await, 429);
    assert_eq!(status("192.0.2.1", &login("ann")).await, 200);
}

#[tokio::test]
async fn a_file_of_users_with_a_mistake_stops_the_start() {
    let folder = tempfile::tempdir().unwrap();
    let users = folder.path().join("htpasswd");
    std::fs::write(&users, "# users\nann:hunter2\n").unwrap();
    let toml = format!(
        "default_upstream = \"none\"\n[server]\nlisten = \"127.0.0.1:0\"\n[storage]\npath = {:?}\n[auth]\n\
         htpasswd = {users:?}\n{RULES}",
        folder.path().join("data")
    );
    let config = roadstead::config::Config::from_toml(&toml, "test").unwrap();
    let error = roadstead::server::start(config).await.err().unwrap().to_string();
    let expected = "cannot use the users of auth.htpasswd: ";
    assert!(error.starts_with(expected) && error.contains("htpasswd: line 2: what follows the user ann"), "{error}");
    assert!(error.contains("roadstead hash-password --user NAME") && !error.contains("hunter2"), "{error}");
}

#[tokio::test]
async fn many_logins_at_once_are_all_answered() {
    let access = Access::start(RULES).await;
    let token = login("ann");
    let all = futures_util::future::join_all((0..64).map(|_| access.get("/v2/", &token))).await;
    assert!(all.iter().all(|answer| answer.status == 200), "one verification serves them all");
}

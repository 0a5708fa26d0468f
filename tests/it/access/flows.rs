//! How clients log in: their requests, replayed, and the challenges byte for byte.

use bytes::Bytes;
use serde_json::json;

use super::{Access, CLOSED, RULES, assert_error, basic, bearer, login};
use crate::support::{Authority, Client, Conn, TestServer};

fn form(fields: &[(&str, &str)]) -> String {
    url::form_urlencoded::Serializer::new(String::new()).extend_pairs(fields).finish()
}

async fn post(access: &Access, fields: &[(&str, &str)]) -> crate::support::Answer {
    let headers = [("Content-Type", "application/x-www-form-urlencoded; charset=utf-8")];
    access.server.send("POST", "/auth/token", &headers, form(fields)).await
}

#[tokio::test]
async fn the_challenge_is_exact() {
    let access = Access::start(RULES).await;
    let host = access.server.addr().to_string();
    let digest = &access.image.layers[0].digest;
    let start = format!("Bearer realm=\"http://{host}/auth/token\",service=\"{host}\"");
    for (method, path, authorization, rest) in [
        ("GET", "/v2/".to_owned(), String::new(), ""),
        ("HEAD", "/v2/".to_owned(), String::new(), ""),
        ("GET", "/v2".to_owned(), String::new(), ""),
        ("GET", "/v2/".to_owned(), basic("ann", "wrong"), ""),
        ("GET", "/v2/".to_owned(), "Bearer x".to_owned(), ",error=\"invalid_token\""),
        ("GET", "/v2/".to_owned(), "Negotiate x".to_owned(), ""),
        ("GET", "/v2/team/app/manifests/v1".to_owned(), String::new(), ",scope=\"repository:team/app:pull\""),
        ("HEAD", format!("/v2/team/app/blobs/{digest}"), String::new(), ",scope=\"repository:team/app:pull\""),
        ("GET", "/v2/team/app/tags/list".to_owned(), String::new(), ",scope=\"repository:team/app:pull\""),
        ("POST", "/v2/team/app/blobs/uploads/".to_owned(), String::new(), ",scope=\"repository:team/app:pull,push\""),
        ("PUT", "/v2/team/app/manifests/v1".to_owned(), String::new(), ",scope=\"repository:team/app:pull,push\""),
        ("DELETE", "/v2/team/app/manifests/v1".to_owned(), String::new(), ",scope=\"repository:team/app:delete\""),
        (
            "GET",
            "/v2/library/alpine/manifests/1".to_owned(),
            "Bearer x".to_owned(),
            ",scope=\"repository:library/alpine:pull\",error=\"invalid_token\"",
        ),
        (
            "GET",
            "/v2/docker.io/library/alpine/manifests/1".to_owned(),
            "Bearer x".to_owned(),
            ",scope=\"repository:docker.io/library/alpine:pull\",error=\"invalid_token\"",
        ),
        (
            "GET",
            "/v2/_catalog".to_owned(),
            "Bearer x".to_owned(),
            ",scope=\"registry:catalog:*\",error=\"invalid_token\"",
        ),
    ] {
        let answer = access.send(method, &path, &authorization).await;
        assert_eq!(answer.status, 401, "{method} {path} {authorization}");
        assert_eq!(answer.header("www-authenticate"), format!("{start}{rest}"), "{method} {path}");
        assert_eq!(answer.headers.get_all("www-authenticate").iter().count(), 1);
    }
    let elsewhere = "GET /v2/ HTTP/1.1\r\nHost: cache.example:5000\r\n\r\n";
    let elsewhere = Conn::ask(access.server.addr(), elsewhere).await.unwrap();
    let realm = "Bearer realm=\"http://cache.example:5000/auth/token\",service=\"cache.example:5000\"";
    assert_eq!((elsewhere.status, elsewhere.header("www-authenticate")), (401, realm));
}

#[tokio::test]
async fn the_realm_has_the_scheme_of_the_connection_or_the_external_url() {
    let external = Access::configured(CLOSED, "[server]\nexternal_url = \"https://cache.example.com/\"").await;
    let answer = external.server.get("/v2/").await;
    let realm = "Bearer realm=\"https://cache.example.com/auth/token\",service=\"cache.example.com\"";
    assert_eq!(answer.header("www-authenticate"), realm);

    let authority = Authority::new();
    let encrypted = Access::configured(CLOSED, &authority.config("one")).await;
    let url = format!("https://localhost:{}/v2/", encrypted.server.addr().port());
    let client = Client::trusting(&authority.ca, None);
    let answer = client.get(&url).await;
    let host = format!("localhost:{}", encrypted.server.addr().port());
    let realm = format!("Bearer realm=\"https://{host}/auth/token\",service=\"{host}\"");
    assert_eq!((answer.status, answer.header("www-authenticate")), (401, realm.as_str()));
}

#[tokio::test]
async fn docker_logs_in_pulls_and_pushes() {
    let access = Access::start(RULES).await;
    // docker login: without a scope, then the ping with the token.
    let query = "?account=ann&client_id=docker&offline_token=true&service=x";
    let answer = access.send("GET", &format!("/auth/token{query}"), &login("ann")).await;
    assert_eq!((answer.status, answer.header("cache-control")), (200, "no-store"));
    let fields: Vec<String> = answer.json().as_object().unwrap().keys().cloned().collect();
    assert_eq!(fields, ["access_token", "expires_in", "token"], "and neither refresh_token nor issued_at");
    assert_eq!(answer.json()["expires_in"], json!(900));
    let token = bearer(&answer);
    assert_eq!(access.get("/v2/", &token).await.status, 200);
    // It is good for that only.
    let lacking = access.get("/v2/team/app/manifests/v1", &token).await;
    let error = ",scope=\"repository:team/app:pull\",error=\"insufficient_scope\"";
    assert!(lacking.status == 401 && lacking.header("www-authenticate").ends_with(error), "{lacking:?}");
    let wrong = access.send("GET", &format!("/auth/token{query}"), &basic("ann", "wrong")).await;
    assert_error(&wrong, 401, "UNAUTHORIZED", "a wrong password");
    assert_eq!(wrong.header("www-authenticate"), "", "a client would try the same password again");
    // A push, and a pull with the scopes that dockerd builds itself.
    let token = access.token("?scope=repository:team/app:push,pull&account=ann&service=x", &login("ann")).await;
    assert_eq!(access.push("team/app", &token).await, 201);
    let pull = access.token("?scope=repository:team/app:pull&service=x", &login("bob")).await;
    assert_eq!(access.get("/v2/team/app/manifests/v1", &pull).await.status, 200);
    let push = access.send("POST", "/v2/team/app/blobs/uploads/", &pull).await;
    let error = ",scope=\"repository:team/app:pull,push\",error=\"insufficient_scope\"";
    assert!(push.status == 401 && push.header("www-authenticate").ends_with(error), "{push:?}");
    // Without a login, an anonymous token.
    let nobody = access.token("?scope=repository:library/alpine:pull&service=x", "").await;
    assert_eq!(access.get("/v2/library/alpine/manifests/1", &nobody).await.status, 200);
    let refused = access.get("/v2/team/app/manifests/v1", &nobody).await;
    assert!(refused.header("www-authenticate").ends_with("error=\"insufficient_scope\""), "{refused:?}");
}

#[tokio::test]
async fn containerd_posts_first() {
    let access = Access::start(RULES).await;
    let fields = [
        ("client_id", "containerd-client"),
        ("grant_type", "password"),
        ("scope", "repository:team/app:pull,push repository:base/os:pull"),
        ("service", "x"),
        ("username", "ann"),
        ("password", "ann-password"),
    ];
    let answer = post(&access, &fields).await;
    assert_eq!((answer.status, answer.header("cache-control")), (200, "no-store"));
    assert_eq!(access.push("team/app", &bearer(&answer)).await, 201);
    let refresh = post(&access, &[("grant_type", "refresh_token"), ("refresh_token", "x")]).await;
    assert_eq!((refresh.status, refresh.json()), (400, json!({ "error": "unsupported_grant_type" })));
    for fields in [&[][..], &[("grant_type", "authorization_code")], &[("username", "ann")]] {
        assert_eq!(post(&access, fields).await.status, 400, "{fields:?}");
    }
    let wrong = [&fields[..5], &[("password", "wrong")]].concat();
    let answer = post(&access, &wrong).await;
    assert_error(&answer, 401, "UNAUTHORIZED", "a wrong password");
    assert_eq!(answer.header("www-authenticate"), "");
    let large = post(&access, &[("grant_type", "password"), ("x", &"y".repeat(70_000))]).await;
    assert_eq!(large.status, 413);
    let other = access.send("PUT", "/auth/token", "").await;
    assert_eq!((other.status, other.header("allow")), (405, "GET, POST"));
}

#[tokio::test]
async fn podman_without_a_login_is_nobody() {
    let access = Access::start(RULES).await;
    let empty = "Basic Og==";
    assert_eq!(access.get("/v2/", empty).await.status, 401);
    assert_eq!(access.get("/v2/library/alpine/manifests/1", empty).await.status, 200);
    let token = access.token("?account=&scope=repository:docker.io/library/alpine:pull", empty).await;
    assert_eq!(access.get("/v2/docker.io/library/alpine/manifests/1", &token).await.status, 200);
    assert_eq!(access.get("/v2/", &token).await.status, 200);
    // Where nobody may do anything, there is no token for nobody.
    let closed = Access::start(CLOSED).await;
    for login in ["", empty] {
        assert_error(&closed.send("GET", "/auth/token", login).await, 401, "UNAUTHORIZED", login);
    }
    assert_error(&post(&closed, &[("grant_type", "password")]).await, 401, "UNAUTHORIZED", "no user");
}

#[tokio::test]
async fn a_login_for_another_registry_does_not_break_a_pull() {
    let access = Access::start(RULES).await;
    for foreign in [basic("hub-user", "hub-password"), basic("ann", "hub-password"), "Negotiate x".to_owned()] {
        let manifest = access.get("/v2/library/alpine/manifests/1", &foreign).await;
        assert_eq!(manifest.status, 200, "{foreign}");
        assert_eq!(access.get("/v2/", &foreign).await.status, 401, "a login is a test");
        assert_eq!(access.get("/docker.io/v2/", &foreign).await.status, 200);
        assert_eq!(access.push("team/app", &foreign).await, 401);
        let token = access.token("?scope=repository:library/alpine:pull", &foreign).await;
        assert_eq!(access.get("/v2/library/alpine/manifests/1", &token).await.status, 200);
        assert_eq!(access.get("/v2/team/app/manifests/v1", &token).await.status, 401);
        for query in ["", "?scope=repository:team/app:pull,push", "?scope=repository:a:pull&scope=repository:b:push"] {
            let answer = access.send("GET", &format!("/auth/token{query}"), &foreign).await;
            assert_eq!(answer.status, 401, "{foreign} {query}");
        }
    }
    // Where nobody may pull, it is refused.
    let closed = Access::start(CLOSED).await;
    let query = "/auth/token?scope=repository:library/alpine:pull";
    assert_eq!(closed.send("GET", query, &basic("hub-user", "x")).await.status, 401);
}

#[tokio::test]
async fn pings_that_name_an_upstream_ask_for_no_login_if_everyone_pulls_there() {
    let access = Access::configured(RULES, "[server]\nhost_routes = [\"cache.example\"]").await;
    for path in ["/docker.io/v2/", "/v2/docker.io/v2/", "/docker.io/v2"] {
        assert_eq!(access.server.get(path).await.status, 200, "{path}");
    }
    assert_eq!(access.server.get("/quay.io/v2/").await.status, 401);
    for (host, status) in [("docker-io.cache.example", 200), ("cache.example", 401), ("none.cache.example", 401)] {
        let request = format!("GET /v2/ HTTP/1.1\r\nHost: {host}\r\n\r\n");
        let answer = Conn::ask(access.server.addr(), &request).await.unwrap();
        assert_eq!(answer.status, status, "{host}");
    }
}

#[tokio::test]
async fn another_roadstead_pulls_with_a_login() {
    let access = Access::start(CLOSED).await;
    assert_eq!(access.push("team/app", &login("ann")).await, 201);
    let toml = "[upstream.\"inner.example\"]\nusername = \"ann\"\npassword = \"ann-password\"";
    let builder = TestServer::builder().upstream_url("inner.example", &access.server.url(""));
    let outer = builder.config(toml).start().await;
    let pulled = outer.get("/v2/inner.example/team/app/manifests/v1").await;
    assert_eq!((pulled.status, pulled.body), (200, access.image.manifest.bytes.clone()));
    let layer = &access.image.layers[0];
    assert_eq!(outer.get(&format!("/v2/inner.example/team/app/blobs/{}", layer.digest)).await.body, layer.bytes);
}

#[tokio::test]
async fn a_refusal_of_a_large_body_reaches_its_client() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    const LENGTH: usize = 100 << 20;
    let access = Access::start(RULES).await;
    let addr = access.server.addr();
    for (method, framing) in
        [("PUT", format!("Content-Length: {LENGTH}")), ("PATCH", "Transfer-Encoding: chunked".to_owned())]
    {
        let mut stream = tokio::net::TcpStream::connect(addr).await.unwrap();
        let head = format!("{method} /v2/team/app/blobs/uploads/x HTTP/1.1\r\nHost: {addr}\r\n{framing}\r\n\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        // This client reads nothing before it has sent everything.
        let chunk = vec![b'x'; 1 << 20];
        for _ in 0..LENGTH / chunk.len() {
            if method == "PATCH" {
                stream.write_all(format!("{:x}\r\n", chunk.len()).as_bytes()).await.unwrap();
            }
            stream.write_all(&chunk).await.unwrap();
            if method == "PATCH" {
                stream.write_all(b"\r\n").await.unwrap();
            }
        }
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.unwrap();
        let answer = String::from_utf8(answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 401 Unauthorized\r\n"), "{answer}");
        assert!(answer.to_lowercase().contains("www-authenticate: bearer realm="), "{answer}");
        assert!(answer.contains("UNAUTHORIZED"), "{answer}");
    }
    let url = access.server.url("/v2/team/app/blobs/uploads/x");
    let answer = Client::new().send("PUT", &url, &[], Bytes::from(vec![0; LENGTH])).await;
    assert_eq!(answer.status, 401);
}

//! What the rules allow with repositories, however a client addresses them.

use bytes::Bytes;
use serde_json::json;

use super::{Access, CLOSED, RULES, assert_error, basic, login};
use crate::support::{Conn, Ended};

#[tokio::test]
async fn everyone_pulls_and_the_team_pushes() {
    let access = Access::start(RULES).await;
    let manifest = "/v2/library/alpine/manifests/1";
    for (what, authorization) in [("nobody", ""), ("a user", &*login("eve"))] {
        let pulled = access.send("GET", manifest, authorization).await;
        assert_eq!(pulled.body, access.image.manifest.bytes, "{what}");
        let layer = format!("/v2/library/alpine/blobs/{}", access.image.layers[0].digest);
        assert_eq!(access.send("GET", &layer, authorization).await.body, access.image.layers[0].bytes, "{what}");
        for path in ["/docker.io/v2/library/alpine/manifests/1", "/v2/docker.io/library/alpine/manifests/1"] {
            assert_eq!(access.send("HEAD", path, authorization).await.status, 200, "{what} {path}");
        }
        let ns = "/v2/library/alpine/manifests/1?ns=docker.io";
        assert_eq!(access.send("GET", ns, authorization).await.status, 200, "{what}");
    }
    assert_eq!(access.send("POST", "/v2/team/app/blobs/uploads/", "").await.status, 401);
    assert_eq!(access.push("team/app", &login("eve")).await, 403);
    assert_eq!(access.push("team/app", &login("ann")).await, 201);
    assert_eq!(access.push("users/ann/x", &login("ann")).await, 201);
    assert_eq!(access.push("users/bob/x", &login("ann")).await, 403);
    assert_eq!(access.push("base/os", &login("ann")).await, 403);
    assert_eq!(access.push("base/os", &login("admin")).await, 201);
    let pull = async |repository: &str, who: &str| {
        access.send("GET", &format!("/v2/{repository}/manifests/v1"), who).await.status
    };
    assert_eq!((pull("team/app", "").await, pull("base/os", "").await), (401, 200));
    assert_eq!((pull("team/app", &login("bob")).await, pull("team/app", &login("eve")).await), (200, 403));
    let delete = async |who: &str| access.send("DELETE", "/v2/team/app/manifests/v1", who).await.status;
    assert_eq!((delete("").await, delete(&login("eve")).await, delete(&login("bob")).await), (401, 403, 202));
}

#[tokio::test]
async fn a_closed_registry_gives_nothing_without_a_login() {
    let access = Access::start(CLOSED).await;
    assert_eq!(access.push("team/app", &login("eve")).await, 201);
    for (method, path) in [
        ("GET", "/v2/"),
        ("GET", "/v2"),
        ("GET", "/docker.io/v2/"),
        ("GET", "/v2/docker.io/v2/"),
        ("GET", "/v2/_catalog"),
        ("GET", "/v2/team/app/tags/list"),
        ("GET", "/v2/team/app/manifests/v1"),
        ("HEAD", "/v2/team/app/manifests/v1"),
        ("GET", "/v2/library/alpine/manifests/1"),
        ("PUT", "/v2/team/app/manifests/v1"),
        ("POST", "/v2/team/app/blobs/uploads/"),
        ("PATCH", "/v2/team/app/blobs/uploads/x"),
        ("PUT", "/v2/team/app/blobs/uploads/x"),
        ("GET", "/v2/team/app/blobs/uploads/x"),
        ("DELETE", "/v2/team/app/blobs/uploads/x"),
    ] {
        let answer = access.send(method, path, "").await;
        assert_eq!(answer.status, 401, "{method} {path}");
        assert!(answer.header("www-authenticate").starts_with("Bearer realm="), "{method} {path}");
        assert_eq!(answer.header("docker-distribution-api-version"), "registry/2.0");
        assert_eq!(method == "HEAD", answer.body.is_empty());
    }
    let digest = &access.image.layers[0].digest;
    for path in [format!("/v2/team/app/blobs/{digest}"), format!("/v2/team/app/referrers/{digest}")] {
        assert_error(&access.send("GET", &path, "").await, 401, "UNAUTHORIZED", &path);
        assert_eq!(access.get(&path, &login("ann")).await.status, 200, "{path}");
    }
    for path in ["/", "/healthz", "/readyz", "/metrics"] {
        assert_eq!(access.server.get(path).await.status, 200, "{path}");
    }
    assert_eq!(access.get("/v2/library/alpine/manifests/1", &login("bob")).await.status, 200);
}

#[tokio::test]
async fn a_refusal_is_the_same_whether_or_not_the_repository_exists() {
    let access = Access::start(RULES).await;
    assert_eq!(access.push("team/app", &login("ann")).await, 201);
    let digest = access.image.digest();
    let blob = &access.image.layers[0].digest;
    for (who, status) in [(String::new(), 401), (login("eve"), 403)] {
        for (method, rest) in [
            ("GET", "manifests/v1".to_owned()),
            ("HEAD", "manifests/v1".to_owned()),
            ("GET", format!("manifests/{digest}")),
            ("GET", format!("blobs/{blob}")),
            ("GET", "tags/list".to_owned()),
            ("GET", format!("referrers/{digest}")),
            ("DELETE", "manifests/v1".to_owned()),
            ("DELETE", format!("blobs/{blob}")),
            ("POST", "blobs/uploads/".to_owned()),
            ("PUT", "manifests/v1".to_owned()),
        ] {
            let answer = async |repository: &str| {
                let answer = access.send(method, &format!("/v2/{repository}/{rest}"), &who).await;
                let text = if answer.body.is_empty() {
                    String::new()
                } else {
                    answer.json()["errors"][0]["message"].to_string()
                };
                let challenge = answer.header("www-authenticate").replace(repository, "REPOSITORY");
                (answer.status, challenge, text)
            };
            let (existing, missing) = (answer("team/app").await, answer("team/none").await);
            assert_eq!(existing, missing, "{method} {rest}");
            assert_eq!(existing.0, status, "{method} {rest}");
            assert_eq!(existing.1.is_empty(), status == 403, "a user is not challenged");
        }
    }
}

#[tokio::test]
async fn a_push_alone_does_not_tell_what_is_stored() {
    let rules = "[[auth.rule]]\nwho = \"eve\"\non = \"team/**\"\nmay = \"push\"\n";
    let access = Access::start(&format!("{RULES}{rules}")).await;
    assert_eq!(access.push("team/app", &login("ann")).await, 201);
    let digest = &access.image.layers[0].digest;
    let path = format!("/v2/team/app/blobs/uploads/00000000-0000-4000-8000-000000000000?digest={digest}");
    // To those who may pull, a session that is gone and whose blob is there has been finished.
    assert_eq!(access.send("PUT", &path, &login("ann")).await.status, 201);
    assert_error(&access.send("PUT", &path, &login("eve")).await, 404, "BLOB_UPLOAD_UNKNOWN", "eve");
}

#[tokio::test]
async fn a_head_with_a_login_for_another_registry_counts_as_no_attempt() {
    let access = Access::start(RULES).await;
    for guess in 0..12 {
        let foreign = basic("foreign", &format!("login {guess}"));
        for path in ["manifests/1", "tags/list", &*format!("blobs/{}", access.image.layers[0].digest)] {
            let path = format!("/v2/library/alpine/{path}");
            assert_eq!(access.send("HEAD", &path, &foreign).await.status, 200, "{guess} {path}");
        }
    }
    let labels = [("how", "password"), ("result", "refused")];
    assert_eq!(access.server.metric("roadstead_auth_attempts_total", &labels).await, 0.0);
}

/// Manifests in memory are answered below the HTTP library. `Via` is not understood there.
#[tokio::test]
async fn both_ways_to_answer_decide_alike() {
    let access = Access::start(RULES).await;
    assert_eq!(access.push("team/app", &login("ann")).await, 201);
    assert_eq!(access.send("GET", "/v2/library/alpine/manifests/1", "").await.status, 200);
    let mut tokens = vec![String::new(), "Bearer x".to_owned(), login("ann"), login("eve"), "Bearer".to_owned()];
    for (scope, who) in [
        ("", ""),
        ("?scope=repository:team/app:pull", ""),
        ("?scope=repository:team/app:pull", &*login("ann")),
        ("?scope=repository:team/app:push", &*login("ann")),
        ("?scope=repository:team/app:pull", &*login("eve")),
    ] {
        tokens.push(access.token(scope, who).await);
    }
    let mut seen = std::collections::BTreeSet::new();
    for authorization in &tokens {
        for name in ["team/app/manifests/v1", "library/alpine/manifests/1", "docker.io/library/alpine/manifests/1"] {
            for method in ["GET", "HEAD"] {
                let answer = async |via: &[(&str, &str)]| {
                    let sent = (!authorization.is_empty()).then_some(("Authorization", authorization.as_str()));
                    let headers: Vec<_> = sent.into_iter().chain(via.iter().copied()).collect();
                    let answer = access.server.send(method, &format!("/v2/{name}"), &headers, Bytes::new()).await;
                    let of_manifest = if answer.status == 200 { answer.body.clone() } else { Bytes::new() };
                    (answer.status, answer.header("www-authenticate").to_owned(), of_manifest)
                };
                let (fast, slow) = (answer(&[]).await, answer(&[("Via", "1.1 proxy")]).await);
                assert_eq!(fast, slow, "{method} {name} {authorization}");
                seen.insert(fast.0);
            }
        }
    }
    assert_eq!(seen.into_iter().collect::<Vec<_>>(), [200, 401, 403]);
}

#[tokio::test]
async fn a_mount_needs_the_right_to_pull_from_its_source() {
    let access = Access::start(RULES).await;
    assert_eq!(access.push("other/secret", &login("admin")).await, 201);
    assert_eq!(access.push("base/os", &login("admin")).await, 201);
    let digest = &access.image.layers[0].digest;
    let mount = async |to: &str, from: &str, who: &str| {
        let path = format!("/v2/{to}/blobs/uploads/?mount={digest}{from}");
        access.send("POST", &path, &login(who)).await.status
    };
    assert_eq!(mount("team/to", "&from=other/secret", "ann").await, 202, "it may not be pulled");
    assert_eq!(mount("team/to", "&from=base/os", "ann").await, 201);
    assert_eq!(mount("users/bob/to", "&from=base/os", "ann").await, 403, "the target");
    assert_eq!(mount("team/to", "&from=other/secret", "admin").await, 201);
    // Without a source, only repositories count that may be pulled.
    let only_secret = Access::start(RULES).await;
    assert_eq!(only_secret.push("other/secret", &login("admin")).await, 201);
    let path = format!("/v2/team/to/blobs/uploads/?mount={digest}");
    assert_eq!(only_secret.send("POST", &path, &login("ann")).await.status, 202);
    assert_eq!(only_secret.send("POST", &path, &login("admin")).await.status, 201);
    // A token for a push of one repository does not read another one.
    let token = only_secret.token("?scope=repository:team/to:push", &login("admin")).await;
    assert_eq!(only_secret.send("POST", &path.replace("team/to", "team/new"), &token).await.status, 202);
}

#[tokio::test]
async fn the_catalogue_has_what_its_reader_may_pull() {
    let access = Access::start(RULES).await;
    for repository in ["team/app", "team/b", "base/os", "other/x", "users/ann/x"] {
        assert_eq!(access.push(repository, &login("admin")).await, 201);
    }
    let list = async |who: &str, query: &str| {
        let answer = access.send("GET", &format!("/v2/_catalog{query}"), who).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        answer.json()["repositories"].clone()
    };
    assert_eq!(list("", "").await, json!(["base/os"]));
    assert_eq!(list(&login("eve"), "").await, json!(["base/os"]));
    assert_eq!(list(&login("bob"), "").await, json!(["base/os", "team/app", "team/b"]));
    assert_eq!(list(&login("ann"), "").await, json!(["base/os", "team/app", "team/b", "users/ann/x"]));
    assert_eq!(list(&login("ann"), "?n=2&last=base/os").await, json!(["team/app", "team/b"]), "filtered before paging");
    assert_eq!(list(&login("admin"), "").await.as_array().unwrap().len(), 5);
    let token = access.token("?scope=registry:catalog:*", &login("bob")).await;
    assert_eq!(list(&token, "").await, json!(["base/os", "team/app", "team/b"]));
    let wrong = access.get("/v2/_catalog", &super::basic("ann", "wrong")).await;
    assert_error(&wrong, 401, "UNAUTHORIZED", "a wrong password");
}

/// The status line, the headers and the body of a response, without what differs between any two.
async fn exactly(addr: std::net::SocketAddr, request: &str) -> (u16, Vec<String>, Bytes) {
    let mut conn = Conn::ask(addr, request).await.unwrap();
    let varies = ["date", "x-request-id"];
    let kept = conn.headers.iter().filter(|(name, _)| !varies.contains(&name.as_str()));
    let mut headers: Vec<String> = kept.map(|(name, value)| format!("{name}: {}", value.to_str().unwrap())).collect();
    headers.sort();
    let (body, ended) = conn.rest().await;
    assert_eq!(ended, Ended::Complete);
    let body = if conn.status < 400 { body } else { Bytes::new() };
    (conn.status, headers, body)
}

#[tokio::test]
async fn hits_on_the_fast_path_are_decided_as_by_the_handlers() {
    let rules = [
        RULES,
        CLOSED,
        "[[auth.rule]]\nwho = [\"anonymous\"]\non = [\"docker.io/library/*\", \"team/*\"]\nmay = [\"pull\"]\n",
        "[[auth.rule]]\nwho = [\"anonymous\"]\non = [\"**\"]\nmay = [\"pull\"]\n[[auth.rule]]\nwho = [\"admin\"]\non = [\"**\"]\nmay = [\"push\"]\n",
    ];
    for rules in rules {
        let access = Access::start(rules).await;
        for repository in ["team/app", "base/os"] {
            access.push(repository, &login("admin")).await;
        }
        let addr = access.server.addr();
        for name in ["library/alpine", "docker.io/library/alpine", "team/app", "base/os", "other/none", "quay.io/a/b"] {
            for reference in ["1", "v1", access.image.digest()] {
                for query in ["", "?ns=docker.io", "?ns=localhost:5000", "?ns=quay.io"] {
                    let path = format!("/v2/{name}/manifests/{reference}{query}");
                    // It is in memory after a first request.
                    access.get(&path, &login("admin")).await;
                    for method in ["GET", "HEAD"] {
                        let request = |field: &str| format!("{method} {path} HTTP/1.1\r\nHost: {addr}\r\n{field}\r\n");
                        let fast = exactly(addr, &request("")).await;
                        // A field that is not understood there leaves the request to the handlers.
                        let handled = exactly(addr, &request("X-Other: 1\r\n")).await;
                        assert_eq!(fast, handled, "{method} {path}\n{rules}");
                        let empty_login = exactly(addr, &request("Authorization: Basic Og==\r\n")).await;
                        assert_eq!(fast, empty_login, "{method} {path}\n{rules}");
                    }
                }
            }
        }
    }
}

#[tokio::test]
async fn without_users_everything_is_open_and_there_is_no_token_endpoint() {
    let server = crate::support::TestServer::builder().start().await;
    let headers = [("Authorization", "Basic d3Jvbmc6d3Jvbmc=")];
    for path in ["/v2/", "/docker.io/v2/"] {
        let answer = server.get_with(path, &headers).await;
        assert_eq!((answer.status, answer.header("www-authenticate")), (200, ""), "{path}");
    }
    for method in ["GET", "POST"] {
        assert_eq!(server.send(method, "/auth/token", &headers, Bytes::new()).await.status, 404, "{method}");
    }
}

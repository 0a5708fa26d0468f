//! Repositories that the server's own credentials open, and that are not everybody's.

use super::{Access, assert_error, basic, login};
use crate::scene::until;
use crate::support::{Gate, Image, Reply, TestServer, Upstream};

/// Credentials for all repositories of the upstream.
const CREDENTIALS: &str =
    "[[upstream.\"docker.io\".credentials]]\nrepository = \"**\"\nusername = \"robot\"\npassword = \"secret\"";

/// Everybody pulls what is public. Ann also pulls what is private below `org`.
const RULES: &str = r#"
    [[auth.rule]]
    who = ["anonymous"]
    on = ["**"]
    may = ["pull"]
    [[auth.rule]]
    who = ["ann"]
    on = ["docker.io/org/**"]
    may = ["pull"]
    private = true
    "#;

/// A registry whose repositories with `secret` in their name need credentials.
fn hide_secrets(upstream: &Upstream) {
    upstream.behave(|seen| {
        let is_known = seen.header("authorization") == basic("robot", "secret");
        (seen.path.contains("/secret") && !is_known).then(refusal)
    });
}

fn refusal() -> Reply {
    Reply::error(401, "UNAUTHORIZED").header("WWW-Authenticate", "Basic realm=\"upstream\"")
}

async fn start() -> (Access, Image) {
    let access = Access::configured(RULES, CREDENTIALS).await;
    hide_secrets(access.upstream());
    let secret = Image::new(7, &[3000]);
    access.upstream().add_image("org/secret", "1", &secret);
    (access, secret)
}

#[tokio::test]
async fn a_private_repository_is_only_for_those_whom_a_rule_names() {
    let (access, secret) = start().await;
    let paths = || {
        let blobs = secret.blobs().map(|blob| format!("blobs/{}", blob.digest));
        let manifests = ["manifests/1".to_owned(), format!("manifests/{}", secret.digest()), "tags/list".to_owned()];
        manifests.into_iter().chain(blobs).map(|rest| format!("/v2/org/secret/{rest}"))
    };
    // Before and after it is cached.
    for _ in 0..2 {
        for path in paths() {
            let unknown = access.send("GET", &path, "").await;
            assert_error(&unknown, 401, "UNAUTHORIZED", &path);
            assert!(unknown.header("www-authenticate").starts_with("Bearer "), "{path}: the client can log in");
            assert_eq!(access.send("HEAD", &path, "").await.status, 401, "{path}");
            assert_error(&access.get(&path, &login("eve")).await, 403, "DENIED", &path);
        }
        for path in paths() {
            assert_eq!(access.get(&path, &login("ann")).await.status, 200, "{path}");
        }
    }
    let token = access.token("?scope=repository:org/secret:pull", &login("ann")).await;
    assert_eq!(access.get("/v2/org/secret/manifests/1", &token).await.status, 200);
    let token = access.token("?scope=repository:org/secret:pull", "").await;
    let answer = access.get("/v2/org/secret/manifests/1", &token).await;
    assert!(answer.header("www-authenticate").contains("insufficient_scope"), "a client can log in: {answer:?}");
}

#[tokio::test]
async fn a_public_repository_is_found_to_be_public_once() {
    let (access, _) = start().await;
    let manifest = "/v2/library/alpine/manifests/1";
    for path in [manifest.to_owned(), format!("/v2/library/alpine/blobs/{}", access.image.layers[0].digest)] {
        for who in ["", &*login("eve"), &*basic("foreign", "login")] {
            assert_eq!(access.send("GET", &path, who).await.status, 200, "{path}");
        }
    }
    assert_eq!(access.upstream().count("HEAD", manifest), 1, "{:?}", access.upstream().requests());
}

#[tokio::test]
async fn an_absent_tag_of_a_public_repository_stays_absent() {
    let (access, _) = start().await;
    for who in ["", &*login("eve")] {
        let answer = access.send("GET", "/v2/library/alpine/manifests/none", who).await;
        assert_error(&answer, 404, "MANIFEST_UNKNOWN", who);
    }
    // The upstream does not show that this repository exists, so nor does the server.
    let missing = access.send("GET", "/v2/org/none/manifests/1", "").await;
    let hidden = access.send("GET", "/v2/org/secret/manifests/1", "").await;
    assert_eq!((missing.status, hidden.status), (401, 401));
    access.upstream().forget();
    for _ in 0..3 {
        let answer = access.get("/v2/org/none/manifests/1", &login("eve")).await;
        assert_error(&answer, 404, "MANIFEST_UNKNOWN", "a user");
    }
    assert_eq!(access.upstream().total(), 0, "the absence is remembered");
}

#[tokio::test]
async fn a_registry_that_hides_private_names_does_not_open_them() {
    let access = Access::configured(RULES, CREDENTIALS).await;
    let secret = Image::new(7, &[3000]);
    access.upstream().add_image("org/secret", "1", &secret);
    access.upstream().behave(|seen| {
        let is_known = seen.header("authorization") == basic("robot", "secret");
        match seen.path.as_str() {
            "/v2/" if !is_known => Some(refusal()),
            path if path.contains("/secret") && !is_known => Some(Reply::error(404, "NAME_UNKNOWN")),
            _ => None,
        }
    });
    let path = "/v2/org/secret/manifests/1";
    assert_eq!(access.send("GET", path, "").await.status, 401);
    assert_eq!(access.get(path, &login("eve")).await.status, 404);
    assert_eq!(access.get(path, &login("ann")).await.body, secret.manifest.bytes);
    assert_eq!(access.send("GET", path, "").await.status, 401, "also when it is cached");
    assert_eq!(access.get(path, &login("eve")).await.status, 404);
}

#[tokio::test]
async fn trouble_is_neither_an_absence_nor_a_refusal() {
    let (access, _) = start().await;
    let manifest = "/v2/library/alpine/manifests/1";
    access.upstream().behave(|seen| seen.path.contains("/library/").then(|| Reply::status(500)));
    let answer = access.send("GET", manifest, "").await;
    assert_error(&answer, 503, "UNAVAILABLE", "nothing is known");
    assert!(!answer.header("retry-after").is_empty());
    let answer = access.get(manifest, &basic("foreign", "login")).await;
    assert_error(&answer, 503, "UNAVAILABLE", "a login for another registry");
    hide_secrets(access.upstream());
    until("the upstream counts as available", async || access.send("GET", manifest, "").await.status == 200).await;
    // What was cached stays readable in an outage, also after a restart of the server.
    access.upstream().go_down().await;
    assert_eq!(access.send("GET", manifest, "").await.status, 200);
}

#[tokio::test]
async fn a_limit_of_pulls_does_not_make_a_repository_private() {
    let (access, _) = start().await;
    let realm = access.upstream().url("/token");
    access.upstream().behave(move |seen| match (seen.path.as_str(), seen.header("authorization")) {
        ("/token", login) => {
            let token = if login.is_empty() { "for-anybody" } else { "for-robot" };
            Some(Reply::status(200).body(format!("{{\"token\":{token:?}}}")))
        }
        (_, "") => Some(
            Reply::error(401, "UNAUTHORIZED")
                .header("WWW-Authenticate", &format!("Bearer realm={realm:?},service=\"s\"")),
        ),
        (path, "Bearer for-anybody") if path.contains("/manifests/") => {
            Some(Reply::error(429, "TOOMANYREQUESTS").header("Retry-After", "60"))
        }
        _ => None,
    });
    assert_eq!(access.send("GET", "/v2/library/alpine/manifests/1", "").await.status, 200);
}

#[tokio::test]
async fn private_content_is_not_read_through_a_public_repository() {
    let (access, secret) = start().await;
    let layer = &secret.layers[0].digest;
    assert_eq!(access.get("/v2/org/secret/manifests/1", &login("ann")).await.status, 200);
    assert_eq!(access.get(&format!("/v2/org/secret/blobs/{layer}"), &login("ann")).await.status, 200);
    assert_eq!(access.send("GET", "/v2/library/alpine/manifests/1", "").await.status, 200);
    // A manifest of anybody's can name the layer: that gives no right to it.
    let naming = Image::for_platform("linux/other", secret.layers.clone());
    access.upstream().add_manifest("library/alpine", &naming.manifest);
    access.upstream().tag("library/alpine", "naming", &naming.manifest.digest);
    assert_eq!(access.send("GET", "/v2/library/alpine/manifests/naming", "").await.status, 200);
    for digest in [layer, secret.digest()] {
        let kind = if digest == layer { "blobs" } else { "manifests" };
        let path = format!("/v2/library/alpine/{kind}/{digest}");
        assert_eq!(access.send("GET", &path, "").await.status, 404, "{path}");
        assert_eq!(access.get(&path, &login("eve")).await.status, 404, "{path}");
    }
}

#[tokio::test]
async fn without_users_a_private_repository_is_served_and_reported() {
    let upstream = Upstream::start().await;
    hide_secrets(&upstream);
    let secret = Image::new(7, &[3000]);
    upstream.add_image("org/secret", "1", &secret);
    upstream.add_image("library/alpine", "1", &Image::new(1, &[10]));
    let builder = TestServer::builder().upstream("docker.io", &upstream).default_upstream("docker.io");
    let server = builder.config(CREDENTIALS).start().await;
    let reported = async || server.metric("roadstead_private_served_openly_total", &[("upstream", "docker.io")]).await;
    assert_eq!(reported().await, 0.0);
    for path in ["/v2/library/alpine/manifests/1", "/v2/org/secret/manifests/1"] {
        assert_eq!(server.get(path).await.status, 200, "{path}");
    }
    until("the private repository is reported", async || reported().await == 1.0).await;
    assert_eq!(server.get(&format!("/v2/org/secret/manifests/{}", secret.digest())).await.status, 200);
    assert_eq!(reported().await, 1.0, "once");
}

#[tokio::test]
async fn a_running_pull_of_private_content_is_followed_by_nobody_else() {
    let (access, secret) = start().await;
    let layer = &secret.layers[0];
    let naming = Image::for_platform("linux/other", secret.layers.clone());
    access.upstream().add_manifest("library/alpine", &naming.manifest);
    access.upstream().tag("library/alpine", "naming", &naming.manifest.digest);
    assert_eq!(access.send("GET", "/v2/library/alpine/manifests/naming", "").await.status, 200);
    assert_eq!(access.get("/v2/org/secret/manifests/1", &login("ann")).await.status, 200);
    let (gate, path) = (Gate::new(), format!("/v2/org/secret/blobs/{}", layer.digest));
    let (held, of_ann) = (gate.clone(), path.clone());
    access.upstream().behave(move |seen| {
        let is_known = seen.header("authorization") == basic("robot", "secret");
        match is_known && seen.path == of_ann {
            true => Some(Reply::normal().wait_after(1000, &held)),
            false => (seen.path.contains("/secret") && !is_known).then(refusal),
        }
    });
    let other = async {
        until("the pull is running", async || access.upstream().count("GET", &path) > 0).await;
        let answer = access.send("GET", &format!("/v2/library/alpine/blobs/{}", layer.digest), "").await;
        gate.open();
        answer.status
    };
    let authorization = login("ann");
    let (of_ann, of_other) = tokio::join!(access.get(&path, &authorization), other);
    assert_eq!((of_ann.body, of_other), (layer.bytes.clone(), 404));
}

#[tokio::test]
async fn only_a_manifest_shows_that_a_repository_is_public() {
    let odd = [
        ("an error with 200", 200, "application/json", "{\"errors\":[{\"code\":\"UNAUTHORIZED\"}]}"),
        ("an empty 200", 200, "application/octet-stream", ""),
        ("text", 200, "text/plain", "log in"),
        ("a page", 200, "text/html", "<html>"),
        ("201", 201, "application/vnd.oci.image.manifest.v1+json", "{}"),
        ("a list of no tags", 200, "application/json", "{\"name\":\"org/secret\",\"tags\":[]}"),
        ("a list of tags", 200, "application/json", "{\"name\":\"org/secret\",\"tags\":[\"1\"]}"),
    ];
    for (what, status, content_type, body) in odd {
        for of_lists in [false, true] {
            let (access, secret) = start().await;
            assert_eq!(access.get("/v2/org/secret/manifests/1", &login("ann")).await.status, 200);
            access.upstream().behave(move |seen| {
                let is_known = seen.header("authorization") == basic("robot", "secret");
                let is_odd = !of_lists || seen.path.ends_with("/tags/list");
                let odd = || Reply::status(status).header("Content-Type", content_type).body(body);
                let answer = || if is_odd { odd() } else { refusal() };
                (seen.path.contains("/secret") && !is_known).then(answer)
            });
            let blob = format!("blobs/{}", secret.layers[0].digest);
            for rest in ["manifests/1", &*format!("manifests/{}", secret.digest()), "tags/list", &*blob] {
                let answer = access.send("GET", &format!("/v2/org/secret/{rest}"), "").await;
                assert!(matches!(answer.status, 401 | 503), "{what}, {of_lists}, {rest}: {}", answer.status);
            }
        }
    }
}

#[tokio::test]
async fn a_refused_tag_does_not_close_a_public_repository() {
    let (access, _) = start().await;
    access.upstream().behave(|seen| seen.path.ends_with("/manifests/waf").then(refusal));
    assert_ne!(access.send("GET", "/v2/library/alpine/manifests/waf", "").await.status, 200);
    assert_eq!(access.send("GET", "/v2/library/alpine/manifests/1", "").await.status, 200);
}

#[tokio::test]
async fn a_token_that_is_not_for_pulls_opens_nothing_private() {
    let (access, _) = start().await;
    let token = access.token("?scope=repository:org/secret:push", &login("ann")).await;
    let answer = access.get("/v2/org/secret/manifests/1", &token).await;
    assert_error(&answer, 401, "UNAUTHORIZED", "a token for pushes");
    assert!(answer.header("www-authenticate").contains("insufficient_scope"));
}

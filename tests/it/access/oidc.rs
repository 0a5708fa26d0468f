//! Tokens of OIDC issuers as passwords: what CI services and clusters give to their jobs.

use std::time::Duration;

use futures_util::future::join_all;
use ring::hmac;
use serde_json::{Value, json};

use super::issuer::{DISCOVERY, Issuer, Key, Mood};
use super::{Access, basic, login};
use crate::support::Authority;

const TAGS: &str = "/v2/team/app/tags/list";
const PUSH: &str = "?scope=repository:team/app:pull,push&service=x&account=ci";

/// The table of an issuer called `ci`, and a rule with which its projects push.
fn config(issuer: &Issuer, keys: &str) -> String {
    format!(
        "[auth.issuer.ci]\nissuer = {:?}\naudience = [\"other\", \"cache.example\"]\n{keys}\n[[auth.rule]]\n\
         who = \"ci:acme/*\"\non = \"team/**\"\nmay = [\"pull\", \"push\"]\n",
        issuer.url
    )
}

/// Members of a group of that issuer pull.
const GROUP: &str = "[[auth.rule]]\nwho = \"group:ci:dev\"\non = \"team/**\"\nmay = \"pull\"\n";

struct Ci {
    issuer: Issuer,
    key: Key,
    access: Access,
}

impl Ci {
    async fn start() -> Self {
        Self::with_keys("name = \"repository\"").await
    }

    async fn with_keys(keys: &str) -> Self {
        let key = Key::rsa();
        let issuer = Issuer::start(&[key.jwk("one")]).await;
        let group = if keys.contains("groups") { GROUP } else { "" };
        let access = Access::start(&format!("{}{}{group}", super::RULES, config(&issuer, keys))).await;
        Self { issuer, key, access }
    }

    /// A token of a job of `acme/app`.
    fn token(&self, others: Value) -> String {
        let mut claims = self.issuer.claims(json!({ "repository": "acme/app" }));
        others.as_object().unwrap().iter().for_each(|(claim, value)| claims[claim] = value.clone());
        self.key.sign("one", &claims)
    }

    async fn status(&self, password: &str) -> u16 {
        self.access.get("/v2/", &basic("ci", password)).await.status
    }

    /// The status and the text of the refusal.
    async fn refusal(&self, password: &str) -> (u16, String) {
        let answer = self.access.send("GET", &format!("/auth/token{PUSH}"), &basic("ci", password)).await;
        (answer.status, answer.json()["errors"][0]["message"].to_string())
    }
}

#[tokio::test]
async fn a_job_logs_in_and_pushes_as_docker_does() {
    let ci = Ci::start().await;
    let token = ci.token(json!({}));
    assert_eq!(ci.issuer.fetches(), 0, "nothing is fetched before the first token");
    // docker login: without a scope, then the ping with the token.
    let any_name = basic("any name", &token);
    let pinged = ci.access.token("?account=any&client_id=docker&offline_token=true&service=x", &any_name).await;
    assert_eq!(ci.access.get("/v2/", &pinged).await.status, 200);
    // docker push.
    let bearer = ci.access.token(PUSH, &any_name).await;
    assert_eq!(ci.access.push("team/app", &bearer).await, 201);
    assert_eq!(ci.access.push("base/os", &bearer).await, 403);
    // Basic on each request, as scripts do.
    assert_eq!(ci.access.get(TAGS, &any_name).await.status, 200);
    assert_eq!(ci.access.push("team/other", &any_name).await, 201);
    // containerd posts a form.
    let fields =
        [("grant_type", "password"), ("username", "x"), ("password", &token), ("scope", "repository:team/app:pull")];
    let form = url::form_urlencoded::Serializer::new(String::new()).extend_pairs(fields).finish();
    let headers = [("Content-Type", "application/x-www-form-urlencoded")];
    let posted = ci.access.server.send("POST", "/auth/token", &headers, form).await;
    assert_eq!(ci.access.get(TAGS, &super::bearer(&posted)).await.status, 200);
    assert_eq!(ci.issuer.fetches(), 1);
    // Passwords go on beside, and another project gets no rights.
    assert_eq!(ci.access.push("team/app", &login("ann")).await, 201);
    let other = basic("ci", &ci.token(json!({ "repository": "evil/app" })));
    assert_eq!(ci.access.get("/v2/", &other).await.status, 200);
    assert_eq!(ci.access.push("team/app", &other).await, 403);
    // Three tokens of ours were issued for it. The further requests with it, and with the other one, were new or remembered.
    let attempts = async |result| {
        let labels = [("how", "oidc"), ("result", result)];
        ci.access.server.metric("roadstead_auth_attempts_total", &labels).await
    };
    assert_eq!((attempts("accepted").await, attempts("refused").await), (4.0, 0.0));
    assert_eq!(ci.status(&ci.token(json!({ "aud": "elsewhere" }))).await, 401);
    assert_eq!((attempts("accepted").await, attempts("refused").await), (4.0, 1.0));
    // An issuer's token is a password, and no token of ours.
    let answer = ci.access.get(TAGS, &format!("Bearer {token}")).await;
    assert!(
        answer.status == 401 && answer.header("www-authenticate").ends_with("error=\"invalid_token\""),
        "{answer:?}"
    );
}

#[tokio::test]
async fn tokens_of_github_gitlab_and_kubernetes_are_understood() {
    let (rsa, ec) = (Key::rsa(), Key::ec());
    let issuers = [
        Issuer::start(&[rsa.jwk("cc413527-173f-5a05-976e-9c52b1d7b431")]).await,
        Issuer::start(&[ec.jwk("4i3sFE7sxqNPOT7FdvcGA1ZVGGI_r-tsDXnEuYT4ZqE"), rsa.jwk("other")]).await,
        Issuer::start(&[rsa.jwk("kube")]).await,
    ];
    let [github, gitlab, kubernetes] = issuers.each_ref();
    let rules = format!(
        "[auth.issuer.github]\nissuer = {:?}\naudience = \"cache.example\"\nname = \"repository\"\n\
         require = {{ repository_owner_id = \"1234\", ref = [\"refs/heads/main\", \"refs/tags/*\"] }}\n\
         [auth.issuer.gitlab]\nissuer = {:?}\naudience = \"cache.example\"\nname = \"project_path\"\n\
         require = {{ namespace_id = 72, ref_protected = true }}\n\
         [auth.issuer.k8s]\nissuer = {:?}\naudience = \"cache.example\"\n\
         require = {{ \"/kubernetes.io/namespace\" = \"ci\" }}\n\
         [[auth.rule]]\nwho = [\"github:octo-org/*\", \"gitlab:my-group/**\", \"k8s:system:serviceaccount:ci:*\"]\n\
         on = \"team/**\"\nmay = [\"pull\", \"push\"]\n",
        github.url, gitlab.url, kubernetes.url
    );
    let access = Access::start(&format!("{}{rules}", super::RULES)).await;
    let github_token = |changes: Value| {
        let mut claims = github.claims(json!({
            "sub": "repo:octo-org/octo-repo:environment:prod", "environment": "prod", "ref": "refs/heads/main",
            "sha": "example-sha", "repository": "octo-org/octo-repo", "repository_owner": "octo-org",
            "actor_id": "12", "repository_visibility": "private", "repository_id": "74", "repository_owner_id": "1234",
            "run_id": "example-run-id", "run_number": "10", "run_attempt": "2", "runner_environment": "github-hosted",
            "actor": "octocat", "workflow": "example-workflow", "head_ref": "", "base_ref": "",
            "event_name": "workflow_dispatch", "ref_type": "branch",
            "job_workflow_ref": "octo-org/octo-automation/.github/workflows/oidc.yml@refs/heads/main",
        }));
        changes.as_object().unwrap().iter().for_each(|(claim, value)| claims[claim] = value.clone());
        let header = json!({
            "typ": "JWT", "alg": "RS256", "x5t": "example-thumbprint", "kid": "cc413527-173f-5a05-976e-9c52b1d7b431",
        });
        rsa.sign_with(&header, &claims)
    };
    let gitlab_claims = gitlab.claims(json!({
        "namespace_id": "72", "namespace_path": "my-group", "project_id": "20", "project_path": "my-group/sub/my-project",
        "user_id": "1", "user_login": "sample-user", "user_email": "sample-user@example.com", "user_identities": [],
        "pipeline_id": "574", "pipeline_source": "push", "job_id": "302", "ref": "feature-branch-1", "ref_type": "branch",
        "ref_path": "refs/heads/feature-branch-1", "ref_protected": "true", "groups_direct": ["mygroup"],
        "sub": "project_path:my-group/sub/my-project:ref_type:branch:ref:feature-branch-1", "runner_id": 1, "sha": "714a",
    }));
    let gitlab_token = ec.sign("4i3sFE7sxqNPOT7FdvcGA1ZVGGI_r-tsDXnEuYT4ZqE", &gitlab_claims);
    let kubernetes_token = |namespace: &str| {
        let claims = kubernetes.claims(json!({
            "aud": ["https://kubernetes.default.svc", "cache.example"],
            "kubernetes.io": {
                "namespace": namespace, "pod": { "name": "build-1", "uid": "6d2f" },
                "serviceaccount": { "name": "builder", "uid": "a8f3" }, "warnafter": 1_800_000_000,
            },
            "sub": format!("system:serviceaccount:{namespace}:builder"),
        }));
        rsa.sign_with(&json!({ "alg": "RS256", "kid": "kube" }), &claims)
    };
    for token in [github_token(json!({})), gitlab_token, kubernetes_token("ci")] {
        let bearer = access.token(PUSH, &basic("oauth2", &token)).await;
        assert_eq!(access.push("team/app", &bearer).await, 201);
    }
    for token in [
        github_token(json!({ "repository_owner_id": "1235" })),
        github_token(json!({ "ref": "refs/pull/1/merge" })),
        kubernetes_token("prod"),
    ] {
        let answer = access.send("GET", &format!("/auth/token{PUSH}"), &basic("oauth2", &token)).await;
        assert_eq!(answer.status, 401);
        assert!(
            answer.text().contains("does not have the claims that auth.issuer.require demands"),
            "{}",
            answer.text()
        );
    }
    let tagged = basic("x", &github_token(json!({ "ref": "refs/tags/v1" })));
    assert_eq!(access.get("/v2/", &tagged).await.status, 200);
}

#[tokio::test]
async fn tokens_that_are_not_right_are_refused_with_the_reason() {
    let ci = Ci::start().await;
    assert_eq!(ci.status(&ci.token(json!({}))).await, 200);
    let now = std::time::UNIX_EPOCH.elapsed().unwrap().as_secs();
    let claims = ci.issuer.claims(json!({ "repository": "acme/app" }));
    let good = ci.token(json!({}));
    let (signed, signature) = good.rsplit_once('.').unwrap();
    let other_key = Key::ec();
    // With the public key as a shared secret.
    let public = ci.key.jwk("one").to_string();
    let hs256 = {
        let header = json!({ "alg": "HS256", "kid": "one" });
        let unsigned = other_key.sign_with(&header, &claims);
        let signed = unsigned.rsplit_once('.').unwrap().0.to_owned();
        let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, public.as_bytes()), signed.as_bytes());
        format!("{signed}.{}", base64::Engine::encode(&base64::engine::general_purpose::URL_SAFE_NO_PAD, tag))
    };
    for (token, reason) in [
        (ci.token(json!({ "aud": "sts.amazonaws.com" })), "was not issued for this registry"),
        (ci.token(json!({ "exp": now - 61 })), "has expired"),
        (ci.token(json!({ "nbf": now + 120 })), "is not valid yet"),
        (ci.token(json!({ "repository": "a\nb" })), "cannot be a name"),
        (ci.token(json!({ "exp": Value::Null })), "does not say until when"),
        (ci.key.sign_with(&json!({ "alg": "none" }), &claims), "algorithm is not accepted"),
        (hs256, "algorithm is not accepted"),
        (ci.key.sign_with(&json!({ "alg": "RS512", "kid": "one" }), &claims), "algorithm is not accepted"),
        (ci.key.sign_with(&json!({ "alg": "ES256", "kid": "one" }), &claims), "no key of its issuer"),
        (other_key.sign_with(&json!({ "alg": "RS256", "kid": "one" }), &claims), "signature is wrong"),
        (format!("{signed}."), "signature is wrong"),
        (format!("{signed}.{}", &signature[..signature.len() - 8]), "signature is wrong"),
        (ci.key.sign_with(&json!({ "alg": "RS256", "kid": "one", "crit": ["exp"] }), &claims), "header is not one"),
        (ci.key.sign_with(&json!({ "alg": "RS256", "kid": "one", "typ": "logout+jwt" }), &claims), "header is not one"),
    ] {
        let (status, text) = ci.refusal(&token).await;
        assert!(status == 401 && text.contains(reason), "{reason}: {status} {text}");
        assert_eq!(ci.status(&token).await, 401, "{reason}");
    }
    // Of another issuer, too large, with a claim twice: no token of an issuer, and so a wrong password.
    let large = ci.token(json!({ "x": "y".repeat(16_000) }));
    for token in [ci.token(json!({ "iss": "https://other.example" })), large] {
        let (status, text) = ci.refusal(&token).await;
        assert!(status == 401 && text.contains("credentials are not valid"), "{status} {text}");
    }
    // All of that counts as no wrong password: the address of CI runners is shared by strangers.
    assert_eq!(ci.status(&good).await, 200);
    assert_eq!(ci.access.get("/v2/", &login("ann")).await.status, 200);
    // A pull that everybody may do gets a token for nobody.
    let expired = basic("ci", &ci.token(json!({ "exp": now - 100 })));
    let nobody = ci.access.token("?scope=repository:library/alpine:pull", &expired).await;
    assert_eq!(ci.access.get("/v2/library/alpine/manifests/1", &nobody).await.status, 200);
    assert_eq!(ci.access.get(TAGS, &nobody).await.status, 401);
    assert_eq!(ci.access.get("/v2/library/alpine/manifests/1", &expired).await.status, 200);
}

#[tokio::test]
async fn new_keys_are_found_and_unknown_ones_cause_one_fetch() {
    let ci = Ci::start().await;
    let old = ci.token(json!({}));
    let claims = ci.issuer.claims(json!({ "repository": "acme/app" }));
    let all = (0..20).map(|_| ci.status(&old));
    assert_eq!(join_all(all).await, [200; 20]);
    assert_eq!(ci.issuer.fetches(), 1, "they wait for one fetch");
    let new = Key::ec();
    ci.issuer.has_keys(&[new.jwk("two")]);
    // The last fetch was a moment ago, so an unknown key causes none.
    let tokens: Vec<String> = (0..200).map(|n| new.sign(&format!("random {n}"), &claims)).collect();
    let all = join_all(tokens.iter().map(|token| ci.status(token))).await;
    assert!(all.iter().all(|status| *status == 401), "{all:?}");
    assert_eq!(ci.status(&new.sign("two", &claims)).await, 401);
    assert_eq!(ci.issuer.fetches(), 1);
    assert_eq!(ci.status(&old).await, 200, "the old key is used until then");
}

#[tokio::test]
async fn without_keys_a_login_is_unavailable_and_passwords_go_on() {
    let ci = Ci::start().await;
    ci.issuer.becomes(Mood::Down);
    let token = ci.token(json!({}));
    for _ in 0..3 {
        let answer = ci.access.send("GET", &format!("/auth/token{PUSH}"), &basic("ci", &token)).await;
        assert_eq!((answer.status, answer.error_code().as_str()), (503, "UNAVAILABLE"), "{}", answer.text());
        let wait: u64 = answer.header("retry-after").parse().unwrap();
        assert!((1..=10).contains(&wait), "{wait}");
        assert_eq!(answer.header("www-authenticate"), "");
        assert_eq!(ci.status(&token).await, 503);
        assert_eq!(ci.access.get("/v2/", &login("ann")).await.status, 200);
    }
    assert_eq!(ci.issuer.fetches(), 1, "the next try is in ten seconds");
    let nobody = ci.access.token("?scope=repository:library/alpine:pull", &basic("ci", &token)).await;
    assert_eq!(ci.access.get("/v2/library/alpine/manifests/1", &nobody).await.status, 200);
    ci.issuer.becomes(Mood::Well);
    while ci.status(&token).await == 503 {
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    assert_eq!(ci.status(&token).await, 200);
    // It goes down again, and its keys are kept.
    ci.issuer.becomes(Mood::Down);
    assert_eq!(ci.status(&ci.token(json!({ "jti": "other" }))).await, 200);
}

#[tokio::test]
async fn an_issuer_that_lies_is_not_believed() {
    let other = Issuer::start(&[Key::rsa().jwk("one")]).await;
    for (mood, requests) in [
        (Mood::Says { issuer: Some("https://evil.example".to_owned()), keys: None }, 1),
        (Mood::Says { issuer: Some(String::new()), keys: None }, 1),
        (Mood::Says { issuer: None, keys: Some("http://evil.example/keys".to_owned()) }, 1),
        (Mood::Says { issuer: None, keys: Some("file:///etc/passwd".to_owned()) }, 1),
        (Mood::Says { issuer: None, keys: Some("keys".to_owned()) }, 1),
        (Mood::Redirects(other.url.clone()), 1),
        (Mood::Huge, 1),
        (Mood::Status(500), 1),
    ] {
        let ci = Ci::start().await;
        ci.issuer.becomes(mood.clone());
        assert_eq!(ci.refusal(&ci.token(json!({}))).await.0, 503, "{mood:?}");
        assert_eq!(ci.issuer.requests().len(), requests, "{mood:?}");
    }
    assert_eq!(other.requests(), []);
}

#[tokio::test]
async fn a_slow_issuer_holds_up_no_other_login() {
    let ci = Ci::start().await;
    ci.issuer.becomes(Mood::Slow(Duration::from_secs(60)));
    let (basic_token, token) = (basic("ci", &ci.token(json!({}))), ci.token(json!({})));
    let waiting = join_all((0..20).map(|_| ci.access.get("/v2/", &basic_token)));
    let others = async {
        for _ in 0..20 {
            assert_eq!(ci.access.get("/v2/", &login("ann")).await.status, 200);
        }
    };
    let (waited, ()) = tokio::join!(waiting, others);
    assert!(waited.iter().all(|answer| answer.status == 503), "{:?}", waited[0]);
    assert_eq!(ci.issuer.fetches(), 1);
    assert_eq!(ci.status(&token).await, 503);
}

#[tokio::test]
async fn a_client_that_leaves_does_not_stop_the_fetch() {
    let ci = Ci::start().await;
    ci.issuer.becomes(Mood::Slow(Duration::from_millis(300)));
    let token = ci.token(json!({}));
    // It leaves while the keys are fetched.
    let left = tokio::time::timeout(Duration::from_millis(100), ci.status(&token)).await;
    assert!(left.is_err());
    assert_eq!(ci.status(&token).await, 200);
    assert_eq!(ci.issuer.fetches(), 1);
}

#[tokio::test]
async fn tokens_of_ours_die_with_the_configuration_of_the_issuer() {
    let mut ci = Ci::start().await;
    let bearer = ci.access.token(PUSH, &basic("ci", &ci.token(json!({})))).await;
    ci.issuer.becomes(Mood::Down);
    assert_eq!(ci.access.push("team/app", &bearer).await, 201, "it needs the issuer no more");
    ci.access.server.restart().await;
    assert_eq!(ci.access.get(TAGS, &bearer).await.status, 200);
    ci.access.server.restart_with("").await;
    assert_eq!(ci.access.get(TAGS, &bearer).await.status, 200);
    ci.access.server.restart_with("[auth.issuer.ci]\nrequire = { repository = \"acme/other\" }").await;
    let answer = ci.access.get(TAGS, &bearer).await;
    assert!(answer.header("www-authenticate").ends_with("error=\"invalid_token\""), "{answer:?}");
}

#[tokio::test]
async fn groups_of_a_token_have_rights_that_tokens_of_ours_keep() {
    let ci = Ci::with_keys("groups = \"/realm/roles\"").await;
    let many: Vec<String> = (0..500).map(|n| format!("group {n}")).chain(["dev".to_owned()]).collect();
    let token = basic("ann", &ci.token(json!({ "realm": { "roles": many } })));
    let outsider = basic("eve", &ci.token(json!({ "sub": "eve", "realm": { "roles": ["ops"] } })));
    assert_eq!(ci.access.push("team/app", &login("ann")).await, 201);
    let bearer = ci.access.token(PUSH, &token).await;
    assert!(bearer.len() < 500, "only groups of rules are in it: {}", bearer.len());
    for who in [&token, &bearer] {
        assert_eq!(ci.access.get(TAGS, who).await.status, 200);
        assert_eq!(ci.access.push("team/app", who).await, 403);
    }
    assert_eq!(ci.access.get(TAGS, &outsider).await.status, 403);
}

#[tokio::test]
async fn a_cluster_without_users_asks_for_a_token_of_its_own_to_fetch_keys() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("token");
    std::fs::write(&file, "first\n").unwrap();
    let key = Key::rsa();
    let issuer = Issuer::start(&[key.jwk("one")]).await;
    // Its address for itself is another one. The token must not go there, and need not.
    let elsewhere = Issuer::start(&[]).await;
    issuer.becomes(Mood::Wants("second".to_owned()));
    let toml = format!(
        "[local]\nnamespaces = [\"team/**\"]\n{}",
        config(&issuer, &format!("bearer_token_file = {file:?}")).replace("ci:acme/*", "ci:system:serviceaccount:ci:*")
    );
    let server = crate::support::TestServer::builder().config(&toml).start().await;
    let claims = issuer.claims(json!({ "sub": "system:serviceaccount:ci:builder" }));
    let token = basic("x", &key.sign("one", &claims));
    let status = async || server.get_with("/v2/", &[("Authorization", &token)]).await.status;
    assert_eq!(status().await, 503);
    // It is read for each fetch.
    std::fs::write(&file, "second\n").unwrap();
    issuer.becomes(Mood::Says { issuer: None, keys: Some(format!("{}/keys", elsewhere.url)) });
    while status().await == 503 {
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    assert_eq!(status().await, 200);
    let sent = |token: &str| Some(format!("Bearer {token}"));
    let (first, second) = (sent("first"), sent("second"));
    let expected = [(DISCOVERY, first), (DISCOVERY, second.clone()), ("/keys", second)];
    assert_eq!(issuer.requests(), expected.map(|(path, token)| (path.to_owned(), token)));
    assert_eq!(elsewhere.requests(), []);
    let wrong = server.get_with("/v2/", &[("Authorization", &basic("ann", "secret"))]).await;
    assert_eq!(wrong.status, 401, "there are no users");
}

#[tokio::test]
async fn keys_of_a_file_are_used_where_nothing_can_be_fetched() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("keys.json");
    let (one, two) = (Key::ec(), Key::ec());
    std::fs::write(&file, json!({ "keys": [one.jwk("one")] }).to_string()).unwrap();
    let issuer = Issuer::start(&[]).await;
    let keys = format!("name = \"repository\"\njwks_file = {file:?}");
    let access = Access::start(&format!("{}{}", super::RULES, config(&issuer, &keys))).await;
    let claims = issuer.claims(json!({ "repository": "acme/app" }));
    let status = async |token: String| access.get("/v2/", &basic("ci", &token)).await.status;
    assert_eq!(status(one.sign("one", &claims)).await, 200);
    assert_eq!(status(two.sign("two", &claims)).await, 401);
    std::fs::write(&file, "{}").unwrap();
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert_eq!(status(one.sign("one", &claims)).await, 200, "a broken file changes nothing");
    std::fs::write(&file, json!({ "keys": [two.jwk("two")] }).to_string()).unwrap();
    while status(two.sign("two", &claims)).await != 200 {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(issuer.requests(), []);
}

#[tokio::test]
async fn keys_are_fetched_by_https_from_a_trusted_issuer_alone() {
    let authority = Authority::new();
    let ca = authority.write("ca.pem", &authority.ca);
    let key = Key::rsa();
    let issuer = Issuer::start_tls(&[key.jwk("one")], &authority).await;
    for (keys, status) in [(format!("ca_file = {ca:?}"), 200), (String::new(), 503)] {
        let keys = format!("name = \"repository\"\n{keys}");
        let access = Access::start(&format!("{}{}", super::RULES, config(&issuer, &keys))).await;
        let token = key.sign("one", &issuer.claims(json!({ "repository": "acme/app" })));
        assert_eq!(access.get("/v2/", &basic("ci", &token)).await.status, status, "{keys}");
    }
}

/// The configurations in a section of `docs/security.md`, with this issuer instead of the one there.
fn recipes(heading: &str, issuer: &str) -> Vec<String> {
    let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/security.md")).unwrap();
    let section = page.split("\n## ").find(|section| section.starts_with(heading)).unwrap();
    let blocks = section.split("```toml\n").skip(1).map(|block| block.split("```").next().unwrap());
    let line = |line: &str| match line.trim() {
        line if line.starts_with("issuer = ") => format!("issuer = {issuer:?}"),
        line if line.starts_with("ca_file = ") || line.starts_with("bearer_token_file = ") => String::new(),
        line => line.to_owned(),
    };
    blocks.map(|block| block.lines().map(line).collect::<Vec<_>>().join("\n")).collect()
}

#[tokio::test]
async fn the_recipes_work_as_written() {
    let key = Key::rsa();
    let issuer = Issuer::start(&[key.jwk("one")]).await;
    let github = json!({ "repository": "acme/app", "repository_owner_id": "1234", "ref": "refs/heads/main" });
    let gitlab = json!({ "project_path": "acme/sub/app", "namespace_id": "5678", "ref_protected": "true" });
    let pod = json!({ "sub": "system:serviceaccount:ci:builder" });
    let ann = json!({ "aud": "registry", "preferred_username": "ann", "groups": ["/dev", "/ops"] });
    for (heading, claims) in
        [("CI by OIDC", &[github, gitlab][..]), ("Kubernetes service accounts", &[pod]), ("People by OIDC", &[ann])]
    {
        let recipes = recipes(heading, &issuer.url);
        assert_eq!(recipes.len(), claims.len(), "{heading}");
        for (recipe, claims) in recipes.iter().zip(claims) {
            let toml = format!("[local]\nnamespaces = [\"team/**\"]\n{recipe}");
            let server = crate::support::TestServer::builder().config(&toml).start().await;
            let status = async |audience: &str, change: &str, value: Value| {
                let mut claims_of_token = issuer.claims(claims.clone());
                if claims_of_token["aud"] == "cache.example" {
                    claims_of_token["aud"] = json!(audience);
                }
                claims_of_token[change] = value;
                let token = basic("ci", &key.sign("one", &claims_of_token));
                server.send("POST", "/v2/team/app/blobs/uploads/", &[("Authorization", &token)], "").await.status
            };
            assert_eq!(status("cache.example.com", "x", json!(1)).await, 202, "{recipe}");
            assert_eq!(status("other", "aud", json!("other")).await, 401, "{recipe}");
            for claim in claims.as_object().unwrap().keys().filter(|claim| *claim != "aud") {
                let refused = status("cache.example.com", claim, json!("evil/x")).await;
                assert!([401, 403].contains(&refused) || claim == "preferred_username", "{claim} {refused}: {recipe}");
            }
        }
    }
}

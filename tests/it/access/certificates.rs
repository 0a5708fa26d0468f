//! Rights of client certificates, over real TLS.

use bytes::Bytes;
use rcgen::SanType;

use super::{Access, CLOSED, basic, bearer, login};
use crate::support::metrics::Metrics;
use crate::support::{Answer, Authority, Client, Content};

const RULES: &str = r#"
    [[auth.rule]]
    who = ["cert:spiffe://cluster/ns/*/node"]
    on = ["team/**", "docker.io/**"]
    may = ["pull"]
    [[auth.rule]]
    who = ["cert:builder.example"]
    on = ["team/**"]
    may = ["pull", "push"]
    [[auth.rule]]
    who = ["ann"]
    on = ["other/*"]
    may = ["pull", "push"]
    [[auth.rule]]
    who = ["bob"]
    may = ["metrics"]
    [metrics]
    auth = true
    "#;

struct Encrypted {
    access: Access,
    authority: Authority,
    clients: Authority,
}

impl Encrypted {
    async fn start(rules: &str, client_auth: &str) -> Self {
        let (authority, clients) = (Authority::new(), Authority::new());
        let client_ca = authority.write("clients.pem", &clients.ca);
        let tls = format!("{}client_ca = {client_ca:?}\n{client_auth}", authority.config("server"));
        Self { access: Access::configured(rules, &tls).await, authority, clients }
    }

    /// A client with a certificate that has these names.
    fn client(&self, names: Vec<SanType>) -> Client {
        Client::trusting(&self.authority.ca, Some(&self.clients.sign_for("admin", names).identity()))
    }

    fn url(&self, path: &str) -> String {
        format!("https://{}{path}", self.access.server.addr())
    }

    async fn get(&self, client: &Client, path: &str, authorization: &str) -> Answer {
        let headers = [("Authorization", authorization)];
        let headers = if authorization.is_empty() { &headers[..0] } else { &headers[..] };
        client.get_with(&self.url(path), headers).await
    }

    async fn push(&self, client: &Client, repository: &str, authorization: &str) -> u16 {
        let headers = [("Authorization", authorization)];
        let headers = if authorization.is_empty() { &headers[..0] } else { &headers[..] };
        let image = &self.access.image;
        for Content { digest, bytes, .. } in image.blobs() {
            let url = self.url(&format!("/v2/{repository}/blobs/uploads/?digest={digest}"));
            let answer = client.send("POST", &url, headers, bytes.clone()).await;
            if answer.status != 201 {
                return answer.status;
            }
        }
        let headers = [headers, &[("Content-Type", &*image.manifest.media_type)]].concat();
        let url = self.url(&format!("/v2/{repository}/manifests/v1"));
        client.send("PUT", &url, &headers, image.manifest.bytes.clone()).await.status
    }
}

fn uri(text: &str) -> SanType {
    SanType::URI(text.try_into().unwrap())
}

fn dns(text: &str) -> SanType {
    SanType::DnsName(text.try_into().unwrap())
}

#[tokio::test]
async fn a_certificate_has_the_rights_of_its_name() {
    let tls = Encrypted::start(RULES, "client_auth = \"optional\"").await;
    let node = tls.client(vec![dns("builder.example"), uri("spiffe://cluster/ns/a/node")]);
    let builder = tls.client(vec![dns("Builder.example"), dns("other.example")]);
    let other = tls.client(vec![uri("spiffe://cluster/ns/a/b/node")]);
    let nameless = tls.client(vec![]);
    let nobody = Client::trusting(&tls.authority.ca, None);
    for (client, status) in [(&node, 200), (&builder, 200), (&other, 200), (&nameless, 401), (&nobody, 401)] {
        assert_eq!(tls.get(client, "/v2/", "").await.status, status);
        // As podman does without a login.
        assert_eq!(tls.get(client, "/v2/", "Basic Og==").await.status, status);
    }
    assert_eq!(tls.push(&node, "team/app", "").await, 403);
    assert_eq!(tls.push(&builder, "team/app", "").await, 201);
    assert_eq!(tls.push(&builder, "other/app", "").await, 403);
    assert_eq!(tls.push(&nobody, "team/app", "").await, 401);
    for path in ["/v2/team/app/manifests/v1", "/v2/library/alpine/manifests/1"] {
        for (client, status) in [(&node, 200), (&other, 403), (&nameless, 401), (&nobody, 401)] {
            assert_eq!(tls.get(client, path, "").await.status, status, "{path}");
        }
    }
    let catalog = tls.get(&node, "/v2/_catalog", "").await;
    assert_eq!(catalog.json()["repositories"], serde_json::json!(["team/app"]));
}

#[tokio::test]
async fn a_password_or_token_takes_precedence() {
    let tls = Encrypted::start(RULES, "client_auth = \"optional\"").await;
    let builder = tls.client(vec![dns("builder.example")]);
    assert_eq!(tls.push(&builder, "team/app", "").await, 201);
    assert_eq!(tls.push(&builder, "other/app", &login("ann")).await, 201);
    assert_eq!(tls.push(&builder, "team/app", &login("ann")).await, 403);
    for wrong in [basic("ann", "wrong"), "Bearer x".to_owned()] {
        for path in ["/v2/", "/v2/team/app/manifests/v1"] {
            assert_eq!(tls.get(&builder, path, &wrong).await.status, 401, "{path} {wrong}");
        }
    }
    let scope = "/auth/token?scope=repository:other/app:pull";
    let token = bearer(&tls.get(&builder, scope, &login("ann")).await);
    assert_eq!(tls.get(&builder, "/v2/other/app/manifests/v1", &token).await.status, 200);
    assert_eq!(tls.get(&builder, "/v2/team/app/manifests/v1", &token).await.status, 403);
}

#[tokio::test]
async fn a_token_for_a_certificate_is_for_nobody_elsewhere() {
    let tls = Encrypted::start(RULES, "client_auth = \"optional\"").await;
    let builder = tls.client(vec![dns("builder.example")]);
    assert_eq!(tls.push(&builder, "team/app", "").await, 201);
    let scope = "/auth/token?scope=repository:team/app:pull";
    let token = bearer(&tls.get(&builder, scope, "").await);
    let form = [("Content-Type", "application/x-www-form-urlencoded")];
    let posted = builder.send("POST", &tls.url("/auth/token"), &form, Bytes::from("grant_type=password")).await;
    for token in [token, bearer(&posted)] {
        assert_eq!(tls.get(&builder, "/v2/team/app/manifests/v1", &token).await.status, 200);
        assert_eq!(tls.push(&builder, "team/b", &token).await, 201);
        let other = tls.client(vec![dns("other.example")]);
        assert_eq!(tls.get(&other, "/v2/team/app/manifests/v1", &token).await.status, 403);
        let nobody = Client::trusting(&tls.authority.ca, None);
        assert_eq!(tls.get(&nobody, "/v2/team/app/manifests/v1", &token).await.status, 401);
    }
    // Where nobody may do anything, only a certificate gets one.
    let nobody = Client::trusting(&tls.authority.ca, None);
    for client in [nobody, tls.client(vec![])] {
        assert_eq!(tls.get(&client, scope, "").await.status, 401);
    }
}

#[tokio::test]
async fn a_certificate_that_cannot_be_verified_ends_the_handshake() {
    for client_auth in ["", "client_auth = \"required\"", "client_auth = \"optional\""] {
        let tls =
            Encrypted::start(&format!("{CLOSED}[[auth.rule]]\nwho = \"bob\"\nmay = \"metrics\"\n"), client_auth).await;
        let forged = Authority::new().sign_for("admin", vec![dns("builder.example")]);
        let forged = Client::trusting(&tls.authority.ca, Some(&forged.identity()));
        assert!(forged.try_send("GET", &tls.url("/healthz"), &[], "").await.is_err(), "{client_auth}");
        let nobody = Client::trusting(&tls.authority.ca, None).try_send("GET", &tls.url("/healthz"), &[], "").await;
        assert_eq!(nobody.is_ok(), client_auth.contains("optional"), "{client_auth}");
        let known = tls.client(vec![dns("builder.example")]);
        let metrics = Metrics::parse(tls.get(&known, "/metrics", "").await.text());
        let attempts = |result| metrics.sum("roadstead_auth_attempts_total", &[("how", "cert"), ("result", result)]);
        assert_eq!(attempts("accepted"), 1.0);
        assert_eq!(attempts("refused"), if nobody.is_ok() { 1.0 } else { 2.0 }, "{client_auth}");
    }
}
